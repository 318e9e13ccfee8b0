"""Where the rows went, as a picture: how many each step of the data stage left, and how many it took; and how long and how
hard those that are left are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_kit.display.run_figures import BLUE, GREEN, GREY, ORANGE, RED, SKY
from grpo_kit.runs.run import Run

SPLITS = {"train": SKY, "val": ORANGE, "test": GREEN}
TRIES = 8  # pass rates are drawn as bars for none to all of so many tries


def picture(manifest: dict[str, Any]) -> Any:
    """A matplotlib figure of where the rows went: those read, those left after each reason, what the reason took, the splits."""
    from matplotlib.figure import Figure

    steps = [("read", manifest["read"], 0)] + [(s["reason"], s["left"], s["dropped"]) for s in manifest["funnel"]]
    figure = Figure(figsize=(8, 1.2 + 0.34 * len(steps)), layout="constrained")
    axis = figure.subplots()
    for at, (_, left, dropped) in enumerate(steps):
        axis.barh(at, left, color=BLUE, height=0.7)
        axis.barh(at, dropped, left=left, color=RED, height=0.7)
        axis.text(left + dropped, at, f" {left:,}" + (f"  (-{dropped:,})" if dropped else ""), va="center", fontsize=9)
    end = 0
    for split, count in manifest["rows"].items():
        axis.barh(len(steps), count, left=end, color=SPLITS[split], height=0.7, label=f"{split} {count:,}")
        end += count
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(SPLITS), frameon=False, fontsize=9)
    axis.set_yticks(range(len(steps) + 1), [*(reason for reason, _, _ in steps), "split into"])
    axis.set(xlim=(0, 1.22 * manifest["read"]), xlabel="rows")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def shape(lengths: Sequence[int], rates: Sequence[float]) -> Any:
    """A matplotlib figure of prompt `lengths` in tokens and of pass `rates`, 0 to 1, where there are any; grey: all or none right."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(10, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(lengths, bins=50, range=(0, 1.1 * max(lengths)), color=BLUE)
    left.set(xlabel="tokens in the prompt, template included", ylabel="training problems")
    half = 0.5 / TRIES
    bars = right.hist(rates, bins=TRIES + 1, range=(-half, 1 + half), color=BLUE, rwidth=0.92)[2]
    for bar in (bars[0], bars[-1]):
        bar.set_color(GREY)
    right.set_xticks([0, 0.25, 0.5, 0.75, 1])
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    tried = f"{len(rates)} problems tried" if rates else "not tried yet"
    right.set(xlabel="share of its replies that are right", ylabel="problems tried")
    for axis, title in ((left, "How long"), (right, f"How hard: {tried}")):
        axis.set_title(title, fontsize=10, fontweight="bold", loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def save(manifest: dict[str, Any], run: Run) -> None:
    """Write the funnel to the run's `data/funnel.png`, in one step."""
    _save(picture(manifest), run.manifest.with_name("funnel.png"))


def _save(figure: Any, path: Path) -> None:
    aside = path.with_name(f".{path.stem}.partial.png")
    figure.savefig(aside, dpi=120)
    aside.replace(path)
