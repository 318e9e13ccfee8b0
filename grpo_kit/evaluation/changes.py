"""What changed between two measurements of the same problems: its 95 % interval, McNemar's test, and both in words."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_kit.evaluation.intervals import CONFIDENCE, lengths_interval, require_shares, widened_interval
from grpo_kit.runs.texts import format_change, format_count

# Of a score. Shares such as 3/10 and 1/10 + 2/10 are equal and differ by less; two shares that differ, by far more.
ROUNDING = 1e-9
NODES = 200  # of Gauss's and Legendre's rule for a distribution; they are enough for four digits
Scores = Mapping[str, float | None]  # by problem, in [0, 1]; None: its reference answer cannot be used


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


def difference_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """95 % interval, within [-1, 1], of mean(after) - mean(before) on the same problems.

    Scores of only 0 and 1 (one sample per problem) give `pairs_interval`, which leaves out zero exactly where
    McNemar's exact test gives a p-value below 0.05. Others give `intervals.widened_interval`, whose two more problems
    are one that gained all and one that lost all. Both have a width where nothing changed.

    Args:
        before, after: the scores of each problem, in [0, 1].

    Raises:
        ValueError: the two differ in length, there are none, or a score is outside [0, 1] or NaN.
    """
    require_shares([*before, *after])
    changes = _list_changes(before, after)
    if {*before, *after} <= {0.0, 1.0}:
        return pairs_interval(changes.count(1.0), changes.count(-1.0), len(changes))
    return widened_interval(changes, -1.0, 1.0)


def length_difference_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """95 % interval of mean(after) - mean(before) of lengths on the same problems, by `intervals.lengths_interval`.

    Raises:
        ValueError: the two differ in length, there are none, or one is not finite.
    """
    _check_same_length(before, after)
    longest = max([*before, *after], default=0.0)
    return lengths_interval([b - a for a, b in zip(before, after, strict=True)], -longest, longest)


@functools.cache
def pairs_interval(gained: int, lost: int, tried: int) -> tuple[float, float]:
    """95 % interval of the change in accuracy where `gained` of `tried` problems became right and `lost` wrong.

    The share of problems that changed and the share of gains among these have each an exact distribution of confidence,
    Clopper and Pearson's. The change is their product, share * (2 * gains - 1), and the interval cuts off 2.5 % of its
    distribution at each end. An end is on the same side of zero as the end of the interval of the gains is of one half,
    which is what McNemar's exact test decides by, so that the two never contradict each other.

    Raises:
        ValueError: a count is below 0, no problem was tried, or more changed than were tried.

    Source:
        Fay and Lumbard 2021, "Confidence intervals for difference in proportions for matched pairs compatible with
        exact McNemar's or sign tests".

    Example:
        >>> [round(end, 3) for end in pairs_interval(gained=5, lost=0, tried=40)]  # McNemar's p-value is 0.0625
        [-0.006, 0.268]
    """
    if min(gained, lost) < 0 or not 0 < tried >= gained + lost:
        raise ValueError(
            f"gained is {gained}, lost {lost} and tried {tried}; counts are 0 or more, and at least one problem is "
            "tried, each gained or lost at most once."
        )
    return _lower_end(gained, lost, tried), -_lower_end(lost, gained, tried)


def _lower_end(gained: int, lost: int, tried: int) -> float:
    """The lower end of `pairs_interval`.

    The gains take their lower distribution of confidence, and the share of problems that changed its lower one where
    the gains are more than one half, its upper one where they are less, as each makes the change smaller.
    """
    import numpy
    from scipy.optimize import brentq
    from scipy.special import betainc, betaincc, betaincinv

    changed, tail = gained + lost, (1 - CONFIDENCE) / 2
    if not gained:  # then the gains may be none
        return -float(betaincinv(changed + 1, tried - changed, 1 - tail)) if changed < tried else -1.0
    nodes, weights = numpy.polynomial.legendre.leggauss(NODES)
    ranks, weights = (nodes + 1) / 2, weights / 2
    below = float(betainc(gained, lost + 1, 0.5))
    if below < tail:
        leads = 2 * betaincinv(gained, lost + 1, below + (1 - below) * ranks) - 1

        def excess(change: float) -> float:
            shares = numpy.minimum(change / leads, 1)
            return below + (1 - below) * weights @ betainc(changed, tried - changed + 1, shares) - tail

        return brentq(excess, 0, 1)
    if changed == tried:
        return float(2 * betaincinv(gained, lost + 1, tail) - 1)
    leads = 1 - 2 * betaincinv(gained, lost + 1, below * ranks)

    def lack(change: float) -> float:
        shares = numpy.minimum(change / leads, 1)
        return below * weights @ betaincc(changed + 1, tried - changed, shares) - tail

    return -brentq(lack, 0, 1)


def independent_difference_interval(
    first: float, first_ci95: Sequence[float], last: float, last_ci95: Sequence[float]
) -> tuple[float, float]:
    """95 % interval of last - first, two means in [0, 1], each with its own 95 % interval.

    It takes the two as independent. For the same problems it is too wide where those that are right in the first tend
    to be right in the last, as usual, and too narrow where they tend to be wrong there. `difference_interval` takes the
    pairs into account, where the scores are at hand.

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
    before: Scores, after: Scores, names: tuple[str, str] = ("before training", "after training")
) -> dict[str, Any]:
    """Is one policy better than another? Compare their scores on the problems that both have a score for.

    The difference is called real if its 95 % interval leaves out zero. Where every score is 0 or 1 (one sample per
    problem), that is exactly where McNemar's exact test gives a `p_value` below 0.05; elsewhere `p_value` is None.

    Args:
        before: the scores of the first policy, by problem.
        after: the scores of the second policy, by problem.
        names: what to call the two in the sentence.

    Returns:
        `n` problems, `difference` (after minus before, in [-1, 1]), `difference_ci95`, `p_value`, `gained` and `lost`
        (problems whose score rose and fell), `real`, and `words`, one sentence for people.

    Raises:
        ValueError: the two share no problem with a score, or a score is outside [0, 1] or NaN.
    """
    shared = [key for key, score in before.items() if score is not None and after.get(key) is not None]
    if not shared:
        raise ValueError(
            f"No problem has a score both {names[0]} and {names[1]}, so there is nothing to compare. "
            "Measure both again."
        )
    old, new = ([scores[key] for key in shared] for scores in (before, after))
    changes = _list_changes(old, new)
    low, high = difference_interval(old, new)
    one_sample = {*old, *new} <= {0.0, 1.0}
    result = {
        "n": len(shared),
        "difference": _without_rounding(math.fsum(changes) / len(changes)),
        "difference_ci95": [low, high],
        "p_value": mcnemar(old, new) if one_sample else None,
        "gained": sum(change > 0 for change in changes),
        "lost": sum(change < 0 for change in changes),
    }
    result["real"] = not low <= 0 <= high
    return result | {"words": _comparison_sentence(result, names)}


