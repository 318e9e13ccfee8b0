"""Try again where that is safe, wait longer each time, and wait as long as a server asks for."""

import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

Result = TypeVar("Result")
PATIENCE = 300.0  # seconds; who is asked to wait longer than this is told so instead


def waits(first: float, most: float, factor: float = 2.0) -> Iterator[float]:
    """Seconds to wait: `first`, then `factor` times as long each time, never over `most`; without end.

    >>> from itertools import islice
    >>> list(islice(waits(1, 5), 4))
    [1, 2.0, 4.0, 5]
    """
    while True:
        yield min(first, most)
        first = min(first * factor, most)


def asked_to_wait(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: a number or a date); None when it says nothing.

    >>> asked_to_wait("7"), asked_to_wait(None), asked_to_wait("soon")
    (7.0, None, None)
    """
    if not header:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # no date, or one without a zone
        return None


def until_settled(
    attempt: Callable[[], Result], again: Callable[[Result], float | None], tries: int = 6, sleep: Callable[[float], None] = time.sleep
) -> Result:  # fmt: skip
    """What `attempt` gives once `again` finds nothing to wait for, or after `tries` of them.

    `again`: of a result, None where it stands, else the seconds its sender asks to wait, 0 for none in particular. Between
    tries lie 1, 2, 4 ... seconds, at least what was asked for, and up to a quarter more, so that many who were refused
    together do not come back together. A result that asks for more than `PATIENCE` seconds is given back as it is.
    """
    pauses = waits(1.0, 60.0)
    for _ in range(tries - 1):
        result = attempt()
        asked = again(result)
        if asked is None or asked > PATIENCE:
            return result
        sleep(max(asked, next(pauses)) * random.uniform(1.0, 1.25))
    return attempt()
