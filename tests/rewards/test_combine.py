"""combine: sums, gates, and the combinations that would let shaping outweigh correctness."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_kit.rewards.combine import Part, combine


def outcome(completions, **kwargs):
    return [{"r": 1.0, "w": 0.0}.get(completion[0]) for completion in completions]


def style(completions, **kwargs):
    """The number after the letter, in tenths; None without one."""
    return [int(completion[1:]) / 10 if completion[1:] else None for completion in completions]


def test_parts_are_weighted_and_a_score_of_none_adds_nothing():
    reward = combine(outcome, style=Part(style, weight=0.2))
    assert reward(completions=["r10", "w10", "r", "w0", "x5"]) == [1.2, 0.2, 1.0, 0.0, None]


def test_a_gated_part_is_for_right_replies_alone():
    reward = combine(outcome, style=Part(style, weight=5.0, gated=True))
    assert reward(completions=["r10", "w10"]) == [6.0, 0.0]


def test_a_penalty_may_be_smaller_than_correctness():
    reward = combine(outcome, length=Part(lambda completions, **_: [-1.0] * len(completions), 0.5, -1.0, 0.0))
    assert reward(completions=["r", "w"]) == [0.5, -0.5]


REFUSED = [  # parts, the best wrong score, the worst right one, what the row is about
    ({"style": Part(style, 1.5)}, "1.5", "1", "a bonus above the outcome"),
    ({"style": Part(style, 1.0)}, "1", "1", "a bonus that equals it"),
    ({"a": Part(style, 0.6), "b": Part(style, 0.6)}, "1.2", "1", "two bonuses together"),
    ({"a": Part(style, 0.5, -1.0, 1.0)}, "0.5", "0.5", "a bonus here is a penalty there"),
    ({"a": Part(style, 2.0, -1.0, 0.0)}, "0", "-1", "a penalty that sinks a right reply"),
    ({"a": Part(style, -2.0)}, "0", "-1", "a negative weight is a penalty"),
    (
        {"a": Part(style, 2.0, -1.0, 1.0, gated=True)},
        "0",
        "-1",
        "a gated penalty hits right replies alone",
    ),
]


@pytest.mark.parametrize(("parts", "wrong", "right", "note"), REFUSED)
def test_a_wrong_reply_that_could_outscore_a_right_one_is_refused_and_both_are_shown(parts, wrong, right, note):
    with pytest.raises(
        ValueError,
        match=rf"a wrong reply could score {wrong} \(outcome 0.*right one {right} \(.*Lower",
    ):
        combine(outcome, **parts)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.floats(-1, 1), max_size=3),
    right=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    wrong=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    gates=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_accepted_combinations_never_pay_a_wrong_reply_as_much_as_a_right_one(weights, right, wrong, gates):
    def part(i):
        return lambda completions, **_: [right[i] if c == "r" else wrong[i] for c in completions]

    parts = {f"p{i}": Part(part(i), weight, -1.0, 1.0, gates[i]) for i, weight in enumerate(weights)}
    try:
        reward = combine(outcome, **parts)
    except ValueError:
        return
    scored_right, scored_wrong = reward(completions=["r", "w"])
    assert scored_right > scored_wrong


def test_a_reward_that_leaves_its_range_or_its_length_raises():
    with pytest.raises(ValueError, match=r"style returned 2.0; it was declared to stay in \[0, 1\].*Correct"):
        combine(outcome, style=Part(style, 0.1))(completions=["r20"])
    with pytest.raises(ValueError, match=r"outcome returned 0.5; it must be 1.0, 0.0 or None"):
        combine(lambda completions, **_: [0.5])(completions=["r"])
    with pytest.raises(ValueError, match=r"outcome returned 1 rewards for 2 completions"):
        combine(lambda completions, **_: [1.0])(completions=["r", "w"])
    with pytest.raises(ValueError, match=r"style ranges from 1.0 to 0.0; low must not exceed high"):
        combine(outcome, style=Part(style, 0.1, 1.0, 0.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["weight", "low", "high"])
def test_weights_and_ranges_that_are_not_finite_are_refused(field, value):
    part = Part(style, 0.1)._replace(**{field: value})
    with pytest.raises(ValueError, match=rf"^{field} of style is {value}; weights and ranges must be finite.*Write"):
        combine(outcome, style=part)
    with pytest.raises(ValueError, match=rf"^outcome_weight is {value}; weights and ranges must be finite.*Write"):
        combine(outcome, outcome_weight=value)


def test_each_parts_mean_is_logged():
    logged = {}
    combine(outcome, style=Part(style, 0.2))(completions=["r10", "w0"], log_metric=logged.__setitem__)
    assert logged == {"combine/style": 0.1}
