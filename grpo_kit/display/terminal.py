"""What a person sees in the terminal: a stage at work, the accuracies side by side, where everything lies."""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from grpo_kit.adapters.findings import Finding
from grpo_kit.display import run_figures
from grpo_kit.policy.chat import split_thinking
from grpo_kit.runs import processes
from grpo_kit.runs.run import Run

# Of several processes the first one shows.
out, err = (Console(highlight=False, soft_wrap=True, stderr=e, quiet=not processes.is_first()) for e in (False, True))
out.soft_wrap = not out.is_jupyter  # under a cell a long line would have to be scrolled


@contextlib.contextmanager
def show_stage(run: Run, name: str, doing: str) -> Iterator[Callable[..., None]]:
    """Show a stage: a progress bar while it works, then one line that says what was done or skipped."""
    before = run.stages().get(name)
    with show_progress(doing) as show:
        yield show
    note = run.stages()[name]
    if note == before:
        out.print(
            f"[dim]{name:<8} skipped: done on {note['finished'][:10]} in {note['seconds']:.0f} s; --force repeats it[/]"
        )
    else:
        out.print(f"{name:<8} done in {note['seconds']:.1f} s")


@contextlib.contextmanager
def show_progress(doing: str) -> Iterator[Callable[..., None]]:
    """A progress bar while something works; call what it gives with (done, total, note)."""
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(doing, total=None)

        def show(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"{doing} {note}")

        yield show


def follow_training(run: Run, steps: int, show: Callable[..., None]) -> Callable[[dict[str, Any]], None]:
    """What to call with each metrics row: the figures beside the progress bar, and each alarm printed as it rings."""
    rows: list[dict[str, Any]] = []

    def step(row: dict[str, Any]) -> None:
        rows.append(row)
        found = run_figures.summarise_run(run, rows[-9:])
        short = {
            "reward": "reward {}",
            "groups with a gradient": "gradient {}",
            "cut off": "cut {}",
            "tokens a second": "{} tok/s",
        }
        show(row["step"], steps, ", ".join(form.format(found[key]) for key, form in short.items() if key in found))
        for sentence in row.get("alarms") or []:
            err.print(f"[yellow]step {row['step']}: {escape(sentence)}[/]")

    return step


def print_forecast(found: dict[str, Any]) -> None:
    """What the probe step found: the longest step fits, and how long it and the run take at most."""
    step = found["sampling_seconds"] + found["training_seconds"]
    peak = "" if found["peak_bytes"] is None else f", {found['peak_bytes'] / 2**30:.2f} GiB on the GPU"
    out.print(
        f"         the longest step fits ({found['prompt_tokens']} + {found['completion_tokens']} tokens{peak}); at most "
        f"{step:.1f} s a step, {found['steps']} steps in {run_figures.format_duration(found['seconds'])}"
    )


def print_placement(found: dict[str, Any]) -> None:
    """What `calibrate` counted, and what putting the coldest experts on the host is worth."""
    out.print(
        f"{found['rows']:,} rows of {found['prompts']} prompts and their completions were routed.\n"
        f"With {found['experts_on_host']:.1%} of the experts on the host, {found['host_share_last']:.1%} of the rows go there when each "
        f"layer's last ones lie there, and {found['host_share_coldest']:.1%} with the coldest there, as from now on."
    )


def print_screening(found: dict[str, Any], band: list[float]) -> None:
    """What `screen` found: how many prompts are kept, a histogram of pass rates, and what stopping early saved."""
    reasons = ", ".join(f"{found[why]} {why}" for why in ("too hard", "too easy", "gold cannot be used") if found[why])
    out.print(
        f"         {found['kept']} of {found['prompts']} prompts kept, pass rate {band[0]:g} to {band[1]:g}; left out: {reasons or 'none'}"
    )
    if len(found["sources"]) > 1:
        out.print("         " + ", ".join(f"{name} {kept} of {of}" for name, (kept, of) in found["sources"].items()))
    for place, count in enumerate(found["histogram"]):
        bar = "\u2588" * round(40 * count / max(found["histogram"]))
        out.print(f"         {place / 10:.1f} to {(place + 1) / 10:.1f}  {bar} {count}")
    share = found["samples"] / found["at_most"]
    out.print(
        f"         {found['samples']} samples, {share:.0%} of the {found['at_most']} without stopping early; "
        f"{found['undecided']} prompts judged by pass rate alone"
    )


def print_machine_check(findings: list[tuple[str, str, bool, str]]) -> None:
    """A table of (what, what was found, whether that is fine, the remedy if not)."""
    table = Table("what", "found", "verdict")
    table.columns[1].overflow = "fold"
    for what, found, fine, remedy in findings:
        table.add_row(what, escape(found), "[green]ok[/]" if fine else f"[red]{escape(remedy)}[/]")
    out.print(table)


