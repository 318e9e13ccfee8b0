"""What a stage says on the command line while it works and when it ends, and where a demonstration leaves its files."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape

from grpo_kit.display import run_figures
from grpo_kit.display.console import INDENT, err, out, print_next, show_progress
from grpo_kit.runs.run import Run
from grpo_kit.runs.texts import format_time


@contextlib.contextmanager
def show_stage(run: Run, name: str, doing: str, force: bool = False) -> Iterator[Callable[..., None]]:
    """Show a progress bar while a stage works, then one line that says whether it is done or skipped.

    A stage that was forced and left its record as it was found nothing to do; its command says why.
    """
    before = run.stages().get(name)
    with show_progress(doing) as show:
        yield show
    note = run.stages().get(name)
    if note is None or force and note == before:
        return
    if note == before:
        time, seconds = format_time(note["finished"]), f"{note['seconds']:.0f}"
        out.print(f"[dim]{name:<8} skipped: done on {time} in {seconds} s; --force repeats it[/]")
    else:
        out.print(f"{name:<8} done in {note['seconds']:.1f} s")


def follow_training(steps: int, show: Callable[..., None]) -> Callable[[dict[str, Any]], None]:
    """A function to call with each metrics row: it shows figures beside the progress bar and prints each alarm."""
    rows: list[dict[str, Any]] = []
    forms = {
        "loss": "loss {}",
        "right tokens": "{} of tokens right",
        "reward": "reward {}",
        "groups with a gradient": "gradient {}",
        "cut off": "cut {}",
        "pairs learned": "pairs {}",
        "margin": "margin {}",
        "tokens a second": "{} tok/s",
        "rows to the host": "host {}",
        "after replacement": "{} after replacement",
    }

    def on_step(row: dict[str, Any]) -> None:
        rows.append(row)
        figures = run_figures.average_latest(rows)
        show(row["step"], steps, ", ".join(form.format(figures[key]) for key, form in forms.items() if key in figures))
        for sentence in row.get("alarms") or []:
            err.print(f"[yellow]step {row['step']}: {escape(sentence)}[/]")

    return on_step


def print_forecast(forecast: dict[str, Any]) -> None:
    """The result of the probe step: the longest step fits, and how long it and the run take at most."""
    step = forecast["sampling_seconds"] + forecast["training_seconds"]
    peak = "" if forecast["peak_bytes"] is None else f", {forecast['peak_bytes'] / 2**30:.2f} GiB on the GPU"
    tokens = f"{forecast['prompt_tokens']} + {forecast['completion_tokens']} tokens"
    duration = run_figures.format_duration(forecast["seconds"])
    if "lora" in forecast:
        out.print(f"{INDENT}{escape(forecast['lora'])}")
    if forecast.get("experts"):
        out.print(f"{INDENT}{escape(forecast['experts'])}")
    out.print(
        f"{INDENT}the longest step fits ({tokens}{peak}); at most {step:.1f} s a step, "
        f"{forecast['steps']} steps in {duration}"
    )


def print_locations(run: Run, zip_path: Path, seconds: float) -> None:
    """Where the results of `demo` lie, and what to do next."""
    out.print(f"\ndone in {seconds:.0f} s")
    for name, path in (
        ("the zip", zip_path),
        ("the picture", run.picture),
        ("the page", run.page),
        ("the accuracies", run.evaluation / "report.json"),
        ("every completion", run.completions),
        ("the adapter", run.adapter),
    ):
        out.print(f"  {name:<17}{escape(str(path))}")
    out.print("\nOpen notebooks/00_quickstart.ipynb in Colab or Kaggle, or train on your own problems here:")
    rows = ["data.source=data/gsm8k_sample.jsonl", "data.val_size=20", "data.test_size=50"]
    print_next(["data", "-c", "tiny", "--run", "mine", *rows], ["train", "--run", "mine", "grpo.max_steps=5"])
