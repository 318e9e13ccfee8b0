"""Known contents written in five formats are read back by the reward as the same contents."""

import json

import pytest

from grpo_kit.environments.writing import KINDS, write_document
from grpo_kit.rewards.structured_output import structured_output_verdict

CONTENTS = {
    "name": 'He said "no" & <left>: 12, yes',
    "count": 7,
    "ratio": -2.5,
    "on": False,
    "inner": {"note": "# one", "deep": {"n": 1}},
    "words": ["1e5", "null", "ä ö"],
    "rows": [{"k": "a", "v": 1}, {"k": "b", "v": 2}],
    "one": ["alone"],
}
SCHEMA = {
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "on": {"type": "boolean"},
        "inner": {
            "properties": {"note": {"type": "string"}, "deep": {"properties": {"n": {"type": "integer"}}}},
        },
        "words": {"type": "array", "items": {"type": "string"}},
        "rows": {
            "type": "array",
            "items": {"properties": {"k": {"type": "string"}, "v": {"type": "integer"}}},
        },
        "one": {"type": "array", "items": {"type": "string"}},
    }
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "csv"])
def test_contents_are_read_back(kind):
    contents, schema = ({"root": CONTENTS}, {"properties": {"root": SCHEMA}}) if kind == "xml" else (CONTENTS, SCHEMA)
    document = write_document(contents, kind)
    verdict = structured_output_verdict(document, json.dumps(schema), kind, json.dumps(contents))
    assert verdict.reason == "right", document


def test_rows_are_read_back_from_csv():
    rows = [{"a": 'x, "y"', "b": 1.5, "c": True, "d": None}, {"a": "two\nlines", "b": -3, "c": False, "d": "z"}]
    properties = {
        "a": {"type": "string"},
        "b": {"type": "number"},
        "c": {"type": "boolean"},
        "d": {"type": ["string", "null"]},
    }
    document = write_document(rows, "csv")
    assert document == 'a,b,c,d\n"x, ""y""",1.5,true,\n"two\nlines",-3,false,z'
    schema = json.dumps({"type": "array", "items": {"properties": properties}})
    assert structured_output_verdict(document, schema, "csv", json.dumps(rows)).reason == "right"


def test_toml_leaves_out_what_is_null_and_puts_plain_values_first():
    contents = {"table": {"x": 1}, "nothing": None, "rows": [{"y": {"z": 2}}], "last": "v"}
    assert write_document(contents, "toml") == 'last = "v"\n\n[table]\nx = 1\n\n[[rows]]\n\n[rows.y]\nz = 2'
