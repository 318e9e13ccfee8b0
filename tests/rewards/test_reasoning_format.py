"""reasoning_format_reward knows that the prompt has opened <think>."""

import pytest

from grpo_kit.reward_files import load_reward

reasoning_format_reward = load_reward("reasoning_format.py:reasoning_format_reward")


@pytest.mark.parametrize(
    ("said", "paid"),
    [
        ("7+8=15\n</think>\n\\boxed{85}", 1.0),
        ("</think>85", 0.0),  # no thinking
        (" \n </think>85", 0.0),
        ("thinking without end", 0.0),
        ("thinking</think>", 0.0),  # no answer
        ("thinking</think> \n", 0.0),
        ("<think>thinking</think>85", 0.0),  # opened a second time
        ("a</think>b</think>c", 0.0),  # closed a second time
        ("", 0.0),
    ],
)
def test_shape(said, paid):
    assert reasoning_format_reward(completions=[said], answer=["85"], prompts=["p"]) == [paid]
    assert reasoning_format_reward(completions=[[{"role": "assistant", "content": said}]]) == [paid]


def test_trls_own_always_pays_0_where_this_pays_1():
    from trl.rewards import think_format_reward

    said = [[{"role": "assistant", "content": "7+8=15\n</think>\n\\boxed{85}"}]]
    assert think_format_reward(said) == [0.0] and reasoning_format_reward(said) == [1.0]
