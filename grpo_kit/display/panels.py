"""The charts of a run as panels of curves, from its metrics rows.

A row that lacks a figure leaves a gap in the curve, and a panel without any figure is left out.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from grpo_kit.display.run_figures import (
    RECENT,
    Row,
    gradient_shares,
    learns_texts,
    list_names,
    metric_values,
    read_accuracies,
    sampled_shares,
    validation_points,
)
from grpo_kit.runs.run import Run
from grpo_kit.runs.trained import MEASURED, TRAINING

# The palette of Okabe and Ito (Color Universal Design, 2008): the colours differ for every kind of colour vision.
BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#9a9a9a"
INK = "#333333"


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: its name in the legend; empty for none.
        color: as `#rrggbb`.
        xs: steps.
        ys: values, NaN for a gap.
        low: lower edge of its band or error bars; empty for none.
        high: upper edge.
        style: `line`, `faint`, `dashed`, or `points` (with error bars instead of a band).
    """

    label: str
    color: str
    xs: list[float]
    ys: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    style: str = "line"


@dataclass(frozen=True)
class Panel:
    """One small chart.

    Attributes:
        title: what it shows.
        unit: of the values.
        lines: the curves.
        percent: the axis runs from 0 % to 100 % for values from 0 to 1.
        stacked: lines of the style `line` are shares, drawn on top of one another.
    """

    title: str
    unit: str
    lines: list[Line]
    percent: bool = False
    stacked: bool = False


def build_panels(run: Run, rows: list[Row], stage: str = "train", has_accuracy: bool = True) -> list[Panel]:
    """The charts of one of a run's trainings: reward, accuracy, groups, length, speed, and memory (else entropy).

    Where there are several environments, also the right completions and the groups with a gradient of each; where there
    are several modes of thinking, or thoughts are cut, the tokens of thinking and the share within a budget. Of the
    stage `sft` the loss and the right tokens; of the stage `prefer` the rewards and log-probs of both sides of its
    pairs, and the share that is learned.
    """
    panels = [
        _loss_panel(rows),
        _simple_panel("Right tokens", "share of trained tokens", rows, "mean_token_accuracy", "likeliest", GREEN, True)
        if learns_texts(rows)
        else None,
        _reward_panel(rows),
        _pairs_panel(rows, "rewards", "Rewards of pairs", "nats times beta"),
        _pairs_panel(rows, "logps", "Log-prob of pairs", "nats a reply"),
        _simple_panel("Pairs learned", "share of pairs", rows, "rewards/accuracies", "chosen gained more", BLUE, True),
        _accuracy_panel(run, rows, stage) if has_accuracy else None,
        _panel_by(rows, "environments", "right", "Right", "by environment, of completions"),
        _panel_by(rows, "environments", "with_gradient", "With a gradient", "by environment, of groups"),
        _panel_by(rows, "modes", "thinking", "Thinking", "tokens, by mode", percent=False),
        _panel_by(rows, "modes", "within", "Within the budget", "by stated budget, of completions"),
        _groups_panel(rows),
        _length_panel(rows),
        _simple_panel("Speed", "tokens a second", rows, "tokens_per_second", "sampled and trained on", BLUE)
        or _simple_panel("Speed", "seconds a step", rows, "step_time", "sampling and training", BLUE),
        _simple_panel("Memory in use", "GiB", rows, "memory_gib", "GPU peak", PINK)
        or _simple_panel("Entropy of the policy", "nats a token", rows, "entropy", "mean over tokens", PINK),
    ]
    return [panel for panel in panels if panel]


def moving_average(values: list[float], window: int = RECENT) -> list[float]:
    """Centred moving average over `window` steps, shorter at the ends. Gaps (NaN) do not count, and stay gaps."""
    half, means = window // 2, []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)]
        means.append(value if math.isnan(value) else sum(near) / len(near))
    return means


def _steps(rows: list[Row]) -> list[float]:
    return [row["step"] for row in rows]


def _loss_panel(rows: list[Row]) -> Panel | None:
    if not learns_texts(rows):
        return None
    xs, losses = _steps(rows), metric_values(rows, "loss")
    lines = [
        Line("", BLUE, xs, losses, style="faint"),
        Line(f"mean of {RECENT} steps", BLUE, xs, moving_average(losses)),
    ]
    return Panel("Loss of the texts", "nats a token", lines)


