"""A world of tables for TRL's `environment_factory`: its tools change entries, and the end state is paid.

`GRPOTrainer` calls `reset` with the columns of a row, offers every method without an underscore as a tool, and pays
what `get_reward` says. A world has no clock and draws nothing: the same calls always lead to the same state.

    state        JSON: how the tables begin (`tables.read_state`)
    gold_calls   JSON: [{"name": ..., "arguments": {...}}], calls that lead to the right end

A call with bad arguments changes nothing and gets a sentence back. A subclass names its tables and has tools.
"""

import functools
import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from grpo_kit.environments.office.tables import (
    BadArgument,
    Entry,
    State,
    Table,
    list_changes,
    read_json,
    read_state,
    text_or_nothing,
    whole,
)
from grpo_kit.environments.reading import Refused

LONGEST_GOLD = 100_000  # characters of JSON
MOST_GOLD_CALLS = 50
FIGURES = ("calls", "bad_arguments", "unknown_calls", "malformed_calls", "wrong_changes")
_CHECKS = {str: text_or_nothing, int: whole}  # by the type of a tool's parameter


def tool(method: Callable[..., Any]) -> Callable[..., str]:
    """Make a method a tool: its arguments are checked by their types, calls are counted, results are JSON texts."""
    parameters = list(inspect.signature(method).parameters.values())[1:]

    @functools.wraps(method)
    def call(self: "World", /, **arguments: Any) -> str:
        self._counts["calls"] += 1
        try:
            result = method(self, **_check_arguments(method.__name__, parameters, arguments))
        except BadArgument as wrong:
            self._counts["bad_arguments"] += 1
            return json.dumps({"error": str(wrong)}, ensure_ascii=False)
        self._note_changes()
        return json.dumps(result, ensure_ascii=False)

    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": str}
    return call


def _check_arguments(name: str, parameters: list[inspect.Parameter], given: dict[str, Any]) -> dict[str, Any]:
    names = [parameter.name for parameter in parameters]
    if unknown := given.keys() - set(names):
        raise BadArgument(f"{name} has no argument {min(unknown)[:60]!r}; it takes {', '.join(names)}.")
    needed = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
    if missing := [parameter for parameter in needed if parameter not in given]:
        raise BadArgument(f"{name} needs {', '.join(missing)}; nothing was changed.")
    kinds = {parameter.name: parameter.annotation for parameter in parameters}
    return {key: _CHECKS[kinds[key]](key, value) for key, value in given.items()}


