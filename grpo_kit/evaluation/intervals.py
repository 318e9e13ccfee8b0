"""Statistics of accuracies: confidence intervals, pass@k, majority vote, McNemar's test, and a comparison in words."""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

CONFIDENCE = 0.95
Scores = Mapping[str, float | None]  # by problem, in [0, 1]; None: its reference answer cannot be used


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


def mcnemar(before: Sequence[float], after: Sequence[float]) -> float:
    """Two-sided p-value, in (0, 1], of McNemar's exact test on verdicts (0 or 1) about the same problems.

    Of the problems on which the two disagree, each is as likely to be gained as lost if nothing changed.

    Raises:
        ValueError: scores other than 0 and 1, or sequences of different length.
    """
    from scipy.stats import binomtest

    _check_same_length(before, after)
    if not {*before, *after} <= {0.0, 1.0}:
        raise ValueError("McNemar's test takes verdicts of 0 and 1, one per problem. Compare shares by their interval.")
    gained = sum(a > b for b, a in zip(before, after, strict=True))
    lost = sum(a < b for b, a in zip(before, after, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def mean_interval(scores: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of per-problem scores in [0, 1].

    Scores of only 0 and 1 (one sample per problem) give Wilson's interval, which is reliable at 0 % and 100 %; others
    give a percentile bootstrap over problems.

    Raises:
        ValueError: there are no scores.
    """
    if not scores:
        raise ValueError("There are 0 scores; an interval needs at least one. Evaluate on more problems.")
    if all(score in (0.0, 1.0) for score in scores):
        return wilson_interval(int(sum(scores)), len(scores))
    return _bootstrap(scores, seed)


def difference_interval(before: Sequence[float], after: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of mean(after) - mean(before) on the same problems: a bootstrap of the paired differences.

    Raises:
        ValueError: the two differ in length.
    """
    _check_same_length(before, after)
    return _bootstrap([b - a for a, b in zip(before, after, strict=True)], seed)


def independent_difference_interval(
    first: float, first_ci95: Sequence[float], last: float, last_ci95: Sequence[float]
) -> tuple[float, float]:
    """95 % interval of last - first, two means in [0, 1], each with its own 95 % interval.

    It takes the two as independent. For the same problems, which are right or wrong together, it is too wide, never too
    narrow; `difference_interval` uses the pairs where the scores are at hand.

    Source:
        Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10: the square
        root of the sum of the squared distances to the ends of the two intervals.

    Example:
        >>> [round(end, 3) for end in independent_difference_interval(0.5, (0.4, 0.6), 0.7, (0.6, 0.8))]
        [0.059, 0.341]
    """
    (low, high), (last_low, last_high) = first_ci95, last_ci95
    difference = last - first
    return difference - math.hypot(last - last_low, high - first), difference + math.hypot(
        last_high - last, first - low
    )


def compare_scores(
    before: Scores, after: Scores, names: tuple[str, str] = ("before training", "after training"), seed: int = 0
) -> dict[str, Any]:
    """Is one policy better than another? Compare their scores on the problems that both have a score for.

    Where every score is 0 or 1 (one sample per problem), McNemar's exact test decides: `p_value` below 0.05. Otherwise
    the 95 % bootstrap interval decides: the difference is real if the interval leaves out zero; `p_value` is then None.

    Args:
        before: the scores of the first policy, by problem.
        after: the scores of the second policy, by problem.
        names: what to call the two in the sentence.
        seed: seeds the bootstrap.

    Returns:
        `n` problems, `difference` (after minus before, in [-1, 1]), `difference_ci95`, `p_value`, `gained` and `lost`
        (problems whose score rose and fell), `real`, and `words`, one sentence for people.

    Raises:
        ValueError: the two share no problem with a score.
    """
    shared = [key for key, score in before.items() if score is not None and after.get(key) is not None]
    if not shared:
        raise ValueError(
            f"No problem has a score both {names[0]} and {names[1]}, so there is nothing to compare. "
            "Measure both again."
        )
    old, new = ([scores[key] for key in shared] for scores in (before, after))
    low, high = difference_interval(old, new, seed)
    one_sample = {*old, *new} <= {0.0, 1.0}
    result = {
        "n": len(shared),
        "difference": sum(new) / len(new) - sum(old) / len(old),
        "difference_ci95": [low, high],
        "p_value": mcnemar(old, new) if one_sample else None,
        "gained": sum(b > a for a, b in zip(old, new, strict=True)),
        "lost": sum(b < a for a, b in zip(old, new, strict=True)),
    }
    result["real"] = result["p_value"] < 1 - CONFIDENCE if one_sample else not low <= 0 <= high
    return result | {"words": _comparison_sentence(result, names)}


def _comparison_sentence(result: Mapping[str, Any], names: tuple[str, str]) -> str:
    difference, (low, high) = result["difference"], result["difference_ci95"]
    points = f"{abs(100 * difference):.1f} percentage points {'more' if difference > 0 else 'fewer'}"
    change, than = (points, "than") if difference else ("as many", "as")
    solved = f"{change} problems are solved {names[1]} {than} {names[0]}"
    counts = f"{result['gained']} problems gained and {result['lost']} lost, of {result['n']}"
    if result["p_value"] is not None:
        evidence = f"without any real change, a split at least this uneven would occur {_chance(result['p_value'])}"
    else:
        includes = "excludes" if result["real"] else "includes"
        evidence = f"the 95 % interval, {100 * low:+.1f} to {100 * high:+.1f} points, {includes} zero"
    verdict = "The difference is real" if result["real"] else "No difference is shown"
    return f"{verdict}: {solved}, {counts}; {evidence}."


def _chance(p: float) -> str:
    if p >= 0.1:
        return f"{p:.0%} of the time"
    return f"{p:.1%} of the time" if p >= 1e-3 else "less than once in a thousand times"


def _check_same_length(before: Sequence[float], after: Sequence[float]) -> None:
    if len(before) != len(after):
        raise ValueError(
            f"before has {len(before)} problems and after {len(after)}; a paired difference needs the same problems. "
            "Measure both again."
        )


def _bootstrap(values: Sequence[float], seed: int) -> tuple[float, float]:
    import numpy
    from scipy.stats import bootstrap

    if len(set(values)) == 1:  # nothing to resample
        return float(values[0]), float(values[0])
    result = bootstrap(
        (numpy.asarray(values, dtype=float),),
        numpy.mean,
        confidence_level=CONFIDENCE,
        n_resamples=2000,
        method="percentile",
        rng=seed,
        vectorized=True,
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
