"""Problems that occur twice: equal in their tokens, or near duplicates that MinHash finds and an exact count confirms.

MinHash (Broder 1997) with 126 hashes in 21 bands of 6 (Leskovec, Rajaraman, Ullman, chapter 3): two problems whose
sets of 3-token runs overlap by 0.8 (Jaccard) share a band with probability 0.998. Only pairs whose exact overlap is
0.8 or more count. Problems of equal wording with other numbers have other answers. Such variants are kept, and tied to
each other so that a split does not separate them.

Unlike datasketch: the hashes of all problems are computed at once in numpy, and each bucket is searched
within a window, so that a million problems made from one template cost millions of comparisons and not a trillion.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from grpo_kit.data import ngrams

THRESHOLD = 0.8  # Jaccard overlap of 3-token runs from which two problems count as near duplicates
RUN, BANDS, ROWS = 3, 21, 6  # tokens in a run; bands of the signature; hashes in a band
WINDOW = 8  # neighbours in a bucket that a problem is compared with
GoldComparison = Callable[[str, str], bool]  # whether two golds are the same answer


class Duplicates(NamedTuple):
    """What `find_duplicates` finds.

    Attributes:
        dropped: number of each problem to drop, with (reason, detail).
        ties: number of each kept variant to the number, lower or equal, that its group is named by.
    """

    dropped: dict[int, tuple[str, str]]
    ties: dict[int, int]


def find_duplicates(
    problems: Sequence[str], golds: Sequence[str], is_same: GoldComparison, label: Callable[[int], str] = str
) -> Duplicates:
    """Find repeated problems. The first of equal problems stays; none stays where their golds contradict each other.

    Args:
        problems: the texts.
        golds: the gold of each problem.
        is_same: decides whether two golds are the same answer.
        label: names a problem in the details, by its number.

    Returns:
        The problems to drop, and which of the others are variants of each other.

    Example:
        >>> find_duplicates(["1 + 1?", "2 + 2?", "1+1 ?"], ["2", "4", "2"], str.__eq__).dropped
        {2: ('repeated problem', 'equals 0')}
    """
    dropped = _find_equal(problems, golds, is_same, label)
    left = [number for number in range(len(problems)) if number not in dropped]
    parents: dict[int, int] = {}  # a union-find forest over the variants
    neighbours = defaultdict(list)
    for a, b, overlap in find_near_pairs([problems[number] for number in left]):
        low, high = left[a], left[b]
        neighbours[high].append((low, overlap))
        root, other = sorted((_find_root(parents, low), _find_root(parents, high)))
        parents[other] = root
    for number in sorted(neighbours):
        for twin, overlap in sorted(neighbours[number]):
            if twin not in dropped and is_same(golds[twin], golds[number]):
                dropped[number] = ("near duplicate", f"overlaps {label(twin)} by {overlap:.2f}")
                break
    ties = {number: _find_root(parents, number) for number in left if number in parents and number not in dropped}
    return Duplicates(dropped, ties)


def _find_equal(
    problems: Sequence[str], golds: Sequence[str], is_same: GoldComparison, label: Callable[[int], str]
) -> dict[int, tuple[str, str]]:
    dropped: dict[int, tuple[str, str]] = {}
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, problem in enumerate(problems):
        groups[ngrams.digest_tokens(problem)].append(number)
    for members in groups.values():
        first, *others = members
        if all(is_same(golds[first], golds[other]) for other in others):
            dropped |= {other: ("repeated problem", f"equals {label(first)}") for other in others}
        else:
            answers = " and ".join(dict.fromkeys(golds[member][:40] for member in members))
            dropped |= dict.fromkeys(members, ("contradicting golds", f"equal problems say {answers}"))
    return dropped


def find_near_pairs(problems: Sequence[str]) -> list[tuple[int, int, float]]:
    """Find the pairs of problems whose 3-token runs overlap by THRESHOLD or more.

    Args:
        problems: the texts.

    Returns:
        (lower number, higher number, Jaccard overlap) of each pair.
    """
    signatures = compute_minhash(problems)
    likely = []
    for a, b in _candidates(signatures):
        estimate = (signatures[a] == signatures[b]).mean(axis=1)
        is_likely = estimate >= THRESHOLD - 0.1  # three standard deviations of the estimate
        likely.append(np.stack([a[is_likely], b[is_likely]], axis=1))
    pairs = np.unique(np.concatenate(likely), axis=0) if likely else np.empty((0, 2), np.int64)
    near, vocabulary = [], ngrams.Vocabulary()
    for part in ngrams.split_range(len(pairs)):
        numbers, places = np.unique(pairs[part.start : part.stop], return_inverse=True)
        tokens = [ngrams.split_tokens(problems[number]) for number in numbers]
        runs = ngrams.hash_runs(tokens, RUN, vocabulary, short=True)
        sets = [frozenset(runs.hashes[start:end].tolist()) for start, end in zip(runs.starts, runs.starts[1:])]
        for a, b in places.reshape(-1, 2):
            overlap = len(sets[a] & sets[b]) / max(len(sets[a] | sets[b]), 1)
            if overlap >= THRESHOLD:
                near.append((int(numbers[a]), int(numbers[b]), overlap))
    return near


def compute_minhash(problems: Sequence[str]) -> np.ndarray:
    """Compute the MinHash signatures of problems.

    Args:
        problems: the texts.

    Returns:
        (problems, 126) uint32: for each of 126 hash functions the least value over the problem's 3-token runs. The
        share of equal values of two signatures estimates the overlap of their problems.
    """
    count, rng = BANDS * ROWS, np.random.default_rng(0)
    factors, shifts = (rng.integers(1, 2**63, count, dtype=np.uint64) | np.uint64(1) for _ in range(2))
    signatures = np.full((len(problems), count), 2**32 - 1, np.uint32)
    vocabulary = ngrams.Vocabulary()
    for part in ngrams.split_range(len(problems)):
        runs = ngrams.hash_runs([ngrams.split_tokens(problems[i]) for i in part], RUN, vocabulary, short=True)
        has_runs = np.flatnonzero(np.diff(runs.starts))  # an empty text has no least value
        if not len(has_runs):
            continue
        for k in range(count):
            values = ((runs.hashes * factors[k] + shifts[k]) >> np.uint64(32)).astype(np.uint32)
            signatures[part.start + has_runs, k] = np.minimum.reduceat(values, runs.starts[has_runs])
    return signatures


def _candidates(signatures: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (lower, higher) that share a band, in arrays.

    A bucket holds the problems that share a band; it is sorted by the next band, so that the most similar are
    neighbours.
    """
    prime = np.uint64(0x100000001B3)
    keys = np.zeros((BANDS, len(signatures)), np.uint64)
    for band in range(BANDS):
        for column in range(band * ROWS, (band + 1) * ROWS):
            keys[band] = (keys[band] ^ signatures[:, column]) * prime
    for band in range(BANDS):
        order = np.lexsort((keys[(band + 1) % BANDS], keys[band]))
        sorted_keys = keys[band][order]
        for distance in range(1, WINDOW + 1):
            equal = np.flatnonzero(sorted_keys[distance:] == sorted_keys[:-distance])
            if not len(equal):
                break
            for part in ngrams.split_range(len(equal), 500_000):
                a, b = order[equal[part.start : part.stop]], order[equal[part.start : part.stop] + distance]
                yield np.minimum(a, b), np.maximum(a, b)


def _find_root(parents: dict[int, int], number: int) -> int:
    parents.setdefault(number, number)
    while parents[number] != number:
        parents[number] = parents[parents[number]]  # halves the path for later calls
        number = parents[number]
    return number
