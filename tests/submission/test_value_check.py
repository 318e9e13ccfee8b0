"""The summary of a tensor's values is right for every dtype and for every piece of a file."""

import math

import pytest
import torch
from safetensors.torch import save_file

from grpo_kit.adapters import safetensors_files
from grpo_kit.submission.value_check import summarize_values


def summarize(tmp_path, **tensors):
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    return summarize_values(path, safetensors_files.read_header(path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("values", "zero", "finite", "largest"),
    [
        ([0.0, -0.0, 0.0], True, True, 0.0),
        ([0.0, -2.5, 1.0], False, True, 2.5),
        ([1.0, float("nan")], False, False, None),
        ([1.0, float("-inf")], False, False, float("inf")),
        ([2.0**-14], False, True, 2.0**-14),
        ([2.0**-24], False, True, 2.0**-24),  # subnormal in float16
        ([], True, True, 0.0),
    ],
)
def test_zero_finite_and_largest_are_right_for_every_dtype(tmp_path, dtype, values, zero, finite, largest):
    summary = summarize(tmp_path, a=torch.tensor(values, dtype=dtype))["a"]
    assert (summary.zero, summary.finite) == (zero, finite)
    assert math.isnan(summary.largest) if largest is None else summary.largest == largest


def test_a_single_value_counts_wherever_it_lies_in_a_large_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, "PIECE", 64)
    for at in (0, 31, 32, 33, 99):
        value = torch.zeros(100, dtype=torch.bfloat16)
        value[at] = -3
        assert summarize(tmp_path, a=value, b=torch.zeros(100))["a"].largest == 3
        value[at] = float("nan")
        assert not summarize(tmp_path, a=value, b=torch.zeros(100))["a"].finite
    assert summarize(tmp_path, a=torch.zeros(100), b=value)["a"].zero


def test_tensors_that_are_not_floats_get_no_summary(tmp_path):
    assert set(summarize(tmp_path, a=torch.ones(3, dtype=torch.int8), b=torch.ones(1))) == {"b"}
