"""A run as a picture: reward by step, and held-out accuracy before and after with its interval."""

import json
from pathlib import Path
from typing import Any

from grpo_kit import workspace

BEFORE, AFTER, LINE = "#b0413e", "#2e7d32", "#1f4e79"


def picture(run: workspace.Run) -> Any:
    """A matplotlib figure of the run: reward curve, completion length, accuracy with 95 % intervals.

    What has not been measured yet is left out. Raises FileNotFoundError when the run has no metrics.
    """
    from matplotlib.figure import Figure

    run.need("train", "grpo-kit train")
    rows = workspace.read_lines(run.metrics)
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    curve, bars = figure.subplots(1, 2, width_ratios=(3, 1))

    names = [key for key in rows[0] if key.startswith("rewards/") and key.endswith("/mean")]
    for name in names:
        values = [row[name] for row in rows]
        main = name == names[0]
        label = name.split("/")[1]
        if main:
            curve.plot(steps, values, color=LINE, alpha=0.25, linewidth=1)
            curve.plot(steps, smooth(values), color=LINE, linewidth=2.2, label=f"{label} (mean of 9 steps)")
        else:
            curve.plot(steps, smooth(values), color="0.6", linewidth=1.2, linestyle="--", label=label)
    curve.set(
        xlabel="GRPO step", ylabel="reward of the sampled completions", ylim=(-0.02, 1.05), title=f"run {run.name!r}"
    )
    curve.grid(alpha=0.25)
    curve.legend(loc="lower right", frameon=False)

    for at, (name, color) in enumerate((("before", BEFORE), ("after", AFTER))):
        path = run.evaluation / f"{name}.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text())
        value, (low, high) = found["pass@1"], found["ci95"]
        bars.bar(at, value, color=color, width=0.6, yerr=[[value - low], [high - value]], capsize=6)
        bars.text(at, high + 0.02, f"{value:.0%}", ha="center", fontweight="bold")
    bars.set_xticks([0, 1], ["before", "after"])
    bars.set(ylim=(0, 1.12), title="held-out accuracy\n(95 % interval)")
    bars.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    for axis in (curve, bars):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def save_picture(run: workspace.Run) -> None:
    """Write the picture to the run's `report.png`, in one step."""
    _save(picture(run), run.picture)


def funnel(manifest: dict[str, Any]) -> Any:
    """A matplotlib figure of where the rows went: those read, those left after each reason, and what the reason took."""
    from matplotlib.figure import Figure

    steps = [("read", manifest["read"], 0)] + [(s["reason"], s["left"], s["dropped"]) for s in manifest["funnel"]]
    figure = Figure(figsize=(8, 0.8 + 0.34 * len(steps)), layout="constrained")
    axis = figure.subplots()
    for at, (_, left, dropped) in enumerate(steps):
        axis.barh(at, left, color=LINE, height=0.7)
        axis.barh(at, dropped, left=left, color=BEFORE, height=0.7)
        axis.text(left + dropped, at, f" {left:,}" + (f"  (-{dropped:,})" if dropped else ""), va="center", fontsize=9)
    axis.set_yticks(range(len(steps)), [reason for reason, _, _ in steps])
    axis.set(xlim=(0, 1.22 * manifest["read"]), xlabel="rows")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def save_funnel(manifest: dict[str, Any], run: workspace.Run) -> None:
    """Write the funnel to the run's `data/funnel.png`, in one step."""
    _save(funnel(manifest), run.manifest.with_name("funnel.png"))


def _save(figure: Any, path: Path) -> None:
    aside = path.with_name(f".{path.stem}.partial.png")
    figure.savefig(aside, dpi=120)
    aside.replace(path)


def smooth(values: list[float], window: int = 9) -> list[float]:
    """Centred moving average over `window` steps, shorter at the ends."""
    half = window // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]
