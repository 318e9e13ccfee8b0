"""Lines of a text file that a user brings, also in gzip: bounded, in UTF-8, and no page of an error."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LONGEST_LINE = 2**26  # bytes
MOST_UNPACKED = 50  # a gzip file that unpacks to more than this times its size is refused ...
FREELY_UNPACKED = 2**22  # ... once it has unpacked to this many bytes more
WEB_PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")

NumberedLine = tuple[int, str]  # (its number, the line)


def read_text_lines(path: Path) -> Iterator[NumberedLine]:
    """The lines of a text file, unpacked where it is in gzip, with their numbers from 1.

    Raises:
        ValueError: the file is no text in UTF-8 or no whole gzip file, unpacks to far more than text does, has a line
            of more than `LONGEST_LINE` bytes, or is what a failed download leaves.
    """
    has_text, unpacked = False, 0
    with _open_bytes(path) as (file, most_bytes):
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            unpacked += len(raw)
            if unpacked > most_bytes():
                raise ValueError(
                    f"{path} unpacks to more than {MOST_UNPACKED} times its size, which text does not. Unpack it with "
                    "gunzip, look at it, and give the unpacked file."
                )
            if len(raw) == LONGEST_LINE:
                raise ValueError(f"{path}, line {number} is longer than 64 MiB, so it cannot be a row. Check the file.")
            if not has_text:
                start = raw.lstrip(b"\xef\xbb\xbf \t\r\n")
                _refuse_failed_download(path, number, start)
                has_text = bool(start)
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not UTF-8 (byte {error.start + 1} of the line is "
                    f"0x{raw[error.start]:02x}). Save the file as UTF-8."
                ) from None


@contextmanager
def _open_bytes(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], float]]]:
    """The bytes of a file, unpacked where it is in gzip, and a function that says how many may have been read so far.

    The function counts what was read of the packed file until now, so that a bomb is refused near its beginning.
    """
    with path.open("rb") as file:
        if file.peek(2)[:2] != b"\x1f\x8b":  # gzip's first two bytes
            yield file, lambda: float("inf")
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked, lambda: MOST_UNPACKED * file.tell() + FREELY_UNPACKED
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not readable as gzip ({error}). Download the file again.") from None


def _refuse_failed_download(path: Path, number: int, start: bytes) -> None:
    if start.lower().startswith(WEB_PAGE_STARTS):
        raise ValueError(f"{path}, line {number} begins a web page; the download failed. Download the file again.")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer and holds no data. Fetch the data with `git lfs pull`.")
