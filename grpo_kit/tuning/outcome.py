"""What a search found: its trials with the best first, and whether the best is better than the run's own settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_kit.display.charts import save_figure
from grpo_kit.evaluation.changes import compare_scores
from grpo_kit.evaluation.intervals import mean_interval
from grpo_kit.runs.files import to_json, write_text
from grpo_kit.runs.run import Run
from grpo_kit.tuning.report import draw_trials
from grpo_kit.tuning.space import Axis

NO_TRIAL = "The search was stopped before its first trial ended, so there is nothing to show. Run it again."


def finished_trials(study: Any) -> list[Any]:
    """Trials that need no more work: complete, stopped early, or out of memory."""
    return [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED") or "no_room" in t.user_attrs]


def number_of(trial: Any) -> int:
    """A trial's number in its folder and in tables. A trial that is made again keeps it; Optuna counts it anew."""
    return trial.user_attrs.get("number", trial.number)


def next_number(study: Any) -> int:
    """The number of the trial that is made next."""
    return max(map(number_of, finished_trials(study)), default=-1) + 1


def save_result(study: Any, run: Run) -> dict[str, Any]:
    """Write `tune.json`, and return what it holds."""
    rows = []
    for trial in finished_trials(study):
        scores = [s for s in trial.user_attrs.get("scores", {}).values() if s is not None]
        rows.append(
            {
                "trial": number_of(trial), "state": trial.state.name.lower(), "own": bool(trial.user_attrs.get("own")),
                "overrides": trial.user_attrs.get("overrides", []), "step": max(trial.intermediate_values, default=0),
                "accuracy": sum(scores) / len(scores) if scores else None,
                "ci95": list(mean_interval(scores)) if scores else None,
                "curve": sorted(trial.intermediate_values.items()),
                "seconds": round(trial.duration.total_seconds(), 1),
            }
        )  # fmt: skip
    # Accuracies that differ by no more than rounding are equal, and then the earlier trial is the better one.
    rows.sort(key=lambda row: (row["state"] != "complete", -round(row["accuracy"] or 0, 9)))
    if rows:
        result = {"trials": rows, "best": rows[0], "words": f"{_compare_with_own(study, rows)}{_describe_steps(rows)}"}
    else:
        result = {"trials": [], "best": {"overrides": [], "accuracy": None}, "words": NO_TRIAL}
    write_text(run.path / "tune" / "tune.json", to_json(result, indent=1) + "\n")
    return result


def draw_result(study: Any, run: Run, axes: Mapping[str, Axis]) -> dict[str, Any]:
    """Write `tune.json` and `tune.png`; returns what the first holds."""
    result = save_result(study, run)
    save_figure(draw_trials(result, axes), run.path / "tune" / "tune.png")
    return result


def _compare_with_own(study: Any, rows: Sequence[dict[str, Any]]) -> str:
    """A sentence: whether the best trial is better than the run's own values, and how far that can be trusted."""
    best, own = rows[0], next((row for row in rows if row["own"]), None)
    if best["state"] != "complete" or (own and own["state"] != "complete"):
        return "Nothing can be compared: the trial of the run's own values, or every trial, ran out of memory."
    if own is None:
        return "The run's own values are not in the search space, so there is nothing to compare the best trial with."
    if own is best:
        return "No trial did better than the run's own values."
    scores = {number_of(trial): trial.user_attrs.get("scores", {}) for trial in finished_trials(study)}
    comparison = compare_scores(
        scores[own["trial"]], scores[best["trial"]], ("with the run's own values", f"with trial {best['trial']}")
    )
    caution = f"It is the best of {len(rows)}, chosen on these problems, and so looks better than it is."
    return f"{comparison['words']} {caution}"


def _describe_steps(rows: Sequence[dict[str, Any]]) -> str:
    """A sentence on trials that were stopped early, whose accuracies stand beside those of later steps; or nothing."""
    full, early = ([row for row in rows if row["state"] == state and row["curve"]] for state in ("complete", "pruned"))
    if not full or not early:
        return ""
    *steps, last = (f"{step}" for step, _ in full[0]["curve"][len(full[0]["curve"]) // 2 :])
    means = f"means over steps {', '.join(steps)} and {last}" if steps else f"those at step {last}"
    return (
        f" The accuracies are {means}. A trial that was stopped early has that of its own last steps, which cannot be "
        "compared with them."
    )
