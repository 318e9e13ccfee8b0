"""Accuracies and intervals against known values."""

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
def test_pass_at_k_refuses_what_makes_no_sense(n, c, k):
    with pytest.raises(ValueError, match="pass_at_k got"):
        intervals.pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["4", "5", "5"], 1),  # the first sample that gave the winning answer
        (["4", "5"], 0),  # a tie goes to what was said first
        ([None, None, "5"], 2),  # no answer is no vote, however frequent
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


def test_mcnemars_test_refuses_shares_and_other_problems():
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
def test_the_interval_of_right_and_wrong_is_wilsons(right, n, low, high):
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
def test_wilsons_interval_refuses_what_makes_no_sense(right, tried):
    with pytest.raises(ValueError, match="is no share of tries"):
        intervals.wilson_interval(right, tried)


def test_the_interval_of_shares_is_a_bootstrap_over_problems():
    low, high = intervals.mean_interval([0.25, 0.5, 0.75, 1.0] * 50)
    assert 0.57 < low < 0.6 < 0.65 < high < 0.68
    assert (low, high) == intervals.mean_interval([0.25, 0.5, 0.75, 1.0] * 50)  # the same for the same seed


def test_no_scores_have_no_interval():
    with pytest.raises(ValueError, match="0 scores"):
        intervals.mean_interval([])


def test_a_paired_difference_is_tighter_than_two_intervals():
    before, after = [0.0] * 50 + [1.0] * 50, [0.0] * 40 + [1.0] * 60
    low, high = intervals.difference_interval(before, after)
    assert 0.0 < low < 0.1 < high < 0.2


def test_no_change_is_no_difference():
    assert intervals.difference_interval([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]) == (0.0, 0.0)


def test_unequal_problems_are_refused():
    with pytest.raises(ValueError, match="3 problems and after 2"):
        intervals.difference_interval([1.0, 0.0, 1.0], [1.0, 0.0])