def _comparison_sentence(result: Mapping[str, Any], names: tuple[str, str]) -> str:
    difference = result["difference"]
    low, high = (format_change(100 * end) for end in result["difference_ci95"])
    points = f"{format_change(100 * difference)[1:]} percentage points {'more' if difference > 0 else 'fewer'}"
    change, than = (points, "than") if difference else ("as many", "as")
    solved = f"{change} problems are solved {names[1]} {than} {names[0]}"
    counts = f"{format_count(result['gained'], 'problem')} gained and {result['lost']} lost, of {result['n']}"
    if result["p_value"] is None or not result["gained"] + result["lost"]:  # where nothing changed, nothing is uneven
        includes = "excludes" if result["real"] else "includes"
        evidence = f"the 95 % interval, {low} to {high} points, {includes} zero"
    else:
        evidence = f"without any real change, a split at least this uneven would {_chance(result['p_value'])}"
    verdict = "The difference is real" if result["real"] else "No difference is shown"
    return f"{verdict}: {solved}, {counts}; {evidence}."


def _chance(p: float) -> str:
    if p > 0.995:
        return "nearly always occur" if p < 1 else "always occur"
    if p >= 0.1:
        return f"occur {p:.0%} of the time"
    return f"occur {p:.1%} of the time" if p >= 1e-3 else "occur less than once in a thousand times"


def _list_changes(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """after - before of each problem, 0.0 where they differ by no more than rounding."""
    _check_same_length(before, after)
    return [_without_rounding(b - a) for a, b in zip(before, after, strict=True)]


def _without_rounding(change: float) -> float:
    return 0.0 if abs(change) < ROUNDING else change


def _check_same_length(before: Sequence[float], after: Sequence[float]) -> None:
    if len(before) != len(after):
        raise ValueError(
            f"before has {format_count(len(before), 'problem')} and after {len(after)}; a paired difference "
            "needs the same problems. Measure both again."
        )
