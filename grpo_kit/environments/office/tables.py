"""Tables of a small world: what their entries may hold, how texts are compared, and what an agent has changed.

A state is {table: {id: entry}} and an entry {field: text or whole number}. No entry is changed in place, so two states
may share entries.

Two ways to the same end are equal: states are compared by what they changed of the same beginning. A new entry counts
by its fields and not by its id or its place; of an old one each changed field counts, and that it is gone. Texts are
compared by `fold_text`.
"""

import calendar
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from grpo_kit.environments.reading import Refused, show

Entry = dict[str, str | int]
State = dict[str, dict[int, Entry]]
Kind = Callable[[str, Any], str | int]

LONGEST_TEXT = 2000  # characters of a field
LARGEST = 1_000_000_000  # of a whole number
LONGEST_STATE = 2_000_000  # characters of JSON
_PREFIX = re.compile(r"(?:(?:re|fw|fwd):\s*)+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ENDS = " .,;:!?\"'’‘“”„«»`"


class BadArgument(Exception):
    """What is wrong with a call, as a sentence for the agent."""


class Table(NamedTuple):
    """What a table may hold: the kind of each field, and what tools may do to its entries."""

    fields: Mapping[str, Kind]
    can_change: bool = False
    can_delete: bool = False


def text(name: str, value: Any) -> str:
    """A text that says something, of at most LONGEST_TEXT characters."""
    if not text_or_nothing(name, value).strip():
        raise BadArgument(f"{name} is empty; it must be a text.")
    return value


def text_or_nothing(name: str, value: Any) -> str:
    """A text of at most LONGEST_TEXT characters."""
    if not isinstance(value, str):
        raise BadArgument(f"{name} is {show(value)}; it must be a text.")
    if len(value) > LONGEST_TEXT:
        raise BadArgument(f"{name} has {len(value):,} characters; it may have {LONGEST_TEXT:,}.")
    if not value.isascii() and _SURROGATE.search(value):
        raise BadArgument(f"{name} holds half of a character; write it as whole characters.")
    return value


def whole(name: str, value: Any) -> int:
    """A whole number, no bool."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > LARGEST:
        raise BadArgument(f"{name} is {show(value)}; it must be a whole number.")
    return value


def address(name: str, value: Any) -> str:
    """An address for mail, in small letters."""
    if not re.fullmatch(r"[^\s@<>]{1,100}@[^\s@<>]{1,100}", text(name, value)):
        raise BadArgument(f"{name} is {show(value)}; it must be an address such as ada@firm.example.")
    return value.lower()


def date(name: str, value: Any) -> str:
    """A day as YYYY-MM-DD."""
    match = re.fullmatch(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})", text(name, value).strip())
    year, month, day = map(int, match.groups()) if match else (0, 0, 0)
    if not (1900 <= year <= 2999 and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]):
        raise BadArgument(f"{name} is {show(value)}; it must be a day as YYYY-MM-DD.")
    return f"{year}-{month:02}-{day:02}"


def moment(name: str, value: Any) -> str:
    """A time as YYYY-MM-DD HH:MM; seconds may follow if they are 00."""
    match = re.fullmatch(r"(\S{8,10})[ T]([0-9]{1,2}):([0-9]{2})(?::00)?", text(name, value).strip())
    hour, minute = (int(match[2]), int(match[3])) if match else (24, 0)
    if hour > 23 or minute > 59:
        raise BadArgument(f"{name} is {show(value)}; it must be a time as YYYY-MM-DD HH:MM.")
    return f"{date(name, match[1])} {hour:02}:{minute:02}"


def label(name: str, value: Any) -> str:
    """One of a few words, which a tool has to know."""
    return text(name, value)


def fold_text(value: str) -> str:
    """A text as it is compared.

    Case, the width and form of characters (NFKC), runs of white space, and "Re:" or "Fw:" in front do not matter, nor
    do quotes and . , ; : ! ? at either end. Every other character does.

    >>> fold_text('  "Fw: Re: The  Plan!" '), fold_text("the plan")
    ('the plan', 'the plan')
    """
    folded = " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    return _PREFIX.sub("", folded.strip(_ENDS), count=1).strip(_ENDS) or folded


def read_state(value: Any, tables: Mapping[str, Table]) -> State:
    """Read the state of a row.

    Args:
        value: JSON text of {table: [entry]}; each entry has an `id` of its own in its table, and fields of the table.
        tables: what there may be.

    Returns:
        The state; a table that the text leaves out is empty.

    Raises:
        Refused: the text is no such state.
    """
    given = read_json(value, "state", LONGEST_STATE)
    if not isinstance(given, dict) or not given.keys() <= tables.keys():
        raise Refused("bad state", f"the column state must hold tables named {', '.join(tables)}")
    state: State = {name: {} for name in tables}
    for name, entries in given.items():
        for entry in entries if isinstance(entries, list) else [None]:
            try:
                number, fields = _read_entry(entry, tables[name])
            except BadArgument as wrong:
                raise Refused("bad state", f"in the table {name} of the column state, {wrong}") from None
            if number in state[name]:
                raise Refused("bad state", f"two entries of the table {name} have the id {number}")
            state[name][number] = fields
    return state


def _read_entry(entry: Any, table: Table) -> tuple[int, Entry]:
    if not isinstance(entry, dict) or not entry.keys() - {"id"} <= table.fields.keys():
        raise BadArgument(f"an entry must be an object with an id and some of {', '.join(table.fields)}.")
    number = whole("id", entry.get("id"))
    if number < 0:
        raise BadArgument(f"id is {number}; it must be 0 or more.")
    return number, {field: table.fields[field](field, value) for field, value in entry.items() if field != "id"}


def write_state(state: State) -> str:
    """A state as the JSON text that `read_state` reads."""
    tables = {name: [{"id": key} | entry for key, entry in entries.items()] for name, entries in state.items()}
    return json.dumps({name: entries for name, entries in tables.items() if entries}, ensure_ascii=False)


def read_json(value: Any, column: str, longest: int) -> Any:
    """What a JSON text says; refused where it is none or too long."""
    if not isinstance(value, str) or len(value) > longest:
        raise Refused("no JSON", f"the column {column} must hold a JSON text of at most {longest:,} characters")
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Refused("no JSON", f"the column {column} is no JSON: {value[:60]!r}") from None


def list_changes(begin: State, end: State) -> Counter:
    """What differs between the beginning and a later state: one item for each new entry, changed field, entry gone."""
    changes: Counter = Counter()
    for table, entries in end.items():
        old = begin[table]
        for key, entry in entries.items():
            if key not in old:
                changes[table, "new", tuple(sorted(_fold(entry).items()))] += 1
            elif entry is not old[key]:
                before, after = _fold(old[key]), _fold(entry)
                changes.update(
                    (table, key, field, after[field]) for field in after if after[field] != before.get(field)
                )
        changes.update((table, key, "gone") for key in old.keys() - entries.keys())
    return changes


def _fold(entry: Entry) -> Entry:
    return {field: fold_text(value) if isinstance(value, str) else value for field, value in entry.items()}
