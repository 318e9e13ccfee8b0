"""A run as files that need no server: `report.html`, one page without a script, and `report.png`."""

import re
from html import escape
from typing import Any

from grpo_kit.display import charts, completions, run_figures
from grpo_kit.runs.files import write_text
from grpo_kit.runs.run import Run

STEPS, GROUPS = 5, 4  # how many steps, spread over the run, and groups of each the page shows
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title></head>
<body style="font-family:system-ui,sans-serif;color:#222;background:#fff;max-width:1180px;margin:24px auto;padding:0 16px">
<h1 style="font-size:22px">{title}</h1>
{body}
</body></html>
"""


def save(run: Run) -> None:
    """Write the run's `report.html` and `report.png`, each in one step. Raises FileNotFoundError without metrics."""
    write_text(run.page, page(run))
    save_picture(run)


def picture(run: Run) -> Any:
    """A matplotlib figure of the run; what has not been measured is left out. Raises FileNotFoundError without metrics."""
    return charts.picture(run_figures.panels(run, rows_of(run)), f"run {run.name!r}")


def save_picture(run: Run) -> None:
    """Write the picture to the run's `report.png`, in one step."""
    aside = run.picture.with_name(".report.partial.png")
    picture(run).savefig(aside, dpi=120)
    aside.replace(run.picture)


def page(run: Run) -> str:
    """The run as one HTML page: figures, alarms, charts, and completions of a few steps, their thinking folded."""
    rows = rows_of(run)
    body = [figures_html(run_figures.summary(run, rows)), alarms_html(rows)]
    body.append(charts.svg(run_figures.panels(run, rows)))
    lines = completions.Completions(run.completions)
    lines.refresh()
    for step in spread(lines.steps, STEPS):
        groups = lines.groups(step)
        note = f", {GROUPS} of {len(groups)} groups" if len(groups) > GROUPS else ""
        body.append(f"<details open><summary><b>Step {step}</b>{note}</summary>")
        body += [completions.group_html(group) for group in groups[:GROUPS]]
        body.append("</details>")
    return PAGE.format(title=escape(f"Run {run.name}"), body="\n".join(body))


def rows_of(run: Run) -> list[dict[str, Any]]:
    """The metrics rows of a run that has taken a step at least, finished or not. Raises FileNotFoundError otherwise."""
    rows = [row for _, _, row in completions.Tail(run.metrics).new()]
    if not rows:
        run.require_stage("train", "grpo-kit train")
        raise FileNotFoundError(f"{run.metrics} holds no step. Run `grpo-kit train` first.")
    return rows


def figures_html(found: dict[str, str]) -> str:
    """The figures of `figures.summary` as tiles."""
    tiles = "".join(
        '<div style="background:#f2f5f8;border-radius:6px;padding:5px 12px;min-width:70px">'
        f'<div style="font-size:11px;color:#555">{escape(name)}</div>'
        f'<div style="font-size:17px;font-weight:600">{escape(value)}</div></div>'
        for name, value in found.items()
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px;color:#222;font-family:system-ui,sans-serif">{tiles}</div>'


def alarms_html(rows: list[dict[str, Any]], most: int = 6) -> str:
    """The last alarms, each with the step it rang at, commands in it as code; an empty text when none has."""
    return "".join(
        '<div style="background:#fff4e5;border-left:6px solid #d55e00;color:#222;padding:4px 10px;margin:6px 0;'
        f'font-family:system-ui,sans-serif">step {step}: {code_marked(escape(sentence))}</div>'
        for step, sentence in run_figures.alarms(rows)[-most:]
    )


def code_marked(text: str) -> str:
    """`text`, HTML already, with what stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", text)


def spread(values: list[int], count: int) -> list[int]:
    """At most `count` of the values, evenly, first and last included.

    >>> spread([1, 2, 3, 4, 5, 6, 7], 3)
    [1, 4, 7]
    """
    if len(values) <= count:
        return values
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]
