"""Zips of unknown origin: unsafe, damaged or ambiguous ones are refused with a code, and sound ones are read."""

import errno
import io
import shutil
import struct
import zipfile
import zlib

import pytest

from grpo_kit.adapters.findings import Refused
from grpo_kit.submission import zip_reader


def make_zip(members=(("a.txt", b"hello"),), compression=zipfile.ZIP_STORED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return data.getvalue()


def member_info(name, **fields):
    member = zipfile.ZipInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def set_fields(data, *changes):
    """`data` with (magic, offset behind it, struct format, value) set in every record of that magic."""
    data = bytearray(data)
    for magic, offset, form, value in changes:
        at = data.find(magic)
        while at >= 0:
            struct.pack_into(form, data, at + offset, value)
            at = data.find(magic, at + 4)
    return bytes(data)


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


def zip_with_name(name):
    """A zip whose member has a name that zipfile would not write: it replaces a name of the same length afterwards."""
    return make_zip([("x" * len(name), b"hello")]).replace(b"x" * len(name), name)


def zip_in_zip():
    """Two members in the space of one: the second's header and data lie inside the first's data."""
    inner = struct.pack("<4s5H3L2H", LOCAL, 20, 0, 0, 0, 33, zlib.crc32(b"hello"), 5, 5, 1, 0) + b"b" + b"hello"
    data = bytearray(make_zip([("a", inner)]))
    at = data.find(LOCAL, 4)
    central = struct.pack("<4s6H3L5H2L", CENTRAL, 20, 20, 0, 0, 0, 33, zlib.crc32(b"hello"), 5, 5, 1, 0, 0, 0, 0, 0, at)
    end = data.find(END)
    data[end:end] = central + b"b"
    return set_fields(bytes(data), (END, 8, "<H", 2), (END, 10, "<H", 2), (END, 12, "<L", 47 + 47))


def zip_with_a_name_twice():
    with pytest.warns(UserWarning, match="Duplicate name"):
        return make_zip([("a", b"1"), ("a", b"2")])


SOUND = make_zip([("a.txt", b"hello" * 100)])
REFUSED = {
    # not a zip, or damaged
    "nothing": (lambda: b"", "not-a-zip"),
    "two letters": (lambda: b"PK", "not-a-zip"),
    "words": (lambda: b"not a zip at all", "not-a-zip"),
    "a gzip": (lambda: b"\x1f\x8b\x08" + bytes(50), "not-a-zip"),
    "cut in half": (lambda: SOUND[: len(SOUND) // 2], "not-a-zip"),
    "without its last byte": (lambda: SOUND[:-1], "not-a-zip"),
    "without its first bytes": (lambda: SOUND[10:], "not-a-zip"),
    "a directory that claims to be huge": (lambda: set_fields(SOUND, (END, 12, "<L", 0xFFFFFFF0)), "not-a-zip"),
    "a large directory": (
        lambda: make_zip([(member_info(str(i), comment=b"c" * 65_000), b"") for i in range(40)]),
        "not-a-zip",
    ),
    "members beyond its end": (lambda: set_fields(SOUND, (CENTRAL, 42, "<L", 1 << 30)), "not-a-zip"),
    # names
    "a name that climbs": (lambda: make_zip([("../a", b"")]), "unsafe-path"),
    "a name that climbs later": (lambda: make_zip([("a/../../b", b"")]), "unsafe-path"),
    "an absolute name": (lambda: zip_with_name(b"/etc/pw"), "unsafe-path"),
    "a drive": (lambda: zip_with_name(b"C:/a.txt"), "unsafe-path"),
    "backslashes": (lambda: zip_with_name(b"..\\a.txt"), "unsafe-path"),
    "an empty part": (lambda: zip_with_name(b"a//b"), "unsafe-path"),
    "a dot": (lambda: zip_with_name(b"./a"), "unsafe-path"),
    "no name": (lambda: make_zip([(member_info(""), b"")]), "unsafe-path"),
    "a NUL": (lambda: zip_with_name(b"a.txt\0b"), "unsafe-path"),
    "a newline": (lambda: zip_with_name(b"a\nb"), "unsafe-path"),
    "an escape sequence": (lambda: zip_with_name(b"a\x1b[2Jb"), "unsafe-path"),
    "a very long name": (lambda: make_zip([("a" * 300, b"")]), "unsafe-path"),
    # kinds
    "a symbolic link": (lambda: make_zip([(member_info("a", external_attr=0o120777 << 16), b"/etc/passwd")]), "link"),
    "a device": (lambda: make_zip([(member_info("a", external_attr=0o020666 << 16), b"")]), "link"),
    "encrypted": (lambda: set_fields(SOUND, (LOCAL, 6, "<H", 1), (CENTRAL, 8, "<H", 1)), "encrypted"),
    "strongly encrypted": (lambda: set_fields(SOUND, (LOCAL, 6, "<H", 0x41), (CENTRAL, 8, "<H", 0x41)), "encrypted"),
    "bzip2": (lambda: make_zip([("a", b"x")], zipfile.ZIP_BZIP2), "compression"),
    "LZMA": (lambda: make_zip([("a", b"x")], zipfile.ZIP_LZMA), "compression"),
    "an unknown method": (lambda: set_fields(SOUND, (LOCAL, 8, "<H", 99), (CENTRAL, 10, "<H", 99)), "compression"),
    # sizes
    "a bomb": (lambda: make_zip([("a", bytes(70 << 20))], zipfile.ZIP_DEFLATED), "bomb"),
    "a claim of terabytes": (
        lambda: set_fields(
            make_zip(compression=zipfile.ZIP_DEFLATED), (CENTRAL, 24, "<L", 0xFFFFFFFE), (LOCAL, 22, "<L", 0xFFFFFFFE)
        ),
        "bomb",
    ),
    "a thousand and one members": (lambda: make_zip([(str(i), b"") for i in range(1001)]), "too-many-members"),
    # two archives in one
    "a name twice": (zip_with_a_name_twice, "member-twice"),
    "a file and a folder of one name": (lambda: make_zip([("a", b""), ("a/", b"")]), "member-twice"),
    "another name where it lies": (lambda: set_fields(SOUND, (LOCAL, 30, "<B", ord("b"))), "ambiguous"),
    "another size where it lies": (lambda: set_fields(SOUND, (LOCAL, 22, "<L", 499)), "ambiguous"),
    "another method where it lies": (lambda: set_fields(SOUND, (LOCAL, 8, "<H", 8)), "ambiguous"),
    "stored, and of two sizes": (
        lambda: set_fields(SOUND, (LOCAL, 22, "<L", 5000), (CENTRAL, 24, "<L", 5000)),
        "ambiguous",
    ),
    "one in the other": (zip_in_zip, "overlap"),
    "over its own directory": (
        lambda: set_fields(
            SOUND, (LOCAL, 18, "<L", 900), (LOCAL, 22, "<L", 900), (CENTRAL, 20, "<L", 900), (CENTRAL, 24, "<L", 900)
        ),
        "overlap",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsafe_or_damaged_zip_is_refused(tmp_path, name):
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
    """A file that cannot seek, so zipfile writes sizes and checksums after the data."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation

    def tell(self):
        raise io.UnsupportedOperation


def zip_from_a_pipe():
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", b"hello")
    return pipe.getvalue()


def zip64():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file, file.open("a.txt", "w", force_zip64=True) as member:
        member.write(b"hello")
    return data.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        make_zip,
        lambda: make_zip(compression=zipfile.ZIP_DEFLATED),
        zip_from_a_pipe,
        zip64,
        lambda: make_zip([("folder/", b""), ("folder/b", b""), ("a.txt", b"hello")]),
        lambda: make_zip([("é.txt", b""), ("a b.txt", b""), ("a.txt", b"hello")]),
        lambda: b"#!/bin/sh\n" + make_zip(),  # something before it, as in a self-extracting zip
        lambda: make_zip([("zeros", bytes(1 << 20)), ("a.txt", b"hello")], zipfile.ZIP_DEFLATED),  # small: no bomb
        lambda: make_zip([(member_info("a.txt", external_attr=0o100644 << 16), b"hello")]),
    ],
)
def test_sound_zips_of_every_form_are_read(tmp_path, make):
    (tmp_path / "x.zip").write_bytes(make())
    with zip_reader.open_zip(tmp_path / "x.zip") as archive:
        zip_reader.unpack_member(archive, "a.txt", tmp_path / "out")
        zip_reader.unpack_member(archive, "a.txt", None)
    assert (tmp_path / "out").read_bytes() == b"hello" and len(list(tmp_path.iterdir())) == 2


def test_a_member_that_is_larger_than_allowed_is_not_read(tmp_path):
    (tmp_path / "x.zip").write_bytes(SOUND)
    with (
        zip_reader.open_zip(tmp_path / "x.zip") as archive,
        pytest.raises(Refused, match="unpacks to 500 bytes; at most 499"),
    ):
        zip_reader.unpack_member(archive, "a.txt", tmp_path / "out", 499)
    assert not (tmp_path / "out").exists()


def test_a_member_larger_than_the_free_disk_space_is_not_unpacked(tmp_path, monkeypatch):
    (tmp_path / "x.zip").write_bytes(SOUND)
    monkeypatch.setattr(zip_reader.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 501, 499))
    with zip_reader.open_zip(tmp_path / "x.zip") as archive, pytest.raises(OSError, match="TMPDIR") as caught:
        zip_reader.unpack_member(archive, "a.txt", tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC and not (tmp_path / "out").exists()


@pytest.mark.parametrize("unpacked", [True, False])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_is_detected_when_the_member_is_read(tmp_path, compression, unpacked):
    data = bytearray(make_zip([("a.txt", bytes(range(256)) * 20)], compression))
    data[100] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    with zip_reader.open_zip(tmp_path / "x.zip") as archive, pytest.raises(Refused) as refused:
        zip_reader.unpack_member(archive, "a.txt", tmp_path / "out" if unpacked else None)
    assert refused.value.finding.code == "not-a-zip" and "a.txt in x.zip" in refused.value.finding.what


def test_a_member_that_unpacks_to_more_than_its_stated_size_is_refused(tmp_path):
    data = make_zip([("a.txt", b"x" * 5000)], zipfile.ZIP_DEFLATED)
    (tmp_path / "x.zip").write_bytes(set_fields(data, (LOCAL, 22, "<L", 10), (CENTRAL, 24, "<L", 10)))
    with zip_reader.open_zip(tmp_path / "x.zip") as archive, pytest.raises(Refused, match="CRC"):
        zip_reader.unpack_member(archive, "a.txt", tmp_path / "out")
    assert (tmp_path / "out").stat().st_size <= 10


def test_a_path_that_cannot_be_read_raises_oserror(tmp_path):
    with pytest.raises(OSError), zip_reader.open_zip(tmp_path):
        pass
