"""Turns in a world as text: each call with its result."""

from grpo_kit.display import notebook_output, turns
from grpo_kit.display.turns import Call, Turn
from grpo_kit.policy.generate import Sample


def calls(*named):
    return [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in named]


TURNS = [
    {
        "role": "assistant", "reasoning_content": "I look.", "content": "",
        "tool_calls": calls(("look", {}), ("send", {"to": "Ada", "n": 2, "copy": ["é"]})),
    },
    {"role": "tool", "name": "look", "content": "1 mail"},
    {"role": "tool", "name": "send", "content": "sent " * 100},
    {"role": "assistant", "reasoning_content": "Again.", "content": "wait", "tool_calls": calls(("look", {}))},
]  # fmt: skip


def test_each_call_has_its_result():
    assert turns.read_turns(TURNS) == [
        Turn("I look.", "", [Call("look()", "1 mail"), Call('send(to="Ada", n=2, copy=["é"])', "sent " * 100)], 0),
        Turn("Again.", "wait", [Call("look()", None)], 0),
    ]
    assert turns.read_turns([]) == []
    assert turns.read_turns([{"role": "assistant", "content": "<tool_call>", "malformed_calls": 1}]) == [
        Turn("", "<tool_call>", [], 1)
    ]


def test_turns_as_lines(capsys):
    text = turns.print_turns(TURNS)
    assert text.splitlines() == [
        "thinks : I look.",
        "calls  : look() -> 1 mail",
        f'calls  : send(to="Ada", n=2, copy=["é"]) -> {("sent " * 100)[:300]} …',
        "thinks : Again.",
        "calls  : look() -> (no result)",
        "answers: wait",
    ]
    notebook_output.show_reply(Sample("x", 9, True, TURNS[:2]))
    assert capsys.readouterr().out.startswith("thinks : I look.\ncalls  : look() -> 1 mail\n")
    notebook_output.show_reply(Sample("a</think>b", 9, True))
    assert capsys.readouterr().out == "thinks : a\nanswers: b\nlength : 9 tokens, ended by itself\n"
