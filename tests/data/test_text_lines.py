"""Lines of text files: numbered, bounded, unpacked as far as text unpacks."""

import gzip

import pytest

from grpo_kit.data import text_lines


def write(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def test_lines_are_counted_and_a_byte_order_mark_is_no_text(tmp_path):
    path = write(tmp_path, "a.csv", "\ufeffé\r\n\nb".encode())
    assert list(text_lines.read_text_lines(path)) == [(1, "é\r\n"), (2, "\n"), (3, "b")]


def test_an_overlong_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lines, "LONGEST_LINE", 1000)
    with pytest.raises(ValueError, match="line 2 is longer than"):
        list(text_lines.read_text_lines(write(tmp_path, "x.jsonl", b"short\n" + b"x" * 2000)))


@pytest.mark.slow
def test_a_gzip_bomb_is_refused_near_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lines, "FREELY_UNPACKED", 2**16)
    packed = gzip.compress(b'{"p": "x"}\n' * 2_000_000)
    rows = []
    with pytest.raises(ValueError, match="bomb.jsonl.gz unpacks to more than 50 times its size, which text does not"):
        rows.extend(line for line, _ in text_lines.read_text_lines(write(tmp_path, "bomb.jsonl.gz", packed)))
    buffer = 2**17  # what Python reads of the packed file in one go
    assert len(rows) * 11 <= 50 * buffer + 2**16 < 2_000_000 * 11 / 3
    one_line = write(tmp_path, "line.csv.gz", gzip.compress(b"p,a\n" + b"x" * 20_000_000))
    with pytest.raises(ValueError, match="line.csv.gz unpacks to more than 50 times its size"):
        list(text_lines.read_text_lines(one_line))
