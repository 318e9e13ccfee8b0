"""Context that grows over a run, as DeepScaleR's 8K, 16K, 24K did: which stage a run is in, read from its metrics.

A stage is a function of the rows so far, so that an interrupted run finds itself in the stage it was in.
"""

from typing import Any

from grpo_kit.config import Stage

CLIPPED = 0.3  # share of completions cut; above it the stage's length no longer holds what the policy has to say
PLATEAU = 20  # steps without a better mean reward


def stage_of(stages: list[Stage], rows: list[dict[str, Any]]) -> int:
    """The number of the stage that the step after `rows` is in, from 0.

    A stage ends when its `steps` are over; or earlier, once the next one's `enter` holds: `clipped`, when in 10 steps more
    than 30 % of completions were cut; `plateau`, when the mean reward of the last 20 steps is no better than that of the 20
    before.
    """
    now, began = 0, 0
    for done in range(1, len(rows) + 1):
        if now + 1 < len(stages) and _over(stages[now], stages[now + 1], rows[began:done]):
            now, began = now + 1, done
    return now


def _over(stage: Stage, following: Stage, rows: list[dict[str, Any]]) -> bool:
    if stage.steps is not None and len(rows) >= stage.steps:
        return True
    if following.enter == "clipped" and len(rows) >= 10:
        return _mean(rows[-10:], "completions/clipped_ratio") > CLIPPED
    if following.enter == "plateau" and len(rows) >= 2 * PLATEAU:
        return _mean(rows[-PLATEAU:], "reward") <= _mean(rows[-2 * PLATEAU : -PLATEAU], "reward")
    return False


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row.get(key) or 0.0 for row in rows) / len(rows)