class World:
    """Tables, calls that are counted, and the reward of an end state."""

    _tables: ClassVar[Mapping[str, Table]] = {}

    def __init__(self) -> None:
        self._begin({name: {} for name in self._tables}, None)

    def reset(self, state: str | None = None, gold_calls: str | None = None, **columns: Any) -> None:
        """Set the tables up as a row says. A row that cannot be judged leaves them empty, and no reward is paid.

        Args:
            state: how the tables begin.
            gold_calls: calls that lead to the right end.
            columns: the row's other columns, which are not read.
        """
        try:
            self._begin(*read_row(type(self), state, gold_calls))
        except Refused:
            self._begin({name: {} for name in self._tables}, None)

    def get_reward(self) -> float | None:
        """1.0 where the tables have ended as the gold calls leave them, else 0.0; None for a row without a usable gold.

        A gold changes something, so that an agent that changes nothing earns nothing. Calls that change nothing are
        free.
        """
        return None if self._gold is None else float(self._changes == self._gold)

    def _figures(self) -> dict[str, float]:
        """What the agent did: calls of each kind, and the changes that are missing and those too many at the end.

        `wrong_changes` are calls that changed something the gold does not change, even where it was undone later.
        """
        gold = self._gold or Counter()
        missing, extra = (gold - self._changes).total(), (self._changes - gold).total()
        counts = {name: self._counts[name] for name in FIGURES}
        return {name: float(value) for name, value in (counts | {"missing": missing, "extra": extra}).items()}

    def _unknown_call(self, name: str) -> str:
        """A call by a name that no tool has: it is counted, and answered with the names that there are."""
        self._counts["calls"] += 1
        self._counts["unknown_calls"] += 1
        return json.dumps({"error": f"There is no tool {str(name)[:60]!r}; the tools are {', '.join(self._tools())}."})

    def _malformed_call(self) -> str:
        """A call that could not be read."""
        self._counts["calls"] += 1
        self._counts["malformed_calls"] += 1
        return json.dumps({"error": "The call could not be read, and nothing was changed. Write it as the tools say."})

    @classmethod
    @functools.cache
    def _tools(cls) -> list[str]:
        methods = inspect.getmembers(cls, predicate=inspect.isfunction)
        return [name for name, _ in methods if not name.startswith("_") and name not in ("reset", "get_reward")]

    def _begin(self, state: State, gold: Counter | None) -> None:
        self._start = state
        self._state = {name: dict(entries) for name, entries in state.items()}
        self._next = {name: max(entries, default=0) + 1 for name, entries in state.items()}
        self._gold = gold
        self._changes: Counter = Counter()
        self._counts: Counter = Counter()

    def _note_changes(self) -> None:
        changes = list_changes(self._start, self._state)
        gold = self._gold or Counter()
        self._counts["wrong_changes"] += any(changes[item] > gold[item] for item in changes - self._changes)
        self._changes = changes

    # For the tools of a subclass.

    def _entries(self, table: str) -> dict[int, Entry]:
        """The entries of a table that the agent named."""
        if table not in self._state:
            names = ", ".join(name for name in self._state if self._start[name]) or "none"
            raise BadArgument(f"table is {table[:60]!r}; the tables are {names}.")
        return self._state[table]

    def _find_entry(self, table: str, id: int) -> Entry:
        entries = self._entries(table)
        if id not in entries:
            raise BadArgument(f"{table} has no entry with the id {id}; search for it.")
        return entries[id]

    def _add_entry(self, table: str, **values: Any) -> dict[str, int]:
        """Add an entry whose values are checked by the kinds of their fields; its id was never used before."""
        fields = self._tables[table].fields
        entry = {field: fields[field](field, value) for field, value in values.items()}
        key = self._next[table]
        self._next[table] += 1
        self._state[table][key] = entry
        return {"id": key}


def read_row(kind: type[World], state: Any, gold_calls: Any) -> tuple[State, Counter]:
    """The beginning of a row and what its gold calls change of it; they are made in a world of this kind.

    Args:
        kind: the class of the world.
        state: the column, JSON text.
        gold_calls: the column, JSON text.

    Returns:
        The state, and the changes that are paid, as `list_changes` gives them.

    Raises:
        Refused: one of the columns cannot be read, a gold call is refused, or the calls change nothing.
    """
    world = kind()
    world._begin(read_state(state, kind._tables), None)
    for name, arguments in read_calls(gold_calls):
        if name not in kind._tools():
            raise Refused("bad gold", f"gold_calls names {name[:60]!r}; the tools are {', '.join(kind._tools())}")
        answer = getattr(world, name)(**arguments)
        if world._counts["bad_arguments"]:
            raise Refused("bad gold", f"a gold call of {name} cannot be made: {json.loads(answer)['error']}")
    if not world._changes:
        raise Refused("idle gold", "the gold calls change nothing, so an agent that does nothing would be paid")
    return world._start, world._changes


def read_calls(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The calls in a column: each has a name, and arguments as an object or, as NeMo-Gym writes them, its JSON text."""
    calls = read_json(value, "gold_calls", LONGEST_GOLD)
    if not isinstance(calls, list) or not 1 <= len(calls) <= MOST_GOLD_CALLS:
        raise Refused("bad gold", f"the column gold_calls must hold a list of 1 to {MOST_GOLD_CALLS} calls")
    return [read_call(call) for call in calls]


def read_call(call: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call; Refused where it has none."""
    name, arguments = (call.get("name"), call.get("arguments")) if isinstance(call, dict) else (None, None)
    if isinstance(arguments, str):
        arguments = read_json(arguments, "gold_calls", LONGEST_GOLD)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise Refused("bad gold", "a gold call must be an object with a name, a text, and arguments, an object")
    return name, arguments
