"""Reading rows of others: texts, messages, JSON. What cannot be used raises Refused; nothing of a row is ever run."""

import ast
import functools
import json
import warnings
from collections.abc import Callable
from typing import Any

from grpo_kit.environments.task import Task, Unusable, count_characters

LONGEST_PROMPT = 1_000_000  # characters
LONGEST_TEXT = 1_000_000  # characters of a column
LONGEST_LITERAL = 100_000  # characters of a structure that is written as text
MOST_TURNS = 100
ROLES = {
    "user": "user", "human": "user", "system": "system", "developer": "system", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
}  # fmt: skip
_TEXT_BLOCKS = ("text", "input_text", "output_text")


class Refused(Exception):
    """A row that gives no task: the reason's name in the funnel, and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)


def give_unusable(read: Callable[..., Task]) -> Callable[..., Task | Unusable]:
    """A reader that returns Unusable where `read` refuses a row."""

    @functools.wraps(read)
    def reader(row: dict[str, Any], *arguments: Any, **named: Any) -> Task | Unusable:
        try:
            if not isinstance(row, dict):
                raise Refused("not a row", f"it is a {type(row).__name__}, and a row is an object with columns")
            return read(row, *arguments, **named)
        except Refused as refused:
            return Unusable(*refused.args)
        except RecursionError:
            return Unusable("too deep", "its lists and objects lie too deep within each other")

    return reader


def read_text(value: Any, column: str, longest: int = LONGEST_TEXT) -> str:
    """A text that is not empty, not too long, and can be written as UTF-8."""
    if not isinstance(value, str):
        raise Refused("not text", f"the column {column} holds {_name_type(value)}, and a text is needed")
    if not value.strip():
        raise Refused("empty", f"the column {column} is empty")
    if len(value) > longest:
        raise Refused("too long", f"the column {column} has {len(value):,} characters, and {longest:,} are read")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise Refused("not text", f"the column {column} holds half of a character (a lone surrogate)")
    return value


def read_texts(value: Any, column: str) -> list[str]:
    """A list of such texts, at least one."""
    if not isinstance(value, list | tuple) or not value:
        raise Refused("no list", f"the column {column} holds {_name_type(value)}, and a list of texts is needed")
    return [read_text(item, column) for item in value]


def read_structure(value: Any, column: str) -> Any:
    """The value, or what it says where it is the text of a JSON or Python literal."""
    if not isinstance(value, str):
        return value
    if len(value) > LONGEST_LITERAL:
        raise Refused(
            "too long", f"the column {column} has {len(value):,} characters, and {LONGEST_LITERAL:,} are read"
        )
    for parse in (json.loads, _parse_literal):
        try:
            return parse(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    raise Refused("unreadable", f"the column {column} is neither JSON nor a literal of Python: {value[:60]!r}")


def _parse_literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about backslashes, as in '\pi'
        return ast.literal_eval(text)  # reads constants and calls nothing


def write_json(value: Any, column: str) -> str:
    """A value as JSON text; refused where JSON cannot hold it."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (ValueError, TypeError):
        raise Refused("not JSON", f"the column {column} holds what JSON cannot hold") from None
    if len(text) > LONGEST_TEXT:
        raise Refused("too long", f"the column {column} has {len(text):,} characters, and {LONGEST_TEXT:,} are read")
    return text


def read_messages(value: Any, column: str) -> list[dict[str, str]]:
    """Messages with `role` and `content`, the last one of the user.

    Args:
        value: a text, or a list of messages, as chat or ShareGPT (`from` and `value`) writes them, whose content is a
            text or a list of blocks with `text`.
        column: its name, for the sentence of a refusal.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list | tuple) or not value:
        raise Refused("no prompt", f"the column {column} holds {_name_type(value)}, and messages are needed")
    if len(value) > MOST_TURNS:
        raise Refused("too long", f"the column {column} has {len(value):,} messages, and {MOST_TURNS} are read")
    messages = [_read_message(turn, column) for turn in value]
    if messages[-1]["role"] != "user":
        raise Refused("no question", f"the last message of {column} is not the user's")
    if count_characters(messages) > LONGEST_PROMPT:
        raise Refused("too long", f"the messages of {column} have more than {LONGEST_PROMPT:,} characters")
    return messages


def _read_message(turn: Any, column: str) -> dict[str, str]:
    role = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    if not isinstance(role, str) or role.lower() not in ROLES or turn.get("type", "message") not in ("message", None):
        raise Refused("no message", f"the column {column} holds a turn that is no message with a known role")
    if turn.get("tool_calls"):
        raise Refused("tool call", f"a message of {column} calls a tool")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    return {"role": ROLES[role.lower()], "content": read_content(content, column)}


def read_content(content: Any, column: str) -> str:
    """The text of a message, whose content is a text or a list of blocks with `text`."""
    if isinstance(content, list | tuple):
        blocks = [block if isinstance(block, dict) else {} for block in content]
        if not all(block.get("type", "text") in _TEXT_BLOCKS for block in blocks):
            raise Refused("not text", f"a message of {column} holds a block that is not text")
        content = "".join(read_text(block.get("text"), column) for block in blocks)
    return read_text(content, column)


def is_number(value: Any) -> bool:
    """Whether a value is a number of at most 15 digits before the point, no NaN and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def show(value: Any) -> str:
    """The beginning of a value, for the sentence of a refusal."""
    try:
        return repr(value)[:60]
    except ValueError:  # a number of thousands of digits
        return f"a {type(value).__name__}"


def _name_type(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
