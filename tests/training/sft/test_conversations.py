"""Rows of others read as texts to learn from: what is asked, what is replied, and what is refused."""

import json

import pytest

from grpo_kit.environments.reading import Refused
from grpo_kit.training.sft.conversations import read_examples, require_columns, split_thought

USER = {"role": "user", "content": "2 + 2?"}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
DEEP = "[" * 20_000 + "]" * 20_000


def replies(row):
    return [example.reply for example in read_examples(row, "line 1")]


def answer(content, thought=None):
    reply = {"role": "assistant", "content": content}
    return reply | ({"reasoning_content": thought} if thought else {})


@pytest.mark.parametrize(
    "completion, reply",
    [
        ("4", answer("4")),
        ("<think>\n2+2=4\n</think>\n4", answer("4", "2+2=4")),
        ("<think>2+2=4</think>4", answer("4", "2+2=4")),
        ("2+2=4\n</think>\n4", answer("4", "2+2=4")),  # as a policy writes it whose prompt opened the thought
        ("<think></think>4", answer("4")),
        ("<think>\n\n</think>\n\n4", answer("4")),  # how other models leave a thought out
        ("a < b", answer("a < b")),
        ([answer("4", "2+2=4")], answer("4", "2+2=4")),
        ([answer("4", " ")], answer("4")),
        (answer("4"), answer("4")),
        ('[{"role": "assistant", "content": "4"}]', answer("4")),  # as a CSV holds it
        ("[{'from': 'gpt', 'value': '4'}]", answer("4")),
        ([{"role": "assistant", "content": [{"type": "text", "text": "4"}]}], answer("4")),
        ("[1, 2]", answer("[1, 2]")),
    ],
)
def test_a_reply_has_a_thought_and_an_answer(completion, reply):
    assert replies({"prompt": "2 + 2?", "completion": completion}) == [reply]


def test_a_prompt_that_is_a_text_is_asked_like_the_runs_own_problems():
    row = {"prompt": "2 + 2?", "completion": "4"}
    (example,) = read_examples(row, "line 1", suffix=" In a box.", system="Count.")
    assert example.prompt == [{"role": "system", "content": "Count."}, {"role": "user", "content": "2 + 2? In a box."}]
    (example,) = read_examples(row | {"prompt": [USER]}, "line 1", suffix=" In a box.", system="Count.")
    assert example.prompt == [USER]  # messages are taken as they are


def test_each_turn_of_the_assistant_is_a_text_with_all_turns_before_it():
    turns = [
        {"role": "system", "content": "s"},
        USER,
        answer("4", "t"),
        {"role": "user", "content": "sure?"},
        answer("yes"),
    ]
    first, second = read_examples({"messages": turns}, "a.jsonl, line 7")
    assert (first.prompt, first.reply, first.place) == (turns[:2], turns[2], "a.jsonl, line 7, turn 3")
    assert (second.prompt, second.reply, second.problem) == (turns[:4], turns[4], "2 + 2?\n\nsure?")


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
def test_sharegpt_and_its_json_are_read(column):
    turns = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
    for value in (turns, json.dumps(turns), str(turns)):
        (example,) = read_examples({column: value}, "line 1")
        assert (example.prompt, example.reply) == ([USER], answer("4"))


def test_calls_tools_and_results_are_kept():
    turns = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
        answer("4"),
    ]
    called, told = read_examples({"messages": turns, "tools": json.dumps([TOOL])}, "line 1")
    assert called.reply["tool_calls"] == [{"type": "function", "function": {"name": "look", "arguments": {"a": 1}}}]
    assert told.prompt[-1] == {"role": "tool", "content": "4"} and told.tools == [TOOL]


def test_only_the_completion_is_learned_where_the_prompt_has_replies():
    prompt = [USER, answer("5"), {"role": "user", "content": "No."}]
    assert replies({"prompt": prompt, "completion": "4"}) == [answer("4")]


def test_the_rows_own_setting_is_read():
    row = {"prompt": "2 + 2?", "completion": "4"}
    for value, setting in (
        (None, None),
        ({}, None),
        ({"enable_thinking": False}, False),
        ('{"enable_thinking": true}', True),
    ):
        assert read_examples(row | {"chat_template_kwargs": value}, "")[0].enable_thinking is setting


REFUSED = [
    ({"prompt": "4", "completion": "4 "}, "equal"),
    ({"prompt": "", "completion": "4"}, "empty"),
    ({"prompt": None, "completion": "4"}, "no conversation"),
    ({"prompt": "q", "completion": ""}, "empty"),
    ({"prompt": "q", "completion": "<think>only a thought</think>"}, "empty"),
    ({"prompt": "q", "completion": 4}, "no conversation"),
    ({"prompt": "q", "completion": [USER]}, "no assistant turn"),
    ({"prompt": [answer("4")], "completion": "4"}, "no question"),
    ({"prompt": "q", "completion": "half \ud800"}, "not text"),
    ({"prompt": "q", "completion": "x" * 1_000_001}, "too long"),
    ({"messages": [USER]}, "no assistant turn"),
    ({"messages": [answer("4")]}, "no prompt"),
    ({"messages": []}, "no conversation"),
    ({"messages": [USER, answer("4")] * 51}, "too long"),
    ({"messages": [{"role": "ghost", "content": "boo"}]}, "no message"),
    ({"messages": "text"}, "no conversation"),
    ({"messages": [USER, answer("4") | {"reasoning_content": 7}]}, "not text"),
    ({"messages": [USER, {"role": "assistant", "content": [{"type": "image_url"}]}]}, "not text"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}]}, "unreadable"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]}]},
     "unreadable"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "a", "arguments": DEEP}}]}]},
     "unreadable"),
    ({"messages": [USER, answer("4")], "tools": "[{}]"}, "unreadable"),
    ({"messages": [USER, answer("4")], "tools": 7}, "unreadable"),
    ({"messages": [USER, answer("4")], "chat_template_kwargs": {"enable_thinking": "no"}}, "unreadable"),
    ({"messages": [USER, answer("4")], "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "unreadable"),
]  # fmt: skip


def test_what_cannot_be_learned_is_refused_with_a_reason():
    found = []
    for row, _ in REFUSED:
        try:
            found.append(read_examples(row, "line 1"))
        except Refused as refused:
            found.append(refused.args[0])
    assert found == [reason for _, reason in REFUSED]


def test_a_table_without_the_columns_is_named_with_its_columns():
    for columns in (["prompt", "completion"], ["messages"], ["id", "conversations"]):
        require_columns(columns, "a.csv")
    message = (
        "a.csv has the columns prompt, answer; a text to learn from is in `messages`, or in `prompt` and `completion`"
    )
    with pytest.raises(ValueError, match=message):
        require_columns(["prompt", "answer"], "a.csv")


def test_a_thought_is_split_at_its_first_end():
    assert split_thought("a</think>b</think>c") == ("a", "b</think>c")
