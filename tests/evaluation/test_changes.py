"""Changes, their intervals and their test against known values; a sentence about a change agrees with both."""

import random
import re

import pytest

from grpo_kit.evaluation import changes
from grpo_kit.evaluation.calls import describe_calls
from grpo_kit.evaluation.compare import describe_comparison
from grpo_kit.evaluation.intervals import wilson_interval
from grpo_kit.evaluation.results import describe_environments, describe_preferences


def scores(*values):
    return {str(number): value for number, value in enumerate(values)}


def counts(gained, lost, same):
    """(before, after) where as many problems were gained and lost."""
    return [0.0] * gained + [1.0] * (lost + same), [1.0] * gained + [0.0] * lost + [1.0] * same


def single(gained, lost, same):
    return tuple(scores(*side) for side in counts(gained, lost, same))


@pytest.mark.parametrize(
    ("gained", "lost", "same", "p"),
    [
        (10, 0, 5, 2 / 2**10),  # by hand: both tails of ten fair coins
        (0, 10, 5, 2 / 2**10),
        (5, 5, 90, 1.0),
        (0, 0, 100, 1.0),  # they agree everywhere
        (9, 2, 0, 2 * (1 + 11 + 55) / 2**11),  # C(11,0) + C(11,1) + C(11,2), twice
    ],
)
def test_mcnemars_exact_test(gained, lost, same, p):
    assert changes.mcnemar(*counts(gained, lost, same)) == pytest.approx(p)


def test_mcnemars_test_refuses_fractional_scores_and_different_problems():
    with pytest.raises(ValueError, match="verdicts of 0 and 1"):
        changes.mcnemar([0.5], [1.0])
    with pytest.raises(ValueError, match="before has 1 problem and after 2"):
        changes.mcnemar([0.0], [1.0, 1.0])


def test_a_paired_difference_has_a_tighter_interval_than_two_separate_ones():
    before, after = [0.0] * 50 + [1.0] * 50, [0.0] * 40 + [1.0] * 60
    low, high = changes.difference_interval(before, after)
    assert 0.0 < low < 0.1 < high < 0.2


@pytest.mark.parametrize(
    ("gained", "lost", "tried", "low", "high"),
    [
        # Where nothing changed: Clopper and Pearson's upper end of 0 of n, on both sides.
        (0, 0, 5, 0.025 ** (1 / 5) - 1, 1 - 0.025 ** (1 / 5)),
        (0, 0, 60, 0.025 ** (1 / 60) - 1, 1 - 0.025 ** (1 / 60)),
        (3, 0, 3, 2 * 0.025 ** (1 / 3) - 1, 1.0),  # everything changed, and three gains of three may be luck
        # Quantiles of the products, from four million draws of each distribution.
        (5, 0, 40, -0.0055, 0.2682),
        (5, 5, 10, -0.6259, 0.6259),
        (9, 2, 161, -0.0025, 0.0938),
        (40, 20, 160, 0.0243, 0.2229),
        (30, 2, 100, 0.1649, 0.3852),
    ],
)
def test_the_interval_of_pairs_is_fays_and_lumbards(gained, lost, tried, low, high):
    assert changes.pairs_interval(gained, lost, tried) == pytest.approx((low, high), abs=3e-4)
    assert changes.pairs_interval(lost, gained, tried) == pytest.approx((-high, -low), abs=3e-4)
    assert changes.difference_interval(*counts(gained, lost, tried - gained - lost)) == changes.pairs_interval(
        gained, lost, tried
    )


def test_the_interval_of_pairs_and_mcnemars_test_never_contradict_each_other():
    for tried in (1, 5, 6, 10):
        for gained in range(tried + 1):
            for lost in range(min(gained, tried - gained) + 1):
                low, high = changes.pairs_interval(gained, lost, tried)
                p = changes.mcnemar(*counts(gained, lost, tried - gained - lost))
                assert (low > 0) == (p < 0.05) and high > 0, (gained, lost, tried)
                assert -1 <= low < high <= 1 and low <= (gained - lost) / tried <= high
    for gained, lost in ((8, 1), (9, 1), (12, 3), (12, 4), (135, 104), (135, 105), (245, 200), (246, 199)):
        p = changes.mcnemar(*counts(gained, lost, 500 - gained - lost))
        assert 0.01 < p < 0.1 and (changes.pairs_interval(gained, lost, 500)[0] > 0) == (p < 0.05)


