"""How often do 95 % intervals of a change hold the true change, and do they agree with McNemar's exact test?

Pairs of verdicts: every possible outcome is enumerated with its probability, for each number of problems, share of
problems that change, and gains among these. Tango's score interval, Newcombe's method 10 for pairs, Bonett's and
Price's adjusted Wald interval and the percentile bootstrap stand beside the kit's. *Contradicts* is the chance that the
interval leaves out zero where the test's p-value is 0.05 or more, or holds it where the p-value is below.
Means of four replies a problem, and lengths: drawn at random, among them policies that differ on few problems. The
bootstrap, plain and studentised, the paired t interval, and the interval of two more problems stand side by side. The
bar: where the kit takes it, an interval holds the truth in 94 of 100 cases at the least, and contradicts no test.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
from numpy import ndarray
from scipy.stats import binom, multinomial, norm
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit.evaluation.changes import pairs_interval
from grpo_kit.evaluation.intervals import widened_interval

Z = norm.ppf(0.975)
CHANGING = (0.02, 0.1, 0.3, 0.6)  # share of the problems on which the two policies differ
GAINS = (0.5, 0.75, 0.95)  # share of gains among them
RIGHT = 0.5  # share of right ones among the problems on which they agree
LEFT_OUT = 1e-7  # outcomes of a smaller probability
Draw = Callable[[int, numpy.random.Generator], tuple[ndarray, ndarray, float]]  # before, after, the true change


def main():
    options = report.arguments(__doc__)
    rows = [*pair_rows((20, 60) if options.quick else (20, 60, 200, 500))]
    for scores, draws in DRAWS.items():
        rows += drawn_rows(scores, draws, (5, 20, 60, 200), 100 if options.quick else 1000)
    kit = {
        scores: [row for row in rows if (row["scores"], row["interval"]) == (scores, CHOSEN[scores])]
        for scores in CHOSEN
    }
    figures = {f"lowest_{scores}": min(row["lowest coverage"] for row in own) for scores, own in kit.items()}
    figures["contradictions"] = max(row["contradicts"] for row in kit["verdicts"])
    report.finish("intervals", rows, figures, options.record)


def pair_rows(sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """A row for each number of problems and kind of interval of a change of verdicts."""
    for n in sizes:
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in PAIRS}
        for changing in CHANGING:
            for gains in GAINS:
                outcomes = enumerate_outcomes(n, changing, gains)
                for name, method in PAIRS.items():
                    found[name].append(judge(method, n, *outcomes, changing * (2 * gains - 1)))
        for name, cases in found.items():
            coverage, width, contradicts = zip(*cases, strict=True)
            yield {
                "scores": "verdicts", "problems": n, "interval": name, "lowest coverage": round(min(coverage), 4),
                "mean coverage": round(sum(coverage) / len(cases), 4), "width": round(sum(width) / len(cases), 4),
                "contradicts": round(max(contradicts), 4),
            }  # fmt: skip


def enumerate_outcomes(n: int, changing: float, gains: float) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """(gained, lost, right in both, probability) of every outcome that may be expected."""
    counts = numpy.arange(n + 1)
    common = [
        counts[binom.pmf(counts, n, chance) > LEFT_OUT]
        for chance in (changing * gains, changing * (1 - gains), (1 - changing) * RIGHT)
    ]
    gained, lost, both = (axis.ravel() for axis in numpy.meshgrid(*common, indexing="ij"))
    possible = gained + lost + both <= n
    gained, lost, both = gained[possible], lost[possible], both[possible]
    shares = [changing * gains, changing * (1 - gains), (1 - changing) * RIGHT, (1 - changing) * (1 - RIGHT)]
    chance = multinomial.pmf(numpy.stack([gained, lost, both, n - gained - lost - both], axis=1), n, shares)
    kept = chance > LEFT_OUT / 100
    return gained[kept], lost[kept], both[kept], chance[kept]


def judge(
    method: Callable[..., tuple[ndarray, ndarray]],
    n: int,
    gained: ndarray,
    lost: ndarray,
    both: ndarray,
    chance: ndarray,
    truth: float,
) -> tuple[float, float, float]:
    """(coverage, mean width, chance to contradict McNemar's exact test) of a kind of interval."""
    if method is newcombe:
        low, high = method(gained, lost, both, n)
    else:  # the others do not look at the problems on which the two agree
        _, first, place = numpy.unique(gained * (n + 1) + lost, return_index=True, return_inverse=True)
        low, high = (ends[place] for ends in method(gained[first], lost[first], both[first], n))
    covers = (low <= truth + 1e-9) & (truth <= high + 1e-9)
    p_value = numpy.minimum(1, 2 * binom.cdf(numpy.minimum(gained, lost), gained + lost, 0.5))
    contradicts = ((low > 0) | (high < 0)) != (p_value < 0.05)
    return tuple(float((chance * values).sum() / chance.sum()) for values in (covers, high - low, contradicts))


def fay_lumbard(gained: ndarray, lost: ndarray, both: ndarray, n: int) -> tuple[ndarray, ndarray]:
    ends = numpy.array([pairs_interval(g, k, n) for g, k in zip(gained.tolist(), lost.tolist(), strict=True)])
    return ends[:, 0], ends[:, 1]


def tango(gained: ndarray, lost: ndarray, both: ndarray, n: int) -> tuple[ndarray, ndarray]:
    """Tango 1998: the changes that a score test does not refuse; each end by bisection."""

    def is_refused(change: ndarray) -> ndarray:
        linear = -gained - lost + (2 * n - gained + lost) * change
        constant = -lost * change * (1 - change)
        losing = (numpy.sqrt(linear**2 - 8 * n * constant) - linear) / (4 * n)  # most likely share of losses
        variance = n * (2 * losing + change * (1 - change))
        return (gained - lost - n * change) ** 2 > Z**2 * numpy.maximum(variance, 0)

    ends, estimate = [], (gained - lost) / n
    for border in (-1.0, 1.0):
        inside, outside = estimate.copy(), numpy.full(len(estimate), border)
        for _ in range(40):
            middle = (inside + outside) / 2
            refused = is_refused(middle)
            outside, inside = numpy.where(refused, middle, outside), numpy.where(refused, inside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def newcombe(gained: ndarray, lost: ndarray, both: ndarray, n: int) -> tuple[ndarray, ndarray]:
    """Newcombe 1998 for pairs, method 10: Wilson's intervals of both accuracies, and their correlation."""
    neither = n - gained - lost - both
    before, after = (both + lost) / n, (both + gained) / n
    (low, high), (last_low, last_high) = wilson(before, n), wilson(after, n)
    product = numpy.sqrt(1.0 * (both + lost) * (both + gained) * (gained + neither) * (lost + neither))
    lead = both * neither - gained * lost
    lead = numpy.where(lead > 0, numpy.maximum(lead - n / 2, 0), lead)
    phi = numpy.divide(lead, product, out=numpy.zeros(len(product)), where=product > 0)
    down, up = (after - last_low, high - before), (last_high - after, before - low)
    reach = [numpy.sqrt(a**2 - 2 * phi * a * b + b**2) for a, b in (down, up)]
    return after - before - reach[0], after - before + reach[1]


def wilson(share: ndarray, n: int) -> tuple[ndarray, ndarray]:
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z * numpy.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return centre - reach, centre + reach


def bonett_price(gained: ndarray, lost: ndarray, both: ndarray, n: int) -> tuple[ndarray, ndarray]:
    """Bonett and Price 2012: the normal interval with one gain and one loss more."""
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    reach = Z * numpy.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return numpy.maximum(up - down - reach, -1), numpy.minimum(up - down + reach, 1)


def bootstrap(gained: ndarray, lost: ndarray, both: ndarray, n: int) -> tuple[ndarray, ndarray]:
    """The percentile bootstrap with all its resamples: the distribution of the change at the observed shares."""

    @functools.cache
    def ends(gained: int, lost: int) -> tuple[float, float]:
        turn = numpy.exp(-2j * numpy.pi * numpy.arange(2 * n + 1) / (2 * n + 1))
        power = ((n - gained - lost) + gained * turn + lost / turn) / n
        below = numpy.cumsum(numpy.roll(numpy.fft.ifft(power**n).real, n))
        return tuple((numpy.searchsorted(below, part) - n) / n for part in (0.025, 0.975))

    found = numpy.array([ends(g, k) for g, k in zip(gained.tolist(), lost.tolist(), strict=True)])
    return found[:, 0], found[:, 1]


PAIRS = {
    "Fay-Lumbard": fay_lumbard,
    "Tango": tango,
    "Newcombe 10": newcombe,
    "Bonett-Price": bonett_price,
    "percentile bootstrap": bootstrap,
}


def drawn_rows(scores: str, draws: Iterable[Draw], sizes: tuple[int, ...], repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each number of problems and kind of interval of a change in means of replies, or in lengths."""
    for n in sizes:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in CHANGES}
        for draw in draws:
            rng = numpy.random.default_rng(n)
            held, widths = dict.fromkeys(CHANGES, 0), dict.fromkeys(CHANGES, 0.0)
            for _ in range(repeats):
                before, after, truth = draw(n, rng)
                for name, method in CHANGES.items():
                    low, high = method(before, after, rng)
                    held[name] += low - 1e-9 <= truth <= high + 1e-9
                    widths[name] += high - low
            for name in CHANGES:
                found[name].append((held[name] / repeats, widths[name] / repeats))
        for name, cases in found.items():
            coverage, width = zip(*cases, strict=True)
            yield {
                "scores": scores, "problems": n, "interval": name, "lowest coverage": round(min(coverage), 3),
                "mean coverage": round(sum(coverage) / len(cases), 3), "width": round(sum(width) / len(cases), 3),
                "contradicts": "",
            }  # fmt: skip


def replies(shares: ndarray, rng: numpy.random.Generator) -> ndarray:
    return rng.binomial(4, shares) / 4


def nothing_changed(n: int, rng: numpy.random.Generator) -> tuple[ndarray, ndarray, float]:
    shares = rng.beta(1, 1, n)
    return replies(shares, rng), replies(shares, rng), 0.0


def gained_everywhere(n: int, rng: numpy.random.Generator) -> tuple[ndarray, ndarray, float]:
    shares = rng.beta(1, 1, n)
    return replies(shares, rng), replies(shares + 0.4 * (1 - shares), rng), 0.2


def nearly_all_solved(n: int, rng: numpy.random.Generator) -> tuple[ndarray, ndarray, float]:
    return replies(rng.beta(6, 1, n), rng), replies(rng.beta(20, 1, n), rng), 20 / 21 - 6 / 7


def always_or_never(n: int, rng: numpy.random.Generator) -> tuple[ndarray, ndarray, float]:
    shares = rng.beta(0.05, 0.05, n)
    return replies(shares, rng), replies(shares, rng), 0.0


def from_nothing_to_nearly_all(n: int, rng: numpy.random.Generator) -> tuple[ndarray, ndarray, float]:
    return replies(rng.beta(0.3, 3, n), rng), replies(1 - rng.beta(0.3, 3, n), rng), 9 / 11


def gained_on_few(n: int, rng: numpy.random.Generator) -> tuple[ndarray, ndarray, float]:
    """Three of a hundred problems gain, a quarter to all; the others are never solved."""
    gains = (rng.random(n) < 0.03) * rng.choice([0.25, 0.5, 0.75, 1.0], n)
    return numpy.zeros(n), gains, 0.03 * 0.625


def as_long(n: int, rng: numpy.random.Generator) -> tuple[ndarray, ndarray, float]:
    usual = rng.lognormal(5, 0.7, n)
    return usual * rng.lognormal(0, 0.5, n), usual * rng.lognormal(0, 0.5, n), 0.0


def a_fifth_shorter(n: int, rng: numpy.random.Generator) -> tuple[ndarray, ndarray, float]:
    before, after, _ = as_long(n, rng)
    return before, 0.8 * after, -0.2 * math.exp(5 + 0.7**2 / 2 + 0.5**2 / 2)


def another_length_on_few(n: int, rng: numpy.random.Generator) -> tuple[ndarray, ndarray, float]:
    before, other = rng.lognormal(5, 0.7, (2, n))
    return before, numpy.where(rng.random(n) < 0.1, other, before), 0.0


DRAWS = {
    "means of 4": (
        nothing_changed, gained_everywhere, nearly_all_solved, always_or_never, from_nothing_to_nearly_all,
        gained_on_few,
    ),
    "lengths": (as_long, a_fifth_shorter, another_length_on_few),
}  # fmt: skip
CHOSEN = {"verdicts": "Fay-Lumbard", "means of 4": "two more problems", "lengths": "paired t"}


def two_more(before: ndarray, after: ndarray, rng: numpy.random.Generator) -> tuple[float, float]:
    most = max(1.0, before.max(), after.max())
    return widened_interval((after - before).tolist(), -most, most)


def paired_t(before: ndarray, after: ndarray, rng: numpy.random.Generator) -> tuple[float, float]:
    changes = after - before
    reach = student.ppf(0.975, len(changes) - 1) * changes.std(ddof=1) / len(changes) ** 0.5
    return changes.mean() - reach, changes.mean() + reach


def percentile(before: ndarray, after: ndarray, rng: numpy.random.Generator) -> tuple[float, float]:
    return tuple(numpy.quantile(_resample(after - before, rng).mean(1), (0.025, 0.975)))


def studentised(before: ndarray, after: ndarray, rng: numpy.random.Generator) -> tuple[float, float]:
    changes = after - before
    resamples, mean, spread = _resample(changes, rng), changes.mean(), changes.std(ddof=1)
    spreads = resamples.std(1, ddof=1)
    if not spread or not (spreads > 0).any():
        return mean, mean
    ratios = ((resamples.mean(1) - mean)[spreads > 0]) / spreads[spreads > 0]
    low, high = numpy.quantile(ratios, (0.025, 0.975))
    return mean - high * spread, mean - low * spread


def _resample(changes: ndarray, rng: numpy.random.Generator) -> ndarray:
    return changes[rng.integers(0, len(changes), (500, len(changes)))]


CHANGES = {
    "two more problems": two_more,
    "paired t": paired_t,
    "percentile bootstrap": percentile,
    "studentised bootstrap": studentised,
}


if __name__ == "__main__":
    main()
