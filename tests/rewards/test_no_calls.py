"""A call that nobody offered earns 0 in every model's form, and talk about calls is no call; the package agrees."""

import re

import pytest

from grpo_kit.environments.worlds.episode import NO_WORLD, make_episode_class
from grpo_kit.policy import tool_calls
from grpo_kit.policy.chat import completion_text
from grpo_kit.rewards import no_calls
from grpo_kit.rewards.no_calls import no_calls_reward
from tests.helpers.counter_world import Counter, call

ADD = call("add", n=7)
TOOL = {"type": "function", "function": {"name": "add"}}
CALLS = {
    "Nemotron 3": f"I add.\n</think>\n{ADD}",
    "inside a thought that ends": f"I try {ADD} and see</think>4",
    "inside a thought that never ends": f"I try {ADD}",
    "cut within its name": "a</think><tool_call>\n<function=ad",
    "cut behind its mark": "a</think><tool_call>\n",
    "a mark, and the end of the turn": "a</think><tool_call><|im_end|>",
    "without the outer mark": "</think><function=add>\n<parameter=n>7</parameter></function>",
    "Llama's own functions": 'a</think><function=add>{"n": 7}</function>',
    "the last word": "</think><function=",
    "Hermes and Qwen": 'a</think><tool_call>\n{"name": "add", "arguments": {"n": 7}}\n</tool_call>',
    "a list of calls": '<tool_call>[{"name": "add"}]</tool_call>',
    "GLM": "<tool_call>add\n<arg_key>n</arg_key>\n<arg_value>7</arg_value>\n</tool_call>",
    "Nemotron Nano 2": '</think><TOOLCALL>[{"name": "add", "arguments": {"n": 7}}]</TOOLCALL>',
    "Llama in JSON": '<|python_tag|>{"name": "add", "parameters": {"n": 7}}',
    "Llama in Python": '<|python_tag|>brave_search.call(query="7")',
    "Mistral": '[TOOL_CALLS] [{"name": "add", "arguments": {"n": 7}}]',
    "Mistral, later": '[TOOL_CALLS]add[ARGS]{"n": 7}',
    "Phi": '<|tool_call|>[{"name": "add"}]<|/tool_call|>',
    "Kimi": '<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{"n": 7}',
    "DeepSeek": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"n": 7}\n```',
    "gpt-oss": '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"n": 7}',
    "Anthropic": '<function_calls>\n<invoke name="add">\n<parameter name="n">7</parameter>\n</invoke>',
    "MiniMax": '<minimax:tool_call>\n<invoke name="add">',
    "DeepSeek 3.2": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="add">',
    "in a block of code, which parsers do not see": f"a</think>```xml\n{ADD}\n```",
    "in quotation marks": f'He says "{ADD}".',
    "behind 100,000 blanks": "<tool_call>" + " " * 100_000 + "<function=add>",
    "behind many marks": "<tool_call>x" * 20_000 + ADD,
}
NO_CALLS = {
    "an answer": "6*7=42\n</think>\n\\boxed{42}",
    "nothing": "",
    "words": "I would call a tool here, say add(7), but there is none.</think>4",
    "a mark that is mentioned": "A call opens with <tool_call> and closes with </tool_call>.",
    "marks in code": "`<tool_call>`, `<TOOLCALL>`, `[TOOL_CALLS]`, `<|python_tag|>` and `<|tool_call|>` are marks.",
    "marks of DeepSeek in words": "<｜tool▁calls▁begin｜> opens the calls, <｜tool▁call▁begin｜> each.",
    "Python": '```python\nresult = search("price of tea")\nprint(tool_call(result))\n```',
    "JSON": '{"name": "add", "arguments": {"n": 7}}',
    "a function in mathematics": "Let f be the function=3x+1, <x>, function=<x>.",
    "a closing tag": "a</think></tool_call></function>4",
    "a tag with a space": "< tool_call > <function = add>",
    "capital letters": "<TOOL_CALL><FUNCTION=add>",
    "a result": "<tool_response>\n7\n</tool_response>",
    "an attribute of its own": '<call name="add">',
    "a channel without a function": "<|channel|>commentary to=self<|message|>hm",
    "100,000 opening brackets": "<" * 100_000,
    "100,000 marks": "<tool_call>x" * 100_000,
    "100,000 names": "[TOOL_CALLS]" + "a" * 100_000,
}


def test_every_form_of_a_call_earns_nothing():
    assert {name for name, text in CALLS.items() if no_calls_reward([text]) != [0.0]} == set()


def test_talk_about_calls_is_no_call():
    assert {name for name, text in NO_CALLS.items() if no_calls_reward([text]) != [1.0]} == set()


def test_the_package_counts_what_the_reward_punishes():
    assert tool_calls.CALL_BEGINS.pattern == no_calls.CALL_BEGINS.pattern
    for text in [*CALLS.values(), *NO_CALLS.values()]:
        assert tool_calls.has_call(text) == (no_calls_reward([text]) == [0.0])
    turns = [{"role": "assistant", "content": "", "tool_calls": [TOOL]}]
    assert tool_calls.has_call(completion_text(turns), turns) and no_calls_reward([turns]) == [0.0]


def test_a_call_that_the_kits_reader_runs_is_one():
    for text in CALLS.values():
        said = text.rpartition("</think>")[2]
        if "<think>" not in said and tool_calls.CALL.search(said):
            assert no_calls_reward([said]) == [0.0]
    assert re.search(tool_calls.CALL, ADD) and no_calls_reward([ADD.replace("\n", "")]) == [0.0]


def turn(content, role="assistant", **keys):
    return {"role": role, "content": content, **keys}


@pytest.mark.parametrize(
    ("completion", "due"),
    [
        ([turn("4")], 1.0),
        ([turn(ADD)], 0.0),
        ([turn("4", reasoning_content=ADD)], 0.0),
        ([turn("4", thinking=ADD)], 0.0),
        ([turn("", tool_calls=[TOOL])], 0.0),
        ([turn(None, tool_calls=[])], 1.0),
        ([turn(ADD), turn("7", "tool"), turn("It is 7.")], 0.0),  # an earlier turn
        ([turn("4"), turn(ADD, "user"), turn("no")], 1.0),  # another's
        ([turn("", "user", tool_calls=[TOOL]), turn("4")], 1.0),
        (turn(ADD), 0.0),
        ([turn([{"type": "text", "text": ADD}])], 0.0),
        ([turn([ADD, {"type": "image"}, None])], 0.0),
        ([turn(["<tool_call>", "<function=add>"])], 0.0),  # blocks are read as lines of one text
        ([], 1.0),
        (None, 1.0),
    ],
)
def test_every_turn_of_the_assistant_is_read(completion, due):
    assert no_calls_reward([completion]) == [due]


COUNTER = make_episode_class(Counter)


class Door:
    def reset(self, **row): ...

    def get_reward(self):
        return 1.0


class OpenDoor(Door):
    def knock(self): ...


@pytest.mark.parametrize(
    ("columns", "judged"),
    [
        ({"tools": [[TOOL]]}, False),
        ({"tools": ['[{"name": "add"}]']}, False),
        ({"tools": [None]}, True),
        ({"tools": [[]]}, True),
        ({"tools": [" [] "]}, True),
        ({"tools": ["null"]}, True),
        ({"environments": [None]}, True),
        ({"environments": [NO_WORLD()]}, True),  # of a row without a world in a run with some
        ({"environments": [COUNTER()]}, False),
        ({"environments": [Door()]}, True),
        ({"environments": [OpenDoor()]}, False),
        ({"prompts": ["What is 2 + 2?"]}, True),
        ({"prompts": ["<tools>\n{}\n</tools>"]}, False),
        ({"prompts": [[turn("You may use <tools>[]</tools>", "system"), turn("q", "user")]]}, False),
        ({"prompts": [[turn("", "system"), turn("What does <tools> mean?", "user")]]}, True),
    ],
)
def test_a_row_that_declares_tools_is_not_judged(columns, judged):
    assert no_calls_reward([ADD], **columns) == [0.0 if judged else None]
    if "prompts" in columns and not isinstance(columns["prompts"][0], str):
        assert tool_calls.declares_tools(columns["prompts"][0]) != judged


def test_the_share_of_calls_is_logged():
    logged = {}
    batch = {"completions": [ADD, "4", ADD, "4"], "tools": [None, None, None, [TOOL]]}
    assert no_calls_reward(**batch, log_metric=logged.__setitem__) == [0.0, 1.0, 0.0, None]
    assert logged == {"calls/undeclared": 2 / 3}
    assert no_calls_reward([ADD], tools=[[TOOL]], log_metric=pytest.fail) == [None]


@pytest.mark.parametrize("name", ["tools", "environments", "prompts"])
def test_columns_of_another_length_are_a_mistake(name):
    with pytest.raises(ValueError, match=f"1 completions and 2 {name}; each completion has its own"):
        no_calls_reward(["4"], **{name: [None, None]})
