"""`grpo-kit push`, `submit` and `wheels`: to Kaggle and back. `cli` registers them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from grpo_kit.display import terminal
from grpo_kit.kaggle import credentials
from grpo_kit.kaggle import submit as submission
from grpo_kit.kaggle.kernel import ACCELERATORS, OFFLINE
from grpo_kit.runs.run import find_root

Dry = Annotated[bool, typer.Option("--dry-run", help="print every call to Kaggle; make none and touch nothing")]
Follow = Annotated[bool, typer.Option("--follow/--no-follow", help="wait for the end and show it")]
NOBODY = "your-username"


def push(
    notebook: Annotated[str, typer.Argument(help="a notebook of the kit, such as 03_training")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as grpo.max_steps=50", show_default=False)] = None,
    accelerator: Annotated[str, typer.Option(help=", ".join(ACCELERATORS))] = OFFLINE,
    preset: Annotated[str | None, typer.Option("--config", "-c", help="a preset; without it what suits the accelerator", show_default=False)] = None,
    name: Annotated[str | None, typer.Option("--run", help="the run's name, on Kaggle as here", show_default=False)] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="owner/slug to mount; may be repeated; without it your wheels", show_default=False)] = None,
    kernel_source: Annotated[list[str] | None, typer.Option(help="owner/slug of a kernel whose output to mount; may be repeated", show_default=False)] = None,
    follow: Follow = True, dry_run: Dry = False,
    force: Annotated[bool, typer.Option("--force", help="push again what was pushed before")] = False,
) -> None:  # fmt: skip
    """Run a notebook as a Kaggle kernel: push it, follow it, fetch its output, see which GPU it got. Again: it goes on following."""
    from grpo_kit.kaggle import kernel_notebook, run_kernel

    path = kernel_notebook.find_notebook(notebook)
    root = find_root()
    staged = kernel_notebook.kernel(
        NOBODY, path, accelerator, root, name, preset, overrides or (), dataset or (), kernel_source or ()
    )
    note = ACCELERATORS[accelerator].note
    terminal.out.print(f"push     {path.stem} on {accelerator}" + (f" ({note})" if note else ""))
    if dry_run:
        terminal.out.print(escape(json.dumps(staged.metadata, indent=2)))
        kernel = f"{staged.metadata['id']}/VERSION"
        submission.say_calls(
            _say,
            ("kernels_push", {"folder": str(staged.folder), "acc": accelerator}),
            ("kernels_status", {"kernel": kernel}),
            ("kernels_output", {"kernel": kernel, "path": str(staged.folder / "output-VERSION"), "file_pattern": run_kernel.WANTED}),
        )  # fmt: skip
        return
    client = submission.open_client(_say)
    staged = kernel_notebook.kernel(
        client.owner, path, accelerator, root, name, preset, overrides or (), dataset or (), kernel_source or ()
    )
    pushed = run_kernel.push(client, staged, force, _say)
    if not follow:
        terminal.out.print("         the same command follows it and fetches its output")
        return
    end, why = run_kernel.follow(client, pushed, _say)
    output, fetched = run_kernel.fetch(client, pushed, staged.folder)
    terminal.out.print(f"         {len(fetched)} files in {output}")
    right, sentence = run_kernel.verdict(run_kernel.ran_on(output, pushed["at"]), accelerator)
    terminal.out.print(f"         {'[green]ok  [/]' if right else '[yellow]?   [/]' if right is None else '[red]FAIL[/]'} {escape(sentence)}")  # fmt: skip
    if end != "COMPLETE":
        for line in run_kernel.last_words(output):
            terminal.err.print(escape(f"         | {line}"))
        reason = f" ({why.rstrip('.')})" if why else ""
        raise RuntimeError(f"The run ended as {end}{reason}; its log lies in {output}. --force pushes the same again.")
    if right is False:
        raise RuntimeError(f"{accelerator} did not run. Take the competition's accelerator in the editor, or another name, and push again.")  # fmt: skip
    for found in sorted(output.glob("**/submission.zip")):
        terminal.out.print(f"         next: grpo-kit submit {found}")


def submit(
    zip_path: Annotated[Path, typer.Argument(metavar="FILE.zip", help="the zip to submit")],
    message: Annotated[str, typer.Option("--message", "-m", help="stands in the list of submissions")] = "",
    follow: Follow = True, dry_run: Dry = False,
) -> None:  # fmt: skip
    """Check a zip, submit it once, show its score. Called again for the same zip it sends nothing and goes on waiting."""
    terminal.out.print(f"submit   {zip_path}")
    score = submission.submit(zip_path, message, follow, dry_run, _say)
    if score:
        terminal.out.print(f"score    {score} on the public leaderboard")
    elif not dry_run:
        terminal.out.print("         the same command waits for the score")


def wheels(
    python: Annotated[str, typer.Option(help="the kernel's Python")] = "3.12",
    platform: Annotated[str, typer.Option(help="the newest wheel tag that its image takes")] = "manylinux_2_28_x86_64",
    out: Annotated[Path | None, typer.Option(help="the folder to fill", show_default=False)] = None,
    have: Annotated[Path | None, typer.Option(help="what `pip freeze` prints in the image; without it torch and its kin are assumed", show_default=False)] = None,
) -> None:  # fmt: skip
    """The kit and what it needs as a folder of wheels, for a kernel without internet, and the cell that installs them."""
    from grpo_kit.kaggle import wheel_closure
    from grpo_kit.kaggle import wheels as making

    image = wheel_closure.IMAGE
    if have:
        if not have.is_file():
            raise FileNotFoundError(
                f"{have} does not exist; --have takes a file with what `pip freeze` prints in the image."
            )
        image = wheel_closure.read_have(have.read_text(encoding="utf-8"))
    out = out or find_root().parent / "wheels"
    owner = _owner_if_known()
    found = making.build(out, python, platform, image, owner, _say)
    size = sum(path.stat().st_size for path in found) / 2**20
    terminal.out.print(
        f"wheels   {len(found)} in {out}, {size:.1f} MiB, for Python {python} on {platform}, without torch"
    )
    if owner == NOBODY:
        terminal.out.print(f"         put your name in place of {NOBODY} in {out / making.METADATA}")
    terminal.out.print(
        f"         upload: kaggle datasets create -p {out}   (later: kaggle datasets version -p {out} -m again)"
    )
    terminal.out.print(f"         install cell ({out / making.CELL}), which `grpo-kit push` puts in by itself:")
    terminal.out.print(escape(making.INSTALL_CELL), end="")


COMMANDS: tuple[Callable[..., None], ...] = (push, submit, wheels)


def _owner_if_known() -> str:
    try:
        return credentials.find().username or NOBODY
    except (FileNotFoundError, ValueError):
        return NOBODY


def _say(line: str) -> None:
    terminal.out.print(f"         {escape(line)}")
