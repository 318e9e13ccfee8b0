"""What the command line prints: the end of a stage and its result, and tables of data and accuracies."""

import contextlib
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from grpo_kit.adapters.findings import Finding
from grpo_kit.display import run_figures
from grpo_kit.display.console import INDENT, err, out, print_next, show_progress
from grpo_kit.policy.chat import split_thinking
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run
from grpo_kit.runs.texts import format_time

COLORS = {"fatal": "[bold red]", "warning": "[yellow]", "ok": "[green]"}


@contextlib.contextmanager
def show_stage(run: Run, name: str, doing: str, force: bool = False) -> Iterator[Callable[..., None]]:
    """Show a progress bar while a stage works, then one line that says whether it is done or skipped.

    A stage that was forced and left its record as it was found nothing to do; its command says why.
    """
    before = run.stages().get(name)
    with show_progress(doing) as show:
        yield show
    note = run.stages().get(name)
    if note is None or force and note == before:
        return
    if note == before:
        time, seconds = format_time(note["finished"]), f"{note['seconds']:.0f}"
        out.print(f"[dim]{name:<8} skipped: done on {time} in {seconds} s; --force repeats it[/]")
    else:
        out.print(f"{name:<8} done in {note['seconds']:.1f} s")


def follow_training(
    run: Run, steps: int, show: Callable[..., None], stage: str = "train"
) -> Callable[[dict[str, Any]], None]:
    """A function to call with each metrics row: it shows figures beside the progress bar and prints each alarm."""
    rows: list[dict[str, Any]] = []
    forms = {
        "loss": "loss {}",
        "right tokens": "{} of tokens right",
        "reward": "reward {}",
        "groups with a gradient": "gradient {}",
        "cut off": "cut {}",
        "pairs learned": "pairs {}",
        "margin": "margin {}",
        "tokens a second": "{} tok/s",
        "rows to the host": "host {}",
    }

    def on_step(row: dict[str, Any]) -> None:
        rows.append(row)
        figures = run_figures.summarise_run(run, rows[-run_figures.RECENT :], stage=stage)
        show(row["step"], steps, ", ".join(form.format(figures[key]) for key, form in forms.items() if key in figures))
        for sentence in row.get("alarms") or []:
            err.print(f"[yellow]step {row['step']}: {escape(sentence)}[/]")

    return on_step


def print_forecast(forecast: dict[str, Any]) -> None:
    """The result of the probe step: the longest step fits, and how long it and the run take at most."""
    step = forecast["sampling_seconds"] + forecast["training_seconds"]
    peak = "" if forecast["peak_bytes"] is None else f", {forecast['peak_bytes'] / 2**30:.2f} GiB on the GPU"
    tokens = f"{forecast['prompt_tokens']} + {forecast['completion_tokens']} tokens"
    duration = run_figures.format_duration(forecast["seconds"])
    if "lora" in forecast:
        out.print(f"{INDENT}{escape(forecast['lora'])}")
    if forecast.get("experts"):
        out.print(f"{INDENT}{escape(forecast['experts'])}")
    out.print(
        f"{INDENT}the longest step fits ({tokens}{peak}); at most {step:.1f} s a step, "
        f"{forecast['steps']} steps in {duration}"
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


def print_placement(result: dict[str, Any]) -> None:
    """The result of `calibrate`: how many token rows were routed, and what placing the coldest experts saves."""
    out.print(
        f"Counted {result['rows']:,} token rows of {result['prompts']} prompts and their completions.\n"
        f"With {result['experts_on_host']:.1%} of the experts in host memory, {result['host_share_last']:.1%} of the "
        f"rows need them when each layer's last experts are there, and {result['host_share_coldest']:.1%} when the "
        "coldest are there. From now on, the coldest experts go there, in each run that has not counted by itself."
    )


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
        values = (f"{part['before']:.3f}", f"{part['after']:.3f}", f"{part['difference']:+.3f}")
        table.add_row(escape(name), *values, _interval(part["difference_ci95"], "+"), str(part["n"]))
    for name, old in report["before"]["measures"].items():
        new = report["after"]["measures"].get(name)
        if new and name != "pass@1":
            change = new["value"] - old["value"]
            table.add_row(name, f"{old['value']:.3f}", f"{new['value']:.3f}", f"{change:+.3f}", "", "")
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
            change = (f"{row['difference']:+.3f}", _interval(row["difference_ci95"], "+"))
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
        if "difference" in figures:  # whole numbers, so that none is -0
            length = (f"{round(figures['thinking_difference']):+,}",)
            length += ("{:+,} to {:+,}".format(*map(round, figures["thinking_difference_ci95"])),)
            accuracy = (f"{figures['difference']:+.3f}", _interval(figures["difference_ci95"], "+"))
            table.add_row(f"{mode} change", *accuracy, *length, "", "", end_section=True)
    out.print(table)


def print_expert_load(run: Run) -> None:
    """The load of the experts before and after training, layer by layer; a sentence where it was not measured."""
    from grpo_kit.planning import expert_load  # it imports torch, and this file is light

    path = expert_load.find_load_file(run)
    if path is None:
        out.print("No load of experts was measured: the policy has none, or vLLM sampled (evaluation.use_vllm=true).")
        return
    load = expert_load.read_load(path)
    columns = ("layer", "fullest over mean", "entropy", "unused", "choice changed", "stayed", "hot on the slower tier")
    table = Table(title="load of the experts, before and after", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    hot = expert_load.find_hot(load)
    sides = (expert_load.describe_layers(load[key]) for key in ("hits_before", "hits"))
    for number, old, new, changed, stayed in zip(load["layers"], *sides, load["changed"], load["overlap"], strict=True):
        table.add_row(
            f"{number}",
            f"{old.max_violation + 1:.2f} {new.max_violation + 1:.2f}",
            f"{old.entropy:.3f} {new.entropy:.3f}",
            f"{old.unused} {new.unused}",
            f"{changed:.1%}",
            f"{stayed:.1%}",
            ", ".join(str(expert) for layer, expert in hot if layer == number),
        )
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
    count = f"{pairs['count']} {'pair' if pairs['count'] == 1 else 'pairs'}"
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


def _interval(interval: list[float], sign: str = "") -> str:
    return f"{interval[0]:{sign}.3f} to {interval[1]:{sign}.3f}"


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


def print_locations(run: Run, zip_path: Path, seconds: float) -> None:
    """Where the results of `demo` lie, and what to do next."""
    out.print(f"\ndone in {seconds:.0f} s")
    for name, path in (
        ("the zip", zip_path),
        ("the picture", run.picture),
        ("the page", run.page),
        ("the accuracies", run.evaluation / "report.json"),
        ("every completion", run.completions),
        ("the adapter", run.adapter),
    ):
        out.print(f"  {name:<17}{escape(str(path))}")
    out.print("\nOpen notebooks/00_quickstart.ipynb in Colab or Kaggle, or train on your own problems here:")
    rows = ["data.source=data/gsm8k_sample.jsonl", "data.val_size=20", "data.test_size=50"]
    print_next(["data", "-c", "tiny", "--run", "mine", *rows], ["train", "--run", "mine", "grpo.max_steps=5"])
