"""A row of others read as texts to learn from: what the policy is asked, and what it should reply.

Every assistant turn of a conversation becomes a text of its own, with all turns before it as the prompt. That is what
the policy sees when it replies: a chat template cuts the thoughts of earlier turns.
"""

import json
from typing import Any, NamedTuple

from grpo_kit.environments.own_rows import CONVERSATIONS
from grpo_kit.environments.reading import (
    MOST_TURNS,
    ROLES,
    Refused,
    read_content,
    read_structure,
    read_text,
    show,
    write_json,
)
from grpo_kit.policy.chat import Messages, build_messages

TOOL_ROLES = {"tool": "tool", "function": "tool", "observation": "tool"}
MOST_TOOLS = 100  # of a row, and calls of a turn


class Example(NamedTuple):
    """A text to learn from.

    Attributes:
        prompt: the turns before the reply, as the chat template takes them.
        reply: an assistant's turn with `content`, and `reasoning_content` and `tool_calls` where it has them.
        place: where it came from, for people.
        tools: what the policy may call, as JSON schemas.
        enable_thinking: what the row itself says; None where the reply decides, which has a thought or not.
    """

    prompt: Messages
    reply: dict[str, Any]
    place: str
    tools: list[dict[str, Any]] | None = None
    enable_thinking: bool | None = None

    @property
    def problem(self) -> str:
        """What the user asks."""
        return "\n\n".join(turn["content"] for turn in self.prompt if turn["role"] == "user")


class LeftOut(NamedTuple):
    """A text that is not trained on: where it came from, the reason's name and a sentence; its tokens if too long."""

    place: str
    reason: str
    detail: str
    tokens: int = 0


def require_columns(columns: list[str], place: str) -> None:
    """Raise ValueError unless a table with these columns can hold texts to learn from."""
    if "completion" in columns and "prompt" in columns or any(name in columns for name in CONVERSATIONS):
        return
    raise ValueError(
        f"{place} has the columns {', '.join(columns)[:200]}; a text to learn from is in `messages`, or in `prompt` "
        "and `completion`. Rename the columns."
    )


def read_examples(row: dict[str, Any], place: str, suffix: str = "", system: str = "") -> list[Example]:
    """Read the texts of one row.

    Args:
        row: has `prompt` and `completion`, texts or messages; or a conversation in `messages`, `conversations` or
            `conversation`, as chat or ShareGPT writes it. Any of them may be JSON in a text. `tools` and
            `chat_template_kwargs` (only `enable_thinking`) are read where they are there.
        place: where the row came from.
        suffix: is appended to a prompt that is a text, as to the run's own problems.
        system: the system turn of such a prompt.

    Returns:
        The texts, at least one.

    Raises:
        Refused: the row cannot be used; its reason and a sentence.

    Example:
        >>> read_examples({"prompt": "2 + 2?", "completion": "<think>2+2=4</think>4"}, "line 1")[0].reply
        {'role': 'assistant', 'content': '4', 'reasoning_content': '2+2=4'}
    """
    try:
        tools = _read_tools(row.get("tools"))
        setting = _read_setting(row.get("chat_template_kwargs"))
        if row.get("completion") is not None:
            prompt = _read_prompt(row.get("prompt"), suffix, system)
            turns = _read_completion(row["completion"])
            if turns[0]["content"].strip() and turns[0]["content"].strip() == prompt[-1]["content"].strip():
                raise Refused("equal", "prompt and completion are the same text")
            first = len(prompt)
            turns = prompt + turns
        else:
            name = next((name for name in CONVERSATIONS if row.get(name)), "messages")
            turns, first = _read_turns(row.get(name), name), 0
    except RecursionError:
        raise Refused("too deep", "its lists and objects lie too deep within each other") from None
    replies = [place for place, turn in enumerate(turns) if turn["role"] == "assistant" and place >= first]
    if not replies:
        raise Refused("no assistant turn", "it has no turn of the assistant, so there is nothing to learn")
    if turns[0]["role"] == "assistant":
        raise Refused("no prompt", "it begins with a turn of the assistant, and a reply needs a question")
    several = len(replies) > 1
    return [
        Example(turns[:at], turns[at], f"{place}, turn {at + 1}" if several else place, tools, setting)
        for at in replies
    ]


def split_thought(content: str) -> tuple[str | None, str]:
    """(thought, answer) of a reply's text; the thought is None where there is none, and not empty.

    >>> split_thought("7+8=15</think>15"), split_thought("<think></think>15"), split_thought("15")
    (('7+8=15', '15'), (None, '15'), (None, '15'))
    """
    thought, closed, answer = content.partition("</think>")
    if not closed:
        return None, content
    thought = thought.strip().removeprefix("<think>").strip()
    return thought or None, answer.strip()


