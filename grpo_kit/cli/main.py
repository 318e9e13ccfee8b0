"""`grpo-kit`: every stage of a run as a command, and `demo` for all of them on the embedded policy.

A stage that is done is skipped and says so. Errors are one sentence: exit status 2 for usage, 1 for failure.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from grpo_kit import config as configuration
from grpo_kit.cli import kaggle, stages
from grpo_kit.cli.errors import one_sentence
from grpo_kit.display import terminal
from grpo_kit.runs import processes, session
from grpo_kit.runs.run import Run

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

rewards_app = typer.Typer(help="Rewards: put one on trial.", no_args_is_help=True)
app.add_typer(rewards_app, name="rewards")

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as grpo.num_generations=16", show_default=False)
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        "-c",
        help="a preset (tiny, t4, t4x2, 24gb, 80gb, deepscaler) or a YAML file; may be repeated",
        show_default=False,
    ),
]
Name = Annotated[str | None, typer.Option("--run", help="the run's name; its folder is runs/NAME", show_default=False)]
Dry = Annotated[
    bool, typer.Option("--dry-run", help="print the resolved configuration and what would be done; touch nothing")
]
Force = Annotated[bool, typer.Option("--force", help="repeat a stage that is done")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a subcommand."""
    return app.command()(one_sentence(function))


@command
def demo(name: Name = None, force: Force = False) -> None:
    """The whole chain on the embedded policy: data, accuracy, GRPO, accuracy, submission.zip, check, picture."""
    from grpo_kit.display.report import save_report
    from grpo_kit.evaluation import evaluate as evaluating

    config, run = session.open_run(["tiny"], ["run.name=demo"], name, force=force)
    started = time.monotonic()
    stages.data(config, run)
    stages.evaluate(config, run, "before")
    stages.train(config, run)
    stages.evaluate(config, run, "after")
    zip_path = stages.package(config, run, None)
    stages.check(zip_path, config.policy, run)
    report = evaluating.compare(run)
    save_report(run)
    terminal.print_comparison(report, run)
    terminal.print_example(run)
    terminal.print_locations(run, zip_path, time.monotonic() - started)


@command
def env() -> None:
    """Check this machine: Python, the tested versions of the libraries, the GPU, and where runs will lie."""
    from grpo_kit.planning.machine_check import check_machine

    found = check_machine()
    terminal.print_machine_check(found)
    if not all(fine for _, _, fine, _ in found):
        raise typer.Exit(1)


@command
def data(
    overrides: Overrides = None, sources: Sources = None, name: Name = None, dry_run: Dry = False, force: Force = False
) -> None:
    """Read sources, clean, decontaminate, deduplicate and split them: data/{train,val,test}/data.jsonl and manifest.json."""
    config, run = session.open_run(sources or (), overrides or (), name, "data", force)
    if not _is_dry(dry_run, config, run, "reads data.source", [run.manifest.parent]):
        stages.data(config, run)


@command
def screen(
    overrides: Overrides = None, sources: Sources = None, name: Name = None, dry_run: Dry = False, force: Force = False
) -> None:
    """Try each training prompt on the untrained policy; keep those of medium difficulty, easy ones first.

    Interrupted, it goes on where it stood. --force applies other settings to samples drawn already, where they still fit.
    """
    config, run = session.open_run(sources or (), overrides or (), name, "screen", force)
    if not _is_dry(
        dry_run, config, run, f"reads {run.data_file('train')}", [run.screening, run.screened, run.left_out]
    ):
        stages.screen(config, run)


@command
def train(
    overrides: Overrides = None, sources: Sources = None, name: Name = None, dry_run: Dry = False, force: Force = False,
    num_processes: Annotated[int, typer.Option(min=1, help="share each step out to so many processes, one a GPU")] = 1,
) -> None:  # fmt: skip
    """GRPO on the run's training rows: adapter/, metrics.jsonl, completions.jsonl."""
    config, run = session.open_run(sources or (), overrides or (), name, "train", force)
    if num_processes > 1 and not dry_run and processes.process_count() == 1:
        raise typer.Exit(processes.launch_training(num_processes, config.grpo, sys.argv[2:]))
    if not _is_dry(
        dry_run, config, run, f"reads {run.data_file('train')}", [run.adapter, run.metrics, run.completions]
    ):
        stages.train(config, run)


