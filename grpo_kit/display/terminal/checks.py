"""What checks find, on the command line: of a zip, of a judge, and of a run that was repeated."""

import textwrap
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from grpo_kit.adapters.findings import Finding
from grpo_kit.display.console import INDENT, out
from grpo_kit.runs.run import Run
from grpo_kit.runs.texts import format_count

COLORS = {"fatal": "[bold red]", "warning": "[yellow]", "ok": "[green]"}


def print_findings(path: Path, findings: list[Finding]) -> None:
    """The findings of `check` about a zip, the worst first; one column of text, so that 80 characters are enough."""
    out.print(escape(str(path)))
    table = Table("", "finding, what the scorer does, remedy", show_lines=True)
    for finding in findings:
        lines = [escape(finding.what)]
        lines += [f"[dim]scorer:[/] {escape(finding.scorer)}"] * bool(finding.scorer)
        lines += [f"[dim]remedy:[/] {escape(finding.remedy)}"] * bool(finding.remedy)
        table.add_row(f"{COLORS[finding.severity]}{finding.severity}[/]", "\n".join(lines))
    out.print(table)


def print_judge(report: dict[str, Any]) -> None:
    """What `rewards judge-check` measured: shares with their intervals, then sentences."""
    rows = {
        "agrees with the known winner": report["agreement"],
        "the order decides": report["order_decides"],
        "the first answer wins": report["first_wins"],
        "the longer answer wins": report["longer_wins"],
        "the longer answer is right": report["longer_is_right"],
    }
    table = Table(box=box.SIMPLE, show_header=False)
    for name, share in rows.items():
        if share:
            table.add_row(name, f"{share['value']:.3f}", f"95 % {share['ci95'][0]:.3f} to {share['ci95'][1]:.3f}")
    table.add_row("comparisons without a verdict", f"{report['no_verdict']:.3f}", "")
    pairs = report["pairs"]
    count = format_count(pairs["count"], "pair")
    out.print(escape(f"judge    {report['judge']['model']}, on {count} of {pairs['source']}"))
    out.print(table)
    for sentence in report["words"]:
        out.print(escape(textwrap.fill(sentence, 110, initial_indent=INDENT, subsequent_indent=INDENT)))


def print_repetition(run: Run, again: Run, differences: list[str]) -> None:
    """Whether the repetition of a run gave the same adapter, and a line for each difference."""
    same = "the adapter differs" not in differences
    result = "its adapter is the same, bit for bit" if same else "its adapter differs"
    out.print(escape(f"Run {run.name!r} was repeated in {again.path}; {result}."))
    if differences:
        out.print("All differences between the two runs:")
    for sentence in differences:
        out.print(f"  {escape(sentence)}")
