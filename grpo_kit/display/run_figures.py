"""What a run's metrics rows show: the panels to draw, and the few figures that people ask for first.

A row that lacks a figure leaves a gap in the curve, and a panel without any figure is left out.
"""

import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run
from grpo_kit.runs.trained import MEASURED, TRAINING

Row = dict[str, Any]
# The palette of Okabe and Ito (Color Universal Design, 2008): the colours differ for every kind of colour vision.
BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#9a9a9a"
INK = "#333333"
RECENT = 9  # rows that a mean is taken over, in the summary and in smoothed curves


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
        if _learns_texts(rows)
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


def summarise_run(run: Run, rows: list[Row], is_training: bool = False, stage: str = "train") -> dict[str, str]:
    """The figures to show first, as {name: value in words}: step, reward or loss, shares, accuracies, memory and time.

    Reward, shares and speed are means of the last RECENT rows. A figure that is not known is left out; the time left is
    shown only while the run `is_training`.
    """
    forecast = read_report(run.stage_files(stage).forecast) or {}
    last, steps = rows[-1] if rows else {}, forecast.get("steps")
    figures = {"step": f"{last.get('step', 0)} of {steps}" if steps else f"{last.get('step', 0)}"}
    for name, values, form in (
        ("loss", metric_values(rows, "loss") if _learns_texts(rows) else [], "{:.3f}"),
        ("right tokens", metric_values(rows, "mean_token_accuracy") if _learns_texts(rows) else [], "{:.1%}"),
        ("reward", metric_values(rows, "reward"), "{:.2f}"),
        ("groups with a gradient", gradient_shares(rows), "{:.0%}"),
        ("cut off", metric_values(rows, "completions/clipped_ratio"), "{:.0%}"),
        ("pairs learned", metric_values(rows, "rewards/accuracies"), "{:.0%}"),
        ("margin", metric_values(rows, "rewards/margins"), "{:+.2f}"),
        ("tokens a second", metric_values(rows, "tokens_per_second"), "{:,.0f}"),
    ):
        recent = [value for value in values[-RECENT:] if not math.isnan(value)]
        if recent:
            figures[name] = form.format(sum(recent) / len(recent))
    for kind, label in (("environments", "environment"), ("modes", "thinking")):
        figures |= {f"{label} {name}": _describe(rows, kind, name) for name in _list_names(rows, kind)}
    accuracies = [("validation", value, interval) for _, value, interval in _validation_points(rows)[-1:]]
    accuracies += [
        (f"test {name.replace('_', ' ')}", report["pass@1"], report["ci95"])
        for name, report in read_accuracies(run).items()
    ]
    for mode, row in (read_report(run.evaluation / "report.json") or {}).get("modes", {}).items():
        sides = [row[side] for side in ("before", "after")]
        figures[f"test, thinking {mode}"] = "{:.0%} before, {:.0%} after; ".format(
            *(own["pass@1"] for own in sides)
        ) + "{:,.0f} and {:,.0f} tokens of thinking".format(*(own["thinking"] for own in sides))
    for name, value, interval in accuracies:
        figures[f"accuracy, {name}"] = f"{value:.0%}" + (" ({:.0%} to {:.0%})".format(*interval) if interval else "")
    if shares := [share for share in metric_values(rows, "host_share")[-RECENT:] if not math.isnan(share)]:
        figures["rows to the host"] = f"{sum(shares) / len(shares):.0%}"
        if last.get("experts_on_host"):
            figures["rows to the host"] += f" ({last['experts_on_host']:.0%} of the experts)"
    if last.get("memory_gib"):
        figures["memory"] = f"{last['memory_gib']:.1f} GiB"
    if last.get("skipped_steps"):
        figures["skipped in fp16"] = f"{last['skipped_steps']} steps"
    if rows:
        figures["elapsed"] = format_duration(last["seconds"])
    seconds = estimate_seconds_left(rows, steps, forecast) if is_training else None
    if seconds:
        figures["time left"] = format_duration(seconds) if rows else f"at most {format_duration(seconds)}"
    return figures


def read_accuracies(run: Run) -> dict[str, Row]:
    """The measurements on the test split that are finished, `before` first, without their problems."""
    reports = {name: read_report(run.evaluation / f"{name}.json") for name in ("before", *MEASURED.values())}
    return {name: report for name, report in reports.items() if report}


def read_report(path: Path) -> Row | None:
    """A JSON report of the run without its problems; None if it does not exist yet. An unchanged file is read once."""
    return _read_report(path, path.stat().st_mtime_ns) if path.exists() else None


@functools.lru_cache(maxsize=8)
def _read_report(path: Path, changed: int) -> Row:
    return {key: value for key, value in read_json(path).items() if key != "problems"}


def estimate_seconds_left(rows: list[Row], steps: int | None, forecast: Row) -> float | None:
    """Seconds until the training ends.

    Args:
        rows: the metrics rows so far.
        steps: how many steps the training takes; None if not known.
        forecast: `seconds` for the whole run, as the probe step estimated it; used before the first step.

    Returns:
        The steps left times the mean of the last 20 steps; None if not known.
    """
    if not rows:
        return forecast.get("seconds")
    if not steps:
        return None
    recent = rows[-21:]
    passed, taken = recent[-1]["seconds"] - recent[0]["seconds"], len(recent) - 1
    if passed <= 0:  # one row, or the clock restarted because the run was resumed
        passed, taken = recent[-1]["seconds"], 1
    return max(0.0, steps - rows[-1]["step"]) * passed / taken


