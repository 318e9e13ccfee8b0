"""Writes a run as two files that need no server: `report.html`, one page without a script, and `report.png`."""

import math
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from grpo_kit.config import to_yaml
from grpo_kit.display import charts, completions, run_figures, templates
from grpo_kit.display.panels import Panel, build_panels
from grpo_kit.planning import expert_load
from grpo_kit.runs.files import write_text
from grpo_kit.runs.reading import remedy_for
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import load_run_config
from grpo_kit.runs.texts import format_time
from grpo_kit.runs.trained import MEASURED, TRAINING

NAMES = {"sft": "SFT", "train": "GRPO", "prefer": "DPO"}  # of the stages that train
STEPS, GROUPS = 5, 4  # how many steps, spread over the run, and groups of each the page shows


def save_report(run: Run) -> None:
    """Write the run's `report.html` and `report.png`, of a finished or an interrupted training.

    Args:
        run: the run folder. What is not measured yet is left out.

    Raises:
        FileNotFoundError: the run has no metrics, so it has not trained yet.
        ValueError: one of the run's files is damaged.

    Example:
        >>> save_report(run); print(run.page, run.picture)          # doctest: +SKIP
        runs/tiny/report.html runs/tiny/report.png
    """
    write_text(run.page, render_page(run))
    charts.save_figure(draw_report(run), run.picture)


def draw_report(run: Run, title: str | None = None, has_accuracy: bool = True, finished: bool = False) -> Any:
    """The run's charts as a matplotlib figure, which `report.png` shows.

    Args:
        run: the run.
        title: the text above; None for the run's name.
        has_accuracy: whether the accuracies are among them.
        finished: whether to leave out the steps of a training that goes on and has not ended yet.

    Raises:
        FileNotFoundError: the run has no metrics.
    """
    title, trainings = f"run {run.name!r}" if title is None else title, read_trainings(run)
    if finished:
        ends = {stage: record.get("steps", math.inf) for stage, record in run.stages().items()}
        trainings = {
            stage: [row for row in rows if row["step"] <= ends[stage]]
            for stage, rows in trainings.items()
            if stage in ends
        }
    return charts.draw_panels(_build_all_panels(run, trainings, has_accuracy), title)


def render_page(run: Run) -> str:
    """The run as one HTML page: what it is, figures, alarms, charts, settings, and completions of a few steps, folded.

    Raises:
        FileNotFoundError: the run has no metrics.
    """
    trainings = read_trainings(run)
    last = list(trainings)[-1]
    lines, steps = completions.Completions(run.completions), []
    lines.refresh()
    for number in pick_evenly(lines.steps, STEPS):
        groups = lines.groups(number)
        shown = [templates.render_group(group) for group in groups[:GROUPS]]
        steps.append({"number": number, "total": len(groups), "groups": shown})
    return templates.render_page(
        title=f"Run {run.name}",
        facts=describe_facts(run),
        verdict=read_verdict(run),
        figures=templates.render_figures(run_figures.summarise_run(run, trainings[last], stage=last), trainings[last]),
        alarms=templates.render_alarms(trainings[last]),
        charts=templates.render_charts(_build_all_panels(run, trainings)) + _render_expert_load(run),
        folded=_describe_settings(run),
        steps=steps,
    )


def describe_facts(run: Run) -> dict[str, str]:
    """What was trained, when, on what and with which versions, as {name: text}; what is not recorded is left out."""
    stages, settings = run.stages(), _read_settings(run)
    trained = run.trained_stages()
    record = stages[trained[-1]] if trained else (list(stages.values()) or [{}])[-1]
    facts = {"model": settings.get("policy", {}).get("model")}
    if trained:
        duration = run_figures.format_duration(record["seconds"])
        facts["trained"] = f"{format_time(record['finished'])}, in {duration}"
    else:
        written = [run.stage_files(stage).metrics for stage in TRAINING]
        last = max(path.stat().st_mtime for path in written if path.exists())
        facts["trained"] = f"not finished; last step {format_time(datetime.fromtimestamp(last, UTC))}"
    environment = record.get("environment", {})
    if environment:
        facts["machine"] = environment.get("gpu") or f"{environment.get('cpus')} processor cores, no GPU"
        packages = {"Python": environment.get("python")} | environment.get("packages", {})
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        facts["commit"] = (environment.get("commit") or "")[:12]
    return {name: text for name, text in facts.items() if text}


