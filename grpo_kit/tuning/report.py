"""What a search found, to look at: a picture of its trials, and a sentence for each setting on whether it moved the accuracy."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_kit.tuning.space import Axis

BEST, OWN, OTHER = "#009e73", "#e69f00", "#a6a6a6"  # of the palette that `figures` has, floors above


def picture(found: Mapping[str, Any], axes: Mapping[str, Axis]) -> Any:
    """A `matplotlib.figure.Figure` of `tune.json`: accuracy by step, a line a trial, and by the value of each of `axes`, a mark
    a trial; choices stand in their order."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(3.2 * (1 + len(axes)), 3.4), layout="constrained")
    curves, *panels = figure.subplots(1, 1 + len(axes), sharey=True)
    for row in reversed(found["trials"]):  # the best last, over the others
        main, label = row is found["best"], "the run's own values" if row["own"] else None
        style = {"color": BEST, "linewidth": 2.4} if main else {"color": OWN if row["own"] else OTHER}
        style |= {"marker": "o" if row["state"] == "complete" else "x"}
        curves.plot(*zip(*row["curve"]) if row["curve"] else ((), ()), label="best" if main else label, **style)
        values = dict(override.split("=", 1) for override in row["overrides"])
        for panel, (key, axis) in zip(panels, axes.items(), strict=True):
            if row["accuracy"] is not None:
                value = axis.choices.index(values[key]) if axis.kind == "choice" else float(values[key])
                panel.plot([value], [row["accuracy"]], color=style["color"], marker=style["marker"])
    curves.plot([], [], "x", color=OTHER, label="broken off")
    curves.set(xlabel="GRPO step", ylabel="accuracy on the validation split", ylim=(-0.02, 1.05))
    curves.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    curves.legend(loc="lower right", frameon=False, fontsize=8)
    for panel, (key, axis) in zip(panels, axes.items(), strict=True):
        panel.set(xlabel=key, xscale="log" if axis.kind == "log" else "linear")
        if axis.kind == "choice":
            panel.set_xticks(range(len(axis.choices)), axis.choices)
            panel.set_xlim(-0.5, len(axis.choices) - 0.5)
    for panel in (curves, *panels):
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def moved(found: Mapping[str, Any], seed: int = 0) -> list[str]:
    """For each key a sentence: whether accuracy went with its value over the trials of `tune.json`, or not as far as they show.

    By rank correlation (Kruskal and Wallis's H for choices that are no numbers) against the same trials in 1,000 random
    orders: `p` is the share that goes together at least as well. Accuracy is that of the last step that every trial reached,
    so those that were broken off count, and are compared after as much training; none counts that was never measured.
    """
    from scipy import stats

    rows = [row for row in found["trials"] if row["curve"]]
    values = [dict(override.split("=", 1) for override in row["overrides"]) for row in rows]
    curves = [dict(row["curve"]) for row in rows]
    step = max(set.intersection(*map(set, curves)), default=None) if curves else None
    said, draw = [], random.Random(seed)
    for key in values[0] if step is not None else ():
        here, accuracy = [value[key] for value in values], [curve[step] for curve in curves]
        if len(set(here)) < 2 or len(set(accuracy)) < 2:
            said.append(f"{key}: nothing to tell from {len(rows)} trials that are alike.")
            continue
        numbers = _numbers(here)

        def together(order: list[float], here: list[str] = here, numbers: list[float] | None = numbers) -> float:
            if numbers:
                return float(stats.spearmanr(numbers, order).statistic)
            return float(stats.kruskal(*[[a for a, h in zip(order, here) if h == one] for one in sorted(set(here))])[0])

        seen = together(accuracy)
        orders = (draw.sample(accuracy, len(accuracy)) for _ in range(1000))
        p = (1 + sum(abs(together(order)) >= abs(seen) - 1e-9 for order in orders)) / 1001
        way = ("rises" if seen > 0 else "falls") if numbers else "differs"
        how = f"rank correlation {seen:+.2f}" if numbers else f"H {seen:.2f}"
        moves = f"accuracy {way} with it" if p < 0.05 else "no effect is shown"
        said.append(f"{key}: {moves} ({how} over {len(rows)} trials at step {step}, p = {p:.3f}).")
    return said


def _numbers(texts: Sequence[str]) -> list[float] | None:
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None
