"""How long this session may last: what was asked for, or what Kaggle and Colab are known to give."""

import os
import re
import time
from collections.abc import Mapping

import psutil

HOURS = {
    "KAGGLE_KERNEL_RUN_TYPE": 12.0,
    "COLAB_RELEASE_TAG": 12.0,
}  # Kaggle's rule; Colab's usual end, which it may cut short


def seconds_of(text: str) -> float:
    """`3h30m`, `45m`, `1d`, `90s` in seconds. Raises ValueError for anything else.

    >>> seconds_of("3h30m")
    12600.0
    """
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"run.time_limit is {text!r}; it is written like 3h30m, 45m or 90s. Write it so.")
    return sum(float(number) * units[unit] for number, unit in parts)


def deadline(limit: str | None, reserve: float, environ: Mapping[str, str] = os.environ) -> float | None:
    """When to stop (`time.time()`): `limit` after this process began, less `reserve` seconds for what comes after; None
    where nothing ends the session."""
    hours = next((hours for name, hours in HOURS.items() if environ.get(name)), None)
    if limit is None and hours is None:
        return None
    allowed = seconds_of(limit) if limit else hours * 3600
    return max(psutil.Process().create_time() + allowed - reserve, time.time())
