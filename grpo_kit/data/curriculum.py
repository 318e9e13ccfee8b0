"""In which order prompts are trained on: easy ones first, hard ones last, every source at every moment.

After the Nemotron 3 Nano report (arXiv:2512.20848, 3.2.2): the sources keep their shares all along, and within each the
pass rate aimed at is Gaussian with a mean that falls linearly. The report gives neither its width nor its ends; here the
mean falls from the highest pass rate that the source has to the lowest.
"""

import hashlib
import random
from bisect import bisect_left
from typing import Any

from grpo_kit.config.checks import require


def order_rows(rows: list[dict[str, Any]], length: int, sigma: float, seed: int) -> list[dict[str, Any]]:
    """`length` of the `rows`, in the order in which they are to be trained on.

    Rows have `id`, `source` and `pass_rate`. Where fewer are wanted than there are, those nearest to what is aimed at are
    taken; where more, each comes at most once more than it must. The same rows, in whatever order, and seed give the same.
    Raises ValueError for no rows.
    """
    require(bool(rows), "There are 0 rows to order; a curriculum needs at least one. Widen data.pass_rate.")
    by_source: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row['id']}".encode()).digest()):
        by_source.setdefault(row["source"], []).append(row)
    places = _places({source: len(by_source[source]) for source in sorted(by_source)}, length)
    rng, found = random.Random(f"curriculum {seed}"), {}
    for source, taken in places.items():
        if not taken:
            continue
        repeated = -(-len(taken) // len(by_source[source]))
        pool = [(row["pass_rate"], time, row) for time in range(repeated) for row in by_source[source]]
        pool.sort(key=lambda entry: entry[:2])
        rates = [entry[0] for entry in pool]
        fall = (rates[0] - rates[-1]) / max(1, length - 1)
        aims = [rng.gauss(rates[-1] + fall * place, sigma) for place in taken]
        for place, at in zip(taken, _nearest(rates, aims), strict=True):
            found[place] = pool[at][2]
    return [found[place] for place in range(length)]


def _places(counts: dict[str, int], length: int) -> dict[str, list[int]]:
    """Which of `length` places each source gets: at every place the one that is furthest behind its share."""
    whole, places = sum(counts.values()), {source: [] for source in counts}
    for place in range(length):
        behind = max(counts, key=lambda source: counts[source] * (place + 1) - len(places[source]) * whole)
        places[behind].append(place)
    return places


def _nearest(rates: list[float], aims: list[float]) -> list[int]:
    """For each aim the position of a rate near it, every position at most once; a higher aim never gets a lower rate.

    `rates` ascend and are at least as many as `aims`.
    """
    chosen, least = [0] * len(aims), 0
    for done, which in enumerate(sorted(range(len(aims)), key=aims.__getitem__)):
        most = len(rates) - len(aims) + done  # leaves one for each that is still to come
        at = bisect_left(rates, aims[which], least, most)
        if at > least and aims[which] - rates[at - 1] < rates[at] - aims[which]:
            at = bisect_left(rates, rates[at - 1], least)  # the first of its like that is left
        chosen[which], least = at, at + 1
    return chosen
