r"""One reward out of several: correctness first, shaping that can never outweigh it.

Paste this file into a notebook cell as it is; it needs nothing but the standard library.

Shaping rewards (format, length, steps) are paid to wrong replies as well, and a policy finds that
out. So the sum is checked before training starts: if any wrong reply could score as much as some
right one, `combine` refuses, and shows the two. A gated part is paid to right replies only.

    reward = combine(
        math_reward,
        format=Part(reasoning_format_reward, weight=0.1),
        steps=Part(arithmetic_steps_reward, weight=0.3, gated=True),
        length=Part(soft_overlong(limit=2048, cache=512), weight=0.2, low=-1.0, high=0.0),
    )
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Reward = Callable[..., list]


class Part(NamedTuple):
    """A shaping reward, its weight, the least and most it returns, and: for right replies only?"""

    reward: Reward
    weight: float
    low: float = 0.0
    high: float = 1.0
    gated: bool = False


def combine(outcome: Reward, outcome_weight: float = 1.0, **parts: Part) -> Reward:
    """A reward function: outcome_weight * outcome + the weighted parts; None where the outcome is
    None.

    outcome: returns 1.0 (right), 0.0 (wrong) or None. A part that returns None adds 0. With TRL's
    `log_metric`, each part's mean is logged as `combine/<name>`. Raises ValueError if a weight or a
    bound is not finite, or if shaping could lift a wrong reply to a right one; the returned function
    raises it when a reward leaves the range it was declared with.

    >>> always = lambda completions, **kwargs: [1.0] * len(completions)
    >>> combine(always, style=Part(always, weight=0.25))(["a reply"])
    [1.25]
    """
    _require_finite("outcome_weight", outcome_weight)
    for name, part in parts.items():
        for field in ("weight", "low", "high"):
            _require_finite(f"{field} of {name}", getattr(part, field))
        if part.low > part.high:
            raise ValueError(f"{name} ranges from {part.low} to {part.high}; low must not exceed high. Swap.")
    reachable = {name: sorted((part.weight * part.low, part.weight * part.high)) for name, part in parts.items()}
    right = {name: min(low, 0.0) for name, (low, _) in reachable.items()}  # 0: a part may return None
    wrong = {name: 0.0 if parts[name].gated else max(high, 0.0) for name, (_, high) in reachable.items()}
    best_wrong, worst_right = sum(wrong.values()), outcome_weight + sum(right.values())
    if best_wrong >= worst_right:
        raise ValueError(
            f"a wrong reply could score {best_wrong:g} ({_spell_sum('outcome', 0.0, wrong)}) and a "
            f"right one {worst_right:g} ({_spell_sum('outcome', outcome_weight, right)}); every right "
            "reply must score more than every wrong one. Lower the weights of parts, or gate some."
        )

    def combined_reward(completions: Sequence, **kwargs) -> list[float | None]:
        verdicts = outcome(completions=completions, **kwargs)
        _check_values("outcome", verdicts, len(completions), {0.0, 1.0, None})
        totals = [None if verdict is None else outcome_weight * verdict for verdict in verdicts]
        for name, part in parts.items():
            values = part.reward(completions=completions, **kwargs)
            _check_values(name, values, len(completions), (part.low, part.high))
            added = [
                part.weight * value if value is not None and not (part.gated and verdict != 1.0) else 0.0
                for value, verdict in zip(values, verdicts)
            ]
            totals = [None if total is None else total + more for total, more in zip(totals, added)]
            if log_metric := kwargs.get("log_metric"):
                log_metric(f"combine/{name}", sum(added) / max(len(added), 1))
        return totals

    return combined_reward


def _require_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(
            f"{name} is {value}; weights and ranges must be finite, or sums cannot be compared. Write a number."
        )


def _spell_sum(name: str, first: float, rest: dict[str, float]) -> str:
    return " + ".join(f"{part} {value:g}" for part, value in {name: first, **rest}.items())


def _check_values(name: str, values: Sequence, count: int, allowed: set | tuple[float, float]) -> None:
    if len(values) != count:
        raise ValueError(
            f"{name} returned {len(values)} rewards for {count} completions; there must be one for each. Mend {name}."
        )
    for value in values:
        if isinstance(allowed, set):
            fits, rule = value in allowed, "it must be 1.0, 0.0 or None"
        else:
            low, high = allowed
            fits, rule = (
                value is None or low <= value <= high,
                f"it was declared to stay in [{low:g}, {high:g}]",
            )
        if not fits:
            raise ValueError(
                f"{name} returned {value!r}; {rule}, or a wrong reply might outscore a right one. Correct its range."
            )
