"""`grpo-kit`: every stage of a run as a command, and `demo` for all of them on the embedded policy.

A command skips a finished stage and says so. An error is one sentence: exit status 2 for usage, 1 for failure.
"""

import inspect
import io
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import typer
from rich.markup import escape

from grpo_kit import config as configuration
from grpo_kit.cli import ask, demo, export, kaggle, machine, options, rewards, stages
from grpo_kit.cli.errors import report_errors
from grpo_kit.cli.next_steps import show_next
from grpo_kit.cli.publish import publish
from grpo_kit.display import console
from grpo_kit.display.terminal.accuracies import print_comparison, print_modes, print_search
from grpo_kit.display.terminal.checks import print_repetition
from grpo_kit.display.terminal.experts import print_expert_load, print_placement
from grpo_kit.runs import processes
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import open_run
from grpo_kit.runs.trained import MEASURED

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
    if not _is_dry_run(dry_run, config, run, config.data.source, [run.manifest.parent]):
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
    if not _is_dry_run(dry_run, config, run, run.data_file("train"), writes):
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
    if not _is_dry_run(dry_run, config, run, run.data_file("train"), writes):
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
    if not _is_dry_run(dry_run, config, run, _name_reads(run, config.sft.source), [files.adapter, files.metrics]):
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
    if not _is_dry_run(dry_run, config, run, _name_reads(run, config.dpo.source), [files.adapter, files.metrics]):
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
    if _is_dry_run(dry_run, config, run, run.data_file("test"), [run.evaluation]):
        return
    before = stages.measure_accuracy(config, run, "before")
    if trained := run.trained_stages():
        from grpo_kit.evaluation.compare import compare

        for stage in trained:
            stages.measure_accuracy(config, run, MEASURED[stage])
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
    if not _is_dry_run(dry_run, config, run, zip_path or run.adapter, [run.evaluation / "score.json"]):
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


@command
def report(name: options.RunName = None) -> None:
    """Write report.html and report.png of a run, finished or interrupted; both open without a server."""
    from grpo_kit.display.report import save_report

    _, run = open_run(["tiny"], (), name)  # the page needs the run's files, not its settings
    save_report(run)
    console.out.print(escape(f"{run.page}\n{run.picture}"))
    show_next(run, name=name)


@command
def package(
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    out: options.ZipPath = None,
    adapters: options.Adapters = None,
    dtype: options.Dtype = None,
    ranks: options.Ranks = "pad",
    stacked: options.Stacked = "auto",
    only_used: options.OnlyUsed = False,
) -> None:
    """Write the trained adapter as submission.zip, or convert one that was trained elsewhere."""
    if name and adapters:
        raise ValueError(
            f"--run {name} names a run and --adapter {adapters[0]} an adapter from elsewhere; a zip holds one of them. "
            "Leave one of the two out."
        )
    config, run = open_run(sources or (), overrides or (), name, "package", force)
    last = (run.trained_stages() or ["train"])[-1]
    reads = ", ".join(map(str, adapters or [run.stage_files(last).adapter]))
    if not _is_dry_run(dry_run, config, run, reads, [out or run.submission]):
        names_base = bool(sources) or any(word.startswith("policy.model=") for word in overrides or ())
        base = config.policy if names_base else None
        path = stages.package_adapter(config, run, out, adapters or [], base, dtype, ranks, stacked, only_used)
        console.print_next(["check", str(path), *(() if adapters else ("--run", run.name))])


@command
def handoff(
    to: options.Engine,
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    out: options.HandoffFolder = None,
    merge: options.Merge = False,
) -> None:
    """Write the run as a folder for NeMo-RL, verl or TRL: adapter, rows, settings, reward, commands."""
    from grpo_kit.handoff.export import export_run

    config, run = open_run(sources or (), overrides or (), name, "package")
    with console.show_progress("exporting") as show:
        folder = export_run(config, run, to, out, merge, show)
    sentence = f"read {folder / 'README.md'}: how to start it, and what does not carry over"
    console.out.print(escape(f"{folder}\nnext:    {sentence}"))


command(publish)
command(export.export)
command(machine.plan)


@command
def reproduce(name: options.RepeatedRun) -> None:
    """Repeat a run's data and training from its record, beside it as RUN-again, and list the differences."""
    from grpo_kit.training import reproduce as reproduction

    _, run = open_run((), (), name)
    again, differences = reproduction.reproduce(run, lambda stage: console.out.print(f"{stage} again"))
    print_repetition(run, again, differences)
    console.print_next(["report", "--run", again.name])


@command
def check(
    zip_path: options.CheckedZip,
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
) -> None:
    """Check a zip: what is wrong with it, what the challenge's scorer would do, the remedy. Status 1: must not be sent.

    Where the base's weights are at hand, the zip is loaded too, which takes seconds instead of one, mostly for imports:
    do its outputs differ from the base's and, with --run, are they the trained policy's? Without --run and
    policy.model, the base is the one that the zip names.
    """
    config, run = open_run(sources or (), overrides or (), name, "package")
    if name:
        run.require_trained()
    names_base = name or sources or any(word.startswith("policy.") for word in overrides or ())
    findings = stages.check_zip(zip_path, config.policy if names_base else None, run if name else None)
    is_other = any(finding.code in ("base-tiny", "base-other") for finding in findings)
    console.print_next(["plan", "-c", "t4"] if is_other else ["submit", str(zip_path)])


for _function in kaggle.COMMANDS:
    command(_function)


def _name_reads(run: Run, source: str) -> str:
    """What a stage reads beside the run's data, which it needs too; where that is missing, the remedy."""
    data = run.data_file("train")
    return f"{source} and {data}{'' if data.exists() else ' (missing: run `grpo-kit data` first)'}"


def _is_dry_run(
    dry_run: bool, config: configuration.RunConfig, run: Run, reads: Path | str, writes: list[Path]
) -> bool:
    """Whether this is a dry run; if so, print what would be done."""
    if dry_run:
        console.out.print(escape(configuration.to_yaml(config)), end="")
        places = f"# run folder: {run.path}\n# reads {reads}\n# writes {', '.join(map(str, writes))}"
        console.out.print(escape(places))
        console.out.print("# dry run: nothing was touched")
        words = [word for word in sys.argv[1:] if word != "--dry-run"]
        console.out.print(escape(f"# next: {console.program_name()} {shlex.join(words)}"))
    return dry_run


if __name__ == "__main__":
    app()
