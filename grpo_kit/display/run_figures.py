"""The few figures of a run that people ask for first, from its metrics rows and its reports."""

import functools
import math
from pathlib import Path
from typing import Any

from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run
from grpo_kit.runs.trained import MEASURED

Row = dict[str, Any]
RECENT = 9  # rows that a mean is taken over in smoothed curves: as many before a step as after it
LATEST = RECENT // 2 + 1  # rows that a figure is a mean of: those that the end of a smoothed curve is a mean of


def summarise_run(run: Run, rows: list[Row], is_training: bool = False, stage: str = "train") -> dict[str, str]:
    """How far the run is, as {name: value in words}: step, accuracies, memory and time.

    A figure that is not known is left out; the time left is shown only while the run `is_training`.
    """
    forecast = read_report(run.stage_files(stage).forecast) or {}
    last, steps = rows[-1] if rows else {}, forecast.get("steps")
    figures = {"step": f"{last.get('step', 0)} of {steps}" if steps else f"{last.get('step', 0)}"}
    accuracies = [("validation", value, interval) for _, value, interval in validation_points(rows)[-1:]]
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


def average_latest(rows: list[Row]) -> dict[str, str]:
    """Means of the last LATEST rows, as {name: value in words}: reward or loss, shares and speed.

    So they are what the smoothed curves end at, with the names that the charts have. A figure that is not known is left
    out.
    """
    figures, latest = {}, rows[-LATEST:]
    is_replaced = any(more > 0 for more in metric_values(rows, "groups/replaced"))
    for name, values, form in (
        ("loss", metric_values(rows, "loss") if learns_texts(rows) else [], "{:.3f}"),
        ("right tokens", metric_values(rows, "mean_token_accuracy") if learns_texts(rows) else [], "{:.1%}"),
        ("reward", metric_values(rows, "reward"), "{:.2f}"),
        ("groups with a gradient", sampled_shares(latest), "{:.0%}"),
        ("after replacement", gradient_shares(latest) if is_replaced else [], "{:.0%}"),
        ("cut off", metric_values(rows, "completions/clipped_ratio"), "{:.0%}"),
        ("pairs learned", metric_values(rows, "rewards/accuracies"), "{:.0%}"),
        ("margin", metric_values(rows, "rewards/margins"), "{:+.2f}"),
        ("tokens a second", metric_values(rows, "tokens_per_second"), "{:,.0f}"),
    ):
        recent = [value for value in values[-LATEST:] if not math.isnan(value)]
        if recent:
            figures[name] = form.format(sum(recent) / len(recent))
    for kind, label in (("environments", "environment"), ("modes", "thinking")):
        figures |= {f"{label} {name}": _describe(rows, kind, name) for name in list_names(rows, kind)}
    if shares := [share for share in metric_values(latest, "host_share") if not math.isnan(share)]:
        figures["rows to the host"] = f"{sum(shares) / len(shares):.0%}"
        if latest[-1].get("experts_on_host"):
            figures["rows to the host"] += f" ({latest[-1]['experts_on_host']:.0%} of the experts)"
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
    """Share of groups with a gradient, 0 to 1, per row, ours or else from TRL's `frac_reward_zero_std`.

    It is of the groups that were trained on, after some were replaced.
    """
    zero_std, shares = metric_values(rows, "frac_reward_zero_std"), metric_values(rows, "groups/with_gradient")
    return [1 - zero if math.isnan(share) else share for share, zero in zip(shares, zero_std)]


def sampled_shares(rows: list[Row]) -> list[float]:
    """Share of groups with a gradient, 0 to 1, per row, as they were sampled first, before any was replaced."""
    replaced = metric_values(rows, "groups/replaced")
    return [after if math.isnan(more) else after - more for after, more in zip(gradient_shares(rows), replaced)]


def learns_texts(rows: list[Row]) -> bool:
    """Whether the rows are of the stage `sft`; the losses of the others say little to a reader."""
    return any("mean_token_accuracy" in row and "rewards/chosen" not in row for row in rows)


def list_names(rows: list[Row], kind: str) -> list[str]:
    """The environments, or the modes of thinking, that the rows have figures of; none where there is only one."""
    return list(dict.fromkeys(key.split("/")[1] for row in rows for key in row if key.startswith(f"{kind}/")))


def validation_points(rows: list[Row]) -> list[tuple[int, float, Any]]:
    """[(step, accuracy on validation rows, its interval)] of the steps at which it was measured."""
    return [(row["step"], row["held_out"], row.get("held_out_ci95")) for row in rows if row.get("held_out") is not None]


def _describe(rows: list[Row], kind: str, name: str) -> str:
    """The recent figures of an environment (in a world also of its turns and calls) or of a mode of thinking."""
    texts = []
    for key, form in (("right", "{:.0%} right"), ("with_gradient", "{:.0%} with a gradient"),
                      ("length", "{:,.0f} tokens"), ("clipped", "{:.0%} cut off"), ("turns", "{:.1f} turns"),
                      ("calls", "{:.1f} calls"), ("failed_calls", "{:.1f} of them failed"),
                      ("unknown_calls", "{:.1f} of unknown tools"),
                      ("malformed_calls", "{:.1f} unreadable"), ("thinking", "{:,.0f} tokens of thinking"),
                      ("within", "{:.0%} within the budget"), ("cut", "{:.0%} closed by force")):  # fmt: skip
        recent = [v for v in metric_values(rows[-LATEST:], f"{kind}/{name}/{key}") if not math.isnan(v)]
        if recent:
            texts.append(form.format(sum(recent) / len(recent)))
    return ", ".join(texts)