def read_verdict(run: Run) -> str:
    """The sentence on whether accuracy before and after training really differ, or which measurement is missing."""
    reports, last = run_figures.read_accuracies(run), MEASURED[(run.trained_stages() or ["train"])[-1]]
    missing = [word for word, name in (("before", "before"), ("after", last)) if name not in reports]
    if missing:
        return f"Accuracy {' and '.join(missing)} training is not measured yet; `grpo-kit evaluate` does it."
    comparison = run_figures.read_report(run.evaluation / "report.json") or {}
    sides = {"before": reports["before"], "after": reports[last]}
    if all(comparison.get(side, {}).get("pass@1") == report["pass@1"] for side, report in sides.items()):
        return " ".join(
            [
                comparison["words"],
                *comparison.get("environments", []),
                *comparison.get("calls", []),
                *comparison.get("experts", []),
            ]
        )
    return "Accuracy before and after training are not compared yet; `grpo-kit evaluate` does it."


def _render_expert_load(run: Run) -> list[Any]:
    """The chart of the experts' load before and after training; none where it was not measured."""
    path = expert_load.find_load_file(run)
    return [templates.render_expert_load(expert_load.read_load(path))] if path else []


def _read_settings(run: Run) -> dict[str, Any]:
    """The configuration that the last finished stage wrote; empty without one."""
    return asdict(load_run_config(run)) if run.config.exists() else {}


def _describe_settings(run: Run) -> dict[str, str]:
    """All settings as YAML, under a heading that says whose they are."""
    finished = bool(run.trained_stages())
    heading = "Settings" if finished else "Settings of the last finished stage"
    return {heading: to_yaml(load_run_config(run))} if run.config.exists() else {}


def read_trainings(run: Run) -> dict[str, list[dict[str, Any]]]:
    """{stage: its metrics rows} of each stage that trains, in their order, whether it is finished or not.

    Raises:
        FileNotFoundError: the run has not taken a step.
        ValueError: a stage is trained, and its file has no step.
    """
    trainings = {}
    for stage in TRAINING:
        metrics = run.stage_files(stage).metrics
        if rows := [row for _, _, row in completions.Tail(metrics).new()]:
            trainings[stage] = rows
        elif stage in run.stages():
            run.require_stage(stage, f"grpo-kit {stage}")
            raise ValueError(f"{metrics} is damaged: it has no step. {remedy_for(metrics)}")
    if not trainings:
        run.require_stage("train", "grpo-kit train")
    return trainings


def _build_all_panels(run: Run, trainings: dict[str, list[dict[str, Any]]], has_accuracy: bool = True) -> list[Panel]:
    """The panels of every training, with its name where there are several; accuracies are the last one's."""
    panels = []
    for stage, rows in trainings.items():
        has_own = has_accuracy and stage == list(trainings)[-1]
        own = build_panels(run, rows, stage, has_accuracy=has_own)
        named = f"{NAMES[stage]}: " if len(trainings) > 1 else ""
        panels += [replace(panel, title=f"{named}{panel.title}") for panel in own]
    return panels


def pick_evenly(values: list[int], count: int) -> list[int]:
    """At most `count` of the values, evenly spaced, first and last included.

    >>> pick_evenly([1, 2, 3, 4, 5, 6, 7], 3)
    [1, 4, 7]
    """
    if len(values) <= count:
        return values
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]
