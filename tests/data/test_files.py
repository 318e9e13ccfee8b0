"""Users' files: valid ones are read completely, broken ones are named with file and line."""

import gzip

import pytest

from grpo_kit.data import files


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.jsonl", '{"p": "1"}\n\n{"p": 2}', [(1, {"p": "1"}), (3, {"p": 2})]),  # an empty line, no last newline
        ("a.jsonl", '\ufeff{"p": "1"}\r\n', [(1, {"p": "1"})]),  # a byte-order mark
        ("a.jsonl", '{"p": "a\u2028b"}\n', [(1, {"p": "a\u2028b"})]),  # a line separator is no line end
        ("a.json", '[\n{"p": "1"},\n{"p": "2"}]', [(1, {"p": "1"}), (2, {"p": "2"})]),
        ("a.json", '{"p": "1"}\n\n{"p": "2"}\n', [(1, {"p": "1"}), (3, {"p": "2"})]),  # JSON Lines, as to_json writes
        ("a.jsonl", '[{"p": "1"},\n{"p": "2"}]', [(1, {"p": "1"}), (2, {"p": "2"})]),  # an array
        ("a.tsv", 'p\ta\nx, "y"\t1;2\n', [(2, {"p": 'x, "y"', "a": "1;2"})]),
        ("a.csv", "\ufeffp,a\r\n1,0011\r\n2,NA\r\n", [(2, {"p": "1", "a": "0011"}), (3, {"p": "2", "a": "NA"})]),
        ("a.csv", 'p,a\n"x,\ny",1\nz,2\n', [(3, {"p": "x,\ny", "a": "1"}), (4, {"p": "z", "a": "2"})]),
    ],
)
def test_usual_files_are_read_with_their_lines(tmp_path, name, text, rows):
    path = write(tmp_path, name, text)
    table = files.open_table(path)
    assert table.columns == list(rows[0][1])
    assert list(table.read_rows(None)) == rows == list(files.read_rows(path))


def test_a_parquet_is_read_in_part(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"p": ["x", "y"], "a": [{"b": "1"}, {"b": "2"}], "long": ["z", "z"]}), path
    )
    assert files.open_table(path).columns == ["p", "a", "long"]
    assert list(files.read_rows(path, ["a", "p"])) == [
        (1, {"p": "x", "a": {"b": "1"}}),
        (2, {"p": "y", "a": {"b": "2"}}),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"p": 1}\n{"p": 2', "x.jsonl, line 2 is not JSON"),  # cut off
        ("x.jsonl", '{"p": 1}\nnonsense\n{"p": 2}', "line 2 is not JSON"),  # one broken line
        ("x.jsonl", '{"p": 1}\n[1]', "line 2 is \'\\[1\\]\'; a row must be an object"),
        ("x.jsonl", "[" * 100_000, "line 1 has lists and objects that lie too deep within each other"),
        ("x.json", '[{"p": 1},\n{"p" 2}]', "line 2 is not JSON"),
        ("x.json", '{"p": 1}', "is one JSON object; it is not an array of rows"),
        ("x.json", '{\n"p": 1\n}', "is one JSON object; it is not an array of rows"),
        ("x.json", '{"p": 1}\n{"p": 2', "x.json, line 2 is not JSON"),
        ("x.json", '{"p": 1,\n"q" 2}', "x.json, line 2 is not JSON"),
        # The tests of two processes must have the same names, so the time is not packed.
        ("x.json.gz", gzip.compress(b"{}", mtime=0)[:-6], "x.json.gz is not readable as gzip"),  # cut off
        ("x.csv.gz", gzip.compress(b"p,a\n1,2\n", mtime=0)[:12] + bytes(40), "x.csv.gz is not readable as gzip"),
        ("x.parquet.gz", gzip.compress(b"PAR1", mtime=0), "not one of .jsonl"),
        ("x.jsonl", "<!DOCTYPE html>\n<html>", "line 1 begins a web page"),  # an error page saved as data
        ("x.csv", "\n <html lang=en>\n<p>404, not found</p>", "line 2 begins a web page"),
        ("x.csv", "<!doctype html><title>Sorry, you have been blocked</title>\n", "line 1 begins a web page"),
        ("x.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        ("x.csv", "p,a\na,b\nc\n", "line 3 has 1 fields and the header 2"),
        ("x.csv", "p,a\na,b,c\n", "line 2 has 3 fields and the header 2"),
        ("x.csv", 'p,a\n"a,b\n', "the row after line 1 is not CSV"),  # a quote that never closes
        ("x.csv", "p,a,a\n1,2,3\n", "line 1 names the column 'a' twice"),
        # Latin-1 in the middle
        ("x.csv", b"p,a\nx,1\n\xe9t\xe9,1\n", r"x.csv, line 3 is not UTF-8 \(byte 1 of the line is 0xe9\)"),
        ("x.jsonl", b'{"p": "ok"}\n{"p": "caf\xe9"}\n', "line 2 is not UTF-8"),
        ("x.jsonl", '{"p": 1}'.encode("utf-16"), "line 1 is not UTF-8"),
        ("x.parquet", b"PAR1 not really", "x.parquet is not readable as Parquet"),
        ("x.xlsx", b"PK", "not one of .jsonl"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_its_line_in_one_sentence(tmp_path, name, text, message):
    path = write(tmp_path, name, text)
    with pytest.raises(ValueError, match=message) as error:
        list(files.read_rows(path))
    assert "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_truncated_parquet_is_named(tmp_path, share):
    import pyarrow
    import pyarrow.parquet

    complete = tmp_path / "whole.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"p": [str(i) for i in range(5000)]}), complete)
    cut = write(tmp_path, "cut.parquet", complete.read_bytes()[: int(share * complete.stat().st_size)])
    with pytest.raises(ValueError, match="cut.parquet is not readable as Parquet"):
        files.open_table(cut)


def test_a_parquet_damaged_in_the_middle_is_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"p": [str(i) for i in range(5000)]}), path)
    damaged = bytearray(path.read_bytes())
    damaged[100:2000] = bytes(1900)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="x.parquet is not readable as Parquet"):
        list(files.read_rows(path))