@command
def calibrate(
    overrides: Overrides = None, sources: Sources = None, name: Name = None,
    prompts: Annotated[int, typer.Option(help="how many training prompts to answer")] = 64,
) -> None:  # fmt: skip
    """Count which routed experts real prompts hit, so that the coldest ones lie in host memory from now on."""
    from grpo_kit.planning import calibrate as counting

    config, run = session.open_run(sources or (), overrides or (), name)
    with terminal.show_progress("answering prompts") as show:
        found = counting.calibrate(config, run, prompts, show)
    terminal.print_placement(found)


@command
def evaluate(
    overrides: Overrides = None, sources: Sources = None, name: Name = None, dry_run: Dry = False, force: Force = False
) -> None:
    """Held-out accuracy: of the untrained policy, of the trained one if there is one, and both side by side."""
    config, run = session.open_run(sources or (), overrides or (), name, "evaluate", force)
    if _is_dry(dry_run, config, run, f"reads {run.data_file('test')}", [run.evaluation]):
        return
    stages.evaluate(config, run, "before")
    if "train" in run.stages():
        from grpo_kit.evaluation.evaluate import compare

        stages.evaluate(config, run, "after")
        terminal.print_comparison(compare(run), run)


@command
def score(
    overrides: Overrides = None, sources: Sources = None, name: Name = None, dry_run: Dry = False, force: Force = False,
    problems: Annotated[int, typer.Option(help="how many held-out puzzles, every family by its share")] = 300,
    zip_path: Annotated[Path | None, typer.Option("--zip", metavar="FILE.zip", help="score this zip in place of the run's adapter", show_default=False)] = None,
) -> None:  # fmt: skip
    """A rehearsal of the challenge's scorer on held-out rows of its train.csv: its prompt, its limits, its last metric."""
    config, run = session.open_run(sources or (), overrides or (), name, "evaluate", force)
    if not _is_dry(dry_run, config, run, f"reads {zip_path or run.adapter}", [run.evaluation / "score.json"]):
        stages.score(config, run, problems, zip_path)


@command
def tune(
    words: Annotated[list[str], typer.Argument(help="'grpo.learning_rate=log(1e-4,1e-2)', 'lora.r=[8,16,32]', key=value")],
    sources: Sources = None, name: Name = None, force: Annotated[bool, typer.Option("--force", help="begin the search anew")] = False,
    trials: Annotated[int, typer.Option(help="how many trials in all")] = 12,
    steps: Annotated[int, typer.Option(help="training steps of each")] = 30,
    every: Annotated[int, typer.Option(help="steps between measurements on the validation split")] = 5,
    grid: Annotated[bool, typer.Option("--grid", help="every combination of the choices, once")] = False,
) -> None:  # fmt: skip
    """Search for settings that learn best in a few steps: tune/tune.json and tune/tune.png. It goes on where it stood."""
    from grpo_kit.tuning import space
    from grpo_kit.tuning import tune as tuning

    axes, overrides = space.parse_search(words)
    config, run = session.open_run(sources or (), overrides, name, "train", force)
    with terminal.show_progress("searching") as show:
        found = tuning.tune(config, run, axes, trials, steps, every, grid, show)
    terminal.print_search(found, run)


@command
def report(name: Name = None) -> None:
    """The run as report.html and report.png, finished or interrupted; neither needs a server."""
    from grpo_kit.display.report import save_report

    _, run = session.open_run((), (), name)
    save_report(run)
    terminal.out.print(f"{run.page}\n{run.picture}")