def print_plan(found: Any) -> None:
    """A `planning.fit.Plan`: what each place holds when it is fullest, the largest settings that fit, and the verdict."""
    count = found.device.processes
    where = f"{found.device.name}, one of {count} processes; the host's of all" if count > 1 else found.device.name
    table = Table("place", "part", "GiB", "how counted", title=f"{found.config.policy.model} on {where}")
    table.columns[2].justify = "right"
    for place, need in found.needs.items():
        for row in sorted(found.at_peak(place), key=lambda row: -row.nbytes):
            mark = "" if row.kind == "computed" else f" ({row.kind})"
            table.add_row(place, row.part, f"{row.nbytes / 2**30:.2f}", escape(row.source) + mark)
        has = "unknown" if need.has is None else f"{need.has / 2**30:.2f}" + " nominal" * found.device.nominal
        table.add_row(
            place,
            f"[bold]sum in {need.phase}[/]",
            f"[bold]{need.nbytes / 2**30:.2f}[/]",
            f"there is {has}",
            end_section=True,
        )
    out.print(table)
    for key, value in found.largest.items():
        out.print(f"largest grpo.{key}, the others as configured: {value or 'none'}")
    if found.bandwidths is None:
        seconds = f"not estimated, no bandwidth of {found.device.name} was measured; run this there without --device"
    else:
        (sampling, training), most = found.seconds, found.sampling_all
        first, every, last = (f"{n:.1f}" if n >= 10 else f"{n:.2g}" for n in (sampling, most, training))
        more = f" ({every} s with every replacement, asked at once)" if most > sampling else ""
        seconds = f"sampling {first} s{more}, training {last} s, at best; measured here: "
        pcie = f"{found.bandwidths.pcie_gb_s:.1f} GB/s over PCIe, " if found.device.gpu else ""
        seconds += f"{found.bandwidths.vram_gb_s:.0f} GB/s of memory, {pcie}{found.bandwidths.matmul_tflops:.2f} TFLOPS"
    out.print(f"step time: {seconds}\n{escape(found.verdict)}")


def print_two_gpus(found: list[Any]) -> None:
    """Both `two_gpus.GpuLayout`s to use a machine's GPUs: whether they fit, what limits them, and how long a step takes where known."""
    table = Table("way", "fits", "limited by", "in words", title="two ways to use these GPUs", show_lines=True)
    for way in found:
        best = f"\nA step at best: {sum(way.plan.seconds):.1f} s." if way.plan and way.plan.seconds else ""
        table.add_row(way.name, "yes" if way.fits else "no", way.limit, escape(way.verdict) + best)
    if found:
        out.print(table)


def print_data(manifest: dict[str, Any]) -> None:
    """Where each row went: the funnel, what leaked from which evaluation set, and how many rows each split has."""
    margin = "" if out.is_jupyter else " " * 9  # in the terminal under the word that names the stage
    if manifest["funnel"]:
        table = Table("reason", "dropped", "left", "for example", "why", title=f"{manifest['read']} rows read")
        table.columns[1].justify = table.columns[2].justify = "right"
        for row in manifest["funnel"]:
            example = row["examples"][0]
            said = (f"{example['from']}: {example['problem']}", example["why"])
            table.add_row(
                row["reason"], str(row["dropped"]), str(row["left"]), *(escape(" ".join(t.split())[:60]) for t in said)
            )
        out.print(table)
    for name, hit in manifest["evaluation"].items():
        out.print(
            f"{margin}{name}: {hit['leaked']} of {hit['problems']} problems leaked, by {hit['equal']} equal and "
            f"{hit['overlap']} overlapping rows; {hit['kept']} rows share only a stock phrase"
        )
    if manifest["not_checked"]:
        out.print(
            f"{margin}[yellow]not checked against {', '.join(manifest['not_checked'])}[/]: not here (manifest.json says how to attach)"
        )
    rows = manifest["rows"]
    kept = f"dropped: {sum(manifest['dropped'].values()) or 'none'}"
    out.print(f"{margin}{rows['train']} rows to train on, {rows['val']} val, {rows['test']} test; {kept}")


def print_measurement(found: dict[str, Any]) -> None:
    """One measurement's accuracy, and why vLLM did not make it where it is there and failed its probe."""
    low, high = found["ci95"]
    out.print(f"         pass@1 {found['pass@1']:.3f} (95 % {low:.3f} to {high:.3f}) on {found['n']} held-out problems")
    if (why := found["sampling"]["engine_why"]).startswith(("vLLM failed", "vLLM draws", "vLLM's")):
        out.print(f"         [yellow]drawn by transformers: {escape(why)}[/]")


