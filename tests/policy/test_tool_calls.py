"""Replies are read as transformers reads them, but no call that is cut off, broken, or still thought about is run."""

import json

import pytest

from grpo_kit import config
from grpo_kit.environments.worlds.episode import make_episode_class
from grpo_kit.policy import tool_calls
from grpo_kit.policy.chat import build_messages, completion_text, render_prompt, template_conversations
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.policy.tool_calls import read_reply
from tests.helpers.counter_world import Counter, call

TOOLS = make_episode_class(Counter).schemas
THINKING = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n"
PLAIN = THINKING[:-1] + "</think>"
ADD = call("add", n=7)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(config.Policy())


def calls_in(turn):
    return [(each["function"]["name"], each["function"]["arguments"]) for each in turn.get("tool_calls", [])]


@pytest.mark.parametrize("before", [THINKING, PLAIN])
@pytest.mark.parametrize(
    "reply",
    ["a</think>b<|im_end|>", "a\n</think>\n\\boxed{4}<|im_end|>", " a ", "never ends", "<think>a</think> b ", "",
     "a</think>", "a</think>\n x \n<|im_end|>\n", "x <think> y", "a\n\n</think>\n\n  b", "a</think>b</function>"],
)  # fmt: skip
def test_a_reply_without_calls_is_read_as_transformers_reads_it(tokenizer, before, reply):
    theirs = type(tokenizer).parse_response(
        tokenizer, reply, schema=tool_calls.RESPONSE_TEMPLATE, prefix=before, tools=TOOLS
    )
    assert read_reply(tokenizer, reply, prefix=before, tools=TOOLS) == {"content": ""} | theirs


def test_the_last_closing_tag_counts_as_for_the_rewards(tokenizer):
    turn = read_reply(tokenizer, "a</think>b</think>c<|im_end|>", prefix=THINKING)
    assert turn == {"role": "assistant", "content": "c", "reasoning_content": "a</think>b"}
    assert completion_text(turn) == "a</think>b</think>c"
    assert read_reply(tokenizer, "</think>4", prefix=THINKING)["reasoning_content"] == ""  # it has ended


@pytest.mark.parametrize(
    "said, calls",
    [
        (ADD, [("add", {"n": 7})]),
        (f"I add.\n{ADD}", [("add", {"n": 7})]),
        (f"{ADD}\n{call('look')}", [("add", {"n": 7}), ("look", {})]),
        (call("add", n="seven"), [("add", {"n": "seven"})]),  # the tool says what is wrong
        (call("add", n="0075"), [("add", {"n": 75})]),
        (call("add", n="a\n <b> c\nd"), [("add", {"n": "a\n <b> c\nd"})]),
        (call("reset", goal=1), [("reset", {"goal": "1"})]),  # nobody's tool: the episode says so
        (ADD.replace("\n", ""), [("add", {"n": 7})]),
        (call("add", n="9" * 5000), [("add", {"n": "9" * 5000})]),
    ],
)
def test_whole_calls_are_read(tokenizer, said, calls):
    for ids in (False, True):
        reply = f"t</think>{said}<|im_end|>"
        reply = tokenizer.encode(reply, add_special_tokens=False) if ids else reply
        turn = read_reply(tokenizer, reply, prefix=THINKING, tools=TOOLS)
        assert calls_in(turn) == calls and "malformed_calls" not in turn and turn["reasoning_content"] == "t"
    assert turn["content"] == ("I add." if said.startswith("I add") else "")


@pytest.mark.parametrize(
    "said, attempts",
    [
        (ADD[:-3], 1),  # cut off at every place
        (ADD.split("</tool_call>")[0], 1),
        (ADD.split("</function>")[0], 1),
        (ADD.split("</parameter>")[0], 1),
        (ADD.split("7")[0], 1),
        ("<tool_call>", 1),
        (f"{ADD}{ADD[:-3]}", 2),  # a whole one before it is not run either
        (f"<tool_call>{ADD}", 2),
        (ADD.replace("7", ADD), 2),  # one within the other
        (ADD.replace("</parameter>", ""), 1),
        (ADD.replace("\n7\n", "\n7\n</parameter>\nx"), 1),
        (ADD.replace("</function>", "<parameter=n>\n8\n</parameter>\n</function>"), 1),  # given twice
        (ADD.replace("<tool_call>", ""), 1),
        (ADD.replace("add", "add it"), 1),
        (ADD.replace("=n>", "=>"), 1),
        (ADD.replace("n>", "n>\n<parameter=m>"), 1),
        ('<tool_call>{"name": "add", "arguments": {"n": 7}}</tool_call>', 1),
        ('<tool_call>{"type": "function"</tool_call>', 1),
        (call("add", n="[" * 30_000), 1),
        ("<tool_call>" * 5000, 5000),
    ],
)
def test_what_only_looks_like_a_call_is_counted_and_not_run(tokenizer, said, attempts):
    turn = read_reply(tokenizer, f"t</think>{said}<|im_end|>", prefix=THINKING, tools=TOOLS)
    assert "tool_calls" not in turn and turn["malformed_calls"] == attempts and turn["content"] == said.strip()