def _reward_panel(rows: list[Row]) -> Panel | None:
    xs, total = _steps(rows), metric_values(rows, "reward")
    if all(map(math.isnan, total)):
        return None
    names = dict.fromkeys(key for row in rows for key in row if key.startswith("rewards/") and key.endswith("/mean"))
    lines = [
        Line(name.split("/")[1], color, xs, moving_average(metric_values(rows, name)), style="dashed")
        for name, color in zip(names, (ORANGE, GREEN, PINK, RED, SKY, GREY))
    ]
    lines.append(Line("", BLUE, xs, total, style="faint"))
    lines.append(Line(f"weighted sum, mean of {RECENT} steps", BLUE, xs, moving_average(total)))
    return Panel("Reward", "of the sampled completions", lines)


def _pairs_panel(rows: list[Row], kind: str, title: str, unit: str) -> Panel | None:
    lines = [
        Line(side, color, _steps(rows), moving_average(values))
        for side, color in (("chosen", GREEN), ("rejected", RED))
        if not all(map(math.isnan, values := metric_values(rows, f"{kind}/{side}")))
    ]
    return Panel(title, unit, lines) if lines else None


def _panel_by(rows: list[Row], kind: str, key: str, title: str, unit: str, percent: bool = True) -> Panel | None:
    lines = [
        Line(name, color, _steps(rows), moving_average(values))
        for name, color in zip(list_names(rows, kind), (BLUE, ORANGE, GREEN, PINK, RED, SKY, GREY))
        if not all(map(math.isnan, values := metric_values(rows, f"{kind}/{name}/{key}")))
    ]
    return Panel(title, unit, lines, percent) if lines else None


def _accuracy_panel(run: Run, rows: list[Row], stage: str) -> Panel | None:
    """Accuracies by step; those of earlier stages stand where this one begins."""
    own = [MEASURED[name] for name in TRAINING[TRAINING.index(stage) :]]
    points = validation_points(rows)
    lines = [_accuracy_line("validation rows", BLUE, points, "line")] if points else []
    for (name, report), color in zip(read_accuracies(run).items(), (ORANGE, GREEN, PINK, SKY)):
        step = rows[-1]["step"] if rows and name in own else 0
        points = [(step, report["pass@1"], report["ci95"])]
        lines.append(_accuracy_line(f"test split, {name.replace('_', ' ')}", color, points, "points"))
    return Panel("Held-out accuracy", "95 % interval", lines, percent=True) if lines else None


def _accuracy_line(label: str, color: str, points: list[tuple[int, float, Any]], style: str) -> Line:
    xs, ys, intervals = zip(*points)
    low, high = zip(*[interval or (y, y) for y, interval in zip(ys, intervals)])
    return Line(label, color, list(xs), list(ys), list(low), list(high), style)


def _groups_panel(rows: list[Row]) -> Panel | None:
    """The groups as they were sampled, by kind; dashed: the share with a gradient after some were replaced."""
    share, replaced = gradient_shares(rows), metric_values(rows, "groups/replaced")
    if all(map(math.isnan, share)):
        return None
    parts = [("with a gradient", BLUE, sampled_shares(rows))]
    for name, color in (("all_right", GREEN), ("all_wrong", RED), ("truncated", ORANGE), ("unjudged", GREY)):
        values = metric_values(rows, f"groups/{name}")
        if any(values) and not all(map(math.isnan, values)):
            parts.append((name.replace("_", " "), color, values))
    lines = [Line(label, color, _steps(rows), moving_average(values)) for label, color, values in parts]
    if any(more > 0 for more in replaced):
        lines.append(Line("after replacement", INK, _steps(rows), moving_average(share), style="dashed"))
    return Panel("Groups with a gradient", "share of groups", lines, percent=True, stacked=True)


def _length_panel(rows: list[Row]) -> Panel | None:
    mean = metric_values(rows, "completions/mean_length")
    if all(map(math.isnan, mean)):
        return None
    low, high = (metric_values(rows, f"completions/{edge}_length") for edge in ("min", "max"))
    line = Line("mean, from shortest to longest", BLUE, _steps(rows), mean, low, high)
    return Panel("Completion length", "tokens", [line])


def _simple_panel(
    title: str, unit: str, rows: list[Row], key: str, label: str, color: str, percent: bool = False
) -> Panel | None:
    values = metric_values(rows, key)
    if all(map(math.isnan, values)):
        return None
    return Panel(title, unit, [Line(label, color, _steps(rows), values)], percent)
