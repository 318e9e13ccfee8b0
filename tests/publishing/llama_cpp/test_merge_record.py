"""Which record says that a merged model is there: any other, damaged or hostile one counts as none."""

import hashlib
import json

import pytest

from grpo_kit.publishing.llama_cpp.merge_record import LARGEST_RECORD, read_record

MADE_OF = {"base": "b", "files": {"config.json": "c"}}


@pytest.fixture
def out(tmp_path):
    """A folder with a model of one file, and its record."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/w").write_bytes(b"123")
    write(tmp_path)
    return tmp_path


def write(out, **fields):
    files = {"w": [3, hashlib.sha256(b"123").hexdigest()]}
    (out / "export.json").write_text(json.dumps({"made_of": MADE_OF, "lost": 0.01, "files": files} | fields))


def test_the_record_of_the_same_is_read(out):
    assert read_record(out, MADE_OF)["lost"] == 0.01
    assert read_record(out, MADE_OF | {"base": "other"}) is None
    assert read_record(out / "none", MADE_OF) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"lost": None}, {"lost": float("nan")}, {"lost": float("inf")}, {"lost": 10**400}, {"lost": "0.1"},
        {"files": {}}, {"files": {"w": [3, "0"]}}, {"files": {"w": [4, hashlib.sha256(b"123").hexdigest()]}},
        {"files": {"w": 3}}, {"files": {"w": [1, 2, 3]}}, {"files": {"w": [float("inf"), "0"]}}, {"files": ["w"]},
        {"files": {"../export.json": [1, "y"]}}, {"made_of": None}, {"made_of": {}},
    ],
)  # fmt: skip
def test_another_record_counts_as_none(out, fields):
    write(out, **fields)
    assert read_record(out, MADE_OF) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 100_000, '"' + "x" * LARGEST_RECORD + '"'])
def test_a_damaged_record_counts_as_none(out, text):
    (out / "export.json").write_text(text)
    assert read_record(out, MADE_OF) is None


def test_a_model_that_is_not_as_it_was_recorded_counts_as_none(out):
    (out / "model/w").write_bytes(b"124")
    assert read_record(out, MADE_OF) is None
    (out / "model/w").write_bytes(b"123")
    assert read_record(out, MADE_OF)
    (out / "model/more").write_bytes(b"")
    assert read_record(out, MADE_OF) is None