def test_more_problems_make_the_interval_of_pairs_narrower_and_more_gains_move_it_up():
    ends = [changes.pairs_interval(gained, 10, 100) for gained in range(0, 60, 5)]
    assert all(a < b for before, after in zip(ends, ends[1:], strict=False) for a, b in zip(before, after, strict=True))
    widths = [
        high - low for low, high in (changes.pairs_interval(tried // 5, tried // 10, tried) for tried in (10, 40, 160))
    ]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("gained", "lost", "tried"), [(0, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_the_interval_of_pairs_refuses_impossible_counts(gained, lost, tried):
    with pytest.raises(ValueError, match="at least one problem is tried, each gained or lost at most once"):
        changes.pairs_interval(gained, lost, tried)


@pytest.mark.parametrize("change", [0.0, 0.25, -0.5])
def test_equal_fractional_changes_still_have_a_width(change):
    for n in (1, 5, 60):
        low, high = changes.difference_interval([0.5] * n, [0.5 + change] * n)
        assert -1 <= low <= change <= high <= 1 and high - low > 1 / n / 5
    comparison = changes.compare_scores(scores(*[0.5] * 5), scores(*[0.5 + change] * 5))
    assert not comparison["real"] and "includes zero" in comparison["words"]
    low, high = changes.length_difference_interval([30.0] * 5, [30.0] * 5)
    assert (low, high) == pytest.approx((-30 * 1.96 * 2**0.5 / 7, 30 * 1.96 * 2**0.5 / 7), abs=1e-3)


@pytest.mark.parametrize("interval_of", [changes.difference_interval, changes.length_difference_interval])
def test_unequal_problems_are_refused(interval_of):
    with pytest.raises(ValueError, match="3 problems and after 2"):
        interval_of([1.0, 0.0, 1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="There are 0 (scores|lengths); an interval needs at least one"):
        interval_of([], [])
    with pytest.raises(ValueError, match=" is nan; it is "):
        interval_of([1.0, 0.5], [1.0, float("nan")])


# Two policies compared


@pytest.mark.parametrize(
    ("gained", "lost", "same", "real"),
    [
        (30, 2, 68, True),
        (2, 30, 68, True),  # a loss is as real
        (9, 2, 89, False),  # p = 0.065
        (10, 2, 88, True),  # p = 0.039
        (0, 0, 100, False),
    ],
)
def test_one_sample_per_problem_is_decided_by_mcnemars_test(gained, lost, same, real):
    comparison = changes.compare_scores(*single(gained, lost, same))
    assert (comparison["real"], comparison["gained"], comparison["lost"], comparison["n"]) == (real, gained, lost, 100)
    assert comparison["difference"] == pytest.approx((gained - lost) / 100)
    assert comparison["words"].startswith("The difference is real" if real else "No difference is shown")


def test_fractional_scores_are_decided_by_the_interval():
    rng = random.Random(1)
    before = scores(*[rng.choice([0.0, 0.25, 0.5]) for _ in range(200)])
    raised = {key: value + 0.25 for key, value in before.items()}
    comparison = changes.compare_scores(before, raised)
    assert comparison["real"] and comparison["p_value"] is None and "excludes zero" in comparison["words"]
    shuffled = dict(zip(before, rng.sample(list(before.values()), 200), strict=True))
    comparison = changes.compare_scores(before, shuffled)
    assert not comparison["real"] and "includes zero" in comparison["words"]


@pytest.mark.slow
def test_equal_policies_are_called_different_at_most_once_in_twenty():
    rng, real = random.Random(3), 0
    for _ in range(400):
        before, after = (scores(*[float(rng.random() < 0.5) for _ in range(100)]) for _ in range(2))
        real += changes.compare_scores(before, after)["real"]
    assert real <= 26  # 5 % of 400 is 20; an exact test errs on the safe side


@pytest.mark.parametrize(("gained", "lost", "tried"), [(13, 4, 500), (4, 13, 500), (15, 5, 1000), (6, 0, 100_000)])
def test_a_real_difference_is_never_printed_as_one_that_may_be_none(gained, lost, tried):
    change = changes.compare_scores(*single(gained, lost, tried - gained - lost))
    assert change["real"]
    side = {"pass@1": 0.5, "n": tried, "ci95": [0.4, 0.6]}
    row = change | {"measurement": "after_prefer", "before": 0.5, "after": 0.5}
    for text in (
        change["words"].partition(" percentage")[0],
        describe_comparison({"before": side, "after": side} | change).partition("Training changed")[2],
        describe_environments({"math": row})[0].partition("after, ")[2],
        describe_preferences(row)[0],
        describe_calls({"undeclared": row}, "after_prefer")[0].partition("after, ")[2],
    ):
        numbers = [float(number) for number in re.findall(r"[+-]?\d+\.\d+", text)]
        assert numbers and 0.0 not in numbers, text


def test_only_problems_with_a_score_in_both_count():
    comparison = changes.compare_scores(scores(0.0, None, 1.0, 0.0), {"0": 1.0, "1": 1.0, "2": 1.0, "9": 0.0})
    assert (comparison["n"], comparison["difference"]) == (2, 0.5)


def test_shares_that_are_equal_but_for_rounding_are_equal():
    rng = random.Random(4)
    for tries in (3, 6, 7, 10):
        before = [rng.randint(0, tries) / tries for _ in range(40)]
        for _ in range(20):
            after = rng.sample(before, 40)
            comparison = changes.compare_scores(scores(*before), scores(*after))
            assert repr(comparison["difference"]) == "0.0", (before, after)
            assert "as many problems are solved after training as before" in comparison["words"]
    comparison = changes.compare_scores({"0": 0.3, "1": 0.1 + 0.2}, {"0": 0.1 + 0.2, "1": 0.3})
    assert (comparison["gained"], comparison["lost"], comparison["difference"]) == (0, 0, 0.0)
    least = changes.compare_scores(scores(*[0.5] * 10_000), scores(0.5 + 1 / 64, *[0.5] * 9_999))
    assert (least["gained"], least["difference"]) == (
        1,
        pytest.approx(1 / 640_000),
    )  # one sample in many is no rounding


def test_scores_without_a_common_problem_raise():
    with pytest.raises(ValueError, match="before training and after training"):
        changes.compare_scores({"a": 1.0}, {"b": 1.0})


@pytest.mark.parametrize(
    ("gained", "lost", "same", "ending"),
    [
        (0, 0, 40, "0 problems gained and 0 lost, of 40; the 95 % interval, -8.8 to +8.8 points, includes zero."),
        (1, 0, 39, "1 problem gained and 0 lost, of 40; without any real change, a split at least this uneven would "
         "always occur."),
        (2, 2, 40, "2 problems gained and 2 lost, of 44; without any real change, a split at least this uneven would "
         "always occur."),
        (4, 1, 35, "4 problems gained and 1 lost, of 40; without any real change, a split at least this uneven would "
         "occur 38% of the time."),
        (0, 6, 34, "0 problems gained and 6 lost, of 40; without any real change, a split at least this uneven would "
         "occur 3.1% of the time."),
    ],
)  # fmt: skip
def test_the_sentence_counts_what_changed_and_says_how_often_chance_does_as_much(gained, lost, same, ending):
    assert changes.compare_scores(*single(gained, lost, same))["words"].endswith(f", {ending}")


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 1.5])
def test_a_score_that_is_no_share_is_refused(score):
    for before, after in (([score, 1.0], [0.5, 1.0]), ([0.5, 1.0], [1.0, score])):
        with pytest.raises(ValueError, match=f"^A score is {score}; it is the share .* Measure again"):
            changes.compare_scores(scores(*before), scores(*after))


def test_the_sentence_names_both_sides_and_the_direction():
    words = changes.compare_scores(*single(2, 30, 68), names=("with the preset", "with trial 3"))["words"]
    assert (
        "28.0 percentage points fewer problems are solved with trial 3 than with the preset" in words
        and "less than once in a thousand times" in words
    )
    assert (
        "as many problems are solved after training as before training"
        in changes.compare_scores(*single(4, 4, 2))["words"]
    )


def test_the_interval_of_an_independent_difference_is_newcombes():
    """Newcombe 1998, table II, method 10: 56/70 - 48/80, 9/10 - 3/10, 10/10 - 0/20, 0/10 - 0/20."""
    for (right, tried), (other, among), expected in [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 20), (0.6791, 1.0)),
        ((0, 10), (0, 20), (-0.1611, 0.2775)),
    ]:
        first, last = (other / among, right / tried)
        both = wilson_interval(other, among), wilson_interval(right, tried)
        found = changes.independent_difference_interval(first, both[0], last, both[1])
        assert found == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("gained", "lost", "independent", "paired"),
    [
        (2, 2, 0.209, 0.136),  # 18 of 40 stay right, 18 stay wrong
        (20, 20, 0.209, 0.324),  # what was right is wrong now, and the other way round
    ],
)
def test_an_independent_difference_is_too_wide_for_pairs_that_agree_and_too_narrow_for_pairs_that_do_not(
    gained, lost, independent, paired
):
    half = wilson_interval(20, 40)
    assert changes.independent_difference_interval(0.5, half, 0.5, half)[1] == pytest.approx(independent, abs=1e-3)
    assert changes.pairs_interval(gained, lost, 40)[1] == pytest.approx(paired, abs=1e-3)
