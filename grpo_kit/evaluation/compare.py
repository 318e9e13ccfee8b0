"""Compare the accuracies of a run before training and after each stage, problem by problem.

`evaluation/report.json` compares the untrained policy with the last one, and each stage with the one before, and says
whether they differ.
"""

from collections.abc import Mapping
from typing import Any

from grpo_kit.evaluation import calls, modes, results
from grpo_kit.evaluation.changes import compare_scores
from grpo_kit.planning import expert_load
from grpo_kit.runs.files import list_differences, to_json, write_text
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.records import list_changed_settings
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_run
from grpo_kit.runs.texts import format_change, format_count, name_functions
from grpo_kit.runs.trained import MEASURED


def compare(run: Run) -> dict[str, Any]:
    """Compare the accuracies before and after training, problem by problem.

    Args:
        run: a run that is measured before its training and after its last stage.

    Returns:
        What `evaluation/report.json` holds: `before` and `after` (the last stage's) as measured, without their
        problems; `difference` (after minus before, in [-1, 1]), its 95 % interval `difference_ci95`, whether it is
        `real`, and all of it as `words`; the same by environment, set, source and family under `by`, where there are
        several; `environments`, sentences on which environments gained and which lost; `experts`, sentences on the load
        of the experts, if there are any; `stages`, for each measured policy from the untrained one on its `pass@1`,
        `ci95` and the difference from the one before; `calls`, sentences on what each stage did to calls of tools that
        nobody offered, and on what `prefer` did to accuracy; `modes`, the comparison in each mode of thinking
        (`modes.compare_modes`); `seconds` over all stages.

    Raises:
        FileNotFoundError: one of the two is not measured yet.
        ValueError: the two were measured with different settings.
        TypeError: `run` is not a run.

    Example:
        >>> from grpo_kit import compare, open_run
        >>> config, run = open_run(name="first")
        >>> compare(run)["difference"]  # doctest: +SKIP
        0.56
    """
    require_run(run)
    run.require_stage("before", "grpo-kit evaluate")
    last = MEASURED[run.require_trained()]
    run.require_stage(last, "grpo-kit evaluate")
    stages = run.stages()
    if changes := list_changed_settings(stages["before"]["settings"], stages[last]["settings"]):
        raise ValueError(
            f"Before and after of run {run.name!r} were measured with different settings ({'; '.join(changes[:3])}), "
            "which would be part of their difference. "
            + name_functions("Measure both again with `grpo-kit evaluate --force`.")
        )
    reports = {
        side: read_json(run.evaluation / f"{name}.json") for side, name in (("before", "before"), ("after", last))
    }
    before, after = ({problem["id"]: problem for problem in report["problems"]} for report in reports.values())
    scores = ({key: problem["score"] for key, problem in side.items()} for side in (before, after))
    seconds = {name: note["seconds"] for name, note in stages.items()}
    report = {
        **{name: {key: value for key, value in side.items() if key != "problems"} for name, side in reports.items()},
        **compare_scores(*scores),
        "by": (groups := results.compare_groups(before, after)),
        "environments": results.describe_environments(groups.get("environment", {})),
        "experts": _describe_load(run),
        "stages": (rows := _compare_stages(run)),
        "calls": [sentence for row in rows for sentence in row.get("sentences", [])],
        "modes": modes.compare_modes(run, "before", last),
        "seconds": round(sum(seconds.values()), 2),
        "seconds_by_stage": seconds,
    }
    engines = [side["sampling"]["engine"] for side in reports.values()]
    if engines[0] != engines[1]:
        by = f" Before was sampled by {engines[0]} and after by {engines[1]}"
        report["words"] += f"{by}; part of the difference may come from that."
    drawn = [side["sampling"] for side in reports.values()]
    if drawn[0].get("portion") != drawn[1].get("portion") and drawn[1]["temperature"] > 0:
        report["words"] += (
            " The two were measured by versions of the kit that draw other completions from the same seed. "
            + name_functions("To leave this out of the difference, measure both with `grpo-kit evaluate --force`.")
        )
    path, text = run.evaluation / "report.json", to_json(report, indent=2) + "\n"
    if not (path.is_file() and path.read_bytes() == text.encode()):  # a finished run may lie on a read-only disk
        write_text(path, text)
    return report


def describe_comparison(report: Mapping[str, Any]) -> str:
    """The report of `compare` in words: before, after and the change, and whether it is real."""
    lines = []
    for name in ("before", "after"):
        side, (low, high) = report[name], report[name]["ci95"]
        lines += [
            f"{name.capitalize()}: {side['pass@1']:.1%} of {format_count(side['n'], 'held-out problem')} solved;",
            f"  with 95 % confidence the true rate lies between {low:.1%} and {high:.1%}.",
        ]
    change, low, high = (format_change(100 * points) for points in (report["difference"], *report["difference_ci95"]))
    lines += [
        f"Training changed it by {change} points;",
        f"  with 95 % confidence the true change lies between {low} and {high} points.",
    ]
    return "\n".join([*lines, report["words"].replace("; ", ";\n  "), *report.get("environments", [])])


def _describe_load(run: Run) -> list[str]:
    """What training did to the load of the experts, in sentences; none where it was not measured."""
    path = expert_load.find_load_file(run)
    return expert_load.describe_load(expert_load.read_load(path), path) if path else []


def _compare_stages(run: Run) -> list[dict[str, Any]]:
    """The measured policies in the order of their training, each compared with the one before it.

    One that was measured with other settings than the untrained policy is left out.
    """
    records, table, previous = run.stages(), [], []
    for name in ("before", *(MEASURED[stage] for stage in run.trained_stages())):
        if name not in records or list_differences(records["before"]["settings"], records[name]["settings"]):
            continue
        run.require_stage(name, "grpo-kit evaluate")
        report = read_json(run.evaluation / f"{name}.json")
        problems = report["problems"]
        row = {"measurement": name} | {key: report[key] for key in ("pass@1", "ci95", "n", "mean_tokens", "truncated")}
        if previous:
            row |= compare_scores(*({each["id"]: each["score"] for each in p} for p in (previous, problems)))
            row["calls"] = calls.compare_calls(previous, problems)
            row["sentences"] = results.describe_preferences(row) + calls.describe_calls(row["calls"], name)
        table.append(row)
        previous = problems
    return table
