"""The experiment trackers that `run.report_to` names, which get a run's figures in addition to its files."""

import importlib.util
import os
import shlex
import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

from grpo_kit.config.checks import require_one_of
from grpo_kit.kaggle.credentials import find_secret
from grpo_kit.runs.files import name_place

KNOWN = ("tensorboard", "wandb", "trackio")
NONE = "none"
WANDB_KEY, WANDB_MODE = "WANDB_API_KEY", "WANDB_MODE"
PLACES = {  # where a person finds what a tracker has got
    "wandb": "wandb prints the address of the run when the training begins.",
    "trackio": "After the first steps, `import trackio; trackio.show()` in a cell opens its dashboard.",
}
AWAY = ("offline", "disabled")  # the modes of wandb that send nothing, so that no key is needed


def check_trackers(names: list[str]) -> None:
    """Raise ValueError for a tracker that the kit does not know or that is not installed."""
    for name in names:
        if name not in KNOWN:
            raise ValueError(
                f"run.report_to names {name!r}; it takes {', '.join(KNOWN)}. Name one of these, or [] for none."
            )
        if not _is_installed(name):
            raise ValueError(
                f"run.report_to names {name!r}, which is not installed. `pip install {name}`, or take it out of "
                "run.report_to."
            )


def choose_trackers(
    name: str, environ: MutableMapping[str, str] = os.environ, home: Path | None = None
) -> tuple[list[str], str]:
    """`run.report_to` for the tracker that a person wants, and one sentence on what becomes of it.

    A tracker that is not installed or has no key is left out, because a training is worth more than its second record:
    wandb would ask for the key while a cell runs, and wait. TensorBoard's files are written in each case.

    Args:
        name: a name of KNOWN, or "none".
        environ: where keys and modes are looked up; a key of Colab's or Kaggle's secrets is put into it.
        home: the folder that may have a `.netrc` with wandb's key; by default the user's.

    Raises:
        ValueError: another name.

    Example:
        >>> choose_trackers("none")[0]
        ['tensorboard']
    """
    require_one_of("tracker", name, (NONE, *KNOWN))
    default = ["tensorboard"]
    if name == NONE:
        return default, ""
    if not _is_installed(name):
        rest = [other for other in default if other != name]
        return rest, f"{name} is not installed, so the training goes on without it. `pip install {name}` adds it."
    if name == "wandb" and environ.get(WANDB_MODE) not in AWAY:
        found = find_secret(WANDB_KEY, environ) or _find_netrc(home or Path.home())
        if not found:
            return default, (
                f"wandb has no {WANDB_KEY} in the environment or in the secrets of Colab or Kaggle, so the training "
                f"goes on without it. Store one there, or set {WANDB_MODE}=offline."
            )
        return [*default, name], f"wandb gets the figures too; its key is {found}."
    if name == "trackio":
        space = environ.get("TRACKIO_SPACE_ID")
        if space and not find_secret("HF_TOKEN", environ):
            return default, (
                f"TRACKIO_SPACE_ID is {space} and there is no HF_TOKEN for it, so the training goes on without "
                "trackio. Store a token, or take the variable away: trackio then writes to this machine's disk."
            )
        where = f"the Space {space}" if space else "this machine's disk"
        return [*default, name], f"trackio gets the figures too, on {where}."
    return [*dict.fromkeys([*default, name])], f"{name} gets the figures too."


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a folder of wandb's logs looks like a package without a file


def _find_netrc(home: Path) -> str:
    """Where `wandb login` left its key; empty when it did not."""
    path = home / ".netrc"
    try:
        return str(path) if "api.wandb.ai" in path.read_text() else ""
    except (OSError, ValueError):
        return ""


def show_tensorboard(run: Path) -> None:
    """Show TensorBoard under a notebook's cell, for the figures in the folder `run`; it reads new ones by itself."""
    from tensorboard import notebook

    (run / "tensorboard").mkdir(parents=True, exist_ok=True)
    notebook.start(shlex.join(["--logdir", str(run / "tensorboard"), "--reload_interval", "5"]))


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
