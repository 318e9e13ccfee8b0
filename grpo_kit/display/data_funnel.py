"""Draws where the rows of the data stage went, and how long and how hard the remaining problems are."""

from collections.abc import Sequence
from typing import Any

from grpo_kit.display.charts import save_figure
from grpo_kit.display.panels import BLUE, GREEN, GREY, ORANGE, RED, SKY
from grpo_kit.runs.run import Run

SPLIT_COLORS = {"train": SKY, "val": ORANGE, "test": GREEN}
TRIES = 8  # the bars of pass rates stand for 0 to 8 of 8 tries


def draw_funnel(manifest: dict[str, Any]) -> Any:
    """The data funnel as a matplotlib figure: rows read, rows left and dropped after each reason, and the splits.

    Args:
        manifest: the content of the run's `data/manifest.json`.
    """
    from matplotlib.figure import Figure

    steps = [("read", manifest["read"], 0)]
    steps += [(step["reason"], step["left"], step["dropped"]) for step in manifest["funnel"]]
    figure = Figure(figsize=(8, 1.2 + 0.34 * len(steps)), layout="constrained")
    axis = figure.subplots()
    for y, (_, left, dropped) in enumerate(steps):
        axis.barh(y, left, color=BLUE, height=0.7)
        axis.barh(y, dropped, left=left, color=RED, height=0.7)
        axis.text(left + dropped, y, f" {left:,}" + (f"  (-{dropped:,})" if dropped else ""), va="center", fontsize=9)
    start = 0
    for split, count in manifest["rows"].items():
        label = f"{split} {count:,}"
        axis.barh(len(steps), count, left=start, color=SPLIT_COLORS[split], height=0.7, label=label)
        start += count
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(SPLIT_COLORS), frameon=False, fontsize=9)
    axis.set_yticks(range(len(steps) + 1), [*(reason for reason, _, _ in steps), "split into"])
    axis.set(xlim=(0, 1.22 * manifest["read"]), xlabel="rows")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def save_funnel(manifest: dict[str, Any], run: Run) -> None:
    """Write the funnel to the run's `data/funnel.png`."""
    save_figure(draw_funnel(manifest), run.manifest.with_name("funnel.png"))


def draw_prompts(lengths: Sequence[int], rates: Sequence[float]) -> Any:
    """Histograms of prompt lengths and of pass rates as a matplotlib figure.

    Args:
        lengths: tokens in each prompt, template included.
        rates: pass rates in [0, 1], perhaps none. Bars of 0 and 1 are grey: those prompts teach nothing.
    """
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
    right.set(xlabel="share of right answers", ylabel="problems tried")
    for axis, title in ((left, "How long"), (right, f"How hard: {tried}")):
        axis.set_title(title, fontsize=10, fontweight="bold", loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    return figure
