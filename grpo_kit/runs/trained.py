"""The stages that train a run's one LoRA: their order, and where each keeps its files."""

from pathlib import Path
from typing import NamedTuple

TRAINING = ("sft", "train", "prefer")  # each goes on from the adapter of the finished stage before it
# The measurement after each; `before` is that of the policy without an adapter.
MEASURED = {"sft": "after_sft", "train": "after", "prefer": "after_prefer"}


class StageFiles(NamedTuple):
    """Where one of these stages keeps its files.

    Attributes:
        folder: holds the others.
        adapter: the folder of the LoRA that the stage trained.
        probe: logits that show later whether a zip holds this policy.
        metrics: a line for each step.
        completions: a line for each sampled completion; only GRPO writes it.
        forecast: what was known before the first step: how many steps, and how long they take.
        checkpoints: a folder for each checkpoint.
    """

    folder: Path
    adapter: Path
    probe: Path
    metrics: Path
    completions: Path
    forecast: Path
    checkpoints: Path


def files_below(folder: Path) -> StageFiles:
    """The files of a stage that has a folder of its own."""
    names = (
        "adapter", "probe.safetensors", "metrics.jsonl", "completions.jsonl", "forecast.json", "checkpoints"
    )  # fmt: skip
    return StageFiles(folder, *(folder / name for name in names))


def measured_after(stage: str) -> str:
    """The trained stage whose result the measurement `stage` measures; "" for `before`.

    Raises:
        ValueError: there is no such measurement.
    """
    by_measurement = {"before": ""} | {measurement: trained for trained, measurement in MEASURED.items()}
    if stage not in by_measurement:
        raise ValueError(
            f"stage is {stage!r}; a run is measured {', '.join(by_measurement)} its training. Name one of these."
        )
    return by_measurement[stage]
