"""Where the rows went, as a picture: how many each step of the data stage left, and how many it took; and how long and how
hard those that are left are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_kit import workspace

LEFT, TAKEN = "#1f4e79", "#b0413e"


def picture(manifest: dict[str, Any]) -> Any:
    """A matplotlib figure of where the rows went: those read, those left after each reason, and what the reason took."""
    from matplotlib.figure import Figure

    steps = [("read", manifest["read"], 0)] + [(s["reason"], s["left"], s["dropped"]) for s in manifest["funnel"]]
    figure = Figure(figsize=(8, 0.8 + 0.34 * len(steps)), layout="constrained")
    axis = figure.subplots()
    for at, (_, left, dropped) in enumerate(steps):
        axis.barh(at, left, color=LEFT, height=0.7)
        axis.barh(at, dropped, left=left, color=TAKEN, height=0.7)
        axis.text(left + dropped, at, f" {left:,}" + (f"  (-{dropped:,})" if dropped else ""), va="center", fontsize=9)
    axis.set_yticks(range(len(steps)), [reason for reason, _, _ in steps])
    axis.set(xlim=(0, 1.22 * manifest["read"]), xlabel="rows")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def shape(lengths: Sequence[int], rates: Sequence[float]) -> Any:
    """A matplotlib figure of prompt `lengths` in tokens and of pass `rates`, 0 to 1, where there are any."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(lengths, bins=50, range=(0, 1.1 * max(lengths)), color=LEFT)
    left.set(xlabel="tokens in the prompt, template included", ylabel="training problems")
    right.hist(rates, bins=10, range=(0, 1), color=LEFT)
    title = f"{len(rates)} problems tried" if rates else "not tried yet"
    right.set(xlabel="pass rate of the policy before training", title=title, xlim=(-0.02, 1.02))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def save(manifest: dict[str, Any], run: workspace.Run) -> None:
    """Write the funnel to the run's `data/funnel.png`, in one step."""
    _save(picture(manifest), run.manifest.with_name("funnel.png"))


def _save(figure: Any, path: Path) -> None:
    aside = path.with_name(f".{path.stem}.partial.png")
    figure.savefig(aside, dpi=120)
    aside.replace(path)
