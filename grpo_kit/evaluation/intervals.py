"""Statistics of one measurement: pass@k, majority vote, and the 95 % intervals of an accuracy or another mean."""

import functools
import math
from collections import Counter
from collections.abc import Sequence

CONFIDENCE = 0.95
Z = 1.959964  # standard errors to each side of an estimate that hold 95 % of a normal distribution


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate, in [0, 1], of the chance that at least one of `k` samples is right.

    Args:
        n: samples drawn, at least `k`.
        c: how many of them are right, 0 to `n`.
        k: samples allowed, at least 1.

    Raises:
        ValueError: the numbers are out of these ranges.

    Source:
        Chen et al. 2021 (arXiv:2107.03374), equation 1: 1 - C(n-c, k) / C(n, k).

    Example:
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
    """95 % interval, within [0, 1], of the chance of being right after `right` of `tried` were.

    It is reliable even where all or none were right.

    Raises:
        ValueError: unless 0 <= right <= tried and tried > 0.

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    from scipy.stats import binomtest

    if not 0 <= right <= tried or not tried:
        raise ValueError(
            f"right is {right} and tried is {tried}; an interval needs 0 <= right <= tried, and at least one try."
        )
    interval = binomtest(right, tried).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def majority(answers: Sequence[str | None]) -> int | None:
    """Position of the first sample with the most frequent answer, also called maj@n, cons@n or self-consistency.

    Args:
        answers: the final answer of each sample; None does not vote. A tie goes to the answer that was given first.

    Returns:
        The position, or None where nobody voted.

    Source:
        Wang et al. 2022 (arXiv:2203.11171).

    Example:
        >>> majority(["4", None, "5", "5"])
        2
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return list(answers).index(votes.most_common(1)[0][0]) if votes else None


def mean_interval(scores: Sequence[float]) -> tuple[float, float]:
    """95 % interval, within [0, 1], of the mean of one score for each problem.

    Scores of only 0 and 1 (one sample per problem) give Wilson's interval, others `widened_interval`. Both have a width
    where all scores are equal.

    Args:
        scores: one for each problem, in [0, 1].

    Raises:
        ValueError: there are no scores, or one is outside [0, 1] or NaN.
    """
    require_shares(scores)
    if {*scores} <= {0.0, 1.0}:
        return wilson_interval(int(sum(scores)), len(scores))
    return widened_interval(scores, 0.0, 1.0)


def require_shares(scores: Sequence[float]) -> None:
    """Raise ValueError unless there are scores, each in [0, 1]."""
    if not scores:
        raise ValueError("There are 0 scores; an interval needs at least one. Evaluate on more problems.")
    if wrong := [score for score in scores if not 0 <= score <= 1]:
        raise ValueError(
            f"A score is {wrong[0]}; it is the share of a problem's samples that are right. Measure again."
        )


def lengths_interval(values: Sequence[float], least: float, most: float) -> tuple[float, float]:
    """95 % interval of a mean of lengths, or of their differences: Student's t.

    Lengths have no natural end, and hardly two are equal, so their own spread tells how far the mean may be off. Where
    all are equal, it tells nothing, and `widened_interval` takes its place.

    Args:
        values: at least one, in tokens or another unit.
        least, most: the ends of what was seen, such as 0 and the longest; the interval does not leave them.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    from scipy.stats import sem, t

    if not values:
        raise ValueError("There are 0 lengths; an interval needs at least one. Measure on more problems.")
    if wrong := [value for value in values if not math.isfinite(value)]:
        raise ValueError(f"A length, or a difference of two, is {wrong[0]}; it is a finite number. Measure again.")
    if len({*values}) == 1:
        return widened_interval(values, least, most)
    low, high = t.interval(CONFIDENCE, len(values) - 1, math.fsum(values) / len(values), sem(values))
    return max(least, float(low)), min(most, float(high))


def widened_interval(values: Sequence[float], least: float, most: float) -> tuple[float, float]:
    """95 % interval of a mean: the normal one of the values and of two more, one at each end of what is possible.

    The two more stand for problems of a kind that happens not to be among these. They keep the interval from having no
    width where the values are equal, and from being too narrow where few of them differ from the others; among hundreds
    of values they hardly count.

    Args:
        values: one for each problem, in [`least`, `most`].
        least, most: the ends, which the interval does not leave.

    Source:
        Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on
        paired data", where the values are -1, 0 and 1; here they may lie between the ends. `benchmarks/intervals.py`
        measures how often it holds the true mean.

    Example:
        >>> [round(end, 2) for end in widened_interval([0.0] * 60, -1.0, 1.0)]
        [-0.04, 0.04]
    """
    widened = [*values, least, most]
    mean = math.fsum(widened) / len(widened)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in widened)) / len(widened)
    return max(least, mean - Z * error), min(most, mean + Z * error)
