"""Reader of problem files that users bring: JSON Lines, JSON, CSV, TSV and Parquet, row by row, also in gzip.

Every file is opened once and streamed (only a JSON array is loaded whole). An error names the file, the line and the
remedy. No line may be longer than 64 MiB. The first bytes of a file, not its name, say whether it is in gzip, and
whether JSON is one array or one row per line. `runs.reading.read_lines` reads the files that the kit itself wrote.

CSV is read by Python's `csv` and not by pandas, because pandas fills short rows with empty text, shifts the columns
of a row that is too long, and has no line numbers. JSON is read by `json`, because pandas turns an integer gold into
3.0 where another row lacks that column.
"""

import csv
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.data.text_lines import NumberedLine, read_text_lines

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
TEXT_SUFFIXES = SUFFIXES[:-1]  # these may be followed by `.gz`
SUFFIX_WORDS = f"{', '.join(SUFFIXES)} (also {', '.join(f'{suffix}.gz' for suffix in TEXT_SUFFIXES)})"
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
TOO_DEEP = "has lists and objects that lie too deep within each other"
PEEKED_ROWS = 1000  # rows of a JSON file that are read to learn its columns
NumberedRows = Iterator[tuple[int, dict[str, Any]]]  # (line in the file, row)


class Table(NamedTuple):
    """An open file or Hub set.

    Attributes:
        columns: names of the columns; [] for an empty file. Of a JSON file, those of its first 1,000 rows.
        read_rows: gives the (line, row) pairs, once. It takes the names of the columns that are needed, or None for
            all; only Parquet saves time by it, other files give every column.
        note: a sentence about a guess that a person should know of; "" for none.
    """

    columns: list[str]
    read_rows: Callable[[Collection[str] | None], NumberedRows]
    note: str = ""


def get_suffix(path: Path) -> str:
    """The suffix that says what is in a file, in lower case: `.jsonl` of `a.jsonl.gz`; "" for an unknown one.

    Example:
        >>> get_suffix(Path("a.JSONL.gz")), get_suffix(Path("a.txt"))
        ('.jsonl', '')
    """
    *_, before, last = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    if last == ".gz":
        return before if before in TEXT_SUFFIXES else ""
    return last if last in SUFFIXES else ""


def open_table(path: Path, on_too_deep: Callable[[int], None] | None = None) -> Table:
    """Open a file by its suffix and read what is needed to know its columns.

    Args:
        path: a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file; the first four may be followed by `.gz`.
        on_too_deep: is called with each line of JSON Lines whose lists and objects lie too deep within each other to be
            read, and the line is left out; None: it is an error.

    Returns:
        The open `Table`. Lines count from 1; of a JSON array and a Parquet file the line is the number of the row.
        Every value of a CSV file is text, so `0011` stays `0011`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the suffix is another one, or the file cannot be read. Reading the rows raises it as well.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file. Check the path.")
    suffix = get_suffix(path)
    if not suffix:
        raise ValueError(f"{path} is not one of {SUFFIX_WORDS}. Convert it to one of them.")
    if suffix == ".parquet":
        return _open_parquet(path)
    if suffix in (".csv", ".tsv"):
        return _open_csv(path, "\t" if suffix == ".tsv" else ",")
    rows = _read_json(path, suffix, on_too_deep)
    peeked = list(islice(rows, PEEKED_ROWS))
    columns = list(dict.fromkeys(name for _, row in peeked for name in row))
    return Table(columns, lambda _: chain(peeked, rows))


def read_rows(path: Path, columns: Collection[str] | None = None) -> NumberedRows:
    """Read all rows of a file.

    Args:
        path: a file that `open_table` takes.
        columns: names of the columns to read of a Parquet file; None: all.

    Returns:
        An iterator of (line, row). Nothing is opened before the first row is requested.

    Raises:
        FileNotFoundError, ValueError: as `open_table`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.csv")
        >>> _ = path.write_text("problem,answer\\nWhat is 1 + 1?,2\\n")
        >>> list(read_rows(path))
        [(2, {'problem': 'What is 1 + 1?', 'answer': '2'})]
    """
    yield from open_table(path).read_rows(columns)


def _read_json(path: Path, suffix: str, on_too_deep: Callable[[int], None] | None) -> NumberedRows:
    """Rows of one array of objects, or one row per line; either may be named `.json` or `.jsonl`."""
    lines = ((number, line) for number, line in read_text_lines(path) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        yield from _read_json_array(path, chain([first], lines))
        return
    if suffix == ".json":
        first, lines = _require_json_lines(path, first, lines)
    for number, line in chain([first], lines):
        try:
            row = _parse_json(path, number, line)
        except _TooDeepError:
            if on_too_deep is None:
                raise
            on_too_deep(number)
            continue
        yield number, _require_object(path, number, row, line)


class _TooDeepError(ValueError):
    """A line whose lists and objects lie deeper within each other than Python's `json` reads."""


