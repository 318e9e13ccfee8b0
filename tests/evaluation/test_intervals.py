"""Accuracies and the intervals of one measurement against known values, and at the borders."""

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


def test_fractional_scores_get_an_interval_over_problems():
    low, high = intervals.mean_interval([0.25, 0.5, 0.75, 1.0] * 50)
    assert 0.57 < low < 0.6 < 0.65 < high < 0.68
    by_hand = [0.5, 0.5, 0.5, 0.0, 1.0]  # two more than the three, one at each end
    error = (2 * 0.5**2) ** 0.5 / 5
    assert intervals.mean_interval(by_hand[:3]) == pytest.approx((0.5 - 1.96 * error, 0.5 + 1.96 * error), abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 5, 60])
def test_equal_scores_still_have_a_width_and_stay_within_the_ends(value, n):
    low, high = intervals.mean_interval([value] * n)
    assert 0.0 <= low <= value <= high <= 1.0 and high - low > 1 / n / 5


def test_lengths_get_students_interval_and_a_width_where_all_are_equal():
    reach = 3.1824 * (2 / 3 / 4) ** 0.5
    assert intervals.lengths_interval([4, 5, 6, 5], 0, 99) == pytest.approx((5 - reach, 5 + reach), abs=1e-4)
    assert intervals.lengths_interval([4, 5, 6, 5], 0, 6) == pytest.approx((5 - reach, 6.0), abs=1e-4)
    for n in (1, 5, 60):
        low, high = intervals.lengths_interval([30.0] * n, 0.0, 30.0)
        assert 0.0 <= low < 30.0 - 5 / n and high == 30.0
    assert intervals.lengths_interval([0.0, 0.0], 0.0, 0.0) == (0.0, 0.0)  # a mode without any thinking


def test_no_scores_have_no_interval():
    with pytest.raises(ValueError, match="0 scores"):
        intervals.mean_interval([])
    with pytest.raises(ValueError, match="There are 0 lengths; an interval needs at least one"):
        intervals.lengths_interval([], 0.0, 1.0)


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf")])
def test_what_is_no_number_has_no_interval(wrong):
    with pytest.raises(ValueError, match=f"A score is {wrong}; "):
        intervals.mean_interval([0.5, wrong])
    with pytest.raises(ValueError, match=f"A length, or a difference of two, is {wrong}; "):
        intervals.lengths_interval([0.5, wrong], 0.0, 1.0)
