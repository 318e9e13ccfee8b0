"""Zips from outside: what is unsafe, damaged or ambiguous is refused by name, and sound ones of any make are opened."""

import errno
import io
import shutil
import struct
import zipfile
import zlib

import pytest

from grpo_kit.adapters.findings import Refused
from grpo_kit.submission import zip_reader


def zipped(members=(("a.txt", b"hello"),), how=zipfile.ZIP_STORED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", how) as file:
        for name, content in members:
            file.writestr(name, content)
    return data.getvalue()


def info(name, **fields):
    made = zipfile.ZipInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def patched(data, *changes):
    """`data` with (magic, offset behind it, struct format, value) set in every record of that magic."""
    data = bytearray(data)
    for magic, offset, form, value in changes:
        at = data.find(magic)
        while at >= 0:
            struct.pack_into(form, data, at + offset, value)
            at = data.find(magic, at + 4)
    return bytes(data)


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


def renamed(name):
    """A member whose name zipfile itself would not write: as many bytes as `name` has are put in place afterwards."""
    return zipped([("x" * len(name), b"hello")]).replace(b"x" * len(name), name)


def quoted():
    """Two members in the space of one: the second's header and data lie inside the first's data."""
    inner = struct.pack("<4s5H3L2H", LOCAL, 20, 0, 0, 0, 33, zlib.crc32(b"hello"), 5, 5, 1, 0) + b"b" + b"hello"
    whole = bytearray(zipped([("a", inner)]))
    at = whole.find(LOCAL, 4)
    central = struct.pack("<4s6H3L5H2L", CENTRAL, 20, 20, 0, 0, 0, 33, zlib.crc32(b"hello"), 5, 5, 1, 0, 0, 0, 0, 0, at)
    end = whole.find(END)
    whole[end:end] = central + b"b"
    return patched(bytes(whole), (END, 8, "<H", 2), (END, 10, "<H", 2), (END, 12, "<L", 47 + 47))


def twice():
    with pytest.warns(UserWarning, match="Duplicate name"):
        return zipped([("a", b"1"), ("a", b"2")])


WHOLE = zipped([("a.txt", b"hello" * 100)])
REFUSED = {
    # no zip, or not any more
    "nothing": (lambda: b"", "not-a-zip"),
    "two letters": (lambda: b"PK", "not-a-zip"),
    "words": (lambda: b"not a zip at all", "not-a-zip"),
    "a gzip": (lambda: b"\x1f\x8b\x08" + bytes(50), "not-a-zip"),
    "cut in half": (lambda: WHOLE[: len(WHOLE) // 2], "not-a-zip"),
    "without its last byte": (lambda: WHOLE[:-1], "not-a-zip"),
    "without its first bytes": (lambda: WHOLE[10:], "not-a-zip"),
    "a directory that claims to be huge": (lambda: patched(WHOLE, (END, 12, "<L", 0xFFFFFFF0)), "not-a-zip"),
    "a large directory": (lambda: zipped([(info(str(i), comment=b"c" * 65_000), b"") for i in range(40)]), "not-a-zip"),
    "members beyond its end": (lambda: patched(WHOLE, (CENTRAL, 42, "<L", 1 << 30)), "not-a-zip"),
    # names
    "a name that climbs": (lambda: zipped([("../a", b"")]), "unsafe-path"),
    "a name that climbs later": (lambda: zipped([("a/../../b", b"")]), "unsafe-path"),
    "an absolute name": (lambda: renamed(b"/etc/pw"), "unsafe-path"),
    "a drive": (lambda: renamed(b"C:/a.txt"), "unsafe-path"),
    "backslashes": (lambda: renamed(b"..\\a.txt"), "unsafe-path"),
    "an empty part": (lambda: renamed(b"a//b"), "unsafe-path"),
    "a dot": (lambda: renamed(b"./a"), "unsafe-path"),
    "no name": (lambda: zipped([(info(""), b"")]), "unsafe-path"),
    "a NUL": (lambda: renamed(b"a.txt\0b"), "unsafe-path"),
    "a newline": (lambda: renamed(b"a\nb"), "unsafe-path"),
    "an escape sequence": (lambda: renamed(b"a\x1b[2Jb"), "unsafe-path"),
    "a very long name": (lambda: zipped([("a" * 300, b"")]), "unsafe-path"),
    # kinds
    "a symbolic link": (lambda: zipped([(info("a", external_attr=0o120777 << 16), b"/etc/passwd")]), "link"),
    "a device": (lambda: zipped([(info("a", external_attr=0o020666 << 16), b"")]), "link"),
    "encrypted": (lambda: patched(WHOLE, (LOCAL, 6, "<H", 1), (CENTRAL, 8, "<H", 1)), "encrypted"),
    "strongly encrypted": (lambda: patched(WHOLE, (LOCAL, 6, "<H", 0x41), (CENTRAL, 8, "<H", 0x41)), "encrypted"),
    "bzip2": (lambda: zipped([("a", b"x")], zipfile.ZIP_BZIP2), "compression"),
    "LZMA": (lambda: zipped([("a", b"x")], zipfile.ZIP_LZMA), "compression"),
    "a method nobody knows": (lambda: patched(WHOLE, (LOCAL, 8, "<H", 99), (CENTRAL, 10, "<H", 99)), "compression"),
    # sizes
    "a bomb": (lambda: zipped([("a", bytes(70 << 20))], zipfile.ZIP_DEFLATED), "bomb"),
    "terabytes by its own word": (
        lambda: patched(
            zipped(how=zipfile.ZIP_DEFLATED), (CENTRAL, 24, "<L", 0xFFFFFFFE), (LOCAL, 22, "<L", 0xFFFFFFFE)
        ),
        "bomb",
    ),
    "a thousand and one members": (lambda: zipped([(str(i), b"") for i in range(1001)]), "too-many-members"),
    # two archives in one
    "a name twice": (twice, "member-twice"),
    "a file and a folder of one name": (lambda: zipped([("a", b""), ("a/", b"")]), "member-twice"),
    "another name where it lies": (lambda: patched(WHOLE, (LOCAL, 30, "<B", ord("b"))), "ambiguous"),
    "another size where it lies": (lambda: patched(WHOLE, (LOCAL, 22, "<L", 499)), "ambiguous"),
    "another method where it lies": (lambda: patched(WHOLE, (LOCAL, 8, "<H", 8)), "ambiguous"),
    "stored, and of two sizes": (
        lambda: patched(WHOLE, (LOCAL, 22, "<L", 5000), (CENTRAL, 24, "<L", 5000)),
        "ambiguous",
    ),
    "one in the other": (quoted, "overlap"),
    "over its own directory": (
        lambda: patched(
            WHOLE, (LOCAL, 18, "<L", 900), (LOCAL, 22, "<L", 900), (CENTRAL, 20, "<L", 900), (CENTRAL, 24, "<L", 900)
        ),
        "overlap",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    make, code = REFUSED[name]
    (tmp_path / "x.zip").write_bytes(make())
    with pytest.raises(Refused) as refused, zip_reader.open_zip(tmp_path / "x.zip"):
        pass
    finding = refused.value.finding
    assert finding.code == code and finding.severity == "fatal" and finding.scorer and finding.remedy, finding
    assert finding.what.isprintable() and finding.what.isascii()
    assert name != "a large directory" or "directory has more than 2,097,152 bytes" in finding.what
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


class Pipe(io.BytesIO):
    """Where nothing can be gone back to: sizes and checksums follow the data."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation

    def tell(self):
        raise io.UnsupportedOperation


def streamed():
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", b"hello")
    return pipe.getvalue()


def large_form():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file, file.open("a.txt", "w", force_zip64=True) as member:
        member.write(b"hello")
    return data.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        zipped,
        lambda: zipped(how=zipfile.ZIP_DEFLATED),
        streamed,
        large_form,
        lambda: zipped([("folder/", b""), ("folder/b", b""), ("a.txt", b"hello")]),
        lambda: zipped([("é.txt", b""), ("a b.txt", b""), ("a.txt", b"hello")]),
        lambda: b"#!/bin/sh\n" + zipped(),  # something before it, as in a self-extracting zip
        lambda: zipped([("zeros", bytes(1 << 20)), ("a.txt", b"hello")], zipfile.ZIP_DEFLATED),  # small: no bomb
        lambda: zipped([(info("a.txt", external_attr=0o100644 << 16), b"hello")]),
    ],
)
def test_sound_zips_of_any_make_are_read(tmp_path, make):
    (tmp_path / "x.zip").write_bytes(make())
    with zip_reader.open_zip(tmp_path / "x.zip") as opened:
        zip_reader.unpack_member(opened, "a.txt", tmp_path / "out")
        zip_reader.unpack_member(opened, "a.txt", None)
    assert (tmp_path / "out").read_bytes() == b"hello" and len(list(tmp_path.iterdir())) == 2


def test_a_member_that_is_larger_than_allowed_is_not_read(tmp_path):
    (tmp_path / "x.zip").write_bytes(WHOLE)
    with (
        zip_reader.open_zip(tmp_path / "x.zip") as opened,
        pytest.raises(Refused, match="unpacks to 500 bytes; at most 499"),
    ):
        zip_reader.unpack_member(opened, "a.txt", tmp_path / "out", 499)
    assert not (tmp_path / "out").exists()


def test_a_member_that_the_disk_has_no_room_for_is_not_unpacked(tmp_path, monkeypatch):
    (tmp_path / "x.zip").write_bytes(WHOLE)
    monkeypatch.setattr(zip_reader.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 501, 499))
    with zip_reader.open_zip(tmp_path / "x.zip") as opened, pytest.raises(OSError, match="TMPDIR") as caught:
        zip_reader.unpack_member(opened, "a.txt", tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC and not (tmp_path / "out").exists()


@pytest.mark.parametrize("unpacked", [True, False])
@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_is_found_when_the_member_is_read(tmp_path, how, unpacked):
    whole = bytearray(zipped([("a.txt", bytes(range(256)) * 20)], how))
    whole[100] ^= 1
    (tmp_path / "x.zip").write_bytes(whole)
    with zip_reader.open_zip(tmp_path / "x.zip") as opened, pytest.raises(Refused) as refused:
        zip_reader.unpack_member(opened, "a.txt", tmp_path / "out" if unpacked else None)
    assert refused.value.finding.code == "not-a-zip" and "a.txt in x.zip" in refused.value.finding.what


def test_a_member_that_unpacks_to_more_than_it_says_is_damaged(tmp_path):
    data = zipped([("a.txt", b"x" * 5000)], zipfile.ZIP_DEFLATED)
    (tmp_path / "x.zip").write_bytes(patched(data, (LOCAL, 22, "<L", 10), (CENTRAL, 24, "<L", 10)))
    with zip_reader.open_zip(tmp_path / "x.zip") as opened, pytest.raises(Refused, match="CRC"):
        zip_reader.unpack_member(opened, "a.txt", tmp_path / "out")
    assert (tmp_path / "out").stat().st_size <= 10


def test_a_file_that_may_not_be_read_is_an_error_not_a_finding(tmp_path):
    with pytest.raises(OSError), zip_reader.open_zip(tmp_path):
        pass
