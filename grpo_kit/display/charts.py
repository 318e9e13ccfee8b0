"""Panels drawn: as SVG, which takes milliseconds and needs no library, and by matplotlib, for the picture in a file.

A live chart by matplotlib would cost a training some 0.3 s of one core each time; SVG text is drawn by the browser.
"""

import math
from html import escape
from typing import Any

from grpo_kit.display.run_figures import BLUE, GREEN, GREY, INK, ORANGE, PINK, RED, SKY, Line, Panel

WIDTH, HEIGHT = 320, 216  # of one panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 50, 34
POINTS = 300  # a curve of more is thinned: there are not as many pixels
PALE = "#dddddd"
PARTS = (BLUE, ORANGE, GREEN, PINK, SKY)  # of a plan, the largest ones; the others together are grey


def svg(panels: list[Panel], columns: int = 3) -> str:
    """All panels as one SVG element, `columns` a row; it scales to the width it is given. Safe to put into a page."""
    rows = -(-len(panels) // columns)
    width, height = WIDTH * min(columns, len(panels)), HEIGHT * rows
    last = last_step(panels)
    parts = [
        f'<g transform="translate({WIDTH * (i % columns)} {HEIGHT * (i // columns)})">{_panel(panel, last)}</g>'
        for i, panel in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'style="width:100%;max-width:{width * 1.25:.0f}px;background:#fff;font-family:system-ui,sans-serif">'
        f"{''.join(parts)}</svg>"
    )


def _panel(panel: Panel, x_end: float) -> str:
    low, high = limits(panel)
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> str:
        inside = min(max(y, low), high)
        return f"{LEFT + x / x_end * inner_w:.1f},{TOP + (high - inside) / (high - low) * inner_h:.1f}"

    title = f'{escape(panel.title)}<tspan dx="6" font-size="10" font-weight="400">{escape(panel.unit)}</tspan>'
    parts = [f'<text x="{LEFT}" y="16" font-size="13" font-weight="600" fill="{INK}">{title}</text>']
    for value in ticks(low, high):
        y = at(0, value).split(",")[1]
        parts.append(f'<path d="M{LEFT},{y}H{WIDTH - RIGHT}" stroke="{PALE}" stroke-width=".7"/>')
        parts.append(_text(LEFT - 5, float(y) + 3.5, written(value, panel.percent), anchor="end"))
    for value in (v for v in ticks(0, x_end) if v == int(v)):
        parts.append(_text(float(at(value, low).split(",")[0]), HEIGHT - BOTTOM + 13, f"{value:g}", anchor="middle"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 7, "step", anchor="end"))
    floor: dict[float, float] = {}
    for line in panel.lines:
        parts += _area(line, floor, at) if panel.stacked and line.style == "line" else _curve(line, at)
    return "".join(parts + _legend(panel))


def _area(line: Line, floor: dict[float, float], at: Any) -> list[str]:
    """A share laid on `floor`, which rises by it."""
    points = thinned([(x, y) for x, y in zip(line.xs, line.ys) if not math.isnan(y)])
    base = [at(x, floor.get(x, 0.0)) for x, _ in points]
    for x, y in points:
        floor[x] = floor.get(x, 0.0) + y
    edge = [at(x, floor[x]) for x, _ in points]
    return [f'<path d="M{"L".join(edge + base[::-1])}Z" fill="{line.color}" fill-opacity=".75"/>']


def _curve(line: Line, at: Any) -> list[str]:
    points = [(x, y) for x, y in zip(line.xs, line.ys) if not math.isnan(y)]
    edges = [e for e in zip(line.xs, line.low, line.high) if not any(map(math.isnan, e))]
    if line.style == "points" or len(points) == 1:
        parts = [f'<path d="M{at(x, a)}L{at(x, b)}" stroke="{line.color}" stroke-width="2"/>' for x, a, b in edges]
        for x, y in points:
            cx, cy = at(x, y).split(",")
            parts.append(f'<circle cx="{cx}" cy="{cy}" r="4" fill="{line.color}"/>')
        return parts
    parts = []
    if edges:
        edges = thinned(edges)
        path = "L".join([at(x, b) for x, _, b in edges] + [at(x, a) for x, a, _ in edges[::-1]])
        parts.append(f'<path d="M{path}Z" fill="{line.color}" fill-opacity=".18"/>')
    look = {"faint": 'stroke-width="1" opacity=".35"', "dashed": 'stroke-width="1.4" stroke-dasharray="4 3"'}
    how = look.get(line.style, 'stroke-width="2"')
    path = "L".join(at(x, y) for x, y in thinned(points))
    return [*parts, f'<path d="M{path}" fill="none" stroke="{line.color}" {how} stroke-linejoin="round"/>']


def _legend(panel: Panel) -> list[str]:
    """Names in two rows at most under the title; a letter is taken to be 5.6 pixels wide."""
    parts, x, y = [], LEFT, 31
    for line in (line for line in reversed(panel.lines) if line.label):
        label = line.label if len(line.label) <= 34 else f"{line.label[:33]}…"
        wide = 17 + 5.6 * len(label)
        if x > LEFT and x + wide > WIDTH:
            x, y = LEFT, y + 12
        dashes = 'stroke-dasharray="4 2"' if line.style == "dashed" else ""
        parts.append(f'<path d="M{x},{y - 3}h12" stroke="{line.color}" stroke-width="3" {dashes}/>')
        parts.append(_text(x + 15, y, label))
        x += wide + 8
    return parts


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="10" fill="{INK}" text-anchor="{anchor}">{escape(words)}</text>'


def last_step(panels: list[Panel]) -> float:
    """Where every panel's axis of steps ends, so that they can be compared; 1 at least."""
    return max([1.0, *(x for panel in panels for line in panel.lines for x in line.xs)])


def limits(panel: Panel) -> tuple[float, float]:
    """(lowest, highest) value a panel shows: 0 to 1 for shares, else from 0 or below to a little above the highest."""
    if panel.percent:
        return 0.0, 1.0
    values = [v for line in panel.lines for v in (*line.ys, *line.low, *line.high) if math.isfinite(v)]
    low, high = min(0.0, *values), max(0.0, *values)
    room = (high - low) * 0.06 or 1.0
    return low - (room if low < 0 else 0), high + room


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values from `low` to `high`, about as many as asked, a step of 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 1.1)
    [0.0, 0.5, 1.0]
    """
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(s for s in (power, 2 * power, 5 * power, 10 * power) if s >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def written(value: float, percent: bool) -> str:
    """A tick's label: `50 %`, `1,500` or `0.05`."""
    return f"{value:.0%}".replace("%", " %") if percent else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def thinned(points: list[Any]) -> list[Any]:
    """At most about POINTS of them, evenly, the last one always."""
    every = -(-len(points) // POINTS) or 1
    return points if every == 1 else [*points[:-1:every], points[-1]]


def picture(panels: list[Panel], title: str, columns: int = 3) -> Any:
    """The same panels as a `matplotlib.figure.Figure`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * min(columns, len(panels)), 3.1 * rows + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=11, color="0.3")
    axes = figure.subplots(rows, min(columns, len(panels)), squeeze=False).flat
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes, panels):
        areas = [line for line in panel.lines if panel.stacked and line.style == "line"]
        if areas:
            whole = [[0.0 if math.isnan(y) else y for y in line.ys] for line in areas]
            axis.stackplot(areas[0].xs, whole, colors=[line.color for line in areas], alpha=0.75,
                           labels=[line.label for line in areas])  # fmt: skip
        for line in panel.lines:
            if line not in areas:
                _plot(axis, line)
        room = last_step(panels) * 0.03
        axis.set(xlim=(-room, last_step(panels) + room), ylim=limits(panel), xlabel="step")
        axis.set_title(panel.title, fontsize=10, fontweight="bold", loc="left")
        axis.set_title(panel.unit, fontsize=8, loc="right", color="0.3")
        if panel.percent:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=panel.stacked, fontsize=8, loc="best")
    return figure


def plan(found: Any) -> Any:
    """A `planning.fit.Plan` as a `matplotlib.figure.Figure`: for each place a bar of its parts when it is fullest, and what there is.

    Where far more is there than needed, the axis ends before it and says so.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 0.5 + 1.5 * len(found.needs)), layout="constrained")
    verdict = "fits" if found.fits else "does not fit"
    figure.suptitle(
        f"{found.config.policy.model} on {found.device.name}: {verdict} (computed, not measured)", fontsize=11
    )
    for axis, (place, need) in zip(figure.subplots(len(found.needs), squeeze=False).flat, found.needs.items()):
        unit, size = ("GiB", 2**30) if need.nbytes >= 2**28 else ("MiB", 2**20)
        needed, has = need.nbytes / size, (need.has or 0) / size
        rows = sorted(found.at_peak(place), key=lambda row: -row.nbytes)
        seen = [row for row in rows if row.nbytes > 0.005 * need.nbytes][: len(PARTS)]
        parts = [(row.part, row.nbytes / size, color) for row, color in zip(seen, PARTS)]
        if rest := sum(row.nbytes for row in rows[len(seen) :]) / size:
            parts.append((f"{len(rows) - len(seen)} more", rest, GREY))
        at = 0.0
        for part, width, color in parts:
            label = f"{part} {width:,.2f}" if width >= 0.005 else f"{part} <0.01"
            axis.barh(0, width, left=at, color=color, height=0.6, label=label, edgecolor="white", linewidth=0.8)
            at += width
        if 0 < has <= 2.5 * needed:
            axis.axvline(has, color=RED, linewidth=2, label="what there is")
        axis.set(xlim=(0, 1.04 * max(needed, has if has <= 2.5 * needed else 1.5 * needed)), yticks=[])
        when = "" if place == "disk" else f" when fullest (phase {need.phase})"
        there = f"there is {need.has / 2**30:,.2f} GiB" if has else "how much there is, is not known"
        axis.set_title(f"{place}: {needed:,.2f} {unit}{when}; {there}", fontsize=9, loc="left")
        axis.set_xlabel(unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _plot(axis: Any, line: Line) -> None:
    if line.style == "points" or len(line.xs) == 1:
        bars = [[y - a for y, a in zip(line.ys, line.low)], [b - y for y, b in zip(line.ys, line.high)]]
        axis.errorbar(
            line.xs, line.ys, bars if line.low else None, color=line.color, fmt="o", capsize=4, label=line.label
        )
        return
    if line.low:
        axis.fill_between(line.xs, line.low, line.high, color=line.color, alpha=0.18, linewidth=0)
    look = {"faint": {"alpha": 0.35, "linewidth": 1}, "dashed": {"linewidth": 1.3, "linestyle": "--"}}
    axis.plot(line.xs, line.ys, color=line.color, label=line.label or None, **look.get(line.style, {"linewidth": 2}))
