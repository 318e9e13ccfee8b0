"""What a run has come to: its report, its zip and the check of it, a folder for other engines, a repetition.

`main` registers these commands.
"""

from rich.markup import escape

from grpo_kit.cli import options, stages
from grpo_kit.cli.dry_run import is_dry_run
from grpo_kit.cli.next_steps import show_next
from grpo_kit.display import console
from grpo_kit.display.terminal.checks import print_repetition
from grpo_kit.runs.session import open_run


def report(name: options.RunName = None) -> None:
    """Write report.html and report.png of a run, finished or interrupted; both open without a server."""
    from grpo_kit.display.report import save_report

    _, run = open_run(["tiny"], (), name)  # the page needs the run's files, not its settings
    save_report(run)
    console.out.print(escape(f"{run.page}\n{run.picture}"))
    show_next(run, name=name)


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
    if not is_dry_run(dry_run, config, run, reads, [out or run.submission]):
        names_base = bool(sources) or any(word.startswith("policy.model=") for word in overrides or ())
        base = config.policy if names_base else None
        path = stages.package_adapter(config, run, out, adapters or [], base, dtype, ranks, stacked, only_used)
        console.print_next(["check", str(path), *(() if adapters else ("--run", run.name))])


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


def reproduce(name: options.RepeatedRun) -> None:
    """Repeat a run's data and training from its record, beside it as RUN-again, and list the differences."""
    from grpo_kit.training import reproduce as reproduction

    _, run = open_run((), (), name)
    again, differences = reproduction.reproduce(run, lambda stage: console.out.print(f"{stage} again"))
    print_repetition(run, again, differences)
    console.print_next(["report", "--run", again.name])


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
