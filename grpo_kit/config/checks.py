"""Checks of settings: each raises a ValueError with the value, the rule and the remedy."""

import difflib


def require(holds: bool, sentence: str) -> None:
    """Raise ValueError with `sentence` unless `holds`."""
    if not holds:
        raise ValueError(sentence)


def require_at_least(name: str, value: int, least: int, why: str) -> None:
    """Raise ValueError for a `value` below `least`."""
    require(value >= least, f"{name} is {value}; {why}, so it needs at least {least}. Set {name} to {least} or more.")


def require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, with the nearest choice, for a `value` that is none of `choices`."""
    require(
        value in choices,
        f"{name} is {value!r}; it must be one of {', '.join(choices)}.{suggest_nearest(value, list(choices))}",
    )


def require_share(name: str, value: float) -> None:
    """Raise ValueError for a `value` outside [0, 1]."""
    require(0 <= value <= 1, f"{name} is {value}; it is a share, from 0 to 1. Set it so.")


def suggest_nearest(word: str, choices: list[str]) -> str:
    """` Did you mean grpo.num_generations?`, or nothing when no choice is near."""
    leaf = word.rsplit(".", 1)[-1]  # the right key in the wrong section, or without one, comes first
    found = [choice for choice in choices if choice.rsplit(".", 1)[-1] == leaf]
    found = found or difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" Did you mean {found[0]}?" if found else ""
