"""The turns of a completion in a world, for people: what was thought, each call with its result, what was said."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LONGEST_RESULT = 300  # characters of a result that are printed


class Call(NamedTuple):
    """A call as `name(key=value)`, and its result; None where it was not carried out or its result found no room."""

    text: str
    result: str | None


class Turn(NamedTuple):
    """One of the policy's turns; `malformed` counts calls that could not be read, whose text is in `said`."""

    thinking: str
    said: str
    calls: list[Call]
    malformed: int


def read_turns(turns: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The policy's turns of a recorded completion, each call with its result.

    Example:
        >>> called = {"function": {"name": "add", "arguments": {"n": 7}}}
        >>> read_turns([{"role": "assistant", "content": "", "tool_calls": [called]}, {"role": "tool", "content": "7"}])
        [Turn(thinking='', said='', calls=[Call(text='add(n=7)', result='7')], malformed=0)]
    """
    read: list[Turn] = []
    results: list[str] = []
    for turn in reversed(turns):
        if turn["role"] == "tool":
            results.insert(0, turn["content"])
            continue
        calls = [_describe(call["function"]) for call in turn.get("tool_calls") or ()]
        padded = [*results, *[None] * len(calls)]
        pairs = [Call(*pair) for pair in zip(calls, padded)]
        read.insert(
            0, Turn(turn.get("reasoning_content") or "", turn["content"], pairs, turn.get("malformed_calls") or 0)
        )
        results = []
    return read


def print_turns(turns: Sequence[Mapping[str, Any]]) -> str:
    """The same as lines of text; a long result is cut."""
    lines = []
    for turn in read_turns(turns):
        lines += [f"thinks : {turn.thinking}"] if turn.thinking else []
        for call in turn.calls:
            lines.append(f"calls  : {call.text} -> {_cut(call.result)}")
        lines += [f"calls  : {turn.malformed} that could not be read"] if turn.malformed else []
        lines += [f"answers: {turn.said}"] if turn.said else []
    return "\n".join(lines)


def _describe(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"].items()
    given = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments)
    return f"{function['name']}({given})"


def _cut(result: str | None) -> str:
    if result is None:
        return "(no result)"
    return result if len(result) <= LONGEST_RESULT else f"{result[:LONGEST_RESULT]} …"
