"""What a notebook shows under its cells: tables, charts and completions of a run, each by one call.

IPython, pandas and the charts are imported when something is shown.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_kit.config import MATH, RunConfig, to_yaml
from grpo_kit.display import machine_tables
from grpo_kit.display.notebook_words import reword
from grpo_kit.display.terminal.accuracies import print_example, print_modes, print_stages
from grpo_kit.display.terminal.checks import print_findings
from grpo_kit.display.terminal.experts import print_expert_load
from grpo_kit.display.terminal.rows import print_data, print_weakest
from grpo_kit.display.turns import print_turns
from grpo_kit.environments.own_rows import RESERVED
from grpo_kit.environments.task import COLUMNS
from grpo_kit.policy.chat import split_thinking
from grpo_kit.rewards.tools.routing import environment_of
from grpo_kit.runs.reading import read_json, read_lines
from grpo_kit.runs.run import Run
from grpo_kit.runs.texts import show_controls


def show_machine(preset: str = "auto") -> None:
    """Show a table of this machine, its libraries and the disk that `preset` needs, each row with a verdict."""
    from grpo_kit.planning.machine_check import check_machine

    machine_tables.print_machine_check(check_machine(None if preset == "auto" else [preset]))


def show_plan(config: RunConfig, device_name: str | None = None) -> None:
    """Show what a run needs of a machine as a chart, whether it fits as a sentence, and how long it takes as a table.

    Args:
        config: the run's configuration.
        device_name: `t4`, `p100`, `t4x2`, `24gb`, `40gb`, `80gb` or `cpu`; None: this machine.
    """
    from IPython.display import display

    from grpo_kit.display import charts
    from grpo_kit.planning import machines, step_time
    from grpo_kit.planning.plan import plan

    machine = machines.find_device(device_name) if device_name else machines.this_device()
    planned = plan(config, machine, search=False)
    if planned.fits and not device_name:
        planned = plan(config, machine, bandwidths=step_time.measure_speeds(config, machine), search=False)
    display(charts.draw_plan(planned))
    print(planned.verdict)
    machine_tables.print_times(planned)


def show_settings(config: RunConfig) -> None:
    """Show all settings of a run as one line that unfolds."""
    import html

    from IPython.display import HTML, display

    settings = html.escape(to_yaml(config))
    display(HTML(f"<details><summary>all settings of this run</summary><pre>{settings}</pre></details>"))


def show_reply(reply: Any) -> None:
    """Print a reply: its thinking, its answer, its length."""
    if reply.turns:
        said = print_turns(reply.turns)
    else:
        thinking, answer = split_thinking(reply.text)
        said = f"thinks : {thinking}\nanswers: {answer}"
    end = "ended by itself" if reply.finished else "cut off"
    print(show_controls(f"{said}\nlength : {reply.tokens} tokens, {end}"))


def show_group(replies: Sequence[Any]) -> None:
    """Show replies as a table, one row each: thinking and answer."""
    import pandas
    from IPython.display import display

    rows = [split_thinking(show_controls(reply.text)) for reply in replies]
    display(pandas.DataFrame(rows, columns=["thinks", "answers"]))


def show_sources(config: RunConfig) -> None:
    """Print each source of problems: what it is, and its licence."""
    from grpo_kit.data.preparation import locate_sources

    for source in locate_sources(config):
        print(f"{source.name}: {source.recipe.about} (licence: {source.recipe.licence})")


def show_data(manifest: Mapping[str, Any]) -> None:
    """Show what the data stage did: rows dropped by reason, rows in each split, and each file's sha256."""
    print_data(manifest)
    for split, digest in manifest["sha256"].items():
        print(f"{split:<5} sha256 {digest[:12]}")


def show_funnel(manifest: Mapping[str, Any], run: Run, count: int = 10) -> None:
    """Show where the rows went as a chart, and print the first `count` dropped rows with their reasons."""
    from IPython.display import display

    from grpo_kit.display import data_funnel

    display(data_funnel.draw_funnel(manifest))
    for row in read_lines(run.manifest.with_name("dropped.jsonl"))[:count]:
        print(show_controls(f"{row['source']}, line {row['line']}: {row['reason']} ({row['why']})"))
        print(f"  {row['problem'][:100]!r}")


def show_alarms(run: Run) -> None:
    """Print every alarm of the run's trainings with its step."""
    from grpo_kit.display.report import NAMES, read_trainings
    from grpo_kit.display.run_figures import list_alarms

    trainings = read_trainings(run)
    for stage, rows in trainings.items():
        place = f"{NAMES[stage]}, step" if len(trainings) > 1 else "step"
        for step, sentence in list_alarms(rows):
            print(show_controls(f"{place} {step}: {reword(sentence)}"))


