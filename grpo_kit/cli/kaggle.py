"""`grpo-kit push`, `submit` and `wheels`. `main` registers them; the work is done in `grpo_kit.kaggle`."""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from grpo_kit.cli.next_steps import show_again
from grpo_kit.display import console
from grpo_kit.kaggle import kernel, run_kernel
from grpo_kit.kaggle import submit as submission
from grpo_kit.kaggle import wheels as wheel_folder
from grpo_kit.kaggle.accelerators import ACCELERATORS, OFFLINE, find_accelerator
from grpo_kit.runs.installation import read_install_cell
from grpo_kit.runs.places import find_root

DryRun = Annotated[bool, typer.Option("--dry-run", help="print every call to Kaggle; make none and touch nothing")]
Follow = Annotated[bool, typer.Option("--follow/--no-follow", help="wait for the end and show it")]
MARKS = {True: "[green]ok  [/]", None: "[yellow]?   [/]", False: "[red]FAIL[/]"}


def push(
    notebook: Annotated[str, typer.Argument(help="a notebook of the kit, such as 03_training")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, such as grpo.max_steps=50", show_default=False)
    ] = None,
    accelerator: Annotated[str, typer.Option(help=", ".join(ACCELERATORS))] = OFFLINE,
    preset: Annotated[
        str | None,
        typer.Option("--config", "-c", help="a preset (default: the one for the accelerator)", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--run", help="the run's name, on Kaggle as here", show_default=False)
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="owner/slug to mount; may be repeated (default: your wheels)", show_default=False),
    ] = None,
    kernel_source: Annotated[
        list[str] | None,
        typer.Option(help="owner/slug of a kernel whose output to mount; may be repeated", show_default=False),
    ] = None,
    follow: Follow = True,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="push again what was pushed before")] = False,
) -> None:
    """Run a notebook as a Kaggle kernel: push it, follow it, download its output, show which GPU it had.

    Called again with the same settings, it follows the run that was pushed before.
    """
    path = kernel.find_notebook(notebook)
    note = find_accelerator(accelerator).note
    build = partial(
        kernel.build_kernel, notebook=path, accelerator=accelerator, root=find_root(), run=name, preset=preset,
        overrides=overrides or (), datasets=dataset or (), kernels=kernel_source or (),
    )  # fmt: skip
    console.out.print(escape(f"push     {path.stem} on {accelerator}" + (f" ({note})" if note else "")))
    outcome = run_kernel.run_kernel(build, follow, dry_run, force, _say)
    if outcome is None:
        if not dry_run:
            _say("the next command follows it and downloads its output")
        show_again(*(("--dry-run",) if dry_run else ("--no-follow", "--force")))  # --force would push once more
        return
    _say(f"{len(outcome.files)} files in {outcome.output}")
    console.out.print(f"         {MARKS[outcome.right_gpu]} {escape(outcome.gpu_sentence)}")
    if outcome.state != "COMPLETE":
        for line in run_kernel.read_last_lines(outcome.output):
            console.err.print(escape(f"         | {line}"))
    if problem := outcome.problem():
        raise RuntimeError(problem)
    zips = sorted(outcome.output.glob("**/submission.zip"), key=lambda path: len(path.parts))
    if zips:  # Kaggle submits the one at the top of the output
        console.print_next(["submit", str(zips[0])])
        return
    options = (("--accelerator", accelerator), ("-c", preset), ("--run", name))
    given = [word for option, value in options if value and value != OFFLINE for word in (option, value)]
    # The output of 01_setup holds the NF4 checkpoint, which every later notebook needs.
    sources = [*(source for source in kernel_source or () if "-01-setup" in source), outcome.kernel]
    mounted = [word for source in sources for word in ("--kernel-source", source)]
    console.print_next(["push", kernel.find_next_notebook(path), *mounted, *given])


def submit(
    zip_path: Annotated[Path, typer.Argument(metavar="FILE.zip", help="the zip to submit")],
    message: Annotated[str, typer.Option("--message", "-m", help="stands in the list of submissions")] = "",
    follow: Follow = True,
    dry_run: DryRun = False,
) -> None:
    """Check a zip, submit it once, show its score.

    Called again with the same zip, it sends nothing and goes on waiting.
    """
    console.out.print(escape(f"submit   {zip_path}"))
    score = submission.submit(zip_path, message, follow, dry_run, _say)
    if score:
        console.out.print(f"score    {score} on the public leaderboard")
        console.print_next(["tune", "--help"])
        return
    if not dry_run:
        _say("the next command waits for the score")
    show_again("--dry-run" if dry_run else "--no-follow")


def wheels(
    python: Annotated[str, typer.Option(help="the kernel's Python")] = "3.12",
    platform: Annotated[str, typer.Option(help="the newest wheel tag that its image takes")] = "manylinux_2_28_x86_64",
    out: Annotated[Path | None, typer.Option(help="the folder to fill", show_default=False)] = None,
    have: Annotated[
        Path | None,
        typer.Option(
            help="a file with what `pip freeze` prints in the image (default: only torch, torchvision, torchaudio, "
            "triton, numpy and pillow)",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Collect the kit and what it needs as wheels, for a kernel without internet; print the cell that installs them."""
    out = out or find_root().parent / "wheels"
    image = wheel_folder.read_freeze_file(have) if have else wheel_folder.IMAGE
    owner = _owner_if_known()
    files = wheel_folder.build_wheels(out, python, platform, image, owner, _say)
    size = sum(path.stat().st_size for path in files) / 2**20
    console.out.print(
        escape(f"wheels   {len(files)} in {out}, {size:.1f} MiB, for Python {python} on {platform}, without torch")
    )
    if owner == run_kernel.NOBODY:
        _say(f"put your name in place of {owner} in {out / wheel_folder.METADATA_FILE}")
    folder = shlex.quote(str(out))
    _say(f"upload: kaggle datasets create -p {folder}   (later: kaggle datasets version -p {folder} -m again)")
    _say(f"install cell ({out / wheel_folder.CELL_FILE}), which `grpo-kit push` adds by itself:")
    console.out.print(escape(read_install_cell()))
    console.print_next(["push", "03_training"])


COMMANDS: tuple[Callable[..., None], ...] = (push, submit, wheels)


def _owner_if_known() -> str:
    from grpo_kit.kaggle.credentials import find_credentials

    try:
        return find_credentials().username or run_kernel.NOBODY
    except (FileNotFoundError, ValueError):
        return run_kernel.NOBODY


def _say(line: str) -> None:
    console.out.print(f"         {escape(line)}")
