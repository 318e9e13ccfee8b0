"""The experiment trackers that `run.report_to` names, which get a run's figures in addition to its files."""

import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_kit.runs.files import name_place

KNOWN = ("tensorboard", "wandb", "trackio")


def check_trackers(names: list[str]) -> None:
    """Raise ValueError for a tracker that the kit does not know or that is not installed."""
    for name in names:
        if name not in KNOWN:
            raise ValueError(
                f"run.report_to names {name!r}; it takes {', '.join(KNOWN)}. Name one of these, or [] for none."
            )
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
    """[TensorBoard's callback] where `names` has it, else []. Its files lie in `tensorboard/` of the folder `run`.

    An error of the disk ends the training at the next figure, and names the folder.
    """
    if "tensorboard" not in names:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    place = run / "tensorboard"

    class Callback(TensorBoardCallback):  # transformers is imported only where it is needed
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            with name_place(place):
                super().on_train_begin(*args, **kwargs)

        def on_log(self, *args: Any, **kwargs: Any) -> None:
            with name_place(place):
                super().on_log(*args, **kwargs)

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            with name_place(place):
                super().on_train_end(*args, **kwargs)

    if threading.excepthook is not _print_thread_error:
        _others.append(threading.excepthook)
        threading.excepthook = _print_thread_error
    with name_place(place):
        return [Callback(SummaryWriter(str(place)))]


_others: list[Callable[[Any], Any]] = []  # what prints the errors of threads that are not TensorBoard's


def _print_thread_error(failure: Any) -> None:
    """Leave out the trace of TensorBoard's writer, whose error of the disk is raised again at the next figure."""
    is_writer = type(failure.thread).__module__.startswith("tensorboard.")
    if not (is_writer and isinstance(failure.exc_value, OSError)):
        _others[-1](failure)
