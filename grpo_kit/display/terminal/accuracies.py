"""Accuracies on the command line: of one measurement, before and after, by stage and mode, of a search's trials."""

import re
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from grpo_kit.display.console import INDENT, out, print_next
from grpo_kit.policy.chat import split_thinking
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run
from grpo_kit.runs.texts import format_change


def print_measurement(report: dict[str, Any]) -> None:
    """One measurement's accuracy, and the reason why vLLM was not used if it is installed but failed its probe."""
    low, high = report["ci95"]
    out.print(
        f"{INDENT}pass@1 {report['pass@1']:.3f} (95 % {low:.3f} to {high:.3f}) on {report['n']} held-out problems"
    )
    calls = report.get("calls", {}).get("undeclared", {})
    if calls.get("value"):
        ends = " to ".join(f"{100 * end:.1f}" for end in calls["ci95"])
        out.print(f"{INDENT}{100 * calls['value']:.1f} % of replies call a tool that nobody offered (95 % {ends})")
    reason = report["sampling"]["engine_why"]
    if re.match("vLLM(?! (does not import|cannot be imported|is not installed))", reason):
        out.print(f"{INDENT}[yellow]sampled by transformers: {escape(reason)}[/]")


def print_score(report: dict[str, Any], run: Run) -> None:
    """A rehearsed score, in all and by family, each with its 95 % interval, and how it was sampled."""
    title = escape(f"the challenge's scorer, rehearsed on run {run.name!r}")
    table = Table("family", "score", "95 % interval", "puzzles", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, part in [*report["by"].get("family", {}).items(), ("all", report)]:
        table.add_row(escape(name), f"{part['pass@1']:.3f}", _interval(part["ci95"]), str(part["n"]))
    out.print(table)
    sampling = report["sampling"]
    reason = f" ({sampling['engine_why']})" if sampling["engine_why"] else ""
    out.print(
        f"sampled greedily by {escape(sampling['engine'] + reason)}; {report['truncated']:.1%} of the answers were cut "
        f"at {sampling['max_completion_length']} tokens; {escape(str(run.evaluation / 'score.json'))}"
    )


def print_comparison(report: dict[str, Any], run: Run) -> None:
    """Accuracy before and after, and the difference with its interval, in all and by group."""
    table = Table(title=escape(f"held-out accuracy of run {run.name!r}"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "before", "after", "change", "95 % interval", "problems"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=bool(heading))
    comparisons = [("pass@1", report | {side: report[side]["pass@1"] for side in ("before", "after")})]
    for kind, groups in report["by"].items():
        comparisons += [(f"{kind} {name}", group) for name, group in groups.items()]
    for name, part in comparisons:
        values = (f"{part['before']:.3f}", f"{part['after']:.3f}", format_change(part["difference"], 3))
        table.add_row(escape(name), *values, _change_interval(part["difference_ci95"]), str(part["n"]))
    for name, old in report["before"]["measures"].items():
        new = report["after"]["measures"].get(name)
        if new and name != "pass@1":
            change = new["value"] - old["value"]
            table.add_row(name, f"{old['value']:.3f}", f"{new['value']:.3f}", format_change(change, 3), "", "")
    out.print(table)
    if len(report.get("stages", [])) > 2:
        print_stages(report["stages"])
    if report.get("modes"):
        print_modes(report["modes"])
    for sentence in [
        report["words"],
        *report.get("environments", []),
        *report.get("calls", []),
        *report.get("experts", []),
    ]:
        out.print(escape(sentence))


def print_stages(rows: list[dict[str, Any]]) -> None:
    """The accuracy of the untrained policy and after each stage, each with the difference from the one before."""
    table = Table(title="stage by stage", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "pass@1", "95 % interval", "change", "95 % interval", "tokens", "cut"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=bool(heading))
    for row in rows:
        change = ("", "")
        if "difference" in row:
            change = (format_change(row["difference"], 3), _change_interval(row["difference_ci95"]))
        length = (f"{row['mean_tokens']:,.0f}", f"{row['truncated']:.0%}")
        accuracy = (f"{row['pass@1']:.3f}", _interval(row["ci95"]))
        table.add_row(row["measurement"].replace("_", " "), *accuracy, *change, *length)
    out.print(table)


def print_modes(modes: dict[str, dict[str, Any]]) -> None:
    """Accuracy, tokens of thinking and share within the budget in each mode, before and after, each with its interval.

    Args:
        modes: `modes` of the reports of `measure` (one policy) or `compare` (two).
    """
    table = Table(title="by mode of thinking", box=box.SIMPLE_HEAD, padding=0)
    for heading in ("mode", "pass@1", "95 % interval", "thinking", "95 % interval", "within", "95 %"):
        table.add_column(heading, justify="left" if heading == "mode" else "right", no_wrap=True)
    for mode, figures in modes.items():
        for side in [side for side in ("before", "after") if side in figures] or [""]:
            own, within = figures[side] if side else figures, ("", "")
            if "within" in own:
                within = (f"{own['within']:.0%}", "{:.0f}-{:.0f}%".format(*(100 * end for end in own["within_ci95"])))
            length = (f"{own['thinking']:,.0f}", "{:,.0f} to {:,.0f}".format(*own["thinking_ci95"]))
            accuracy = (f"{own['pass@1']:.3f}", _interval(own["ci95"]))
            table.add_row(f"{mode} {side}", *accuracy, *length, *within)
        if "difference" in figures:
            length = (format_change(figures["thinking_difference"], 0),)
            length += (" to ".join(format_change(end, 0) for end in figures["thinking_difference_ci95"]),)
            accuracy = (format_change(figures["difference"], 3), _change_interval(figures["difference_ci95"]))
            table.add_row(f"{mode} change", *accuracy, *length, "", "", end_section=True)
    out.print(table)


def print_example(run: Run) -> None:
    """One problem that the policy guessed wrong before training and worked out after it, in its own words."""
    files = {name: read_json(run.evaluation / f"{name}.json") for name in ("before", "after")}
    after = {problem["id"]: problem for problem in files["after"]["problems"]}
    for old in files["before"]["problems"]:
        new = after[old["id"]]
        if old["score"] == 0.0 and new["score"] == 1.0 and old["completions"][0].startswith("looks like"):
            out.print(f"\n{escape(old['prompt'])}  (answer {escape(str(old['answer']))})")
            for name, problem in (("before", old), ("after", new)):
                thinking, answer = split_thinking(problem["completions"][0])
                out.print(f"  {name:<7} thinks [italic]{escape(thinking)}[/], answers {escape(answer)}")
            return


def print_search(result: dict[str, Any], run: Run) -> None:
    """The trials of a search, the best first, what the best is worth, and how to use it."""
    title = escape(f"search of run {run.name!r}")
    table = Table("trial", "settings", title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("step", "accuracy", "95 % interval", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    states = {"complete": "", "pruned": "\n(stopped early)"}
    for row in result["trials"]:
        accuracy = ("", "") if row["accuracy"] is None else (f"{row['accuracy']:.3f}", _interval(row["ci95"]))
        # A long setting wraps at the spaces, so that no number is split.
        settings = escape("\n".join(override.replace("=", " = ", 1) for override in row["overrides"]))
        settings += "\n(the run's own)" * row["own"]
        settings += states.get(row["state"], "\n(out of memory)")
        table.add_row(f"{row['trial']}", settings, f"{row['step']}", *accuracy, f"{row['seconds']:.0f}")
    out.print(table)
    out.print(escape(result["words"]))
    out.print(f"picture: {escape(str(run.path / 'tune' / 'tune.png'))}")
    name = f"{run.name}-best"
    print_next(["data", "-c", str(run.config), "--run", name], ["train", "--run", name, *result["best"]["overrides"]])


def _interval(interval: list[float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _change_interval(interval: list[float]) -> str:
    return " to ".join(format_change(end, 3) for end in interval)
