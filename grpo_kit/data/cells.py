"""Cells: the text of a problem or of a gold, whatever form a file or a Hub set gives it.

Text is taken as it is. These forms are read as well: chat messages with `role` and `content` or ShareGPT's `from` and
`value`, lists of content blocks, lists with one element, and each of them written into text as JSON or as Python's
repr. Every other structure gives a reason to drop the row; none is ever turned into text by `str`.
"""

import ast
import json
import math
import re
import warnings
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple

from grpo_kit.environments.reading import ROLES

LONGEST_LITERAL = 100_000  # characters; a Python literal that is longer is not parsed
TEXT_BLOCKS = ("text", "input_text", "output_text")
# Text that begins like messages or content blocks, perhaps inside NumPy's `array(`.
_MESSAGES_START = re.compile(r"""\s*(?:array\(\s*)?\[\s*\{\s*(['"])(?:role|content|from|value|type|text)\1\s*:""")
_ARRAY_BREAK = re.compile(r"\}\s*\n\s*\{")  # NumPy writes no comma between elements; a repr has no bare line feed


class Cell(NamedTuple):
    """What a cell says.

    Attributes:
        text: its text; "" for an empty cell and for one that is not text.
        reason: set where the row cannot be used; the reason's name in the funnel.
        detail: set with `reason`; the rest of a sentence that begins with the column's name.
        system: the text of a system turn before the question.
    """

    text: str = ""
    reason: str = ""
    detail: str = ""
    system: str = ""


def parse_structure(text: str) -> Any:
    """Parse text that is a JSON or Python literal of an object or of a list of texts or objects.

    Args:
        text: the text of a cell. Nothing in it is run: Python's literals are read by `ast.literal_eval`, and only up
            to 100,000 characters.

    Returns:
        The object or list; `text` itself for all other text, such as `[1, 2]`, `{x}` or `{}`.

    Example:
        >>> parse_structure("[{'role': 'user', 'content': 'q'}]"), parse_structure("[1, 2]")
        ([{'role': 'user', 'content': 'q'}], '[1, 2]')
    """
    bare = text.strip()
    if (bare[:1], bare[-1:]) not in (("[", "]"), ("{", "}")):
        return text
    for parse in (json.loads, _parse_literal):
        try:
            value = parse(bare)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict):
            is_structure = bool(value) and all(isinstance(key, str) for key in value)
        else:
            is_structure = isinstance(value, list) and any(isinstance(item, (dict, str)) for item in value)
        return value if is_structure else text
    return text


def read_problem(value: Any) -> Cell:
    """Read the cell of a problem.

    Args:
        value: the cell as the file's reader gives it.

    Returns:
        The text. Of a conversation, that of its last user turn with the system turn before it; a question that follows
        other turns than a system turn gives the reason "earlier turns".

    Example:
        >>> read_problem([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}])
        Cell(text='q', reason='', detail='', system='s')
    """
    value = _parse_text(value)
    if turns := _list_turns(value):
        return _read_question(turns)
    if isinstance(value, (bool, int, float, Decimal)):
        return Cell("", "not text", f"holds {value}, and a problem is a text")
    return _read_text(value)


def read_gold(value: Any) -> Cell:
    """Read the cell of a gold or of a worked solution.

    Args:
        value: the cell as the file's reader gives it.

    Returns:
        The text; of a conversation, that of its last reply. A list of several texts has the reason "several answers".

    Example:
        >>> read_gold(["7"]).text, read_gold({"ground_truth": "7"}).reason
        ('7', 'not text')
    """
    value = _parse_text(value)
    if turns := _list_turns(value):
        replies = [content for role, content in turns if role == "assistant"]
        return _read_text(_parse_text(replies[-1])) if replies else Cell()
    return _read_text(value)


def is_conversation(value: Any) -> bool:
    """Whether a cell holds chat messages."""
    return bool(_list_turns(_parse_text(value)))


def _parse_literal(text: str) -> Any:
    if len(text) > LONGEST_LITERAL:
        raise ValueError("the literal is too long")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about backslashes, as in '\pi'
        return ast.literal_eval(_ARRAY_BREAK.sub("}, {", text))


def _parse_text(value: Any) -> Any:
    return parse_structure(value) if isinstance(value, str) else value


def _list_turns(value: Any) -> list[tuple[str, Any]]:
    """(role, content) of each turn of a conversation; [] for any other value."""
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, (list, tuple)):
        return []
    if len(turns) == 1 and isinstance(turns[0], (list, tuple)):
        turns = turns[0]  # one conversation in a list
    listed = []
    for turn in turns:
        role = (turn.get("role") or turn.get("from")) if isinstance(turn, Mapping) else None
        if not isinstance(role, str):
            return []
        content = turn.get("content") if turn.get("content") is not None else turn.get("value")
        listed.append((ROLES.get(role.lower(), role), content))
    return listed


def _read_question(turns: list[tuple[str, Any]]) -> Cell:
    places = [place for place, (role, _) in enumerate(turns) if role == "user"]
    if not places:
        return Cell()
    earlier = turns[: places[-1]]
    question = _read_text(_parse_text(turns[places[-1]][1]))
    systems = [_read_text(_parse_text(content)) for role, content in earlier if role == "system"]
    if others := len(earlier) - len(systems):
        detail = f"asks its question after {others} earlier turn{'s' * (others > 1)}; the policy is asked one question"
        return Cell(question.text, "earlier turns", detail)
    unread = next((cell for cell in (question, *systems) if cell.reason), None)
    return unread or question._replace(system="\n\n".join(cell.text for cell in systems if cell.text))


def _read_text(value: Any) -> Cell:
    """The text of a value that is not a conversation."""
    if value is None:
        return Cell()
    if isinstance(value, str):
        if _MESSAGES_START.match(value):
            return Cell("", "unreadable messages", f"holds messages as text that cannot be parsed: {value[:60]!r}")
        return Cell(value)
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        return Cell("", "not finite", f"holds {value}, which is not a number to work with")
    if isinstance(value, (bool, int, float, Decimal, date)):
        return Cell(str(value))
    if isinstance(value, (list, tuple)):
        return _read_list(value)
    if isinstance(value, Mapping):
        return _read_object(value)
    kind = type(value).__name__
    if "image" in kind.lower() or isinstance(value, (bytes, bytearray)):
        return Cell("", "image", f"holds {kind}, which may be an image, and the policy reads text only")
    return Cell("", "not text", f"holds {kind}, which is not text")


def _read_list(values: list[Any] | tuple[Any, ...]) -> Cell:
    if not values:
        return Cell()
    if any(isinstance(value, Mapping) and "type" in value for value in values):
        parts = [_read_text(value) for value in values]
        return next((part for part in parts if part.reason), Cell("".join(part.text for part in parts)))
    if len(values) > 1:
        return Cell("", "several values", f"holds a list of {len(values)} values; one is needed")
    return _read_text(_parse_text(values[0]))


def _read_object(value: Mapping[str, Any]) -> Cell:
    kind = value.get("type")
    if kind in TEXT_BLOCKS or (kind is None and set(value) == {"text"}):
        return _read_text(value.get("text"))
    if (isinstance(kind, str) and "image" in kind) or set(value) == {"bytes", "path"}:
        return Cell("", "image", "holds an image, and the policy reads text only")
    fields = ", ".join(map(str, value))[:100]
    return Cell(
        "", "not text", f"holds an object with the fields {fields}; name a field, as in reward_model.ground_truth"
    )
