"""Prompts as the challenge's scorer writes them, and completions taken apart."""

import pytest

from grpo_kit.config.protocols import CHALLENGE_SUFFIX
from grpo_kit.policy.chat import split_thinking, text_of


def test_the_challenge_suffix_is_the_scorers_to_the_letter():
    assert CHALLENGE_SUFFIX == "\nPlease put your final answer inside `\\boxed{}`. For example: `\\boxed{your answer}`"


def test_the_large_presets_ask_as_the_scorer_asks():
    from grpo_kit import config

    for preset in ("t4", "24gb"):
        assert config.load_config([preset]).data.prompt_suffix == CHALLENGE_SUFFIX


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        ("a\n</think>\nb", ("a", "b")),
        ("<think>a</think>b", ("a", "b")),  # a model that opens it again
        ("no tag at all", ("no tag at all", "")),  # cut while thinking
        ("a</think>b</think>c", ("a</think>b", "c")),  # the last one counts
        ("", ("", "")),
    ],
)
def test_thinking_and_answer_are_told_apart(completion, parts):
    assert split_thinking(completion) == parts


def test_text_of_takes_both_of_trls_shapes():
    assert text_of("x") == text_of([{"role": "assistant", "content": "x"}]) == "x"
