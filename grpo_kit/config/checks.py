"""Checks of settings. Each raises a ValueError with the value, the rule and the remedy."""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

# What other trainers call a key, in any section or, with a section, there only: the key's name here. Where the section
# has a key of that name, its own is meant: `sft.lr` is sft.learning_rate.
SYNONYMS = {
    "lr": "grpo.learning_rate", "steps": "grpo.max_steps",
    "grad_accum": "grpo.gradient_accumulation_steps", "group_size": "grpo.num_generations",
    "num_samples": "grpo.num_generations", "max_tokens": "grpo.max_completion_length",
    "max_new_tokens": "grpo.max_completion_length", "kl": "grpo.beta", "kl_coef": "grpo.beta", "rank": "lora.r",
    "lora_rank": "lora.r", "alpha": "lora.lora_alpha", "model_name": "policy.model", "dataset": "data.source",
    "grpo.batch_size": "grpo.per_device_train_batch_size", "sft.batch_size": "sft.per_device_train_batch_size",
    "dpo.batch_size": "dpo.per_device_train_batch_size", "evaluation.limit": "evaluation.num_problems",
}  # fmt: skip
# How similar, from 0 to 1, a name must be to the one that is suggested: without a section, within its own, and in
# another one, where following a poor guess would change something else.
LIKE, LIKE_IN_SECTION, LIKE_ELSEWHERE = 0.5, 0.6, 0.75

# Keys of other trainers that the kit does not have, with the reason and what to set instead.
REFUSED = {
    "grpo.scale_rewards": "Advantages are divided by the spread of rewards within their own group, never within the "
    "batch, where the environment with the widest rewards would shrink the others. Set grpo.normalize_rewards=false to "
    "divide by nothing.",
}

# transformers' schedules of the learning rate that need no setting and no measurement beside them.
SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
)  # fmt: skip


def require(holds: bool, sentence: str) -> None:
    """Raise ValueError with `sentence` unless `holds`."""
    if not holds:
        raise ValueError(sentence)


def require_at_least(name: str, value: int, least: int, reason: str) -> None:
    """Raise ValueError for a `value` below `least`; `reason` is a clause that says why it cannot be lower."""
    require(
        value >= least, f"{name} is {value}; {reason}, so it needs at least {least}. Set {name} to {least} or more."
    )


def require_finite(name: str, value: Any) -> None:
    """Raise ValueError for a number that is NaN or infinite: in a section, under its keys, and in a list."""
    if is_dataclass(value):
        for field in fields(value):
            require_finite(f"{name}.{field.name}" if name else field.name, getattr(value, field.name))
    elif isinstance(value, list):
        for item in value:
            require_finite(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            require_finite(f"{name}.{key}", item)
    elif isinstance(value, float):
        remedy = f"Set {name} to a number; where there is to be no limit, to a large one such as 1e9."
        require(math.isfinite(value), f"{name} is {value}; a setting must be a finite number. {remedy}")


def require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError, which names the most similar choice, for a `value` that is not one of `choices`."""
    is_text = isinstance(value, str)
    nearest = suggest_nearest(value, choices) if is_text else ""
    require(is_text and value in choices, f"{name} is {value!r}; it must be one of {', '.join(choices)}.{nearest}")


def require_schedule(section: str, kind: str, warmup_steps: int, max_grad_norm: float) -> None:
    """Raise ValueError unless a stage that trains can have this schedule of the learning rate and this clipping."""
    require_one_of(f"{section}.lr_scheduler_type", kind, SCHEDULES)
    require_at_least(f"{section}.warmup_steps", warmup_steps, 0, "0 begins with the full learning rate")
    require(
        max_grad_norm >= 0,
        f"{section}.max_grad_norm is {max_grad_norm}; it bounds a norm, and 0 is no bound. Set it to 0 or more.",
    )


def require_sampling(section: str, top_p: float, top_k: int) -> None:
    """Raise ValueError unless a section can draw tokens with this `top_p` and `top_k`."""
    require(
        0 < top_p <= 1,
        f"{section}.top_p is {top_p}; tokens are drawn from the likeliest that have this share of the probability. Set "
        f"{section}.top_p above 0, and to 1 for all tokens.",
    )
    require_at_least(f"{section}.top_k", top_k, 0, "0 means all tokens")


def require_share(name: str, value: float) -> None:
    """Raise ValueError for a `value` outside [0, 1]."""
    require(0 <= value <= 1, f"{name} is {value}; it is a share. Set {name} to a number from 0 to 1.")


def parse_duration(name: str, text: str) -> float:
    """The seconds of a duration such as `3h30m`, `45m`, `1d` or `90s`; ValueError for anything else, and for 0.

    >>> parse_duration("run.time_limit", "3h30m")
    12600.0
    """
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    require(
        seconds > 0 and "".join(number + unit for number, unit in parts) == text,
        f"{name} is {text!r}; a duration is a number above 0 and d, h, m or s. Set it like 3h30m, 45m or 90s.",
    )
    return seconds


def suggest_nearest(word: str, choices: Sequence[str]) -> str:
    """Suggest the choice that is most similar to a word that is not one of them.

    Args:
        word: a mistyped name, or a key in the wrong section.
        choices: the valid names; keys are written `section.key`.

    Returns:
        A sentence with a leading space, or "" when no choice is similar.

    Example:
        >>> suggest_nearest("num_generations", ["grpo.num_generations", "grpo.max_steps"])
        ' Did you mean grpo.num_generations?'
    """
    section, _, leaf = word.rpartition(".")
    if word in REFUSED:
        return f" {REFUSED[word]}"
    section = _find_section(section, choices)
    for synonym in (f"{section}.{leaf}", leaf):
        name = SYNONYMS.get(synonym, "")
        for key in (f"{section}.{name.rpartition('.')[2]}", name):
            if key in choices:
                return f" Did you mean {key}?"
    # A key without its section, or in the wrong one, is the likeliest mistake; so only the last parts are compared.
    own = [choice for choice in choices if section and choice.rpartition(".")[0] == section]
    for keys, cutoff in ((own, LIKE_IN_SECTION), (choices, LIKE_ELSEWHERE if own else LIKE)):
        leaves = [key.rpartition(".")[2] for key in keys]
        if nearest := difflib.get_close_matches(leaf, leaves, n=1, cutoff=cutoff):
            return f" Did you mean {keys[leaves.index(nearest[0])]}?"
    return ""


def _find_section(section: str, choices: Sequence[str]) -> str:
    """The section that is meant, which may be shortened or mistyped; `section` itself where none is like it."""
    sections = list(dict.fromkeys(choice.rpartition(".")[0] for choice in choices))
    if not section or section in sections:
        return section
    nearest = [name for name in sections if name.startswith(section)]
    nearest += difflib.get_close_matches(section, sections, n=1, cutoff=LIKE_ELSEWHERE)
    return nearest[0] if nearest else section