LISTS = [{"type": "function", "function": {"name": "put", "parameters": {
    "type": "object", "properties": {"items": {"type": "array"}}}}}]  # fmt: skip


@pytest.mark.parametrize("value", ["[NaN]", "[1e999]", '["\\ud800"]', "[" * 3000])
def test_an_argument_is_a_value_of_json_or_a_text(tokenizer, value):
    """NaN is no JSON, and half a character cannot be written to a record."""
    turn = read_reply(tokenizer, f"t</think>{call('put', items=value)}", prefix=THINKING, tools=LISTS)
    assert turn.get("malformed_calls") == 1 or calls_in(turn) == [("put", {"items": value})]
    json.dumps(turn, allow_nan=False, ensure_ascii=False).encode()
    good = read_reply(tokenizer, "t</think>" + call("put", items='[1, "a"]'), prefix=THINKING, tools=LISTS)
    assert calls_in(good) == [("put", {"items": [1, "a"]})]


@pytest.mark.parametrize(
    "before, reply, runs, attempts",
    [
        (THINKING, ADD, False, 1),  # the thought never ends
        (THINKING, f"<think>{ADD}", False, 1),
        (PLAIN, ADD, True, 0),
        (PLAIN, f"<think>{ADD}", False, 1),  # thinking begins again
        (THINKING, f"a</think><think>{ADD}", False, 1),
        (THINKING, f"a</think>b<think>c</think>{ADD}", True, 0),
        (THINKING, f"{ADD}</think>4", False, 0),  # a thought about a call is no attempt
        (THINKING, f"a</think>{ADD}</think>4", False, 0),
    ],
)
def test_a_call_counts_only_behind_the_thinking(tokenizer, before, reply, runs, attempts):
    turn = read_reply(tokenizer, reply, prefix=before, tools=TOOLS)
    assert (bool(calls_in(turn)), turn.get("malformed_calls", 0)) == (runs, attempts)


def test_results_stand_between_two_replies_as_the_template_writes_them(tokenizer):
    results = [{"role": "tool", "name": "add", "content": text} for text in ("7", "8")]
    for thinking in (True, False):
        asked = build_messages("q")
        turn = read_reply(tokenizer, ADD, prefix=PLAIN, tools=TOOLS)
        whole = render_prompt(tokenizer, [*asked, turn, *results], thinking, TOOLS)
        between = tokenizer.decode(tool_calls.encode_results(tokenizer, results, thinking))
        assert whole.endswith(between) and between.count("<tool_response>") == 2
        assert between.startswith("\n<|im_start|>user\n")
        assert between.endswith("<think>\n" if thinking else "<think></think>")


def test_only_nemotrons_form_is_read():
    own = load_tokenizer(config.Policy())
    tool_calls.require_nemotron(own)
    template_conversations(own, [{"prompt": build_messages("q"), "enable_thinking": False}], True)
    tool_calls.require_nemotron(own)  # with the switch in its template
    tool_calls.install(own)
    assert own.parse_response("t</think>4", prefix=THINKING)["reasoning_content"] == "t"
    own.response_template = {"fields": {}}
    with pytest.raises(ValueError, match="Tool calls are read in the form of Nemotron 3"):
        tool_calls.require_nemotron(own)


def test_the_embedded_policies_list_their_tools_shortly(tokenizer):
    text = render_prompt(tokenizer, build_messages("q"), True, TOOLS)
    assert text.startswith(
        "<|im_start|>system\n<tools>\nadd(n)\nlook()\n</tools><|im_end|>\n<|im_start|>user\nq<|im_end|>"
    )
    with_system = render_prompt(tokenizer, build_messages("q", system="S"), True, TOOLS)
    assert with_system.startswith("<|im_start|>system\nS\n\n<tools>\nadd(n)\n")
    assert "<tools>" not in render_prompt(tokenizer, build_messages("q"), True)
