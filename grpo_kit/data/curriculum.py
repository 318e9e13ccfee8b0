"""The order of the training prompts: easy ones first, hard ones last, with all sources mixed throughout.

Source: the Nemotron 3 Nano report (arXiv:2512.20848, 3.2.2). The sources keep their shares throughout. Within each, the
target pass rate is Gaussian with a mean that falls linearly. The report gives neither the width nor the ends; here the
mean falls from the highest pass rate of the source to the lowest.
"""

import hashlib
import random
from bisect import bisect_left
from typing import Any

from grpo_kit.config.checks import require


def order_rows(rows: list[dict[str, Any]], length: int, sigma: float, seed: int) -> list[dict[str, Any]]:
    """Order screened rows from easy to hard.

    Args:
        rows: rows with `id`, `source` and `pass_rate` (0 to 1), in any order.
        length: how many rows to return. If it is smaller than the number of rows, those nearest to the target
            pass rates are taken; if it is larger, rows are repeated, each no more often than needed.
        sigma: standard deviation of the target pass rate; 0: strictly from easy to hard.
        seed: the same rows and seed give the same order.

    Returns:
        `length` rows.

    Raises:
        ValueError: there are no rows.

    Example:
        >>> rows = [{"id": name, "source": "s", "pass_rate": rate} for name, rate in (("a", 0.2), ("b", 0.8))]
        >>> [row["id"] for row in order_rows(rows, 2, 0.0, seed=1)]
        ['b', 'a']
    """
    require(bool(rows), "There are 0 rows to order; a curriculum needs at least one. Widen data.pass_rate.")
    by_source: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row['id']}".encode()).digest()):
        by_source.setdefault(row["source"], []).append(row)
    places = _share_places({source: len(by_source[source]) for source in sorted(by_source)}, length)
    rng, ordered = random.Random(f"curriculum {seed}"), {}
    for source, own_places in places.items():
        if not own_places:
            continue
        repetitions = -(-len(own_places) // len(by_source[source]))
        pool = [(row["pass_rate"], time, row) for time in range(repetitions) for row in by_source[source]]
        pool.sort(key=lambda entry: entry[:2])
        rates = [entry[0] for entry in pool]
        slope = (rates[0] - rates[-1]) / max(1, length - 1)
        aims = [rng.gauss(rates[-1] + slope * place, sigma) for place in own_places]
        for place, position in zip(own_places, _match_rates(rates, aims), strict=True):
            ordered[place] = pool[position][2]
    return [ordered[place] for place in range(length)]


def _share_places(counts: dict[str, int], length: int) -> dict[str, list[int]]:
    """Which of `length` places each source gets: every place goes to the source that is furthest behind its share."""
    total, places = sum(counts.values()), {source: [] for source in counts}
    for place in range(length):
        behind = max(counts, key=lambda source: counts[source] * (place + 1) - len(places[source]) * total)
        places[behind].append(place)
    return places


def _match_rates(rates: list[float], aims: list[float]) -> list[int]:
    """For each aim the position of a rate near it. Each position is used once; a higher aim never gets a lower rate.

    `rates` ascend, and there are at least as many of them as `aims`.
    """
    chosen, least = [0] * len(aims), 0
    for count, index in enumerate(sorted(range(len(aims)), key=aims.__getitem__)):
        most = len(rates) - len(aims) + count  # leaves one rate for each of the remaining aims
        position = bisect_left(rates, aims[index], least, most)
        if position > least and aims[index] - rates[position - 1] < rates[position] - aims[index]:
            position = bisect_left(rates, rates[position - 1], least)  # the first unused one of equal rates
        chosen[index], least = position, position + 1
    return chosen
