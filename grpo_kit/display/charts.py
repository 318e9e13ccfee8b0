"""Draws with matplotlib: a run's panels, a memory plan, and any figure as a file or as an image inside a page."""

import base64
import functools
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grpo_kit.display.panels import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, Line, Panel
from grpo_kit.runs.files import new_file

COLUMNS = 3  # panels side by side
POINTS = 300  # per curve; a longer one is thinned, because an image has no more pixels for it
PART_COLORS = (BLUE, ORANGE, GREEN, PINK, SKY)  # of the largest parts of a plan; the others together are grey
# Text stays text in an SVG, which keeps it small, and a `$` in a name does not start a formula.
STYLE = {"svg.fonttype": "none", "text.parse_math": False}


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Draw under STYLE, whatever style the caller has set."""

    @functools.wraps(draw)
    def wrapped(*args: Any, **options: Any) -> Any:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **options)

    return wrapped


@styled
def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure to `path` in one step; the ending, such as `.png`, gives the format."""
    with new_file(path) as aside:
        figure.savefig(aside, dpi=120, format=path.suffix.removeprefix("."))


@styled
def image_url(figure: Any) -> str:
    """A matplotlib figure as a `data:` URL of SVG, for an `<img>` that needs no other file."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


@styled
def draw_panels(panels: list[Panel], title: str = "") -> Any:
    """The panels as one matplotlib figure, three side by side; all have the same axis of steps.

    The margins are fixed: a layout that measures every label takes matplotlib three times as long, and the live board
    draws this figure again and again.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    columns, rows = min(COLUMNS, len(panels)), -(-len(panels) // COLUMNS)
    width, height = 4.2 * columns, 3.1 * rows + 0.35 * bool(title)
    figure = Figure(figsize=(width, height))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    top = 0.35 + 0.35 * bool(title)
    figure.subplots_adjust(
        left=0.6 / width, right=1 - 0.1 / width, bottom=0.5 / height, top=1 - top / height, wspace=0.19, hspace=0.38
    )
    if title:
        figure.suptitle(title, fontsize=11, color="0.3", y=1 - 0.06 / height, va="top")
    for axis in axes[len(panels) :]:
        axis.remove()
    end = last_step(panels)
    for axis, panel in zip(axes, panels):
        areas = [line for line in panel.lines if panel.stacked and line.style == "line"]
        if areas:
            shares = [[0.0 if math.isnan(y) else y for y in line.ys] for line in areas]
            points = thin_out(list(zip(areas[0].xs, *shares)))
            axis.stackplot(
                *zip(*points), colors=[line.color for line in areas], alpha=0.75, labels=[line.label for line in areas]
            )
        for line in panel.lines:
            if line not in areas:
                _draw_line(axis, line)
        axis.set(xlim=(-0.03 * end, 1.03 * end), ylim=value_limits(panel))
        axis.set_xlabel("step", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
        axis.set_title(panel.title, fontsize=10, fontweight="bold", loc="left")
        axis.set_title(panel.unit, fontsize=8, loc="right", color="0.3")
        if panel.percent:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=panel.stacked, fontsize=8, loc="best")
    return figure


def _draw_line(axis: Any, line: Line) -> None:
    if line.style == "points" or len(line.xs) == 1:
        bars = [[y - low for y, low in zip(line.ys, line.low)], [high - y for y, high in zip(line.ys, line.high)]]
        axis.errorbar(
            line.xs, line.ys, bars if line.low else None, color=line.color, fmt="o", capsize=4, label=line.label
        )
        return
    xs, ys, *edges = zip(
        *thin_out(list(zip(*(values for values in (line.xs, line.ys, line.low, line.high) if values))))
    )
    if edges:
        axis.fill_between(xs, *edges, color=line.color, alpha=0.18, linewidth=0)
    styles = {"faint": {"alpha": 0.35, "linewidth": 1}, "dashed": {"linewidth": 1.3, "linestyle": "--"}}
    axis.plot(xs, ys, color=line.color, label=line.label or None, **styles.get(line.style, {"linewidth": 2}))


def last_step(panels: list[Panel]) -> float:
    """The last step of any panel, where the axis of all of them ends; 1 at least."""
    return max([1.0, *(x for panel in panels for line in panel.lines for x in line.xs)])


def value_limits(panel: Panel) -> tuple[float, float]:
    """(lowest, highest) value that a panel shows: 0 to 1 for shares, else 0 or below to above the highest."""
    if panel.percent:
        return 0.0, 1.0
    values = [v for line in panel.lines for v in (*line.ys, *line.low, *line.high) if math.isfinite(v)]
    low, high = min(0.0, *values), max(0.0, *values)
    room = (high - low) * 0.06 or 1.0
    return low - (room if low < 0 else 0), high + room


def thin_out(points: list[Any]) -> list[Any]:
    """At most about POINTS of the points, evenly spaced; the last one always stays."""
    every = -(-len(points) // POINTS) or 1
    return points if every == 1 else [*points[:-1:every], points[-1]]


@styled
def draw_plan(plan: Any) -> Any:
    """A memory plan as a matplotlib figure: a bar per place (GPU, host, disk) of its parts at its peak, and its size.

    Args:
        plan: a `planning.fit.Plan`.

    Returns:
        The figure. If a place is far larger than needed, the axis ends before its size; the title gives the size.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 0.5 + 1.5 * len(plan.needs)), layout="constrained")
    verdict = "fits" if plan.fits else "does not fit"
    figure.suptitle(
        f"{plan.config.policy.model} on {plan.device.name}: {verdict} (computed, not measured)", fontsize=11
    )
    for axis, (place, need) in zip(figure.subplots(len(plan.needs), squeeze=False).flat, plan.needs.items()):
        unit, size = ("GiB", 2**30) if need.nbytes >= 2**28 else ("MiB", 2**20)
        needed, capacity = need.nbytes / size, (need.has or 0) / size
        rows = sorted(plan.at_peak(place), key=lambda row: -row.nbytes)
        shown = [row for row in rows if row.nbytes > 0.005 * need.nbytes][: len(PART_COLORS)]
        parts = [(row.part, row.nbytes / size, color) for row, color in zip(shown, PART_COLORS)]
        if rest := sum(row.nbytes for row in rows[len(shown) :]) / size:
            parts.append((f"{len(rows) - len(shown)} more", rest, GREY))
        left = 0.0
        for part, width, color in parts:
            label = f"{part} {width:,.2f}" if width >= 0.005 else f"{part} <0.01"
            axis.barh(0, width, left=left, color=color, height=0.6, label=label, edgecolor="white", linewidth=0.8)
            left += width
        is_near = 0 < capacity <= 2.5 * needed
        if is_near:
            axis.axvline(capacity, color=RED, linewidth=2, label="available")
        axis.set(xlim=(0, 1.04 * max(needed, capacity if is_near or not capacity else 1.5 * needed)), yticks=[])
        phase = "" if place.startswith("disk") else f" at its peak (phase {need.phase})"
        available = f"{need.has / 2**30:,.2f} GiB available" if need.has else "available space not known"
        axis.set_title(f"{place}: {needed:,.2f} {unit} needed{phase}; {available}", fontsize=9, loc="left")
        axis.set_xlabel(unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def draw_environments(report: Mapping[str, Any]) -> Any:
    """The accuracy of each environment before and after training, with 95 % intervals, as a matplotlib figure.

    Args:
        report: what `evaluation.compare.compare` returns, of a run with several environments.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    sides = {name: report[name]["by"]["environment"] for name in ("before", "after")}
    names = list(sides["before"])
    figure = Figure(figsize=(7.5, 0.8 + 0.6 * len(names)), layout="constrained")
    axis = figure.subplots()
    for (name, groups), color, shift in zip(sides.items(), (ORANGE, GREEN), (0.13, -0.13)):
        values = [groups[environment]["pass@1"] for environment in names]
        edges = [groups[environment]["ci95"] for environment in names]
        errors = [[value - low, high - value] for value, (low, high) in zip(values, edges)]
        heights = [len(names) - 1 - place + shift for place in range(len(names))]
        axis.errorbar(values, heights, xerr=list(zip(*errors)), fmt="o", capsize=4, color=color, label=name)
    axis.set(xlim=(0, 1), yticks=range(len(names) - 1, -1, -1), ylim=(-0.6, len(names) - 0.4))
    axis.set_yticklabels(names)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.set_title("Right answers to held-out tasks, 95 % interval", fontsize=10, loc="left")
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def draw_expert_load(load: Mapping[str, Any]) -> Any:
    """How full the experts are before and after training, and in which layers choices changed, as a matplotlib figure.

    On the left a layer's experts are sorted from the fullest to the emptiest; the curve is the mean over the layers.

    Args:
        load: from `planning.expert_load.read_load`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(4.2, 3.1), layout="constrained")
    sorted_load, changes = figure.subplots(1, 2, width_ratios=(3, 2))
    for key, label, color in (("hits_before", "before", ORANGE), ("hits", "after", GREEN)):
        layers = [[count * len(row) / max(1, sum(row)) for count in sorted(row, reverse=True)] for row in load[key]]
        means = [sum(place) / len(layers) for place in zip(*layers)]
        sorted_load.plot(
            range(1, len(means) + 1), means, color=color, label=label, marker="." if len(means) < 20 else ""
        )
    sorted_load.axhline(1.0, color=GREY, linewidth=1, linestyle="--")
    sorted_load.set(xlabel="experts of a layer, the fullest first", ylim=(0, None))
    sorted_load.set_title("Load over the mean", fontsize=9, fontweight="bold", loc="left")
    sorted_load.legend(fontsize=8, frameon=False)
    changes.barh([str(layer) for layer in load["layers"]], load["changed"], color=BLUE)
    changes.set(ylabel="layer", xlim=(0, max([0.01, *load["changed"]]) * 1.05))
    changes.invert_yaxis()
    changes.set_title("Choice changed", fontsize=9, fontweight="bold", loc="left")
    changes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    changes.xaxis.set_major_locator(MaxNLocator(2))
    sorted_load.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axis in (sorted_load, changes):
        axis.tick_params(labelsize=7)
        axis.xaxis.label.set_size(8)
        axis.yaxis.label.set_size(8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
