"""reasoning_format: which shapes earn 1.0, with the thinking opened by the prompt and without."""

import pytest

from grpo_kit.rewards.reasoning_format import reasoning_format_reward

SHAPES = [  # completion, when the prompt opened <think>, when it did not, what the row is about
    ("6*7=42\n</think>\n42", 1, 0, "what Nemotron's template leads to"),
    ("<think>6*7=42</think>42", 0, 1, "both tags"),
    ("\n <think>6*7=42</think>42", 0, 1, "both tags after blanks"),
    ("</think>42", 0, 0, "no thinking"),
    (" \n</think>42", 0, 0, "blank thinking"),
    ("<think></think>42", 0, 0, "empty tags, which TRL's reward pays"),
    ("...</think>42", 0, 0, "dots are no thinking"),
    ("6*7=42</think>", 0, 0, "no answer"),
    ("6*7=42</think>\n<|im_end|>", 0, 0, "an end mark is no answer"),
    ("6*7=42, so 42", 0, 0, "never closed"),
    ("a</think>b", 0, 0, "a thought of one letter"),
    ("<think>so 4</think>4", 0, 0, "three characters"),
    ("s o . . .</think>42", 1, 0, "five characters, blanks not counted"),
    ("6*7=42</think>b</think>42", 0, 0, "closed twice"),
    ("6*7=<think>42</think>42", 0, 0, "opened in the middle"),
    ("<think>6*7=<think>42</think>42", 0, 0, "opened twice"),
    ("6*7=42</think>42<think>", 0, 0, "opened after the answer"),
    ("思考思考思</think>四十二", 1, 0, "any script"),
    ("", 0, 0, "nothing"),
]


@pytest.mark.parametrize(("completion", "opened", "unopened", "note"), SHAPES)
def test_only_thinking_closed_once_and_then_an_answer_earns(completion, opened, unopened, note):
    assert reasoning_format_reward([completion]) == [opened], note
    assert reasoning_format_reward([completion], prompt_opened_think=False) == [unopened], note


def test_message_lists_are_read_and_other_columns_ignored():
    messages = [{"role": "assistant", "content": "6*7=42</think>42"}]
    assert reasoning_format_reward(completions=[messages, []], answer=["1", "2"]) == [1.0, 0.0]


def test_columns_have_one_entry_per_completion():
    completions = [
        "3+1=4</think>4",
        "3+1=4</think>4",
        "<think>3+1=4</think>4",
        "4",
        "4",
        "3+1=4</think>4",
        "<think></think>",
        " ",
    ]
    opened = [True, False, False, False, True, False, False, False]
    thinks = [True, True, None, False, True, False, False, False]
    rewards = reasoning_format_reward(completions, prompt_opened_think=opened, enable_thinking=thinks)
    assert rewards == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("least", "paid"), [(0, 1.0), (1, 1.0), (6, 1.0), (7, 0.0)])
def test_the_least_length_of_a_thought_is_a_setting(least, paid):
    assert reasoning_format_reward(["6*7 = 42 </think>42"], least=least) == [paid]


@pytest.mark.parametrize("column", ["prompt_opened_think", "enable_thinking"])
def test_a_column_of_another_length_is_the_callers_mistake(column):
    with pytest.raises(ValueError):
        reasoning_format_reward(["3+1=4</think>4"] * 2, **{column: [True]})
