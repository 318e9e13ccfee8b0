"""A local JSONL, JSON, CSV or Parquet file, row by row, however it is broken: what is wrong is named with file and line.

The files come from outside. Nothing in them is run, a row is held at a time, and no line may be longer than 64 MiB.
"""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
LONGEST = 2**26  # bytes in a line
PEEK = 1000  # rows of a JSONL that are looked at for its columns
PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")


def columns_of(path: Path) -> list[str]:
    """Names of the file's columns; of a JSONL, those in its first 1,000 rows. [] for an empty file.

    Raises FileNotFoundError for a missing file, ValueError for one that cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file. Check the path.")
    if path.suffix.lower() == ".parquet":
        with _parquet(path) as file:
            return list(file.schema_arrow.names)
    if path.suffix.lower() == ".csv":
        return list(_csv_reader(path).fieldnames or [])
    return list(dict.fromkeys(key for _, row in islice(read(path), PEEK) for key in row))


def read(path: Path, columns: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of each row; a Parquet's line is its row, from 1. Every value of a CSV is a string (`0011` stays so).

    `columns`: all that is read of a Parquet, where that saves much. Raises ValueError at the line that cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}. Convert it to one of them.")
    if suffix == ".parquet":
        return _read_parquet(path, columns)
    return {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}[suffix](path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    begun = False
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST), b""), start=1):
            if len(raw) == LONGEST:
                raise ValueError(f"{path}, line {number} is longer than 64 MiB; it cannot be a row. Check the file.")
            text = raw.lstrip(b"\xef\xbb\xbf \t\r\n")
            if not begun and text.lower().startswith(PAGES):
                raise ValueError(
                    f"{path}, line {number} begins a web page, not data; failed downloads leave such files. Fetch it again."
                )
            if not begun and text.startswith(b"version https://git-lfs"):
                raise ValueError(
                    f"{path}, line {number} is a Git LFS pointer, not the data. Fetch it with `git lfs pull`."
                )
            begun = begun or bool(text)
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not UTF-8 (byte 0x{raw[error.start]:02x}, the {error.start + 1}. of the line). "
                    "Save the whole file as UTF-8."
                ) from None


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        if line.strip():
            yield number, _object(path, number, _parsed(path, number, line), line)


def _read_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One array of objects, as some sets on the Hub are kept; the number is that of the object in the array."""
    rows = _parsed(path, 1, "".join(line for _, line in _lines(path)))
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds no array of rows. Convert it to JSON Lines.")
    for number, row in enumerate(rows, start=1):
        yield number, _object(path, number, row, str(row))


def _parsed(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = number + getattr(error, "lineno", 1) - 1
        what = str(error).split(": line ")[0]
        raise ValueError(f"{path}, line {line} is not JSON ({what}). Correct or remove the line.") from None


def _object(path: Path, number: int, row: Any, text: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, line {number} holds no object but {text.strip()[:40]!r}; each row is an object with columns. Correct or remove it."
        )
    return row


def _csv_reader(path: Path) -> csv.DictReader:
    csv.field_size_limit(2**24)  # the default of 128 KiB refuses long solutions
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        names = reader.fieldnames or []
    except csv.Error as error:
        raise ValueError(f"{path}, line 1 is not CSV ({error}). Correct the header.") from None
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}, line 1 names column {twice[0]!r} twice. Rename one of them.")
    return reader


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = _csv_reader(path)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num} has another number of fields than the header ({len(reader.fieldnames)}). Correct the row."
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"{path}, the row after line {reader.line_num} is not CSV ({error}). Correct the row."
        ) from None


def _read_parquet(path: Path, columns: list[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    with _parquet(path) as file:
        for batch in file.iter_batches(batch_size=1000, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield number, row


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is not readable Parquet ({str(error).splitlines()[0]}). Fetch the file again."
        ) from None
