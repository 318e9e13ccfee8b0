"""What a run's metrics rows say: panels to draw, and the few figures a person asks for first.

A row that lacks a figure has a gap there, and a panel without any figure is left out; nothing is made up.
"""

import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_kit.runs.run import Run

Row = dict[str, Any]
# Okabe and Ito's palette (Color Universal Design, 2008), told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#9a9a9a"
INK = "#333333"


@dataclass(frozen=True)
class Line:
    """One curve: `xs` steps, `ys` values (NaN: a gap), `low` and `high` the edges of its band where it has one."""

    label: str
    color: str
    xs: list[float]
    ys: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    style: str = "line"  # line, faint, dashed, or points with bars instead of a band


@dataclass(frozen=True)
class Panel:
    """One small chart. `stacked`: lines of the style `line` are shares laid on one another; `percent`: 0 to 1 is written 0 % to 100 %."""

    title: str
    unit: str
    lines: list[Line]
    percent: bool = False
    stacked: bool = False


def panels(run: Run, rows: list[Row]) -> list[Panel]:
    """The charts of a run, at most six: reward, accuracy, useful groups, length, speed, and memory (else entropy)."""
    memory = _plain("Memory in use", "GiB", rows, ("memory_gib", "GPU peak", PINK))
    found = [
        _reward(rows),
        _accuracy(run, rows),
        _useful(rows),
        _length(rows),
        _plain("Speed", "tokens a second", rows, ("tokens_per_second", "completions sampled and trained on", BLUE))
        or _plain("Speed", "seconds a step", rows, ("step_time", "sampling and training", BLUE)),
        memory or _plain("Entropy of the policy", "nats a token", rows, ("entropy", "mean over completions", PINK)),
    ]
    return [panel for panel in found if panel]


def summary(run: Run, rows: list[Row]) -> dict[str, str]:
    """{name: value in words}, of the last rows: step, reward, useful, accuracy, time left and so on.

    Reward and shares are means of the last 9 rows. What is not known is left out.
    """
    forecast = read(run.forecast) or {}
    last, steps = rows[-1] if rows else {}, forecast.get("steps")
    found = {"step": f"{last.get('step', 0)} of {steps}" if steps else f"{last.get('step', 0)}"}
    for name, values, form in (
        ("reward", column(rows, "reward"), "{:.2f}"),
        ("groups with a gradient", useful_share(rows), "{:.0%}"),
        ("cut off", column(rows, "completions/clipped_ratio"), "{:.0%}"),
        ("tokens a second", column(rows, "tokens_per_second"), "{:,.0f}"),
    ):
        recent = [v for v in values[-9:] if not math.isnan(v)]
        if recent:
            found[name] = form.format(sum(recent) / len(recent))
    accuracies = [("validation", value, interval) for _, value, interval in _held_out(rows)[-1:]]
    accuracies += [(f"test {name}", report["pass@1"], report["ci95"]) for name, report in measured(run).items()]
    for name, value, interval in accuracies:
        found[f"accuracy, {name}"] = f"{value:.0%}" + (" ({:.0%} to {:.0%})".format(*interval) if interval else "")
    if last.get("memory_gib"):
        found["memory"] = f"{last['memory_gib']:.1f} GiB"
    if last.get("skipped_steps"):
        found["skipped in fp16"] = f"{last['skipped_steps']} steps"
    if rows:
        found["elapsed"] = duration(last["seconds"])
    seconds = seconds_left(rows, steps, forecast)
    if seconds:
        found["time left"] = duration(seconds) if rows else f"at most {duration(seconds)}"
    return found


def measured(run: Run) -> dict[str, Row]:
    """The accuracies on the test split that were measured so far: `before` and `after`."""
    found = {name: read(run.evaluation / f"{name}.json") for name in ("before", "after")}
    return {name: report for name, report in found.items() if report}


def read(path: Path) -> Row | None:
    """A report of the run, without its problems; None when it is not there (yet). An unchanged file is read once."""
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else None


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Row:
    found = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key != "problems"}


def seconds_left(rows: list[Row], steps: int | None, forecast: Row) -> float | None:
    """Seconds to the end by the mean of the last 20 steps; by the probe's forecast before the first; None: unknown."""
    if not rows:
        return forecast.get("seconds")
    if not steps:
        return None
    recent = rows[-21:]
    passed, taken = recent[-1]["seconds"] - recent[0]["seconds"], len(recent) - 1
    if passed <= 0:  # one row, or the clock began anew when the run was resumed
        passed, taken = recent[-1]["seconds"], 1
    return max(0.0, steps - rows[-1]["step"]) * passed / taken


