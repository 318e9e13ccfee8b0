"""An episode: one completion of several turns, and the world that its tool calls change.

A world is a class as TRL's `environment_factory` takes it: `reset(**row)` sets it up from a row's columns and returns
None or a text that is appended to the question; every other public method is a tool, with type hints and a docstring;
`get_reward()` judges how the world was left. What must be no tool begins with "_". A world is deterministic: the same
row and calls leave it the same.

TRL gets the class that `make_episode_class` makes of it. That one counts calls, and keeps `get_reward` out of TRL's
sight, which would add it to the run's own rewards. TRL takes every public method for a tool, so the rest of an episode
is functions here.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

Turns = Sequence[Mapping[str, Any]]  # a completion: the policy's turns and, behind each, the results of its calls
NO_TOOLS = ("reset", "get_reward")
ERROR = '{"error"'  # how a result begins that says, in JSON, what was wrong with a call
LONGEST_RESULT = 100_000  # characters of a result; 10 million would take a tokenizer most of a minute
FIGURES = ("calls", "failed_calls", "unknown_calls", "malformed_calls", "too_many_turns", "turns")


class Episode:
    """A world while one completion acts in it. Subclasses have its tools; other names are the world's own."""

    world_class: type
    tools: tuple[str, ...] = ()
    schemas: Sequence[dict[str, Any]] = ()  # of the tools, as a chat template takes them

    def __init__(self) -> None:
        self._calls = self._failed = 0
        try:
            self._world = self.world_class()
        except TypeError as error:
            if error.__traceback__.tb_next:  # raised within it
                raise
            raise ValueError(f"{error}. A world is made without arguments; give each a default.") from None

    def __getattr__(self, name: str) -> Any:
        if name == "_world":  # not made yet: of a copy, or of an object without `__init__`
            raise AttributeError(name)
        return getattr(self._world, name)

    def reset(self, **row: Any) -> str | None:
        """Begin again with a data row's columns.

        Returns:
            What the world appends to the question, or None.

        Raises:
            ValueError: the world returns something else, or the row lacks a column that it needs.
        """
        self._calls = self._failed = 0
        try:
            observation = self._world.reset(**row)
        except TypeError as error:
            if error.__traceback__.tb_next:  # raised within it
                raise
            columns = ", ".join(row)
            raise ValueError(f"{error}. The columns of the row are {columns}; add it to the rows' file.") from None
        if observation is not None and not isinstance(observation, str):
            raise ValueError(
                f"{self.world_class.__name__}.reset returned {type(observation).__name__}; what it returns is appended "
                "to the question. Let it return a text, or None."
            )
        return observation


class _NoWorld:
    def reset(self, **row: Any) -> None:
        """Nothing to set up."""


def make_episode_class(world: type) -> type[Episode]:
    """The class of a world's episodes: as TRL's `environment_factory` takes it, without arguments.

    Args:
        world: the world's class.

    Returns:
        A class with the world's name.

    Raises:
        ValueError: it has no `reset`, or a tool that cannot be described to the policy.
    """
    methods = {
        name: method
        for name, method in inspect.getmembers(world, lambda value: isinstance(value, FunctionType | MethodType))
        if not name.startswith("_") and name not in NO_TOOLS
    }
    if not callable(getattr(world, "reset", None)):
        raise ValueError(f"The world {world.__name__} has no method reset. Write reset(self, **row), which sets it up.")
    if all(value.kind is not value.VAR_KEYWORD for value in _parameters(world.reset)):
        raise ValueError(
            f"{world.__name__}.reset does not take every column of a row. Write reset(self, ..., **row), with what it "
            "needs before **row."
        )
    members = {name: _make_tool(world, name, method) for name, method in methods.items()}
    if hidden := [name for name in members if hasattr(Episode, name)]:
        raise ValueError(f"The world {world.__name__} has a tool named {hidden[0]!r}, a name that is taken. Rename it.")
    made = type(world.__name__, (Episode,), members | {"world_class": world, "tools": tuple(members)})
    made.schemas = _describe_tools(made)
    return made


