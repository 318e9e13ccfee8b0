"""Compressed and pickled texts are read without unpickling; bombs and other pickles are refused."""

import base64
import io
import os
import pickle
import zlib
from pathlib import Path

import pytest

from grpo_kit.environments.code import unpacking
from grpo_kit.environments.code.column import LARGEST_SOURCE
from grpo_kit.environments.code.unpacking import pack, read_pickled_text, unpack
from grpo_kit.environments.reading import Refused


def packed(content):
    return base64.b64encode(zlib.compress(content)).decode()


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_text_comes_back_as_it_was():
    for text in ("", "1 2\n", "é🙂\0", "x" * 100_000):
        assert unpack(pack(text), "c").decode() == text
        for protocol in range(1, pickle.HIGHEST_PROTOCOL + 1):
            assert read_pickled_text(pickle.dumps(text, protocol), "c") == text


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "unreadable"),
        (b"no zlib", "unreadable"),
        (zlib.compress(b"x" * 1000)[:-5], "unreadable"),
        (zlib.compress(b"x") + b"more", "unreadable"),
        (zlib.compress(b"a") + zlib.compress(b"b"), "unreadable"),
    ],
)
def test_what_is_not_whole_is_refused(content, reason):
    with pytest.raises(Refused, match=reason):
        unpack(base64.b64encode(content).decode(), "c")


def test_what_is_not_base64_is_refused():
    for text in ("not base64!", "é", "AAA", "eJw\nrAQ=="):
        with pytest.raises(Refused, match="unreadable"):
            unpack(text, "c")


def test_a_zlib_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(unpacking, "LARGEST_SOURCE", 50_000)
    for size, fits in ((50_000, True), (50_001, False), (30_000_000, False)):
        bomb = packed(b"0" * size)
        if fits:
            assert len(unpack(bomb, "c")) == size
            continue
        with pytest.raises(Refused, match="more than 50,000 bytes"):
            unpack(bomb, "c")
    with pytest.raises(Refused, match="large tests"):
        unpack("A" * 50_001, "c")
    assert LARGEST_SOURCE == 50_000_000


def make_pickles(path):
    memo = io.BytesIO()
    pickler = pickle.Pickler(memo)
    pickler.dump("a")
    pickler.dump("b")
    yield "object", pickle.dumps(Touches(path))
    yield "object after a text", pickle.dumps(["text", Touches(path)])
    yield "global", b"cos\nsystem\n(S'mkdir " + path.encode() + b"'\ntR."
    yield "text and global", b"\x80\x04\x8c\x01a" + b"cos\nsystem\n(\x8c\x04true\x85R."
    yield "two pickles", memo.getvalue()
    yield "list", pickle.dumps(["a"])
    yield "bytes", pickle.dumps(b"a")
    yield "number", pickle.dumps(7)
    yield "nothing", pickle.dumps(None)
    yield "two texts on the stack", b"\x80\x04\x8c\x01a\x8c\x01b."
    yield "no text", b"\x80\x04."
    yield "not ended", pickle.dumps("a")[:-1]
    yield "a length beyond the end", b"\x80\x04\x8d" + b"\xff" * 8 + b"a."
    yield "unknown opcode", b"\x80\x04\xff."
    yield "empty", b""
    yield "memo read back", b"\x80\x04\x8c\x01a\x94h\x000."
    yield "duplicated", b"\x80\x04\x8c\x01a2."
    yield "by persistent id", b"\x80\x04\x8c\x01aQ."
    yield "extension", b"\x80\x04\x82\x01."
    yield "half of a character", b"\x80\x04\x8c\x02\xff\xfe."


def test_a_pickle_of_anything_but_one_text_is_refused_and_not_run(tmp_path):
    path = str(tmp_path / "made")
    for name, content in make_pickles(path):
        with pytest.raises(Refused) as refused:
            read_pickled_text(content, "c")
        assert refused.value.args[0] == "pickle", name
        assert not Path(path).exists(), name
    pickle.loads(pickle.dumps(Touches(path)))  # it would have been made
    assert Path(path).exists()