def _read_prompt(value: Any, suffix: str, system: str) -> Messages:
    value = _parse(value, "prompt")
    if isinstance(value, str):
        return build_messages(read_text(value, "prompt"), suffix, system)
    turns = _read_turns(value, "prompt")
    if turns[-1]["role"] not in ("user", "tool"):
        raise Refused("no question", "the last message of prompt is not the user's")
    return turns


def _read_completion(value: Any) -> Messages:
    value = _parse(value, "completion")
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    turns = _read_turns([value] if isinstance(value, dict) else value, "completion")
    if turns[0]["role"] != "assistant":
        raise Refused("no assistant turn", f"the completion begins with a turn of the {turns[0]['role']}")
    return turns


def _parse(value: Any, column: str) -> Any:
    """The value; of a text that holds messages as JSON, the messages."""
    bare = value.strip() if isinstance(value, str) else ""
    return read_structure(value, column) if bare.startswith("[{") and bare.endswith("}]") else value


def _read_turns(value: Any, column: str) -> Messages:
    value = _parse(value, column)
    if not isinstance(value, list | tuple) or not value:
        raise Refused("no conversation", f"the column {column} holds {show(value)}, and a list of messages is needed")
    if len(value) > MOST_TURNS:
        raise Refused("too long", f"the column {column} has {len(value):,} messages, and {MOST_TURNS} are read")
    return [_read_turn(turn, column) for turn in value]


def _read_turn(turn: Any, column: str) -> dict[str, Any]:
    role = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    role = (ROLES | TOOL_ROLES).get(role.lower()) if isinstance(role, str) else None
    if role is None:
        raise Refused("no message", f"the column {column} holds a turn that is no message with a known role")
    calls = _read_calls(turn.get("tool_calls")) if role == "assistant" else []
    thought = turn.get("reasoning_content") if role == "assistant" else None
    if thought is not None and not isinstance(thought, str):
        raise Refused("not text", f"a reasoning_content of {column} holds {show(thought)}, and a text is needed")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    content = "" if calls and not content else read_content(content, column)
    if role != "assistant":
        return {"role": role, "content": content}
    if not (thought or "").strip():
        thought, content = split_thought(content)
        if not content and not calls:
            raise Refused("empty", f"a reply of {column} has a thought and no answer")
    reply: dict[str, Any] = {"role": role, "content": content}
    if thought:
        reply["reasoning_content"] = read_text(thought.strip(), "reasoning_content")
    return reply | ({"tool_calls": calls} if calls else {})


def _read_calls(value: Any) -> list[dict[str, Any]]:
    """Tool calls as a chat template takes them: arguments are objects, also where a file has them as JSON."""
    value = _parse(value, "tool_calls")
    if value is None or value == []:
        return []
    if not isinstance(value, list | tuple) or len(value) > MOST_TOOLS:
        raise Refused(
            "unreadable", f"a turn's tool_calls are {show(value)}, and a list of at most {MOST_TOOLS} is read"
        )
    calls = []
    for call in value:
        function = call.get("function", call) if isinstance(call, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        arguments = read_structure(function.get("arguments") or {}, "tool_calls") if name else None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise Refused("unreadable", f"a tool call is {show(call)}; it has a name, and an object of arguments")
        arguments = json.loads(write_json(arguments, "tool_calls"))
        calls.append({"type": "function", "function": {"name": name, "arguments": arguments}})
    return calls


def _read_tools(value: Any) -> list[dict[str, Any]] | None:
    value = _parse(value, "tools")
    if value is None or value == [] or value == "":
        return None
    if not isinstance(value, list | tuple) or len(value) > MOST_TOOLS:
        raise Refused("unreadable", f"the column tools holds {show(value)}, and a list of at most {MOST_TOOLS} is read")
    for tool in value:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused("unreadable", f"a tool is {show(tool)}; it is a JSON schema with a name")
    return json.loads(write_json(list(value), "tools"))


def _read_setting(value: Any) -> bool | None:
    """The row's own `enable_thinking`."""
    value = read_structure(value, "chat_template_kwargs") if value else None
    if not value:
        return None
    kwargs = {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else {"": value}
    if kwargs.keys() - {"enable_thinking"} or not isinstance(kwargs.get("enable_thinking", True), bool):
        raise Refused(
            "unreadable", f"chat_template_kwargs is {show(value)}; only enable_thinking, true or false, is read"
        )
    return kwargs.get("enable_thinking")