def _require_json_lines(path: Path, first: NumberedLine, lines: Iterator[NumberedLine]) -> Any:
    """The lines as they were given, if they are rows; raises ValueError for one object or one broken value."""
    second = next(lines, None)
    try:
        one_value = second is None or not isinstance(json.loads(first[1]), dict)
    except (ValueError, RecursionError):
        one_value = True
    if not one_value:
        return first, chain([second], lines)
    rest = chain([first], [second] if second else [], lines)
    value = _parse_json(path, first[0], "".join(line for _, line in rest))
    lists = [name for name, rows in value.items() if isinstance(rows, list)] if isinstance(value, dict) else []
    place = f" It holds a list under {lists[0]!r}; if these are the rows, keep only that list." if lists else ""
    raise ValueError(
        f"{path} is one JSON {'object' if isinstance(value, dict) else 'value'}; it is not an array of rows.{place} "
        "Write an array of rows, or JSON Lines with one row per line."
    )


def _read_json_array(path: Path, lines: Iterator[NumberedLine]) -> NumberedRows:
    number, text = next(lines)
    text = "".join([text, *(line for _, line in lines)])
    for row_number, row in enumerate(_parse_json(path, number, text), start=1):
        yield row_number, _require_object(path, row_number, row, str(row))


def _parse_json(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text.rstrip())  # an error at the end is then in the last line and not behind it
    except RecursionError:
        raise _TooDeepError(f"{path}, line {number} {TOO_DEEP}. Correct or remove the line.") from None
    except ValueError as error:
        line = number + getattr(error, "lineno", 1) - 1
        reason = str(error).split(": line ")[0]
        raise ValueError(f"{path}, line {line} is not JSON ({reason}). Correct or remove the line.") from None


def _require_object(path: Path, number: int, row: Any, text: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, line {number} is {text.strip()[:40]!r}; a row must be an object with columns. "
            "Correct or remove the line."
        )
    return row


def _guess_delimiter(header: str, usual: str) -> str:
    """The usual delimiter, unless the header has only one column with it and more with another one."""

    def count(delimiter: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=delimiter), []))
        except csv.Error:
            return 1

    return usual if count(usual) > 1 else max((usual, *DELIMITERS), key=count)


def _open_csv(path: Path, usual: str) -> Table:
    csv.field_size_limit(2**24)  # the default of 128 KiB is too short for long solutions
    lines = (line for _, line in read_text_lines(path))
    header = next(lines, "")
    delimiter, note = _guess_delimiter(header, usual), ""
    if delimiter != usual:
        note = f"{path.name} was read with {DELIMITERS[delimiter]} between its columns, because its header has no "
        note += f"{DELIMITERS[usual]}"
    reader = csv.DictReader(chain([header] if header else [], lines), strict=True, delimiter=delimiter)
    try:
        names = list(reader.fieldnames or [])
    except csv.Error as error:
        raise ValueError(f"{path}, line 1 is not CSV ({error}). Correct the header.") from None
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}, line 1 names the column {repeated[0]!r} twice. Rename one of them.")
    return Table(names, lambda _: _read_csv(path, reader), note)


def _read_csv(path: Path, reader: csv.DictReader) -> NumberedRows:
    try:
        for row in reader:
            extra = row.get(None, [])  # DictReader's mark for a long row; missing fields of a short one are None
            if extra or None in row.values():
                fields = sum(value is not None for name, value in row.items() if name is not None) + len(extra)
                raise ValueError(
                    f"{path}, line {reader.line_num} has {fields} fields and the header {len(reader.fieldnames)}. "
                    "Correct the row."
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"{path}, the row after line {reader.line_num} is not CSV ({error}). Correct the row."
        ) from None


def _open_parquet(path: Path) -> Table:
    import pyarrow.parquet

    with _parquet_errors(path):
        file = pyarrow.parquet.ParquetFile(path)

    def read(columns: Collection[str] | None) -> NumberedRows:
        number = 0
        with _parquet_errors(path), file:
            for batch in file.iter_batches(batch_size=1000, columns=columns and sorted(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row

    return Table(list(file.schema_arrow.names), read)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not readable as Parquet ({reason}). Download the file again.") from None