def show_curves(run: Run) -> None:
    """Show the run's charts as a picture, and save them with a few completions as `report.png` and `report.html`."""
    from IPython.display import Image, display

    from grpo_kit.display.report import save_report

    save_report(run)
    display(Image(run.picture))  # drawing it again would take another second
    print(f"The page is {run.page}.")


def show_completions(run: Run, count: int = 4) -> None:
    """Print the first and the last `count` completions of the training with what each reward paid."""
    lines = read_lines(run.completions)
    for line in lines[:count] + lines[-count:]:
        thinking, answer = split_thinking(line["completion"])
        paid = ", ".join(f"{name} {value}" for name, value in line["rewards"].items())
        head = f"step {line['step']:>3} · {line['prompt']}"
        said = f"  thinks : {thinking}\n  answers: {answer}"
        if line.get("turns"):
            said = textwrap.indent(print_turns(line["turns"]), "  ")
        print(show_controls(f"{head}\n{said}\n  paid   : {paid}"))


def show_tasks(run: Run) -> None:
    """Print the first training task of each environment: what the policy is asked, and what its reward knows."""
    rows: dict[str, Any] = {}
    for row in read_lines(run.data_file("train")):
        rows.setdefault(environment_of(row), row)
    for name in run.environments():
        row = rows[name]
        own = ("answer",) if name == MATH else [key for key in row if key not in RESERVED]
        known = {key: row.get(key) for key in COLUMNS.get(name, own) if row.get(key) not in (None, "")}
        print(show_controls(f"== {name}\n{row['prompt'][-1]['content']}\n"))
        for key, value in known.items():
            print(show_controls(f"   {key}: {textwrap.shorten(str(value), 150, placeholder=' ...')}"))
        print()


def show_traces(run: Run, count: int = 3) -> None:
    """Print the solver's trace of the first training rows that have one: what is asked, the thought, the answer."""
    from grpo_kit.data.puzzles.traces import solver_traces

    rows, left_out = solver_traces(read_lines(run.data_file("train"))[: 10 * count], lambda texts: map(len, texts))
    for row in rows[:count]:
        (reply,) = row["completion"]
        thinking = textwrap.indent(reply["reasoning_content"], " " * 9).strip()
        said = f"  thinks : {thinking}\n  answers: {reply['content']}"
        print(show_controls(f"{row['family']} · {row['prompt'][-1]['content']}\n{said}"))
    if not rows:
        print(f"No solver explains these rows: {left_out[0]['detail'] if left_out else 'there are none'}")


def show_weakest(run: Run) -> None:
    """Print where the policy is least sure of the texts that the stage `sft` taught it."""
    print_weakest(read_json(run.stage_files("sft").folder / "weakest.json"))


def show_pairs(run: Run, count: int = 3) -> None:
    """Print the first pairs of the stage `prefer`: what was asked, the completion to prefer, the one to reject."""
    for pair in read_lines(run.stage_files("prefer").folder / "pairs.jsonl")[:count]:
        texts = [" ".join(textwrap.shorten(pair[side], 200).split()) for side in ("chosen", "rejected")]
        question = pair["prompt"][-1]["content"]
        print(show_controls(f"{question}\n  prefer: {texts[0]}\n  reject: {texts[1]}"))


def show_stages(report: Mapping[str, Any]) -> None:
    """Show the accuracy after each stage as a table, and what the last ones did as sentences."""
    print_stages(report["stages"])
    print("\n".join(map(show_controls, report["calls"])))


def show_modes(report: Mapping[str, Any]) -> None:
    """Show accuracy and tokens of thinking in each mode of `evaluation.modes`, before and after, as a table."""
    print_modes(report["modes"])


def show_experts(run: Run) -> None:
    """Show the load of the experts before and after training, layer by layer."""
    print_expert_load(run)


def show_environments(report: Mapping[str, Any]) -> None:
    """Show what became of each environment: a picture, and a sentence for each and for all of them."""
    from IPython.display import display

    from grpo_kit.display.charts import draw_environments

    display(draw_environments(report))
    print("\n".join(map(show_controls, report["environments"])))


def show_example(run: Run) -> None:
    """Print one problem that the policy guessed wrong before training and worked out after it, if there is one."""
    print_example(run)


def show_findings(zip_path: Path, findings: Sequence[Any]) -> None:
    """Show what `check` found in a zip. Raises ValueError when a finding is fatal."""
    from grpo_kit.adapters.findings import fatal

    print_findings(zip_path, findings)
    if fatal(findings):
        raise ValueError(
            f"{zip_path} has fatal findings. Do not submit it; follow the remedies above, then pack again."
        )


def show_trials(result: Mapping[str, Any]) -> None:
    """Show the trials of a search, the best first, and whether the best is better than the run's own settings."""
    from IPython.display import HTML, display

    from grpo_kit.display.templates import render_trials

    display(HTML(render_trials(result)))
    print(show_controls(result["words"]))
