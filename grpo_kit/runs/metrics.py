"""Read `metrics.jsonl`, the figures of each training step, under their current names."""

from pathlib import Path
from typing import Any

from grpo_kit.runs.files import drop_nonfinite
from grpo_kit.runs.reading import read_lines, remedy_for

# {name that version 0.1.0 wrote: name of the same figure today}
RENAMED = {
    "useful/share": "groups/with_gradient",
    "useful/asked": "groups/sampled",
    "useful/replaced": "groups/replaced",
    "useful/all_right": "groups/all_right",
    "useful/all_wrong": "groups/all_wrong",
    "useful/truncated": "groups/truncated",
    "useful/unjudged": "groups/unjudged",
}


def with_current_names(row: dict[str, Any]) -> dict[str, Any]:
    """The same figures in the same order, under today's names.

    >>> with_current_names({"step": 3, "useful/share": 0.75})
    {'step': 3, 'groups/with_gradient': 0.75}
    """
    return {RENAMED.get(name, name): value for name, value in row.items()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`, also of one that an earlier version wrote.

    Args:
        path: the file, `run.metrics`.

    Returns:
        One dict per training step: `step` (counted from 1), `seconds` since the first step, and the figures by name;
        None for one that is not finite.

    Raises:
        FileNotFoundError: the run has not trained yet.
        ValueError: the file is damaged.
    """
    return [drop_nonfinite(with_current_names(row)) for row in read_lines(path)]


def last_figures(path: Path) -> dict[str, Any]:
    """The last row of a run's `metrics.jsonl`, with the `reward` of the last step that sampled.

    A step that trains on the batch of the step before (`grpo.num_iterations`) has no reward of its own. The reward is
    None where no completion of that step could be judged.

    Raises:
        ValueError: the file is damaged or has no row.
    """
    rows = read_metrics(path)
    if not rows:
        raise ValueError(f"{path} has no row. {remedy_for(path)}")
    return rows[-1] | {"reward": next((row["reward"] for row in reversed(rows) if "reward" in row), None)}
