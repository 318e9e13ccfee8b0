"""Rows of metrics.jsonl, and comparing figures that may be missing."""

import math
from typing import Any

import pytest

NAN = math.nan


def rows(count: int, **values: Any) -> list[dict[str, Any]]:
    """`count` steps of two seconds each that share `values`."""
    return [{"step": i + 1, "seconds": 2.0 * (i + 1)} | values for i in range(count)]


def same(actual: Any, expected: Any) -> bool:
    """Are the two equal but for rounding, NaN in the same places?"""
    return actual == pytest.approx(expected, nan_ok=True)
