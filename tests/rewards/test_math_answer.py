"""math_reward pays a right boxed answer after the thinking, exactly, and nothing else."""

import pytest

from grpo_kit.reward_files import load_reward

math_reward = load_reward("math_answer.py:math_reward")


def pay(said, gold):
    """The reward of one reply in both of TRL's shapes, which must agree."""
    as_text = math_reward(completions=[said], answer=[gold], prompts=["p"], trainer_state=None)
    as_messages = math_reward(completions=[[{"role": "assistant", "content": said}]], answer=[gold])
    assert as_text == as_messages
    return as_text[0]


@pytest.mark.parametrize(
    ("said", "gold", "paid"),
    [
        ("7+8=15\n</think>\n\\boxed{85}", "85", 1.0),
        ("7+8=15\n</think>\n\\boxed{84}", "85", 0.0),
        ("\\boxed{85}\n</think>\nno idea", "85", 0.0),  # right only while thinking
        ("<think>\\boxed{85}", "85", 0.0),  # thinking that never ends
        ("\\boxed{85}", "85", 1.0),  # no tag at all: read whole
        ("x</think>85", "85", 0.0),  # not boxed
        ("x</think>\\boxed{1} \\boxed{85}", "85", 1.0),  # the last box counts
        ("x</think>\\boxed{85} \\boxed{}", "85", 0.0),  # and an empty one does not fall back
        ("x</think>\\boxed{85} \\boxed{8", "85", 0.0),  # nor an unfinished one
        ("x</think>\\boxed{1,234}", "1234", 1.0),  # thousands
        ("x</think>\\boxed{12,34}", "1234", 0.0),  # which these are not
        ("x</think>\\boxed{0.50}", "1/2", 1.0),  # exact rationals
        ("x</think>\\boxed{\\frac{2}{4}}", "0.5", 1.0),
        ("x</think>\\boxed{-\\dfrac{1}{2}}", "-0.5", 1.0),
        ("x</think>\\boxed{0.3333333333333333}", "1/3", 0.0),  # near is not equal
        ("x</think>\\boxed{1/0}", "1/0", 1.0),  # the same text, though no number
        ("x</think>\\boxed{0/0}", "5", 0.0),
        ("x</think>\\boxed{$18}", "18", 1.0),
        ("x</think>\\boxed{50\\%}", "50", 1.0),
        ("x</think>\\boxed{+7}", "7", 1.0),
        ("x</think>\\boxed{x + 1}", "x + 1", 1.0),  # text, to the letter
        ("x</think>\\boxed{\\text{Monday}}", "\\text{Monday}", 1.0),
        ("x</think>\\boxed{9^{9^{9}}}", "5", 0.0),  # a bomb, unlit
        ("x</think>\\boxed{٣}", "3", 0.0),  # digits of another script are no number here
        ("", "85", 0.0),
        ("x</think>\\boxed{85}", "", None),  # no gold: not the policy's fault
        ("x</think>\\boxed{85}", "\\boxed{85}", 1.0),  # a gold that is still boxed
        ("x</think>\\boxed{85}", 85, 1.0),  # or a number
    ],
)
def test_pay(said, gold, paid):
    assert pay(said, gold) == paid


@pytest.mark.parametrize(
    "said",
    [
        "{" * 1_000_000,
        "\\boxed{" * 100_000,
        "</think>" * 100_000,
        "\\boxed{" + "9" * 1_000_000 + "}",
        "\x00\u202e\ud800",
    ],
)
def test_no_reply_raises_or_takes_long(said):
    assert pay(said, "5") == 0.0


def test_a_group_is_paid_one_by_one():
    assert math_reward(completions=["\\boxed{1}", "\\boxed{2}"], answer=["1", "1"]) == [1.0, 0.0]


def test_lengths_that_differ_are_the_callers_mistake():
    with pytest.raises(ValueError, match="2 completions and 1 answers"):
        math_reward(completions=["a", "b"], answer=["1"])
