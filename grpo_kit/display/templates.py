"""HTML for the live board and the report, from Jinja templates that escape every value.

Completions are written by a policy and may hold anything, so they never become markup, and a long one is cut.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from grpo_kit.display import charts
from grpo_kit.display.completions import first_reward, reward_color
from grpo_kit.display.panels import GREEN, GREY, ORANGE, Panel
from grpo_kit.display.run_figures import LATEST, Row, average_latest, format_duration, list_alarms
from grpo_kit.display.turns import read_turns
from grpo_kit.policy.chat import split_thinking
from grpo_kit.runs.texts import show_controls

LONGEST = 4000  # characters that are shown of a completion's thinking, and of its answer
MOST = 16  # completions of one group that are shown
STATES = {"complete": "", "pruned": "stopped early"}  # of a trial; in any other one it ran out of memory


def mark_code(text: str) -> Markup:
    """`text` escaped, with the words between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(show_controls(text)))))


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=lambda value: show_controls(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"mark_code": mark_code, "thousands": "{:,}".format}
PARTS = ENVIRONMENT.get_template("parts.html").module


def render_page(**values: Any) -> str:
    """`report.html` filled with `values`."""
    return ENVIRONMENT.get_template("report.html").render(**values)


def render_figures(figures: dict[str, str], rows: Sequence[Row] = ()) -> Markup:
    """Figures as tiles, such as those of `run_figures.summarise_run`; below them the means of the last metrics rows."""
    return PARTS.figures(figures, average_latest(list(rows)), min(LATEST, len(rows)))


def render_alarms(rows: list[Row], most: int = 6, word: Callable[[str], str] = str) -> Markup:
    """The last alarms of a run, each with the step that raised it; empty when there are none.

    Args:
        rows: the run's metrics rows.
        most: how many are shown.
        word: rewords the sentence of an alarm.
    """
    return PARTS.alarms([(step, word(sentence)) for step, sentence in list_alarms(rows)[-most:]])


def render_chart(panels: list[Panel]) -> Markup:
    """The panels as one image that needs no other file; empty when there are none."""
    if not panels:
        return Markup()
    url = charts.image_url(charts.draw_panels(panels))
    return PARTS.chart(url, [panel.title for panel in panels], min(charts.COLUMNS, len(panels)))


def render_charts(panels: list[Panel]) -> list[Markup]:
    """Each panel as an image of its own, so that a page can put them below one another on a narrow screen."""
    return [render_chart([panel]) for panel in panels]


def render_expert_load(load: dict[str, Any]) -> Markup:
    """The chart of the experts' load, from `planning.expert_load.read_load`, as an image that needs no other file."""
    return PARTS.chart(charts.image_url(charts.draw_expert_load(load)), ["Load of the experts"], 1)


def render_group(group: list[dict[str, Any]]) -> Markup:
    """One group's prompt, reference answer and completions, with their rewards, which also give the colour.

    Thinking is folded, and so are the results of calls.

    Args:
        group: lines of `completions.jsonl` that answer the same prompt.
    """
    lines = []
    for line in group[:MOST]:
        thinking, final = split_thinking(line["completion"])
        rewards = " · ".join(
            f"{name} {'not judged' if value is None else f'{value:.3g}'}" for name, value in line["rewards"].items()
        )
        lines.append(
            {
                "prompt": line["prompt"],
                "answer": str(line["answer"]),
                "rewards": rewards,
                "color": reward_color(first_reward(line), group),
                "thinking": thinking,
                "final": final,
                "turns": read_turns(line.get("turns") or ()),
            }
        )
    return PARTS.group(lines, max(0, len(group) - MOST), LONGEST)


def render_replies(question: str, columns: list[dict[str, Any]]) -> Markup:
    """A question and its replies side by side; `columns` as `replies.NotebookReplies` makes them."""
    return PARTS.replies(question, columns, 25 * LONGEST)


def render_trials(result: Mapping[str, Any], most: int | None = None) -> Markup:
    """The trials of a search as a table, the best first, with each accuracy and its interval on one scale.

    The best trial is green and the trial of the run's own settings orange, as in the chart.

    Args:
        result: what `tune` returns.
        most: how many are shown; None: all.
    """
    rows = result["trials"][:most]
    ends = [end for row in rows if row["ci95"] for end in row["ci95"]] or [0.0, 1.0]
    low, high = math.floor(min(ends) * 10) / 10, math.ceil(max(ends) * 10) / 10
    high = max(high, low + 0.1)
    keys = [override.split("=", 1)[0] for override in result["best"]["overrides"]]
    lines = []
    for row in rows:
        notes = ["best"] * (row["trial"] == result["best"]["trial"]) + ["the run's own"] * row["own"]
        notes += [note] if (note := STATES.get(row["state"], "out of memory")) else []
        line = {
            "trial": row["trial"], "note": ", ".join(notes), "step": row["step"], "accuracy": "", "interval": "",
            "color": GREEN if "best" in notes else ORANGE if row["own"] else GREY,
            "seconds": format_duration(row["seconds"]),
            "settings": [override.split("=", 1)[1] for override in row["overrides"]],
        }  # fmt: skip
        if row["ci95"]:
            ends = (row["ci95"][0], row["accuracy"], row["ci95"][1])
            start, mean, end = (100 * (value - low) / (high - low) for value in ends)
            line |= {"low": f"{start:.1f}", "mean": f"{mean:.1f}", "width": f"{end - start:.1f}"}
            line |= {"accuracy": f"{row['accuracy']:.1%}", "interval": "{:.1%} to {:.1%}".format(*row["ci95"])}
        lines.append(line)
    return PARTS.trials(lines, keys, (f"{low:.0%}", f"{high:.0%}"))
