"""Problems that are there twice: equal in their tokens, or near duplicates by MinHash, each pair confirmed.

MinHash (Broder 1997) with 126 hashes in 21 bands of 6 (Leskovec, Rajaraman, Ullman, chapter 3): two problems whose sets
of 3-token runs overlap by 0.8 (Jaccard) meet in a band with probability 0.998, and only pairs whose overlap is then
counted exactly are believed. Equal wording with other numbers has another answer: such variants are kept, and tied
together so that a split does not tear them apart.

What differs from datasketch: all problems' hashes are taken at once in numpy, and each bucket is searched within a
window, so that a million problems from one template cost a million comparisons and not its square.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from grpo_kit.data import ngrams

THRESHOLD = 0.8  # Jaccard overlap of 3-token runs from which two problems count as near duplicates
RUN, BANDS, ROWS = 3, 21, 6
WINDOW = 8  # neighbours in a bucket that a problem is compared with
Same = Callable[[str, str], bool]  # whether two golds are the same answer


class Found(NamedTuple):
    """What `find_duplicates` says: problems to drop (number: reason, why), and ties (number: the number it is tied to, lower)."""

    dropped: dict[int, tuple[str, str]]
    ties: dict[int, int]


def find_duplicates(
    problems: Sequence[str], golds: Sequence[str], same: Same, label: Callable[[int], str] = str
) -> Found:
    """Drop repetitions, the first of equals stays; all of them where their golds contradict each other.

    `label` says what a problem is called in the reasons.
    """
    dropped: dict[int, tuple[str, str]] = {}
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, problem in enumerate(problems):
        groups[ngrams.digest_tokens(problem)].append(number)
    for members in groups.values():
        first, *others = members
        if not all(same(golds[first], golds[other]) for other in others):
            said = " and ".join(dict.fromkeys(golds[member][:40] for member in members))
            dropped |= dict.fromkeys(members, ("contradicting golds", f"equal problems say {said}"))
        else:
            dropped |= {other: ("repeated problem", f"equals {label(first)}") for other in others}
    left = [number for number in range(len(problems)) if number not in dropped]
    parent: dict[int, int] = {}
    edges = defaultdict(list)
    for a, b, overlap in find_near_pairs([problems[number] for number in left]):
        low, high = left[a], left[b]
        edges[high].append((low, overlap))
        top, other = sorted((_root(parent, low), _root(parent, high)))
        parent[other] = top
    for number in sorted(edges):
        for twin, overlap in sorted(edges[number]):
            if twin not in dropped and same(golds[twin], golds[number]):
                dropped[number] = ("near duplicate", f"overlaps {label(twin)} by {overlap:.2f}")
                break
    ties = {number: _root(parent, number) for number in left if number in parent and number not in dropped}
    return Found(dropped, ties)


def find_near_pairs(problems: Sequence[str]) -> list[tuple[int, int, float]]:
    """(lower number, higher number, Jaccard overlap of 3-token runs), for overlaps of THRESHOLD or more."""
    signatures = compute_minhash(problems)
    sure = []
    for a, b in _candidates(signatures):
        alike = (signatures[a] == signatures[b]).mean(axis=1)
        worth = alike >= THRESHOLD - 0.1  # three standard deviations of the estimate
        sure.append(np.stack([a[worth], b[worth]], axis=1))
    pairs = np.unique(np.concatenate(sure), axis=0) if sure else np.empty((0, 2), np.int64)
    found, vocabulary = [], ngrams.Vocabulary()
    for part in ngrams.split_range(len(pairs)):
        numbers, where = np.unique(pairs[part.start : part.stop], return_inverse=True)
        have = ngrams.hash_runs(
            [ngrams.split_tokens(problems[number]) for number in numbers], RUN, vocabulary, short=True
        )
        sets = [frozenset(have.hashes[s:e].tolist()) for s, e in zip(have.starts, have.starts[1:])]
        for a, b in where.reshape(-1, 2):
            overlap = len(sets[a] & sets[b]) / max(len(sets[a] | sets[b]), 1)
            if overlap >= THRESHOLD:
                found.append((int(numbers[a]), int(numbers[b]), overlap))
    return found


def compute_minhash(problems: Sequence[str]) -> np.ndarray:
    """(problems, 126) uint32: for each of 126 hash functions the least value over a problem's 3-token runs."""
    count, rng = BANDS * ROWS, np.random.default_rng(0)
    factors, shifts = (rng.integers(1, 2**63, count, dtype=np.uint64) | np.uint64(1) for _ in range(2))
    signatures = np.full((len(problems), count), 2**32 - 1, np.uint32)
    vocabulary = ngrams.Vocabulary()
    for part in ngrams.split_range(len(problems)):
        have = ngrams.hash_runs([ngrams.split_tokens(problems[i]) for i in part], RUN, vocabulary, short=True)
        filled = np.flatnonzero(np.diff(have.starts))  # an empty text has no least value
        if not len(filled):
            continue
        for k in range(count):
            values = ((have.hashes * factors[k] + shifts[k]) >> np.uint64(32)).astype(np.uint32)
            signatures[part.start + filled, k] = np.minimum.reduceat(values, have.starts[filled])
    return signatures


def _candidates(signatures: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (lower, higher) that share a band, in arrays; within a bucket, those that share the next band stand together."""
    prime = np.uint64(0x100000001B3)
    keys = np.zeros((BANDS, len(signatures)), np.uint64)
    for band in range(BANDS):
        for column in range(band * ROWS, (band + 1) * ROWS):
            keys[band] = (keys[band] ^ signatures[:, column]) * prime
    for band in range(BANDS):
        order = np.lexsort((keys[(band + 1) % BANDS], keys[band]))
        sorted_keys = keys[band][order]
        for distance in range(1, WINDOW + 1):
            hit = np.flatnonzero(sorted_keys[distance:] == sorted_keys[:-distance])
            if not len(hit):
                break
            for part in ngrams.split_range(len(hit), 500_000):
                a, b = order[hit[part.start : part.stop]], order[hit[part.start : part.stop] + distance]
                yield np.minimum(a, b), np.maximum(a, b)


def _root(parent: dict[int, int], number: int) -> int:
    parent.setdefault(number, number)
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number
