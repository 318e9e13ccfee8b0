"""A zip from outside, opened without trusting it: its directory is checked before a byte of it is unpacked.

Python's zipfile reads it, but it reads any amount at once and accepts names that leave the folder, links, compression
that another extractor may not know, absurd sizes, and local headers that differ from the directory (two extractors
would then see two archives). This file checks for all of these.
"""

import errno
import io
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from grpo_kit.adapters.findings import Refused, printable, printable_list

MOST_AT_ONCE = 2 << 20  # bytes; the directory of a zip with a thousand members has about 100,000
MOST_MEMBERS = 1000
MOST_UNPACKED = 16 << 30  # bytes; an adapter of all linear layers at rank 32 in float32 has 3.3 GiB
# A member of BOMB_SIZE bytes or more must not be more than BOMB_RATIO times its packed size.
BOMB_RATIO, BOMB_SIZE = 100, 64 << 20
OTHER_FORMATS = {
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
# What zipfile, zlib and the parsing around them raise on bytes that are not a zip, or a damaged one.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    LookupError,
)
PACK_AGAIN = "Pack the adapter again with grpo-kit package."
FAILS = "It cannot be unpacked, so the submission will fail."


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip at `path`, its directory checked.

    Raises:
        Refused: it is not a zip, damaged, or one of the things that this module's checks reject.
        OSError: the file itself cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
    with _BoundedFile(path) as file:
        try:
            zipped = zipfile.ZipFile(file)
        except DAMAGED as error:
            other = next((name for magic, name in OTHER_FORMATS.items() if start.startswith(magic)), None)
            raise _damaged(path.name, error, f"{path.name} is a {other} file, not a zip" if other else None) from None
        with zipped:
            entries = zipped.infolist()
            if len(entries) > MOST_MEMBERS:
                what = f"{path.name} holds {len(entries):,} members; a submission has two."
                raise Refused("too-many-members", what, FAILS, PACK_AGAIN)
            for entry in entries:
                _check_name(entry)
                _check_kind(entry)
            _check_sizes(entries)
            try:
                _check_layout(zipped, entries, file)
            except DAMAGED as error:
                raise error if isinstance(error, Refused) else _damaged(path.name, error) from None
            yield zipped


def unpack_member(zipped: zipfile.ZipFile, name: str, target: Path | None, largest: int = MOST_UNPACKED) -> None:
    """Unpack a member of an opened zip.

    Args:
        zipped: from `open_zip`.
        name: the member's name.
        target: the file to write; None only reads the member to its end, where its checksum is compared.
        largest: more bytes are refused before the first is read.

    Raises:
        Refused: it has more than `largest` bytes, or it is damaged.
        OSError: the disk has no room for it.
    """
    if (size := zipped.getinfo(name).file_size) > largest:
        what = f"{printable(name)} unpacks to {size:,} bytes; at most {largest:,} are read."
        raise Refused("too-large", what, FAILS, PACK_AGAIN)
    if target and (free := shutil.disk_usage(target.parent).free) < size:
        raise OSError(
            errno.ENOSPC,
            f"Unpacking takes {size / 2**30:.2f} GiB, and the disk of {target.parent} has {free / 2**30:.2f} GiB "
            "free. Make room, or name a folder on another disk in the environment variable TMPDIR.",
        )
    with target.open("wb") if target else nullcontext() as file:
        for piece in _read_member(zipped, name):
            if file:
                file.write(piece)


def _read_member(zipped: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    try:
        with zipped.open(name) as member:
            while piece := member.read(MOST_AT_ONCE):
                yield piece
    except DAMAGED as error:
        raise _damaged(f"{printable(name)} in {Path(str(zipped.filename or 'the zip')).name}", error) from None


def _damaged(name: str, error: BaseException, what: str | None = None) -> Refused:
    what = what or f"{name} is not a zip that can be read ({printable(' '.join(str(error).split()))})"
    return Refused("not-a-zip", f"{what}.", FAILS, PACK_AGAIN)


class _BoundedFile(io.FileIO):
    """A file that refuses large reads, because zipfile reads the directory in one piece, whatever size it claims."""

    def read(self, size: int | None = -1) -> bytes:
        bounded = size is not None and 0 <= size <= MOST_AT_ONCE
        data = super().read(size if bounded else MOST_AT_ONCE + 1)
        if len(data) > MOST_AT_ONCE:
            raise ValueError(f"its directory has more than {MOST_AT_ONCE:,} bytes")
        return data


def _check_name(entry: zipfile.ZipInfo) -> None:
    """Refuse a name that leaves the folder it is unpacked into, or that readers may understand differently."""
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
            "unsafe-path",
            f"A member is named {printable(name) or 'nothing'}; names are plain and relative.",
            "An extractor refuses it, or writes outside the folder.",
            PACK_AGAIN,
        )


def _check_kind(entry: zipfile.ZipInfo) -> None:
    """Refuse a member that is not a file or a folder, stored or deflated."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.create_system == 3 and kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "a special file"
        raise Refused("link", f"{printable(entry.filename)} is {what}; a submission holds files.", FAILS, PACK_AGAIN)
    if entry.flag_bits & 0x2061:  # encrypted, patched, strongly encrypted, masked headers
        raise Refused("encrypted", f"{printable(entry.filename)} is encrypted.", FAILS, "Pack it without a password.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(
            "compression",
            f"{printable(entry.filename)} is compressed by method {entry.compress_type}.",
            "Not every extractor knows it: the submission may fail.",
            "Store or deflate it; grpo-kit package stores.",
        )


def _check_sizes(entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename.removesuffix("/") for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(
            "member-twice",
            f"{printable_list(twice)} is in the zip more than once.",
            "The extractor decides which of them it reads.",
            PACK_AGAIN,
        )
    if (total := sum(entry.file_size for entry in entries)) > MOST_UNPACKED:
        raise Refused("bomb", f"It unpacks to {total:,} bytes; at most {MOST_UNPACKED:,} are read.", FAILS, PACK_AGAIN)
    for entry in entries:
        if entry.file_size >= BOMB_SIZE and entry.file_size > BOMB_RATIO * entry.compress_size:
            what = f"{printable(entry.filename)} unpacks from {entry.compress_size:,} to {entry.file_size:,} bytes"
            raise Refused(
                "bomb", f"{what}; weights do not compress that far.", "Unpacking it would fill the disk.", PACK_AGAIN
            )


def _check_layout(zipped: zipfile.ZipFile, entries: list[zipfile.ZipInfo], file: BinaryIO) -> None:
    """Refuse a member whose own header differs from the directory, or that overlaps another member or the directory."""
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
            or any(local not in (listed, 0xFFFFFFFF) and not (streamed and local == 0) for local, listed in sizes)
            or (method == zipfile.ZIP_STORED and entry.compress_size != entry.file_size)
        ):
            raise Refused(
                "ambiguous",
                f"{printable(entry.filename)} has two different headers in the zip.",
                "The extractor decides which of them it believes.",
                PACK_AGAIN,
            )
        if data + entry.compress_size > end:
            raise Refused(
                "overlap", f"{printable(entry.filename)} lies over another member or the zip's end.", FAILS, PACK_AGAIN
            )
        end = entry.header_offset
