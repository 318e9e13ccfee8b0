"""Rewards read every form in which TRL hands them a reply: text, one message, split messages, several turns."""

import pytest

from grpo_kit.rewards.math_answer import final_answer, math_reward

RIGHT, WRONG = r"6*7=42</think>\boxed{42}", r"6*7=41</think>\boxed{41}"
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 7}}}


def turn(content, role="assistant", **keys):
    return {"role": role, "content": content, **keys}


FORMS = [  # completion, what math_reward pays when the prompt opened <think> and when not, what the row is about
    (RIGHT, 1, 1, "text"),
    ([turn(RIGHT)], 1, 1, "one message with inline thinking"),
    ([turn(r"\boxed{42}", reasoning_content="6*7=42")], 1, 1, "thinking that TRL took off"),
    ([turn(r"\boxed{42}", thinking="6*7=42")], 1, 1, "the same under the name that some templates use"),
    ([turn(r"\boxed{42}", reasoning_content="")], 1, 1, "an empty thought that was closed"),
    ([turn("the answer", reasoning_content=r"\boxed{42}")], 0, 0, "an answer inside the thinking"),
    ([turn(r"6*7=42 \boxed{42}")], 0, 1, "a thought that was not closed lands in content whole"),
    ([turn(r"\boxed{42}", reasoning_content=None)], 0, 1, "as it does where a table has filled the key with None"),
    ([turn(r"\boxed{42}<think>so", reasoning_content="a")], 0, 0, "thinking that was opened again"),
    (turn(r"\boxed{42}", reasoning_content="a"), 1, 1, "a message outside a list"),
    ([turn([{"type": "text", "text": r"\boxed{42}"}], reasoning_content="a")], 1, 1, "content in blocks"),
    ([turn("", tool_calls=[CALL]), turn("42", "tool"), turn(RIGHT)], 1, 1, "the last turn of several"),
    ([turn(WRONG), turn("No.", "user"), turn(RIGHT)], 1, 1, "a user in between"),
    ([turn(RIGHT), turn("No.", "user"), turn(WRONG)], 0, 0, "a right answer that was given up"),
    ([turn(RIGHT), turn("41", "tool")], 1, 1, "an episode that ends with a tool's result"),
    ([turn("", tool_calls=[CALL], reasoning_content="a"), turn(r"\boxed{42}", "tool")], 0, 0, "a tool's right answer"),
    ([turn(None, tool_calls=[CALL])], 0, 0, "nothing but a call"),
    ([turn(r"\boxed{42}", "user")], 0, 0, "no turn of the assistant"),
    ([], 0, 0, "no turn at all"),
    (None, 0, 0, "no completion"),
]


@pytest.mark.parametrize(("completion", "opened", "unopened", "note"), FORMS)
def test_the_answer_of_the_last_assistant_turn_is_judged(completion, opened, unopened, note):
    for flag, due in ((True, opened), (False, unopened)):
        assert math_reward([completion], ["42"], prompt_opened_think=flag) == [due], note
        assert (final_answer(completion, prompt_opened_think=flag) == "42") == bool(due), note
