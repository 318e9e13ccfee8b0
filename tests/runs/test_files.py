"""Files that are written whole; JSON without NaN and Infinity."""

import json

import numpy as np
import pytest
import torch

from grpo_kit.runs.files import to_json, write_lines


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), np.float64("inf"), torch.tensor(torch.inf)]
)
def test_what_is_not_finite_becomes_null(value):
    assert strict(to_json({"a": [value, 1.5], "b": value})) == {"a": [None, 1.5], "b": None}


def test_numbers_and_arrays_of_libraries_become_plain_ones(tmp_path):
    row = {"a": np.float32(0.5), "b": torch.tensor([1, 2]), "c": np.bool_(True), "d": np.array([np.nan, 2.0])}
    write_lines(tmp_path / "rows.jsonl", [row])
    assert strict((tmp_path / "rows.jsonl").read_text()) == {"a": 0.5, "b": [1, 2], "c": True, "d": [None, 2.0]}


def test_what_json_cannot_hold_is_named():
    with pytest.raises(TypeError, match="object .* cannot be written as JSON"):
        to_json({"a": object()})
