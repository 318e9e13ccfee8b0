"""What all notebooks share: Drive asked for, a preset that suits the machine, the run opened, a missing stage named with a link.

A notebook starts on a fresh machine and asks nobody anything: what a person may refuse or overlook, Drive and secrets, it
can do without.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grpo_kit.runs import session
from grpo_kit.runs.run import Run, find_run

REPOSITORY = (
    "grpo-kit/grpo-kit"  # owner/name on GitHub, put into every badge, link and install cell by notebooks/build.py
)
AUTO = "auto"
LINKS = {
    "colab": "https://colab.research.google.com/github/{0}/blob/main/notebooks/{1}.ipynb",
    "kaggle": "https://kaggle.com/kernels/welcome?src=https://github.com/{0}/blob/main/notebooks/{1}.ipynb",
    "local": "{1}.ipynb",
}
MOUNT = "On Kaggle, its output has to be an input of this notebook: Add Input, Your Work."


def place(environ: Mapping[str, str] = os.environ) -> str:
    """`colab`, `kaggle` or `local`."""
    if environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    return "colab" if environ.get("COLAB_RELEASE_TAG") else "local"


def link(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """Where the notebook `name`, such as `02_data`, is opened from here."""
    return LINKS[place(environ)].format(REPOSITORY, name)


def suited(device: Any) -> str:
    """The preset for a `machines.Device`: the 30B where a GPU has room for it, else the embedded policy.

    >>> from grpo_kit.planning import machines
    >>> [suited(machines.DEVICES[name]) for name in ("t4", "t4x2", "80gb")], suited(machines.Device("laptop", gpu=0))
    (['t4', 't4x2', '80gb'], 'tiny')
    """
    if device.gpu >= 70:
        return "80gb"
    if device.gpu >= 20 and device.triton:  # bf16, which that preset computes in
        return "24gb"
    return "tiny" if device.gpu < 14 else "t4x2" if device.gpus > 1 else "t4"


def begin(preset: str, run_name: str = "", overrides: str = "", drive: bool = True) -> tuple[Any, Run]:
    """(configuration, run) from a notebook's form fields, after a look at Drive on Colab; prints where the run stands.

    `preset` "auto": what the run of this name was made with, where there is one, else what suits this machine.
    `overrides`: key=value, parted by spaces. Raises what `session.open_run` raises.
    """
    if drive and place() == "colab":
        print(mount_drive())
    said = dict(word.split("=", 1) for word in overrides.split() if "=" in word)
    name, sources = run_name.strip() or said.get("run.name", ""), (preset,)
    if preset == AUTO and name and find_run(name).config.is_file():
        sources = ()
    elif preset == AUTO:
        from grpo_kit.planning import machines

        sources = (suited(machines.this_device()),)
    config, run = session.open_run(sources, overrides.split(), name or sources[0])
    print(session.describe_run(run))
    return config, run


def mount_drive(filesystem: Path = Path("/")) -> str:
    """Ask Colab for the person's Drive unless it is there; returns a sentence on where runs lie. Refused, it goes on without."""
    folder = filesystem / "content/drive"
    if not (folder / "MyDrive").is_dir():
        try:
            from google.colab import drive

            drive.mount(str(folder))
        except Exception as error:  # refused, overlooked, no browser: each has a type of its own that only exists there
            why = " ".join(str(error).split())[:100] or type(error).__name__
            return f"Drive was not given ({why}): the run lies on this machine's disk and ends with the session. Run this cell again to be asked once more."
    return "Drive is mounted: the run outlives this session."


def need(run: Run, stage: str, name: str) -> None:
    """Raise FileNotFoundError unless `stage` of the run is done, naming the notebook to run first, which is shown as a link."""
    from IPython.display import Markdown, display

    try:
        run.require_stage(stage, f"notebook {link(name)}")
    except FileNotFoundError:
        more = f" {MOUNT}" if place() == "kaggle" else ""
        display(Markdown(f"Run **[{name}]({link(name)})** first, then this notebook again.{more}"))
        raise


def counter(what: str) -> Callable[..., None]:
    """A line under the cell that counts `what`: call it with (done, total, note)."""
    from IPython.display import Pretty, display

    line = display(Pretty(""), display_id=True)

    def show(done: int, total: int, note: str = "") -> None:
        line.update(Pretty(f"{done} of {total} {what}" + (f", {note}" if note else "")))

    return show


def submit(zip_path: Path, message: str, send: bool) -> None:
    """Submit the zip to the challenge and wait for its score; without `send` show the calls, or why it would be refused."""
    from grpo_kit.kaggle import submit as kaggle_submit

    try:
        score = kaggle_submit.submit(zip_path, message, dry_run=not send)
    except ValueError as error:
        if send:
            raise
        print(f"{error}\nNothing was sent.")
        return
    if score:
        print(f"{score} on the public leaderboard")
