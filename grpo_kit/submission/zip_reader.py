"""A zip from outside, opened without trusting it: what is in it is known before a byte is unpacked, and nothing is written.

Python's zipfile does the reading. Around it stands what it leaves to its caller: a bound on what is read at once, names
that stay inside, no member twice or over another, no links, no encryption, no compression that the scorer's extraction
may not know, declared sizes that are sane and local headers that say the same as the directory (two readers must not
see two archives). Members are read as streams; the checksum is compared when a member was read to its end.
"""

import contextlib
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from grpo_kit.submission.findings import Refused, listed, shown

AT_ONCE = 2 << 20  # bytes; the directory of a zip with a thousand members has about 100,000
MEMBERS = 1000
TOTAL = 16 << 30  # bytes unpacked; all-linear rank 32 in float32 has 3.3 GiB
RATIO, FROM = 100, 64 << 20  # unpacked over packed, for members of FROM bytes and more
OTHERS = {
    b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR", b"\xfd7zXZ": "xz", b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}  # fmt: skip
# What zipfile, zlib and the parsing around them raise on bytes that are no zip, or a damaged one.
DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError,
    OverflowError, LookupError,
)  # fmt: skip
AGAIN = "Pack the adapter again with grpo-kit package."
FAILS = "It cannot be unpacked: the submission fails."


class Archive:
    """An open zip whose directory has been checked. `members`: {name: entry} of files, folders left out."""

    def __init__(self, zipped: zipfile.ZipFile, name: str) -> None:
        self.zipped, self.name = zipped, name
        self.members = {info.filename: info for info in zipped.infolist() if not info.is_dir()}

    @contextlib.contextmanager
    def stream(self, member: str) -> Iterator["Member"]:
        """The member's bytes, to be read forwards only. Raises Refused where they are damaged."""
        name = f"{shown(member)} in {self.name}"
        try:
            file = self.zipped.open(self.members[member])
        except DAMAGED as error:
            raise damaged(name, error) from None
        with file:
            yield Member(file, name)

    def verify(self, member: str) -> None:
        """Read the member to its end, where its checksum is compared, and forget it. Raises Refused."""
        with self.stream(member) as file:
            while file.read(AT_ONCE):
                pass

    def read(self, member: str, largest: int) -> bytes:
        """The whole member. Raises Refused when it is damaged or has more than `largest` bytes."""
        if (size := self.members[member].file_size) > largest:
            raise Refused(
                "too-large", f"{shown(member)} unpacks to {size:,} bytes; at most {largest:,} are sane.", FAILS, AGAIN
            )
        with self.stream(member) as file:
            return file.read(size + 1)


class Member:
    """A member's bytes as a stream whose damage is a finding."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file, self.name = file, name

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end, where the checksum is compared. Raises Refused."""
        try:
            return self.file.read(size)
        except DAMAGED as error:
            raise damaged(self.name, error) from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The zip at `path`, its directory checked. Raises Refused for anything that is not a sane zip; OSError when the file
    itself cannot be read."""
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        bounded = _Bounded(file)
        try:
            zipped = zipfile.ZipFile(bounded)
        except DAMAGED as error:
            kind = next((kind for magic, kind in OTHERS.items() if start.startswith(magic)), None)
            what = f"{path.name} is a {kind} file, not a zip" if kind else None
            raise damaged(path.name, error, what) from None
        with zipped:
            entries = zipped.infolist()
            if len(entries) > MEMBERS:
                raise Refused(
                    "too-many-members", f"{path.name} holds {len(entries):,} members; two are wanted.", FAILS, AGAIN
                )
            for entry in entries:
                _check_name(entry)
                _check_kind(entry)
            _check_sizes(entries)
            try:
                _check_layout(zipped, entries, bounded)
            except DAMAGED as error:
                raise error if isinstance(error, Refused) else damaged(path.name, error) from None
            yield Archive(zipped, path.name)


def damaged(name: str, error: BaseException, what: str | None = None) -> Refused:
    what = what or f"{name} is not a zip that can be read ({shown(' '.join(str(error).split()))})"
    return Refused("not-a-zip", f"{what}.", FAILS, AGAIN)


class _Bounded(io.RawIOBase):
    """A file of which nobody can read much at once: zipfile reads a directory whole, whatever size it claims to have."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(AT_ONCE + 1 if size is None or size < 0 or size > AT_ONCE else size)
        if len(data) > AT_ONCE:
            raise ValueError(f"its directory has more than {AT_ONCE:,} bytes")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _check_name(entry: zipfile.ZipInfo) -> None:
    """A name must lie inside wherever it is unpacked, and mean the same to every reader."""
    name = entry.orig_filename  # zipfile cuts `filename` at a NUL
    parts = name.removesuffix("/").split("/")
    if (
        any(part in ("", ".", "..") for part in parts)
        or "\\" in name
        or parts[0][1:2] == ":"
        or not name.isprintable()
        or len(name) > 255
    ):
        raise Refused(
            "unsafe-path", f"A member is named {shown(name) or 'nothing'}; names are plain, relative and stay inside.",
            "Whoever unpacks it refuses it, or writes somewhere else.", AGAIN,
        )  # fmt: skip


