"""`grpo-kit`: every stage of a run as a command, and `demo` for all of them on the embedded policy.

A command skips a finished stage and says so. An error is one sentence: exit status 2 for usage, 1 for failure.
"""

import inspect
import io
import sys
from collections.abc import Callable

import typer

from grpo_kit.cli import ask, demo, export, kaggle, machine, options, results, rewards, stages
from grpo_kit.cli.dry_run import is_dry_run, name_reads
from grpo_kit.cli.errors import report_errors
from grpo_kit.cli.next_steps import show_next
from grpo_kit.cli.publish import publish
from grpo_kit.display import console
from grpo_kit.display.terminal.accuracies import print_comparison, print_modes, print_search
from grpo_kit.display.terminal.experts import print_expert_load, print_placement
from grpo_kit.runs import processes
from grpo_kit.runs.session import open_run

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.add_typer(rewards.app, name="rewards")


@app.callback()
def start(version: options.Version = False) -> None:
    """Prepare the output for a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the name of a file may have letters that the terminal has not
            stream.reconfigure(errors="backslashreplace")
    console.print_warnings_plainly()


def command(function: Callable[..., None], hidden: bool = False) -> Callable[..., None]:
    """Register a subcommand, which `grpo-kit --help` lists with the whole first paragraph of its docstring."""
    summary = " ".join(inspect.getdoc(function).split("\n\n")[0].split())
    return app.command(short_help=summary, hidden=hidden)(report_errors(function))


command(demo.demo)
command(machine.env)
command(machine.doctor, hidden=True)


@command
def data(
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
) -> None:
    """Read, clean, decontaminate, deduplicate and split problems: data/{train,val,test}/data.jsonl, manifest.json."""
    config, run = open_run(sources or (), overrides or (), name, "data", force)
    if not is_dry_run(dry_run, config, run, config.data.source, [run.manifest.parent]):
        stages.prepare_data(config, run)
        show_next(run, sources, overrides, name)


@command
def screen(
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
) -> None:
    """Try each training prompt on the untrained policy; keep those of medium difficulty, easy ones first.

    An interrupted screening continues where it stopped. --force applies different settings and keeps the samples that
    still fit them.
    """
    config, run = open_run(sources or (), overrides or (), name, "screen", force)
    writes = [run.screening, run.screened, run.left_out]
    if not is_dry_run(dry_run, config, run, run.data_file("train"), writes):
        stages.screen_prompts(config, run)
        show_next(run, sources, overrides, name)


@command
def train(
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    num_processes: options.NumProcesses = 1,
) -> None:
    """Train with GRPO on the run's training rows: adapter/, metrics.jsonl, completions.jsonl."""
    config, run = open_run(sources or (), overrides or (), name, "train", force)
    if num_processes > 1 and not dry_run and processes.process_count() == 1:
        raise typer.Exit(processes.launch_training(num_processes, config.grpo, sys.argv[2:]))
    writes = [run.adapter, run.metrics, run.completions]
    if not is_dry_run(dry_run, config, run, run.data_file("train"), writes):
        stages.train_policy(config, run)
        show_next(run, sources, overrides, name)


@command
def sft(
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
) -> None:
    """Learn from texts before GRPO, such as the solvers' traces of puzzles: sft/adapter/, sft/weakest.json."""
    config, run = open_run(sources or (), overrides or (), name, "sft", force)
    files = run.stage_files("sft")
    if not is_dry_run(dry_run, config, run, name_reads(run, config.sft.source), [files.adapter, files.metrics]):
        stages.learn_from_texts(config, run)
        show_next(run, sources, overrides, name)


@command
def prefer(
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
) -> None:
    """Learn from pairs of the run's own completions after GRPO (DPO): prefer/adapter/, prefer/pairs.jsonl."""
    config, run = open_run(sources or (), overrides or (), name, "prefer", force)
    files = run.stage_files("prefer")
    if not is_dry_run(dry_run, config, run, name_reads(run, config.dpo.source), [files.adapter, files.metrics]):
        stages.learn_preferences(config, run)
        show_next(run, sources, overrides, name)


@command
def calibrate(
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    prompts: options.Prompts = 64,
) -> None:
    """Count how often prompts use each routed expert; from then on the least used ones lie in host memory."""
    from grpo_kit.planning.calibrate import count_routed_rows

    config, run = open_run(sources or (), overrides or (), name)
    with console.show_progress("answering prompts") as show:
        counts = count_routed_rows(config, run, prompts, show)
    print_placement(counts)
    show_next(run, sources, overrides, name)


@command
def evaluate(
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    experts: options.Experts = False,
) -> None:
    """Measure held-out accuracy of the untrained policy and of what each stage made of it; compare them."""
    config, run = open_run(sources or (), overrides or (), name, "evaluate", force)
    if is_dry_run(dry_run, config, run, run.data_file("test"), [run.evaluation]):
        return
    before = stages.measure_accuracy(config, run, "before")
    if trained := run.trained_stages():
        from grpo_kit.evaluation.compare import compare

        stages.measure_trained(config, run, trained)
        print_comparison(compare(run), run)
        if experts:
            print_expert_load(run)
    elif before.get("modes"):
        print_modes(before["modes"])
    show_next(run, sources, overrides, name)


command(ask.ask)


@command
def score(
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    problems: options.Problems = 300,
    zip_path: options.ScoredZip = None,
) -> None:
    """Rehearse the challenge's scorer on held-out rows of its train.csv, with its prompt, limits and latest metric."""
    config, run = open_run(sources or (), overrides or (), name, "evaluate", force)
    if not is_dry_run(dry_run, config, run, zip_path or run.adapter, [run.evaluation / "score.json"]):
        stages.score_puzzles(config, run, problems, zip_path)
        show_next(run, sources, overrides, name)


@command
def tune(
    words: options.SearchWords = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    force: options.ForceSearch = False,
    trials: options.Trials = 12,
    steps: options.Steps = 30,
    every: options.Every = None,
    grid: options.Grid = False,
) -> None:
    """Search for settings that learn best in a few steps: tune/tune.json, tune/tune.png. A stopped search continues."""
    from grpo_kit.tuning import tune as tuning
    from grpo_kit.tuning.space import parse_search

    axes, overrides = parse_search(words or ())
    config, run = open_run(sources or (), overrides, name, "train", force)
    with console.show_progress("searching") as show:
        result = tuning.tune(config, run, axes, trials, steps, every, grid, show)
    print_search(result, run)


for _function in (
    results.report, results.package, results.handoff, publish, export.export, machine.plan,
    results.reproduce, results.check, *kaggle.COMMANDS,
):  # fmt: skip
    command(_function)


if __name__ == "__main__":
    app()
