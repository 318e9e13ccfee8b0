"""end_state pays an episode with tools for the state in which it left its world: what the world's `get_reward` says.

Paste this file into a notebook cell as it is. It needs only the standard library.

TRL hands the worlds of its `environment_factory` to every reward as `environments`, one for each completion. A world
with `get_reward()` is asked. A world that also has `_figures()`, a dictionary of numbers such as how many calls had bad
arguments, gets their means logged. TRL itself pays `get_reward` in a column of its own where the world's class has that
method; with this reward beside it the same reward counts twice, so leave one of them out.

The text of a completion is not read: what an agent says it did is not paid.
"""

import math
from collections.abc import Sequence


def end_state_reward(completions: Sequence, environments: Sequence | None = None, **kwargs) -> list[float | None]:
    """What the world of each completion pays; None where there is no world, or none that pays.

    Args:
        completions: texts or message lists, which are not read.
        environments: for each completion the world in which it acted, or None. TRL passes it.
        kwargs: other columns. If `log_metric` is among them (TRL passes it), the mean of each of the worlds' figures is
            logged as `end_state/NAME`, and the share of the completions with the whole reward as `end_state/right`.

    Returns:
        One reward for each completion.

    Raises:
        ValueError: the lengths differ, or a world pays something that is no number.

    Example:
        >>> class Door:
        ...     def get_reward(self):
        ...         return 1.0
        >>> end_state_reward(["It is open.", "It is open."], [Door(), None])
        [1.0, None]
    """
    worlds = [None] * len(completions) if environments is None else list(environments)
    if len(worlds) != len(completions):
        raise ValueError(
            f"end_state_reward got {len(completions)} completions and {len(worlds)} environments; each completion has "
            "its own. Pass the environments as TRL does."
        )
    rewards = [_ask_world(world) for world in worlds]
    log_metric = kwargs.get("log_metric")
    if log_metric:
        paid = [reward for reward in rewards if reward is not None]
        figures = [world._figures() for world in worlds if hasattr(world, "_figures")]
        if paid:
            log_metric("end_state/right", sum(reward == 1.0 for reward in paid) / len(paid))
        for name in dict.fromkeys(name for row in figures for name in row):
            values = [row[name] for row in figures if name in row]
            log_metric(f"end_state/{name}", sum(values) / len(values))
    return rewards


def _ask_world(world) -> float | None:
    if not callable(getattr(world, "get_reward", None)):
        return None
    reward = world.get_reward()
    if reward is None:
        return None
    if not isinstance(reward, int | float) or not math.isfinite(reward):
        raise ValueError(
            f"get_reward of {type(world).__name__} returned {reward!r}; a reward is a finite number or None. "
            "Correct it."
        )
    return float(reward)