def format_duration(seconds: float) -> str:
    """`40 s`, `12 minutes` or `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def list_alarms(rows: list[Row]) -> list[tuple[int, str]]:
    """[(step, sentence)] of the run's alarms and reliefs, each sentence once, with the last step that has it."""
    last = {sentence: row["step"] for row in rows for kind in ("reliefs", "alarms") for sentence in row.get(kind) or []}
    return [(step, sentence) for sentence, step in last.items()]


def metric_values(rows: list[Row], key: str) -> list[float]:
    """One number per row, NaN where a row has none."""
    return [math.nan if row.get(key) is None else float(row[key]) for row in rows]


def gradient_shares(rows: list[Row]) -> list[float]:
    """Share of groups with a gradient, 0 to 1, per row, ours or else from TRL's `frac_reward_zero_std`."""
    zero_std, shares = metric_values(rows, "frac_reward_zero_std"), metric_values(rows, "groups/with_gradient")
    return [1 - zero if math.isnan(share) else share for share, zero in zip(shares, zero_std)]


def moving_average(values: list[float], window: int = RECENT) -> list[float]:
    """Centred moving average over `window` steps, shorter at the ends. Gaps (NaN) do not count, and stay gaps."""
    half, means = window // 2, []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)]
        means.append(value if math.isnan(value) else sum(near) / len(near))
    return means


def _steps(rows: list[Row]) -> list[float]:
    return [row["step"] for row in rows]


def _learns_texts(rows: list[Row]) -> bool:
    """Whether the rows are of the stage `sft`; the losses of the others say little to a reader."""
    return any("mean_token_accuracy" in row and "rewards/chosen" not in row for row in rows)


def _loss_panel(rows: list[Row]) -> Panel | None:
    if not _learns_texts(rows):
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


def _list_names(rows: list[Row], kind: str) -> list[str]:
    """The environments, or the modes of thinking, that the rows have figures of; none where there is only one."""
    return list(dict.fromkeys(key.split("/")[1] for row in rows for key in row if key.startswith(f"{kind}/")))


def _panel_by(rows: list[Row], kind: str, key: str, title: str, unit: str, percent: bool = True) -> Panel | None:
    lines = [
        Line(name, color, _steps(rows), moving_average(values))
        for name, color in zip(_list_names(rows, kind), (BLUE, ORANGE, GREEN, PINK, RED, SKY, GREY))
        if not all(map(math.isnan, values := metric_values(rows, f"{kind}/{name}/{key}")))
    ]
    return Panel(title, unit, lines, percent) if lines else None


def _describe(rows: list[Row], kind: str, name: str) -> str:
    """The recent figures of an environment (in a world also of its turns and calls) or of a mode of thinking."""
    texts = []
    for key, form in (("right", "{:.0%} right"), ("with_gradient", "{:.0%} with a gradient"),
                      ("length", "{:,.0f} tokens"), ("clipped", "{:.0%} cut off"), ("turns", "{:.1f} turns"),
                      ("calls", "{:.1f} calls"), ("failed_calls", "{:.1f} of them failed"),
                      ("unknown_calls", "{:.1f} of unknown tools"),
                      ("malformed_calls", "{:.1f} unreadable"), ("thinking", "{:,.0f} tokens of thinking"),
                      ("within", "{:.0%} within the budget"), ("cut", "{:.0%} closed by force")):  # fmt: skip
        recent = [v for v in metric_values(rows[-RECENT:], f"{kind}/{name}/{key}") if not math.isnan(v)]
        if recent:
            texts.append(form.format(sum(recent) / len(recent)))
    return ", ".join(texts)


def _accuracy_panel(run: Run, rows: list[Row], stage: str) -> Panel | None:
    """Accuracies by step; those of earlier stages stand where this one begins."""
    own = [MEASURED[name] for name in TRAINING[TRAINING.index(stage) :]]
    points = _validation_points(rows)
    lines = [_accuracy_line("validation rows", BLUE, points, "line")] if points else []
    for (name, report), color in zip(read_accuracies(run).items(), (ORANGE, GREEN, PINK, SKY)):
        step = rows[-1]["step"] if rows and name in own else 0
        points = [(step, report["pass@1"], report["ci95"])]
        lines.append(_accuracy_line(f"test split, {name.replace('_', ' ')}", color, points, "points"))
    return Panel("Held-out accuracy", "95 % interval", lines, percent=True) if lines else None


def _validation_points(rows: list[Row]) -> list[tuple[int, float, Any]]:
    """[(step, accuracy on validation rows, its interval)] of the steps at which it was measured."""
    return [(row["step"], row["held_out"], row.get("held_out_ci95")) for row in rows if row.get("held_out") is not None]


def _accuracy_line(label: str, color: str, points: list[tuple[int, float, Any]], style: str) -> Line:
    xs, ys, intervals = zip(*points)
    low, high = zip(*[interval or (y, y) for y, interval in zip(ys, intervals)])
    return Line(label, color, list(xs), list(ys), list(low), list(high), style)


def _groups_panel(rows: list[Row]) -> Panel | None:
    """The groups as they were sampled, by kind; dashed: the share with a gradient after some were replaced."""
    share, replaced = gradient_shares(rows), metric_values(rows, "groups/replaced")
    if all(map(math.isnan, share)):
        return None
    sampled = [after if math.isnan(more) else after - more for after, more in zip(share, replaced)]
    parts = [("with a gradient", BLUE, sampled)]
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
