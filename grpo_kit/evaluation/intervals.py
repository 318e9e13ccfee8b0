"""Accuracies with the interval that belongs to them."""

import functools
import math
from collections import Counter
from collections.abc import Sequence

CONFIDENCE = 0.95


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance, in [0, 1], that one of `k` samples is right when `c` of `n` drawn ones were.

    1 - C(n-c, k) / C(n, k), as in Chen et al. 2021 (arXiv:2107.03374), equation 1.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(n=8, c=1, k=1)
    0.125
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(
            f"pass_at_k got n={n}, c={c}, k={k}; it needs 0 <= c <= n and 1 <= k <= n. Draw at least k samples."
        )
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


@functools.cache
def wilson_interval(right: int, tried: int) -> tuple[float, float]:
    """95 % interval, within [0, 1], of the chance of being right, after `right` of `tried`: Wilson's (1927).

    It stays honest where all or none were right. Raises ValueError unless 0 <= right <= tried and tried > 0.
    """
    from scipy.stats import binomtest

    if not 0 <= right <= tried or not tried:
        raise ValueError(f"{right} of {tried} is no share of tries; it needs 0 <= right <= tried, and a try. Try once.")
    found = binomtest(right, tried).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def majority(answers: Sequence[str | None]) -> int | None:
    """Position of the first sample that gave the most frequent answer; None votes for nothing, None: nobody voted.

    maj@n, also cons@n and self-consistency (Wang et al. 2022, arXiv:2203.11171); of equally frequent answers the one
    given first wins.

    >>> majority(["4", None, "5", "5"])
    2
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return list(answers).index(votes.most_common(1)[0][0]) if votes else None


def mcnemar(before: Sequence[float], after: Sequence[float]) -> float:
    """Chance, in (0, 1], of verdicts (0 or 1) on the same problems that part at least so unevenly if nothing changed.

    McNemar's test in its exact form: of the problems on which the two disagree, each is as likely to be won as lost.
    Raises ValueError for scores other than 0 and 1, or for sequences of different length.
    """
    from scipy.stats import binomtest

    _same_problems(before, after)
    if not {*before, *after} <= {0.0, 1.0}:
        raise ValueError("McNemar's test takes verdicts of 0 and 1, one a problem. Compare shares by their interval.")
    gained = sum(a > b for b, a in zip(before, after, strict=True))
    lost = sum(a < b for b, a in zip(before, after, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def mean_interval(scores: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of per-problem scores in [0, 1].

    Scores of only 0 and 1 (one sample a problem) give Wilson's interval, which stays honest at 0 % and 100 %; others
    a percentile bootstrap over problems. Raises ValueError for no scores.
    """
    if not scores:
        raise ValueError("There are 0 scores; an interval needs at least one. Evaluate on more problems.")
    if all(score in (0.0, 1.0) for score in scores):
        return wilson_interval(int(sum(scores)), len(scores))
    return _bootstrap(scores, seed)


def difference_interval(before: Sequence[float], after: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of mean(after) - mean(before), both on the same problems: bootstrap of the paired differences.

    Raises ValueError when the two differ in length.
    """
    _same_problems(before, after)
    return _bootstrap([b - a for a, b in zip(before, after, strict=True)], seed)


def _same_problems(before: Sequence[float], after: Sequence[float]) -> None:
    if len(before) != len(after):
        raise ValueError(
            f"before has {len(before)} problems and after {len(after)}; a paired difference needs the same ones. Evaluate both again."
        )


def _bootstrap(values: Sequence[float], seed: int) -> tuple[float, float]:
    import numpy
    from scipy.stats import bootstrap

    if len(set(values)) == 1:  # nothing to resample
        return float(values[0]), float(values[0])
    found = bootstrap(
        (numpy.asarray(values, dtype=float),), numpy.mean, confidence_level=CONFIDENCE, n_resamples=2000,
        method="percentile", rng=seed, vectorized=True,
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
