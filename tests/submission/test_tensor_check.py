"""What a tensor's values are like is seen in every type and in every piece of a file."""

import math

import pytest
import torch
from safetensors.torch import save_file

from grpo_kit.adapters import safetensors_files
from grpo_kit.submission.tensor_check import summarize_values


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
def test_values_are_seen_in_every_type(tmp_path, dtype, values, zero, finite, largest):
    seen = summarize(tmp_path, a=torch.tensor(values, dtype=dtype))["a"]
    assert (seen.zero, seen.finite) == (zero, finite)
    assert math.isnan(seen.largest) if largest is None else seen.largest == largest


def test_a_value_is_seen_in_every_piece_of_a_large_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, "PIECE", 64)
    for at in (0, 31, 32, 33, 99):
        value = torch.zeros(100, dtype=torch.bfloat16)
        value[at] = -3
        assert summarize(tmp_path, a=value, b=torch.zeros(100))["a"].largest == 3
        value[at] = float("nan")
        assert not summarize(tmp_path, a=value, b=torch.zeros(100))["a"].finite
    assert summarize(tmp_path, a=torch.zeros(100), b=value)["a"].zero


def test_types_that_are_not_floats_have_no_values(tmp_path):
    assert set(summarize(tmp_path, a=torch.ones(3, dtype=torch.int8), b=torch.ones(1))) == {"b"}