def _make_tool(world: type, name: str, method: Callable[..., Any]) -> Callable[..., str]:
    subject = f"The tool {world.__name__}.{name}"
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        raise ValueError(f"{subject} is async; tools are called one after the other. Write def.")
    if inspect.isgeneratorfunction(method):
        raise ValueError(f"{subject} yields, and nobody would take what it yields. Return a text.")
    if not inspect.isfunction(inspect.getattr_static(world, name)):
        raise ValueError(f'{subject} is no plain method. Write def {name}(self, ...), or begin its name with "_".')
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for parameter in _parameters(method)[1:]:
        if parameter.kind not in by_name:
            raise ValueError(
                f"{subject} takes {parameter}, which no call can fill. Name each argument, without * or /."
            )

    @functools.wraps(method)
    def tool(self: Episode, /, *args: Any, **kwargs: Any) -> str:
        self._calls += 1
        try:
            result = str(getattr(self._world, name)(*args, **kwargs))  # TRL takes a list for pictures
        except Exception:
            self._failed += 1
            raise
        except SystemExit as stop:
            if type(stop) is not SystemExit:  # the run's own end
                raise
            self._failed += 1
            raise RuntimeError(f"The tool {name} has tried to end the program.") from stop
        # Half a character of UTF-16 is nothing that a tokenizer could read.
        text = result[:LONGEST_RESULT].encode("utf-8", "replace").decode()
        self._failed += text.startswith(ERROR)
        return text

    return tool


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _describe_tools(made: type[Episode]) -> list[dict[str, Any]]:
    if not made.tools:
        return []
    from transformers.utils import get_json_schema  # seconds, where torch is not imported yet

    schemas = []
    for name in made.tools:
        try:
            schemas.append(get_json_schema(getattr(made, name)))
        except Exception as error:  # its own kinds, and those of type hints that cannot be evaluated
            raise ValueError(
                f"The tool {made.__name__}.{name} cannot be described to the policy ({' '.join(str(error).split())}). "
                "Give every argument a type hint, and the method a docstring with a line for each under Args."
            ) from error
    return schemas


NO_WORLD = make_episode_class(_NoWorld)  # the episodes of rows that have none


def call_tool(episode: Episode, name: str, arguments: Mapping[str, Any]) -> str:
    """Carry out one call, and return its result as TRL writes it: an error is a result too, and so is a wrong name."""
    try:
        if name not in episode.tools:
            raise ValueError(f"Tool {name} not found.")
        return getattr(episode, name)(**arguments)
    except Exception as error:
        return str({"error": str(error)})


def calls_of(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """[{"name", "arguments"}] of the calls of a turn, none of a turn that is not the policy's."""
    return [call["function"] for call in turn.get("tool_calls") or ()]


def finish(episode: Episode, turns: Turns, most_turns: int) -> dict[str, float]:
    """Tell a world which calls were wrong, and count.

    Args:
        episode: the episode, after its last turn.
        turns: its completion. A policy's turn may have `malformed_calls`, the number of its calls that nobody could
            read.
        most_turns: the largest number of turns whose calls are carried out.

    Returns:
        The FIGURES: `calls` carried out; `failed_calls`, those of them that raised an error or whose result is one;
        calls of tools that do not exist; calls that could not be read; whether (1.0) the policy still called tools
        after the last turn that could; and the policy's turns.
    """
    own = [turn for turn in turns if turn["role"] == "assistant"]
    unknown = [call["name"] for turn in own for call in calls_of(turn) if call["name"] not in episode.tools]
    malformed = sum(turn.get("malformed_calls", 0) for turn in own)
    for name in unknown:
        getattr(episode, "_unknown_call", _nothing)(name)
    for _ in range(malformed):
        getattr(episode, "_malformed_call", _nothing)()
    too_many = len(own) > most_turns and bool(calls_of(own[-1]))
    figures = (episode._calls, episode._failed, len(unknown), malformed, too_many, len(own))
    return dict(zip(FIGURES, map(float, figures), strict=True))


def _nothing(*_: Any) -> None:
    """For a world that does not count them."""
