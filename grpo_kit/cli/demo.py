"""`grpo-kit demo`: every stage of a run on an embedded policy, on sums alone or on four environments at once."""

import time

from rich.markup import escape

from grpo_kit.cli import options, stages
from grpo_kit.config import RunConfig
from grpo_kit.display import console
from grpo_kit.display.terminal.accuracies import print_comparison, print_example
from grpo_kit.display.terminal.progress import print_locations
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import open_run

MIXED, ALONE = "demo-environments", "structured"  # the run on all environments; the one that the second run trains


def demo(
    name: options.RunName = None, force: options.Force = False, environments: options.Environments = False
) -> None:
    """Run every stage on the embedded policy: data, accuracy, GRPO, accuracy, submission.zip, check, picture."""
    if environments:
        demo_environments(name or MIXED, force)
        return
    from grpo_kit.display.report import save_report

    config, run = open_run(["tiny"], ["run.name=demo"], name, force=force)
    started = time.monotonic()
    _learn(config, run)
    zip_path = stages.package_adapter(config, run, None)
    stages.check_zip(zip_path, config.policy, run)
    comparison = _compare(run)
    save_report(run)
    print_comparison(comparison, run)
    print_example(run)
    print_locations(run, zip_path, time.monotonic() - started)


def demo_environments(name: str, force: bool) -> None:
    """Train on four environments at once, then from the same policy on one of them, and compare all four."""
    started = time.monotonic()
    config, run = open_run(["tiny-environments"], (), name, force=force)
    _learn(config, run)
    print_comparison(_compare(run), run)
    shares = ", ".join(f"{environment}: {int(environment == ALONE)}" for environment in run.environments())
    console.out.print(f"\nThe same policy again, trained on {ALONE} alone and measured on all:\n")
    config, alone = open_run(["tiny-environments"], [f"data.mix={{{shares}}}"], f"{name}-{ALONE}", force=force)
    _learn(config, alone)
    print_comparison(_compare(alone), alone)
    console.out.print(escape(f"\ndone in {time.monotonic() - started:.0f} s: {run.path} and {alone.path}"))
    console.print_next(["report", "--run", run.name])


def _learn(config: RunConfig, run: Run) -> None:
    stages.prepare_data(config, run)
    stages.measure_accuracy(config, run, "before")
    stages.train_policy(config, run)
    stages.measure_accuracy(config, run, "after")


def _compare(run: Run) -> dict:
    from grpo_kit.evaluation.compare import compare

    return compare(run)