def test_columns_of_a_jsonl_are_those_of_all_its_first_rows(tmp_path):
    assert files.open_table(write(tmp_path, "x.jsonl", '{"p": 1}\n{"p": 1, "a": 2}\n')).columns == ["p", "a"]
    for name in ("e.jsonl", "e.csv"):
        assert files.open_table(write(tmp_path, name, "")).columns == []
    with pytest.raises(FileNotFoundError, match="none.csv is not a file"):
        files.open_table(tmp_path / "none.csv")


def test_a_file_is_opened_once_and_a_long_jsonl_is_not_loaded_whole(tmp_path, monkeypatch):
    opened, parsed = [], []
    path = write(tmp_path, "x.jsonl", "".join(f'{{"p": {i}}}\n' for i in range(5 * files.PEEKED_ROWS)))
    real_open, real_parse = files.Path.open, files._parse_json
    monkeypatch.setattr(files.Path, "open", lambda *args: opened.append(args[0]) or real_open(*args))
    monkeypatch.setattr(files, "_parse_json", lambda *args: parsed.append(args[1]) or real_parse(*args))
    rows = files.open_table(path).read_rows(None)
    assert len(parsed) == files.PEEKED_ROWS  # as many as it takes to know the columns
    assert [next(rows)[1]["p"] for _ in range(files.PEEKED_ROWS + 1)] == list(range(files.PEEKED_ROWS + 1))
    assert len(parsed) == files.PEEKED_ROWS + 1 and len(list(rows)) == 4 * files.PEEKED_ROWS - 1
    assert opened == [path]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl", "a.JSON.GZ"])
def test_a_file_in_gzip_is_read_whatever_its_name(tmp_path, name):
    path = write(tmp_path, name, gzip.compress(b'{"p": "1"}\n{"p": "2"}\n'))
    assert list(files.read_rows(path)) == [(1, {"p": "1"}), (2, {"p": "2"})]


def test_a_file_named_gz_that_was_unpacked_already_is_read(tmp_path):
    assert list(files.read_rows(write(tmp_path, "a.csv.gz", "p,a\n1,2\n"))) == [(2, {"p": "1", "a": "2"})]


@pytest.mark.parametrize(
    ("name", "header", "note"),
    [
        ("a.csv", "p;a", "a.csv was read with semicolons between its columns, because its header has no commas"),
        ("a.csv", "p\ta", "a.csv was read with tabs between its columns, because its header has no commas"),
        ("a.tsv", "p;a", "a.tsv was read with semicolons between its columns, because its header has no tabs"),
        ("a.csv", '"p";"a"', "a.csv was read with semicolons between its columns, because its header has no commas"),
    ],
)
def test_another_delimiter_is_guessed_and_said(tmp_path, name, header, note):
    delimiter = "\t" if "\t" in header else ";"
    table = files.open_table(write(tmp_path, name, f"{header}\n3,5 + 1{delimiter}4,5\n"))
    assert table.note == note and table.columns == ["p", "a"]
    assert list(table.read_rows(None)) == [(2, {"p": "3,5 + 1", "a": "4,5"})]


def test_a_usual_csv_gives_no_note(tmp_path):
    assert files.open_table(write(tmp_path, "a.csv", "p;q,a\n1;2,3\n")).note == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("cut.jsonl", '{"p": 1}\n{"p":\n', "line 2 is not JSON"),
        ("cut.jsonl", '{"p": 1}\n{"p": 2}\n{"p":\n\n', "line 3 is not JSON"),
        ("number.json", "3", "is one JSON value"),
        ("under.json", '{"data": [{"p": 1}]}', "holds a list under 'data'"),
        ("short.csv", "p,a,b\n1,2\n", "line 2 has 2 fields and the header 3"),
        ("long.csv", "p,a\n1,2\n1,2,3,4\n", "line 3 has 4 fields and the header 2"),
        ("x.txt", "p", "csv.gz"),
    ],
)
def test_the_message_on_a_broken_file_counts_and_names_the_remedy(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(files.open_table(path).read_rows(None))
