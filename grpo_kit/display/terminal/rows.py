"""The rows of a run on the command line: prepared, screened by pass rate, and the texts that `sft` learns from."""

import textwrap
from typing import Any

from rich.markup import escape
from rich.table import Table

from grpo_kit.display.console import INDENT, out


def print_data(manifest: dict[str, Any]) -> None:
    """Where each row went: rows dropped by reason, rows leaked from evaluation sets, and rows in each split."""
    indent = "" if out.is_jupyter else INDENT
    if manifest["funnel"]:
        table = Table("reason", "dropped", "left", "for example", "detail", title=f"{manifest['read']} rows read")
        table.columns[1].justify = table.columns[2].justify = "right"
        for step in manifest["funnel"]:
            example = step["examples"][0]
            texts = (f"{example['from']}: {example['problem']}", example["why"])
            short = (escape(textwrap.shorten(text, 90, placeholder=" ...")) for text in texts)
            table.add_row(step["reason"], str(step["dropped"]), str(step["left"]), *short)
        out.print(table)
    for note in (note for source in manifest["sources"] for note in source.get("notes", [])):
        out.print(f"{indent}{escape(note)}")
    for name, hit in manifest["evaluation"].items():
        out.print(
            f"{indent}{escape(name)}: {hit['leaked']} of {hit['problems']} problems leaked, by {hit['equal']} equal "
            f"and {hit['overlap']} overlapping rows; {hit['kept']} rows share only a stock phrase"
        )
    if manifest["not_checked"]:
        names = escape(", ".join(manifest["not_checked"]))
        out.print(
            f"{indent}[yellow]not checked against {names}[/]: missing here (manifest.json says how to attach them)"
        )
    rows = manifest["rows"]
    dropped = f"dropped: {sum(manifest['dropped'].values()) or 'none'}"
    out.print(f"{indent}{rows['train']} rows to train on, {rows['val']} val, {rows['test']} test; {dropped}")
    if len(environments := manifest.get("environments", {})) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in environments.items())
        out.print(f"{indent}by environment: {escape(counts)}")


def print_screening(summary: dict[str, Any], band: list[float]) -> None:
    """The result of `screen`: prompts kept and left out, a histogram of pass rates, and what stopping early saved."""
    counts = {reason: summary[reason] for reason in ("too hard", "too easy", "gold cannot be used")}
    left_out = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "none"
    kept = f"{summary['kept']} of {summary['prompts']} prompts kept, pass rate {band[0]:g} to {band[1]:g}"
    out.print(f"{INDENT}{kept}; left out: {left_out}")
    for groups in (summary["sources"], summary["environments"]):
        if len(groups) > 1:
            shares = (f"{name} {kept} of {total}" for name, (kept, total) in groups.items())
            out.print(INDENT + escape(", ".join(shares)))
    for place, count in enumerate(summary["histogram"]):
        bar = "\u2588" * round(40 * count / max(summary["histogram"]))
        out.print(f"{INDENT}{place / 10:.1f} to {(place + 1) / 10:.1f}  {bar} {count}")
    samples, most = summary["samples"], summary["at_most"]
    out.print(
        f"{INDENT}{samples} samples, {samples / most:.0%} of the {most} without stopping early; "
        f"{summary['undecided']} prompts judged by pass rate alone"
    )


def print_texts(summary: dict[str, Any]) -> None:
    """What `sft` learns from: rows and their lengths, what is left out and why, and traces by family."""
    tokens, share = summary["tokens"], summary["trained"]["sum"] / summary["tokens"]["sum"]
    lengths = f"{tokens['median']:,} tokens (median), {tokens['longest']:,} at most"
    out.print(f"{INDENT}{summary['rows']:,} texts of {lengths}; {share:.0%} of the tokens are trained")
    for reason, group in summary["left_out"].items():
        first = group["examples"][0]
        sentence = f"{group['count']:,} left out ({reason}): {first['place']}: {first['detail'].rstrip('.')}"
        longest = f"; the longest has {group['longest']:,} tokens" if "longest" in group else ""
        out.print(f"{INDENT}{escape(sentence + longest)}")
    for entry in summary.get("families", []):
        if entry["rows"]:
            within = ", ".join(f"{share:.0%} within {limit:,}" for limit, share in entry["within"].items())
            lengths = f"{entry['median']:,} tokens (median), {entry['longest']:,} at most; {within}"
            out.print(f"{INDENT}{escape(entry['family'])}: {entry['rows']:,} traces of {lengths}")


def print_weakest(report: dict[str, Any], most: int = 3) -> None:
    """Where the trained policy is least sure of the texts, and so where greedy decoding fails first."""
    lowest = "no number" if report["lowest"] is None else f"{report['lowest']:.2f} nats"
    sentence = (
        f"greedy decoding writes {report['greedy']:.0%} of {report['texts']:,} texts whole; the least likely token of "
        f"a text has {lowest} (median). The lowest:"
    )
    out.print(textwrap.fill(sentence, 110, initial_indent=INDENT, subsequent_indent=INDENT))
    for row in report["rows"][:most]:
        log_prob = "NaN" if row["logprob"] is None else f"{row['logprob']:.2f}"
        out.print(f"{INDENT}{log_prob} {escape(row['place'])}, token {row['token']:,}: {escape(row['text'])}")
