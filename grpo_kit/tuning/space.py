"""The space of a search: reads `key=log(1e-4,1e-2)`, `key=uniform(a,b)`, `key=int(a,b)` and `key=[a,b,c]`."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grpo_kit.config import RunConfig

RANGE = re.compile(r"(log|uniform|int)\(\s*([^,()]+?)\s*,\s*([^,()]+?)\s*\)")
# The other sections decide how, and on which problems, a trial is measured.
SEARCHED = ("policy", "lora", "grpo", "run")
FORMS = (
    "A setting to search is written KEY=log(a,b), KEY=uniform(a,b), KEY=int(a,b) or KEY=[a,b,c], such as "
    "'lora.r=[8,16,32]'."
)


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
            takes a list, choices are lists in a list.

    Returns:
        The axes by key, and the words that have one value.

    Raises:
        ValueError: nothing is searched, a range or a list of choices cannot be read, or a key cannot be searched.

    Example:
        >>> axes, rest = parse_search(["lora.r=[8,16]", "grpo.beta=0.1"])
        >>> axes["lora.r"].choices, rest
        (('8', '16'), ['grpo.beta=0.1'])
    """
    axes, rest = {}, []
    structured = OmegaConf.structured(RunConfig)
    for word in words:
        key, equals, value = (part.strip() for part in word.partition("="))
        if not (key and equals):
            raise ValueError(f"{word!r} is not a setting. {FORMS}")
        section, own_value = key.split(".")[0], _read_own_value(structured, key)
        span = RANGE.fullmatch(value)
        choices = _parse_choices(word, value) if value.startswith("[") else None
        if choices and OmegaConf.is_list(own_value) and not isinstance(choices[0], list):
            choices = None  # it is the one value of a key that takes a list
        is_call = re.match(r"\w+\(", value) and not isinstance(own_value, str)
        if is_call and not span and (section in SEARCHED or section not in structured):
            raise ValueError(f"{word!r} has a range that cannot be read. {FORMS}")
        if not span and not choices:
            rest.append(word)
        elif section in structured and section not in SEARCHED or key == "grpo.max_steps":
            raise ValueError(
                f"{key} cannot be searched: trials may differ in {', '.join(SEARCHED)} only, have the same length "
                "(--steps) and be measured alike. Set it to one value."
            )
        elif choices:
            axes[key] = Axis("choice", choices=tuple(json.dumps(choice) for choice in choices))
        else:
            axes[key] = _parse_range(word, *span.groups())
    if not axes:
        given = f"{', '.join(words)} has one value" if words else "No setting is given"
        raise ValueError(f"{given}, so there is nothing to search. {FORMS}")
    return axes, rest


def _read_own_value(structured: Any, key: str) -> Any:
    """The value that a key has by default; None for a name that is not a key, which the configuration reports later."""
    try:
        return OmegaConf.select(structured, key)
    except OmegaConfBaseException:
        return None


def _parse_choices(word: str, value: str) -> list[Any]:
    try:
        choices = OmegaConf.to_container(OmegaConf.from_dotlist([f"x={value}"]))["x"]
    except Exception:  # YAML's scanner and OmegaConf's grammar raise unrelated types
        choices = None
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"{word!r} has choices that cannot be read. {FORMS}")
    return choices


def _parse_range(word: str, kind: str, low: str, high: str) -> Axis:
    try:
        ends = [int(end) if kind == "int" else float(end) for end in (low, high)]
    except ValueError:
        ends = [1, 0]
    if not ends[0] < ends[1] or not all(map(math.isfinite, ends)) or (kind == "log" and ends[0] <= 0):
        raise ValueError(
            f"{word!r} is not a range: its ends are numbers, the lower one first, above 0 with log, whole with int. "
            f"{FORMS}"
        )
    return Axis(kind, *ends)
