"""The experiment trackers that `run.report_to` names, which get a run's figures in addition to its files."""

import importlib.util
from pathlib import Path
from typing import Any

KNOWN = ("tensorboard", "wandb", "trackio")


def check_trackers(names: list[str]) -> None:
    """Raise ValueError for a tracker that the kit does not know or that is not installed."""
    for name in names:
        if name not in KNOWN:
            raise ValueError(f"run.report_to names {name!r}; it takes {', '.join(KNOWN)}. Name one of these.")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of wandb's logs looks like a package, but has no file
            raise ValueError(
                f"run.report_to names {name!r}, which is not installed. `pip install {name}`, or take it out of "
                "run.report_to."
            )


def transformers_trackers(names: list[str]) -> list[str]:
    """The `report_to` of transformers: all but TensorBoard, whose folder transformers would choose by date and host."""
    return [name for name in names if name != "tensorboard"]


def make_tensorboard(names: list[str], run: Path) -> list[Any]:
    """[TensorBoard's callback] where `names` has it, else []. Its files lie in `tensorboard/` of the folder `run`."""
    if "tensorboard" not in names:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(run / "tensorboard")))]