@command
def package(
    overrides: Overrides = None, sources: Sources = None, name: Name = None, dry_run: Dry = False, force: Force = False,
    to: Annotated[Path | None, typer.Option("--out", help="where to write the zip", show_default=False)] = None,
    adapters: Annotated[list[Path] | None, typer.Option("--adapter", help="a folder from elsewhere in place of the run's adapter; given twice, both are stacked", show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; without it what is there", show_default=False)] = None,
    ranks: Annotated[str, typer.Option(help="several ranks: pad to one, or declare them by pattern")] = "pad",
    stacked: Annotated[str, typer.Option(help="how all experts lie in one lora_B: auto, rank-first (PEFT) or expert-first (Unsloth)")] = "auto",
) -> None:  # fmt: skip
    """The trained adapter as submission.zip, two files at its root; or one trained elsewhere, converted."""
    config, run = session.open_run(sources or (), overrides or (), name, "package", force)
    reads = ", ".join(map(str, adapters or [run.adapter]))
    if not _is_dry(dry_run, config, run, f"reads {reads}", [to or run.submission]):
        told = bool(sources) or any(word.startswith("policy.model=") for word in overrides or ())
        stages.package(config, run, to, adapters or [], config.policy if told else None, dtype, ranks, stacked)


@command
def handoff(
    to: Annotated[str, typer.Option("--to", help="nemo-rl, verl or trl")],
    overrides: Overrides = None, sources: Sources = None, name: Name = None,
    out: Annotated[Path | None, typer.Option("--out", help="a new folder; without it handoff/ENGINE of the run", show_default=False)] = None,
    merge: Annotated[bool, typer.Option("--merge", help="with the merged model in bf16")] = False,
) -> None:  # fmt: skip
    """The run as a folder that NeMo-RL, verl or TRL takes as it is: adapter, rows, settings, reward, commands."""
    from grpo_kit.handoff import export as handing

    config, run = session.open_run(sources or (), overrides or (), name, "package")
    with terminal.show_progress("handing over") as show:
        folder = handing.export_run(config, run, to, out, merge, show)
    terminal.out.print(f"{folder}\n{folder / 'README.md'} says how to start it, and what does not carry over")


@command
def plan(
    overrides: Overrides = None, sources: Sources = None,
    device: Annotated[str | None, typer.Option(help="t4, t4x2, 24gb, 40gb, 80gb or cpu; without it this machine", show_default=False)] = None,
    prompt_tokens: Annotated[int, typer.Option(help="longest prompt, in tokens")] = 256,
    num_processes: Annotated[int, typer.Option(min=1, help="plan for one of so many processes, one a GPU")] = 1,
) -> None:  # fmt: skip
    """Will it fit? What a run needs of a device, part by part, computed before anything is downloaded."""
    from grpo_kit.planning import machines, step_time, two_gpus
    from grpo_kit.planning.plan import plan as make_plan
    from grpo_kit.policy.load import routing

    config = configuration.load_config(sources or ["tiny"], overrides or [])
    where = machines.with_processes(machines.find_device(device) if device else machines.this_device(), num_processes)
    hits = routing(config.policy)
    found = make_plan(config, where, prompt_tokens, None if device else step_time.measure_bandwidths(), hits)
    terminal.print_plan(found)
    terminal.print_two_gpus(two_gpus.compare_layouts(found, hits))
    if not found.fits:
        raise typer.Exit(1)


@command
def reproduce(name: Annotated[str, typer.Argument(metavar="RUN", help="the run to repeat")]) -> None:
    """Repeat a run's data and training from its record, beside it as RUN-again, and say what differs."""
    from grpo_kit.training.reproduce import reproduce as repeat

    _, run = session.open_run((), (), name)
    again, found = repeat(run, lambda stage: terminal.out.print(f"{stage} again"))
    terminal.out.print(f"{again.path}: " + ("the same, bit for bit" if not found else ""))
    for sentence in found:
        terminal.out.print(f"  {escape(sentence)}")


@command
def check(
    zip_path: Annotated[Path, typer.Argument(metavar="FILE.zip", help="the zip to check")],
    overrides: Overrides = None, sources: Sources = None, name: Name = None,
) -> None:  # fmt: skip
    """Check a zip: what is wrong with it, what the challenge's scorer would do, the remedy. Anything fatal: status 1.

    Where the base's weights are at hand, the zip is loaded too: do the outputs differ from the base's, and with --run, are
    they the trained policy's? Without --run and policy.model, the base is the one that the zip names.
    """
    config, run = session.open_run(sources or (), overrides or (), name, "package")
    if name:
        run.require_stage("train", "grpo-kit train")
    chosen = name or sources or any(word.startswith("policy.") for word in overrides or ())
    stages.check(zip_path, config.policy if chosen else None, run if name else None)


@rewards_app.command("audit")
@one_sentence
def rewards_audit(
    reward: Annotated[str, typer.Argument(metavar="FILE.py", help="a reward file, or FILE.py:function")],
    cases: Annotated[
        Path | None, typer.Option(help="labelled cases, JSON Lines; without it the kit's own sample")
    ] = None,
) -> None:
    """Put a reward on trial: wrong answers paid, right ones refused, hangs and exceptions, by kind and from two threads."""
    from grpo_kit.rewards.tools.audit import audit_reward, print_report

    print_report(audit_reward(reward, cases), terminal.out)


for _function in kaggle.COMMANDS:
    command(_function)


def _is_dry(dry_run: bool, config: configuration.RunConfig, run: Run, reads: str, writes: list[Path]) -> bool:
    if dry_run:
        terminal.out.print(escape(configuration.to_yaml(config)), end="")
        terminal.out.print(
            f"# run folder: {run.path}\n# {reads}\n# writes {', '.join(map(str, writes))}\n# dry run: nothing was touched"
        )
    return dry_run


if __name__ == "__main__":
    app()
