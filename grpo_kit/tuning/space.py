"""The space of a search: reads `key=log(1e-4,1e-2)`, `key=uniform(a,b)`, `key=int(a,b)` and `key=[a,b,c]`."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from grpo_kit.config import RunConfig

RANGE = re.compile(r"(log|uniform|int)\(\s*([^,()]+?)\s*,\s*([^,()]+?)\s*\)")
SEARCHED = (
    "policy",
    "lora",
    "grpo",
    "run",
)  # the other sections decide how, and on which problems, a trial is measured


@dataclass(frozen=True)
class Axis:
    """The values of one key: from `low` to `high` (`kind` is log, uniform or int), or `choices`, each as JSON."""

    kind: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()

    def suggest(self, trial: Any, key: str) -> str:
        """The value that Optuna's `trial` takes, as it is written after `key=`."""
        if self.kind == "choice":
            return trial.suggest_categorical(key, self.choices)
        if self.kind == "int":
            return str(trial.suggest_int(key, int(self.low), int(self.high)))
        return f"{trial.suggest_float(key, self.low, self.high, log=self.kind == 'log'):.4g}"

    def holds(self, value: Any) -> bool:
        """Whether the axis contains a value."""
        if self.kind == "choice":
            return json.dumps(value) in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def param(self, value: Any) -> Any:
        """The value as Optuna stores it."""
        return json.dumps(value) if self.kind == "choice" else value

    def ends(self) -> tuple[str, ...]:
        """Values that the configuration must accept: every choice, or both ends of a range."""
        return self.choices or tuple(str(int(v) if self.kind == "int" else v) for v in (self.low, self.high))


def parse_search(words: Sequence[str]) -> tuple[dict[str, Axis], list[str]]:
    """Separate what is searched from what has one value.

    Args:
        words: each `key=log(a,b)`, `key=uniform(a,b)`, `key=int(a,b)`, `key=[a,b,c]` or `key=value`. For a key that
        takes
            a list, choices are lists in a list.

    Returns:
        The axes by key, and the words that have one value.

    Raises:
        ValueError: nothing is searched, a range is not one, or a key cannot be searched.

    Example:
        >>> axes, rest = parse_search(["lora.r=[8,16]", "grpo.beta=0.1"])
        >>> axes["lora.r"].choices, rest
        (('8', '16'), ['grpo.beta=0.1'])
    """
    axes, rest = {}, []
    structured = OmegaConf.structured(RunConfig)
    for word in words:
        key, _, value = (part.strip() for part in word.partition("="))
        span = RANGE.fullmatch(value)
        choices = OmegaConf.to_container(OmegaConf.from_dotlist([f"x={value}"]))["x"] if value.startswith("[") else None
        if choices and OmegaConf.is_list(OmegaConf.select(structured, key)) and not isinstance(choices[0], list):
            choices = None  # it is the one value of a key that takes a list
        if not span and not choices:
            rest.append(word)
        elif key.split(".")[0] not in SEARCHED or key == "grpo.max_steps":
            raise ValueError(
                f"{key} cannot be searched: trials may differ in {', '.join(SEARCHED)} only, have the same length "
                "(--steps) and "
                "be measured alike. Set it to one value."
            )
        elif choices:
            axes[key] = Axis("choice", choices=tuple(json.dumps(choice) for choice in choices))
        else:
            axes[key] = _parse_range(word, *span.groups())
    if not axes:
        raise ValueError("There is nothing to search. Name a key with a range or choices, such as 'lora.r=[8,16,32]'.")
    return axes, rest


def _parse_range(word: str, kind: str, low: str, high: str) -> Axis:
    try:
        ends = [int(end) if kind == "int" else float(end) for end in (low, high)]
    except ValueError:
        ends = [1, 0]
    if not ends[0] < ends[1] or not all(map(math.isfinite, ends)) or (kind == "log" and ends[0] <= 0):
        raise ValueError(
            f"{word!r} is not a range: its ends are numbers, the lower one first, above 0 with log, whole with int. "
            "Correct it."
        )
    return Axis(kind, *ends)
