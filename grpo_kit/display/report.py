"""Writes a run as two files that need no server: `report.html`, one page without a script, and `report.png`."""

from typing import Any

from grpo_kit.display import charts, completions, run_figures, templates
from grpo_kit.runs.files import write_text
from grpo_kit.runs.run import Run

STEPS, GROUPS = 5, 4  # how many steps, spread over the run, and groups of each the page shows


def save_report(run: Run) -> None:
    """Write the run's `report.html` and `report.png`, of a finished or an interrupted training.

    Args:
        run: the run folder. What is not measured yet is left out.

    Raises:
        FileNotFoundError: the run has no metrics, so it has not trained yet.

    Example:
        >>> save_report(run); print(run.page, run.picture)          # doctest: +SKIP
        runs/tiny/report.html runs/tiny/report.png
    """
    write_text(run.page, render_page(run))
    charts.save_figure(draw_report(run), run.picture)


def draw_report(run: Run) -> Any:
    """The run's charts as a matplotlib figure, which a notebook displays.

    Raises:
        FileNotFoundError: the run has no metrics.
    """
    return charts.draw_panels(run_figures.build_panels(run, read_steps(run)), f"run {run.name!r}")


def render_page(run: Run) -> str:
    """The run as one HTML page: figures, alarms, charts, and completions of a few steps, their thinking folded.

    Raises:
        FileNotFoundError: the run has no metrics.
    """
    rows = read_steps(run)
    lines, steps = completions.Completions(run.completions), []
    lines.refresh()
    for number in pick_evenly(lines.steps, STEPS):
        groups = lines.groups(number)
        shown = [templates.render_group(group) for group in groups[:GROUPS]]
        steps.append({"number": number, "total": len(groups), "groups": shown})
    return templates.render_page(
        title=f"Run {run.name}",
        figures=templates.render_figures(run_figures.summarise_run(run, rows)),
        alarms=templates.render_alarms(rows),
        chart=templates.render_chart(run_figures.build_panels(run, rows)),
        steps=steps,
    )


def read_steps(run: Run) -> list[dict[str, Any]]:
    """The metrics rows of a run, one per step, whether the training is finished or not.

    Raises:
        FileNotFoundError: the run has not taken a step.
    """
    rows = [row for _, _, row in completions.Tail(run.metrics).new()]
    if not rows:
        run.require_stage("train", "grpo-kit train")
        raise FileNotFoundError(f"{run.metrics} holds no step. Run `grpo-kit train` first.")
    return rows


def pick_evenly(values: list[int], count: int) -> list[int]:
    """At most `count` of the values, evenly spaced, first and last included.

    >>> pick_evenly([1, 2, 3, 4, 5, 6, 7], 3)
    [1, 4, 7]
    """
    if len(values) <= count:
        return values
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]
