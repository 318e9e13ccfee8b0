"""The worlds of a run: found by their names, begun for a row, and brought back to where a completion left them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_kit.config import RunConfig
from grpo_kit.config.environments import END_STATE
from grpo_kit.environments.office import WORLDS
from grpo_kit.environments.reading import show
from grpo_kit.environments.worlds.episode import Episode, Turns, call_tool, calls_of, finish, make_episode_class
from grpo_kit.rewards.tools.loading import fingerprint, load_module
from grpo_kit.rewards.tools.routing import environment_of

Messages = list[dict[str, Any]]
WORLD_PREFIX = "grpo_kit_world_"  # of the modules that files of worlds are loaded as


def load_world(spec: str) -> type:
    """The class of a world. A file is executed.

    Args:
        spec: the name of a world of the kit, or FILE.py:Class.

    Raises:
        ValueError: it is neither, or the file has no such class, or executing it fails.
        FileNotFoundError: the file does not exist.
    """
    if spec in WORLDS:
        return WORLDS[spec]
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ValueError(
            f"{spec!r} of environments.NAME.environment_factory does not name a world; write FILE.py:Class, or "
            f"{' or '.join(WORLDS)}."
        )
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{file} of environments.NAME.environment_factory does not exist. Give its path.")
    world = getattr(load_module(path, f"{WORLD_PREFIX}{path.stem}"), name, None)
    if not isinstance(world, type):
        raise ValueError(f"{file} has no class {name!r}. Name the class of the world as FILE.py:Class.")
    return world


def load_worlds(config: RunConfig, environments: Iterable[str]) -> "Worlds":
    """The worlds of those environments of a run that have one.

    Raises:
        ValueError, FileNotFoundError: as `load_world` and `make_episode_class`; and ValueError where a world without
            `get_reward` is to be paid by it.
    """
    specs = {name: config.world_of(name) for name in environments}
    classes = {name: make_episode_class(load_world(spec)) for name, spec in specs.items() if spec}
    for name, made in classes.items():
        if END_STATE in config.rewards_of(name).reward_funcs and not hasattr(made.world_class, "get_reward"):
            raise ValueError(
                f"The world {made.__name__} has no method get_reward, and end_state.py, the reward of {name}, asks it. "
                f"Write get_reward(self), or set environments.{name}.reward_funcs."
            )
    return Worlds(classes, config.grpo.max_tool_calling_iterations)


@dataclass(frozen=True)
class Worlds:
    """The worlds of a run; `classes` is empty where no environment has one.

    Attributes:
        classes: for each environment with a world the class of its episodes.
        most_turns: the largest number of turns of a completion whose calls are carried out.
    """

    classes: Mapping[str, type[Episode]]
    most_turns: int

    def tools_of(self, row: Mapping[str, Any]) -> Sequence[dict[str, Any]] | None:
        """The tools of a row as a chat template takes them; None without any."""
        made = self.classes.get(environment_of(row))
        return made.schemas or None if made else None

    def begin(self, row: Mapping[str, Any], prompt: Messages) -> tuple[Episode | None, Messages]:
        """(an episode of the row, its prompt with what the world appends to it); (None, the prompt) without a world."""
        made = self.classes.get(environment_of(row))
        if made is None:
            return None, prompt
        episode = made()
        columns = {key: value for key, value in row.items() if key != "environment"}  # as TRL calls `reset`
        observation = episode.reset(**columns | {"prompt": prompt})
        if observation is None:
            return episode, prompt
        return episode, [*prompt[:-1], prompt[-1] | {"content": prompt[-1]["content"] + observation}]

    def open_prompts(
        self, rows: Iterable[tuple[Mapping[str, Any], Messages]]
    ) -> tuple[list[Messages], list[Sequence[dict[str, Any]] | None]]:
        """(the prompts with what the worlds append, the tools of each) of pairs of a row and its prompt."""
        pairs = list(rows)
        return [self.begin(*pair)[1] for pair in pairs], [self.tools_of(row) for row, _ in pairs]

    def replay(self, row: Mapping[str, Any], prompt: Messages, turns: Turns | None) -> Episode | None:
        """The episode of a row as a recorded completion left it.

        Raises:
            ValueError: a call has another result than the one recorded.
        """
        episode, _ = self.begin(row, prompt)
        if episode is None or turns is None:
            return episode
        recorded = iter([turn["content"] for turn in turns if turn["role"] == "tool"])
        own = [turn for turn in turns if turn["role"] == "assistant"]
        for call in (call for turn in own[: self.most_turns] for call in calls_of(turn)):
            result = call_tool(episode, call["name"], call["arguments"])
            if (before := next(recorded, result)) != result:
                raise ValueError(
                    f"The world {type(episode).__name__} answered a call of {call['name']} otherwise than before: "
                    f"{show(result)}, and not {show(before)}. The same row and calls must leave a world the same: use "
                    "no clock, no random numbers but from the row, and no texts of sets or of objects."
                )
        finish(episode, turns, self.most_turns)
        return episode

    def describe(self) -> dict[str, Any]:
        """What a run records of its worlds: the sha256 of each one's file, and `most_turns`; {} without worlds."""
        if not self.classes:
            return {}
        return {"worlds": self.fingerprints() | {"max_tool_calling_iterations": self.most_turns}}

    def fingerprints(self) -> dict[str, str | None]:
        """The sha256 of each world's file."""
        return {name: fingerprint(made.world_class) for name, made in self.classes.items()}
