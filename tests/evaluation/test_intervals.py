"""Accuracies, intervals and tests against known values; a sentence about a difference agrees with its test."""

import random

import pytest

from grpo_kit.evaluation import intervals


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [
        (8, 1, 1, 0.125),  # plain accuracy
        (8, 1, 8, 1.0),  # one right among all drawn
        (8, 0, 8, 0.0),
        (8, 8, 1, 1.0),
        (10, 3, 2, 1 - (7 * 6) / (10 * 9)),  # by hand
        (1000, 500, 500, 1.0),  # no overflow
    ],
)
def test_pass_at_k(n, c, k, value):
    assert intervals.pass_at_k(n, c, k) == pytest.approx(value)


@pytest.mark.parametrize(("n", "c", "k"), [(8, 9, 1), (8, -1, 1), (8, 1, 0), (8, 1, 9)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass_at_k got"):
        intervals.pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["4", "5", "5"], 1),  # the first sample that gave the winning answer
        (["4", "5"], 0),  # a tie goes to the first answer
        ([None, None, "5"], 2),  # a missing answer is not a vote, however frequent
        ([None, None], None),
        ([], None),
    ],
)
def test_the_most_frequent_answer_wins(answers, winner):
    assert intervals.majority(answers) == winner


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
    before, after = [0.0] * gained + [1.0] * lost + [1.0] * same, [1.0] * gained + [0.0] * lost + [1.0] * same
    assert intervals.mcnemar(before, after) == pytest.approx(p)


def test_mcnemars_test_refuses_fractional_scores_and_different_problems():
    with pytest.raises(ValueError, match="verdicts of 0 and 1"):
        intervals.mcnemar([0.5], [1.0])
    with pytest.raises(ValueError, match="1 problems and after 2"):
        intervals.mcnemar([0.0], [1.0, 1.0])


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (50, 100, 0.4038, 0.5962),  # Wilson 1927, textbook value
        (0, 300, 0.0, 0.0126),  # none right is not certainty
        (300, 300, 0.9874, 1.0),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_scores_of_0_and_1_get_wilsons_interval(right, n, low, high):
    assert intervals.mean_interval([1.0] * right + [0.0] * (n - right)) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize(
    ("right", "tried", "low", "high"),
    [
        (2, 4, 0.1500, 0.8500),  # half of four is enough to be inside 0.1 to 0.9
        (4, 4, 0.5101, 1.0),
        (0, 16, 0.0, 0.1936),  # none of 16 is not yet outside of it
        (0, 34, 0.0, 0.1015),
        (0, 35, 0.0, 0.0989),
    ],
)
def test_wilsons_interval(right, tried, low, high):
    assert intervals.wilson_interval(right, tried) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("right", "tried"), [(0, 0), (2, 1), (-1, 4)])
def test_wilsons_interval_refuses_impossible_counts(right, tried):
    with pytest.raises(ValueError, match="needs 0 <= right <= tried"):
        intervals.wilson_interval(right, tried)


def test_fractional_scores_get_a_bootstrap_interval_over_problems():
    low, high = intervals.mean_interval([0.25, 0.5, 0.75, 1.0] * 50)
    assert 0.57 < low < 0.6 < 0.65 < high < 0.68
    assert (low, high) == intervals.mean_interval([0.25, 0.5, 0.75, 1.0] * 50)  # the same for the same seed


def test_no_scores_have_no_interval():
    with pytest.raises(ValueError, match="0 scores"):
        intervals.mean_interval([])


def test_a_paired_difference_has_a_tighter_interval_than_two_separate_ones():
    before, after = [0.0] * 50 + [1.0] * 50, [0.0] * 40 + [1.0] * 60
    low, high = intervals.difference_interval(before, after)
    assert 0.0 < low < 0.1 < high < 0.2


def test_equal_scores_give_no_difference():
    assert intervals.difference_interval([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]) == (0.0, 0.0)


def test_unequal_problems_are_refused():
    with pytest.raises(ValueError, match="3 problems and after 2"):
        intervals.difference_interval([1.0, 0.0, 1.0], [1.0, 0.0])


# Two policies compared


def scores(*values):
    return {str(number): value for number, value in enumerate(values)}


def single(gained, lost, same):
    return (
        scores(*[0.0] * gained, *[1.0] * lost, *[1.0] * same),
        scores(*[1.0] * gained, *[0.0] * lost, *[1.0] * same),
    )


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
    comparison = intervals.compare_scores(*single(gained, lost, same))
    assert (comparison["real"], comparison["gained"], comparison["lost"], comparison["n"]) == (real, gained, lost, 100)
    assert comparison["difference"] == pytest.approx((gained - lost) / 100)
    assert comparison["words"].startswith("The difference is real" if real else "No difference is shown")


def test_fractional_scores_are_decided_by_the_interval():
    rng = random.Random(1)
    before = scores(*[rng.choice([0.0, 0.25, 0.5]) for _ in range(200)])
    raised = {key: value + 0.25 for key, value in before.items()}
    comparison = intervals.compare_scores(before, raised)
    assert comparison["real"] and comparison["p_value"] is None and "excludes zero" in comparison["words"]
    shuffled = dict(zip(before, rng.sample(list(before.values()), 200), strict=True))
    comparison = intervals.compare_scores(before, shuffled)
    assert not comparison["real"] and "includes zero" in comparison["words"]


@pytest.mark.slow
def test_equal_policies_are_called_different_at_most_once_in_twenty():
    rng, real = random.Random(3), 0
    for _ in range(400):
        before, after = (scores(*[float(rng.random() < 0.5) for _ in range(100)]) for _ in range(2))
        real += intervals.compare_scores(before, after)["real"]
    assert real <= 26  # 5 % of 400 is 20; an exact test errs on the safe side


def test_only_problems_with_a_score_in_both_count():
    comparison = intervals.compare_scores(scores(0.0, None, 1.0, 0.0), {"0": 1.0, "1": 1.0, "2": 1.0, "9": 0.0})
    assert (comparison["n"], comparison["difference"]) == (2, 0.5)


def test_scores_without_a_common_problem_raise():
    with pytest.raises(ValueError, match="before training and after training"):
        intervals.compare_scores({"a": 1.0}, {"b": 1.0})


def test_the_sentence_names_both_sides_and_the_direction():
    words = intervals.compare_scores(*single(2, 30, 68), names=("with the preset", "with trial 3"))["words"]
    assert (
        "28.0 percentage points fewer problems are solved with trial 3 than with the preset" in words
        and "less than once in a thousand times" in words
    )
    assert (
        "as many problems are solved after training as before training"
        in intervals.compare_scores(*single(4, 4, 2))["words"]
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
        intervals_of = intervals.wilson_interval(other, among), intervals.wilson_interval(right, tried)
        found = intervals.independent_difference_interval(first, intervals_of[0], last, intervals_of[1])
        assert found == pytest.approx(expected, abs=5e-5)