def duration(seconds: float) -> str:
    """`40 s`, `12 minutes` or `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def alarms(rows: list[Row]) -> list[tuple[int, str]]:
    """[(step, sentence)] of the alarms that rang, each sentence where it rang last."""
    last = {sentence: row["step"] for row in rows for sentence in row.get("alarms") or []}
    return [(step, sentence) for sentence, step in last.items()]


def column(rows: list[Row], key: str) -> list[float]:
    """One number a row, NaN where a row has none."""
    return [math.nan if row.get(key) is None else float(row[key]) for row in rows]


def useful_share(rows: list[Row]) -> list[float]:
    """Share of groups with a gradient, 0 to 1: `groups/with_gradient`, else what TRL's `frac_reward_zero_std` leaves."""
    flat = column(rows, "frac_reward_zero_std")
    return [1 - zero if math.isnan(share) else share for share, zero in zip(column(rows, "groups/with_gradient"), flat)]


def smooth(values: list[float], window: int = 9) -> list[float]:
    """Centred moving average over `window` steps, shorter at the ends; gaps are passed over, and stay."""
    half, found = window // 2, []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)]
        found.append(value if math.isnan(value) else sum(near) / len(near))
    return found


def _steps(rows: list[Row]) -> list[float]:
    return [row["step"] for row in rows]


def _reward(rows: list[Row]) -> Panel | None:
    xs, total = _steps(rows), column(rows, "reward")
    if all(map(math.isnan, total)):
        return None
    names = dict.fromkeys(key for row in rows for key in row if key.startswith("rewards/") and key.endswith("/mean"))
    lines = [
        Line(name.split("/")[1], color, xs, smooth(column(rows, name)), style="dashed")
        for name, color in zip(names, (ORANGE, GREEN, PINK, RED, SKY, GREY))
    ]
    lines += [Line("", BLUE, xs, total, style="faint"), Line("weighted sum, mean of 9 steps", BLUE, xs, smooth(total))]
    return Panel("Reward", "of the sampled completions", lines)


def _accuracy(run: Run, rows: list[Row]) -> Panel | None:
    points = _held_out(rows)
    lines = [_measured("validation rows", BLUE, points, "line")] if points else []
    for name, report in measured(run).items():
        step, color = (0, ORANGE) if name == "before" else (rows[-1]["step"] if rows else 0, GREEN)
        lines.append(_measured(f"test split, {name}", color, [(step, report["pass@1"], report["ci95"])], "points"))
    return Panel("Held-out accuracy", "95 % interval", lines, percent=True) if lines else None


def _held_out(rows: list[Row]) -> list[tuple[int, float, Any]]:
    return [(row["step"], row["held_out"], row.get("held_out_ci95")) for row in rows if row.get("held_out") is not None]


def _measured(label: str, color: str, points: list[tuple[int, float, Any]], style: str) -> Line:
    xs, ys, intervals = zip(*points)
    low, high = zip(*[interval or (y, y) for y, interval in zip(ys, intervals)])
    return Line(label, color, list(xs), list(ys), list(low), list(high), style)


def _useful(rows: list[Row]) -> Panel | None:
    """The groups as they were drawn, by what became of them; dashed: with a gradient once others had replaced some."""
    share, replaced = useful_share(rows), column(rows, "groups/replaced")
    if all(map(math.isnan, share)):
        return None
    drawn = [after if math.isnan(more) else after - more for after, more in zip(share, replaced)]
    parts = [("with a gradient", BLUE, drawn)]
    for name, color in (("all_right", GREEN), ("all_wrong", RED), ("truncated", ORANGE), ("unjudged", GREY)):
        values = column(rows, f"groups/{name}")
        if any(values) and not all(map(math.isnan, values)):
            parts.append((name.replace("_", " "), color, values))
    lines = [Line(label, color, _steps(rows), smooth(values)) for label, color, values in parts]
    if any(more > 0 for more in replaced):
        lines.append(Line("after replacement", INK, _steps(rows), smooth(share), style="dashed"))
    return Panel("Groups with a gradient", "share of groups", lines, percent=True, stacked=True)


def _length(rows: list[Row]) -> Panel | None:
    mean = column(rows, "completions/mean_length")
    if all(map(math.isnan, mean)):
        return None
    low, high = (column(rows, f"completions/{edge}_length") for edge in ("min", "max"))
    return Panel(
        "Completion length", "tokens", [Line("mean, from shortest to longest", BLUE, _steps(rows), mean, low, high)]
    )


def _plain(title: str, unit: str, rows: list[Row], *curves: tuple[str, str, str]) -> Panel | None:
    lines = [Line(label, color, _steps(rows), column(rows, key)) for key, label, color in curves]
    lines = [line for line in lines if not all(map(math.isnan, line.ys))]
    return Panel(title, unit, lines) if lines else None
