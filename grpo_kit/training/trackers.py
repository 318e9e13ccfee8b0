"""Where a run's figures go besides its own files: what `run.report_to` names."""

import importlib.util
from pathlib import Path
from typing import Any

KNOWN = ("tensorboard", "wandb", "trackio")


def check(names: list[str]) -> None:
    """Raise ValueError for a tracker that is not known or not installed, before anything slow begins."""
    for name in names:
        if name not in KNOWN:
            raise ValueError(f"run.report_to names {name!r}; it takes {', '.join(KNOWN)}. Name one of these.")
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of wandb's logs is found too, as a package without a file
            raise ValueError(
                f"run.report_to names {name!r}, which is not installed. `pip install {name}`, or take it out of run.report_to."
            )


def told_to_transformers(names: list[str]) -> list[str]:
    """The `report_to` of transformers: all but TensorBoard, whose folder transformers would choose by date and host."""
    return [name for name in names if name != "tensorboard"]


def callbacks(names: list[str], run: Path) -> list[Any]:
    """TensorBoard's callback where it is named; its files lie in the run's `tensorboard/`, also after a restart."""
    if "tensorboard" not in names:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(run / "tensorboard")))]