def print_score(found: dict[str, Any], run: Run) -> None:
    """A rehearsed score, whole and by family, each with its 95 % interval, and what drew it."""
    table = Table(
        "family", "score", "95 % interval", "puzzles", title=f"the challenge's scorer, rehearsed on run {run.name!r}"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, part in [*found["by"].get("family", {}).items(), ("all", found)]:
        table.add_row(escape(name), f"{part['pass@1']:.3f}", "{:.3f} to {:.3f}".format(*part["ci95"]), str(part["n"]))
    out.print(table)
    how, why = found["sampling"], found["sampling"]["engine_why"]
    out.print(
        f"drawn greedily by {escape(how['engine'])}{escape(f' ({why})') if why else ''}; {found['truncated']:.1%} of the answers "
        f"were cut at {how['max_completion_length']} tokens; {run.evaluation / 'score.json'}"
    )


def print_comparison(report: dict[str, Any], run: Run) -> None:
    """Before, after and the difference, each with its 95 % interval, whole and by group; and whether it is real."""
    table = Table(title=f"held-out accuracy of run {run.name!r}")
    for heading in ("", "before", "after", "difference", "95 % interval", "problems"):
        table.add_column(heading, justify="left" if not heading else "right")
    sides = {side: report[side]["pass@1"] for side in ("before", "after")}
    compared = [("pass@1", report | sides)]
    compared += [(f"{kind} {name}", found) for kind, named in report["by"].items() for name, found in named.items()]
    for name, found in compared:
        values = (f"{found['before']:.3f}", f"{found['after']:.3f}", f"{found['difference']:+.3f}")
        table.add_row(escape(name), *values, "{:+.3f} to {:+.3f}".format(*found["difference_ci95"]), str(found["n"]))
    for name in report["before"]["measures"]:
        old, new = (report[side]["measures"].get(name) for side in ("before", "after"))
        if new and name != "pass@1":
            table.add_row(
                name, *(f"{m['value']:.3f}" for m in (old, new)), f"{new['value'] - old['value']:+.3f}", "", ""
            )
    out.print(table)
    out.print(escape(report["words"]))


def print_search(found: dict[str, Any], run: Run) -> None:
    """The trials of a search, the best first, what the best is worth, and how to use it."""
    table = Table(
        "trial", "settings", "step", "accuracy", "95 % interval", "seconds", title=f"search of run {run.name!r}"
    )
    table.columns[1].overflow = "fold"
    for row in found["trials"]:
        state = "" if row["state"] == "complete" else " broken off" if row["state"] == "pruned" else " out of memory"
        accuracy = (
            ("", "") if row["accuracy"] is None else (f"{row['accuracy']:.3f}", "{:.3f} to {:.3f}".format(*row["ci95"]))
        )
        settings = escape("\n".join(row["overrides"])) + "\n(the run's own)" * row["own"]
        table.add_row(f"{row['trial']}", settings, f"{row['step']}{state}", *accuracy, f"{row['seconds']:.0f}")
    out.print(table)
    out.print(escape(found["words"]))
    out.print(
        f"picture: {run.path / 'tune' / 'tune.png'}\nto use the best: {escape(' '.join(found['best']['overrides']))}"
    )


def print_findings(path: Path, found: list[Finding]) -> None:
    """What the doctor says about a zip, the worst first; one column of words, so that it can be read on 80 characters."""
    table = Table("", "finding, what the scorer does, remedy", title=escape(str(path)), show_lines=True)
    table.columns[1].overflow = "fold"
    colour = {"fatal": "[bold red]", "warning": "[yellow]", "ok": "[green]"}
    for finding in found:
        lines = [escape(finding.what)]
        lines += [f"[dim]scorer:[/] {escape(finding.scorer)}"] * bool(finding.scorer)
        lines += [f"[dim]remedy:[/] {escape(finding.remedy)}"] * bool(finding.remedy)
        table.add_row(f"{colour[finding.severity]}{finding.severity}[/]", "\n".join(lines))
    out.print(table)


def print_example(run: Run) -> None:
    """One problem that was guessed wrong before and worked out after: what training changed, in the policy's words."""
    found = {name: {p["id"]: p for p in _problems(run, name)} for name in ("before", "after")}
    for key, old in found["before"].items():
        new = found["after"][key]
        if old["score"] == 0.0 and new["score"] == 1.0 and old["completions"][0].startswith("looks like"):
            out.print(f"\n{escape(old['prompt'])}  (answer {old['answer']})")
            for name, problem in (("before", old), ("after", new)):
                thinking, answer = split_thinking(problem["completions"][0])
                out.print(f"  {name:<7} thinks [italic]{escape(thinking)}[/], answers {escape(answer)}")
            return


def _problems(run: Run, name: str) -> list[dict[str, Any]]:
    return json.loads((run.evaluation / f"{name}.json").read_text())["problems"]


def print_locations(run: Run, zip_path: Path, seconds: float) -> None:
    """Where everything lies, and what to do next."""
    table = Table(title=f"done in {seconds:.0f} s", show_header=False)
    for what, where in (
        ("the zip", zip_path), ("the picture", run.picture), ("the page", run.page),
        ("the accuracies", run.evaluation / "report.json"),
        ("every completion", run.completions), ("the adapter", run.adapter),
    ):  # fmt: skip
        table.add_row(what, str(where))
    command = "grpo-kit" if shutil.which("grpo-kit") else sys.argv[0]  # make calls it inside .venv, unactivated
    out.print("", table)
    out.print(
        "Next: open notebooks/01_setup.ipynb in Colab or Kaggle; or train on your own problems here:\n"
        f"  {command} data -c tiny --run mine data.source=data/gsm8k_sample.jsonl data.val_size=20 data.test_size=50\n"
        f"  {command} train --run mine grpo.max_steps=5"
    )
