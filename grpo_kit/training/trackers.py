"""The experiment trackers that `run.report_to` names, which get a run's figures in addition to its files."""

import functools
import importlib.util
import netrc
import os
import shlex
import threading
import warnings
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
        return str(path) if "api.wandb.ai" in netrc.netrc(path).hosts else ""
    except (OSError, ValueError, netrc.NetrcParseError):
        return ""


def show_tensorboard(run: Path) -> None:
    """Show TensorBoard under a notebook's cell, for the figures in the folder `run`; it reads new ones by itself."""
    from tensorboard import notebook

    (run / "tensorboard").mkdir(parents=True, exist_ok=True)
    notebook.start(shlex.join(["--logdir", str(run / "tensorboard"), "--reload_interval", "5"]))


def transformers_trackers(names: list[str]) -> list[str]:
    """The `report_to` of transformers: all but TensorBoard, whose folder transformers would choose by date and host."""
    return [name for name in names if name != "tensorboard"]


def make_callbacks(trainer: Any, names: list[str], run: Path) -> list[Any]:
    """The callbacks of the trackers, for a trainer whose own are taken away. What fails in one ends no training.

    An event of a tracker that raises is its last one, and a warning says so. The training's own files have all figures.

    Args:
        trainer: a trainer of transformers, which has made the callbacks of `transformers_trackers`.
        names: `run.report_to`.
        run: the folder of the run or of its stage; TensorBoard's files lie in its folder `tensorboard`.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    makers = {"tensorboard": lambda: _make_tensorboard(run / "tensorboard")} if "tensorboard" in names else {}
    for name in transformers_trackers(names):
        (kind,) = get_reporting_integration_callbacks([name])
        own = trainer.pop_callback(kind)
        makers[name] = _make_wandb if name == "wandb" else lambda own=own: own

    def lose(name: str, error: Exception) -> None:
        if name in trainer.args.report_to:  # TRL sends its own timings to each tracker in it
            trainer.args.report_to.remove(name)
        warnings.warn(
            f"{name} gets no figures from here on ({_shorten(error)}). The training goes on, and its own files have "
            "all of them.",
            stacklevel=2,
        )

    callbacks = []
    for name, make in makers.items():
        try:
            callbacks.append(_end_with_an_error(make(), functools.partial(lose, name)))
        except Exception as error:
            lose(name, error)
    return callbacks


def _shorten(error: Exception) -> str:
    """The first line of an error, which a tracker may follow by a page of advice."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _end_with_an_error(callback: Any, lose: Callable[[Exception], None]) -> Any:
    """The callback, which does nothing any more once one of its events has raised; `lose` gets what it raised."""
    from transformers import TrainerCallback

    lost = []

    def call(event: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return None if lost else event(*args, **kwargs)
        except Exception as error:
            lost.append(error)
            return lose(error)

    for event in [event for event in dir(TrainerCallback) if event.startswith("on_")]:
        setattr(callback, event, functools.partial(call, getattr(callback, event)))
    return callback


def _make_wandb() -> Any:
    """wandb's callback; where its server does not take the run, wandb keeps the figures on this machine's disk."""
    import wandb
    from transformers.integrations import WandbCallback

    class Callback(WandbCallback):  # wandb is imported only where it is used
        def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
            try:
                super().setup(args, state, model, **kwargs)
            except Exception as error:
                if wandb.run is not None:
                    raise
                run = wandb.init(project=os.environ.get("WANDB_PROJECT"), name=args.run_name, mode="offline")
                folder = Path(run.dir).parent
                warnings.warn(
                    f"wandb's server does not take the figures ({_shorten(error)}); wandb keeps them in {folder}, and "
                    f"`{shlex.join(['wandb', 'sync', str(folder)])}` sends them later.",
                    stacklevel=2,
                )
                super().setup(args, state, model, **kwargs)

    return Callback()


def _make_tensorboard(place: Path) -> Any:
    """TensorBoard's callback, whose files lie in the folder `place`; its errors of the disk name that folder."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

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
        return Callback(SummaryWriter(str(place)))


_others: list[Callable[[Any], Any]] = []  # what prints the errors of threads that are not TensorBoard's


def _print_thread_error(failure: Any) -> None:
    """Leave out the trace of TensorBoard's writer, whose error of the disk is raised again at the next figure."""
    is_writer = type(failure.thread).__module__.startswith("tensorboard.")
    if not (is_writer and isinstance(failure.exc_value, OSError)):
        _others[-1](failure)