def _check_kind(entry: zipfile.ZipInfo) -> None:
    """A member is a file or a folder, plain or deflated."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.create_system == 3 and kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "a special file"
        raise Refused("link", f"{shown(entry.filename)} is {what}; a submission holds files.", FAILS, AGAIN)
    if entry.flag_bits & 0x2061:  # encrypted, patched, strongly encrypted, masked headers
        raise Refused("encrypted", f"{shown(entry.filename)} is encrypted.", FAILS, "Pack it without a password.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(
            "compression", f"{shown(entry.filename)} is compressed by method {entry.compress_type}.",
            "Not every extractor knows it: the submission may fail.", "Store or deflate it; grpo-kit package stores.",
        )  # fmt: skip


def _check_sizes(entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename.removesuffix("/") for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(
            "member-twice", f"{listed(twice)} is in the zip more than once.",
            "Which of them it would read depends on the extractor.", AGAIN,
        )  # fmt: skip
    if (total := sum(entry.file_size for entry in entries)) > TOTAL:
        raise Refused("bomb", f"It unpacks to {total:,} bytes; at most {TOTAL:,} are sane.", FAILS, AGAIN)
    for entry in entries:
        if entry.file_size >= FROM and entry.file_size > RATIO * entry.compress_size:
            what = f"{shown(entry.filename)} unpacks from {entry.compress_size:,} to {entry.file_size:,} bytes"
            raise Refused("bomb", f"{what}; weights do not compress so.", "It unpacks a bomb, or nothing.", AGAIN)


def _check_layout(zipped: zipfile.ZipFile, entries: list[zipfile.ZipInfo], file: Any) -> None:
    """Each member's own header says what the directory says, and no member lies over another or over the directory."""
    end = zipped.start_dir
    for entry in sorted(entries, key=lambda entry: entry.header_offset, reverse=True):
        file.seek(entry.header_offset)
        fields = struct.unpack("<4s5H3L2H", file.read(30))
        magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = fields
        raw = file.read(name_length)
        name = raw.decode("utf-8" if flags & 0x800 else "cp437")
        data = entry.header_offset + 30 + name_length + extra_length
        streamed = flags & 8  # sizes and checksum follow the data
        sizes = [(packed, entry.compress_size), (size, entry.file_size), (crc, entry.CRC)]
        if (
            magic != b"PK\3\4"
            or name != entry.orig_filename
            or method != entry.compress_type
            or (flags ^ entry.flag_bits) & 0x2069
            or any(said not in (known, 0xFFFFFFFF) and not (streamed and said == 0) for said, known in sizes)
            or (method == zipfile.ZIP_STORED and entry.compress_size != entry.file_size)
        ):
            raise Refused(
                "ambiguous", f"{shown(entry.filename)} is one thing in the zip's directory and another where it lies.",
                "What it reads depends on the extractor.", AGAIN,
            )  # fmt: skip
        if data + entry.compress_size > end:
            raise Refused(
                "overlap", f"{shown(entry.filename)} lies over another member or the zip's end.", FAILS, AGAIN
            )
        end = entry.header_offset
