"""One stage of a run, done and shown: a bar while it works, then what came of it."""

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from grpo_kit.config import Policy, RunConfig
from grpo_kit.display import terminal
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs import processes
from grpo_kit.runs.run import Run


def data(config: RunConfig, run: Run) -> None:
    """Read, clean, split; the funnel as a picture."""
    from grpo_kit.data.preparation import prepare

    verifier = load_reward(config.evaluation.verifier)
    with terminal.show_stage(run, "data", "preparing data") as show:
        manifest = prepare(config, run, verifier, show)
    terminal.print_data(manifest)
    if manifest["dropped"] and not run.manifest.with_name("funnel.png").exists():
        from grpo_kit.display import data_funnel

        data_funnel.save_funnel(manifest, run)


def screen(config: RunConfig, run: Run) -> None:
    """Pass rates of the training prompts."""
    from grpo_kit.evaluation.screening import screen as screen_prompts

    with terminal.show_stage(run, "screen", "screening") as show:
        found = screen_prompts(config, run, progress=show)
    terminal.print_screening(found, config.data.pass_rate)


def train(config: RunConfig, run: Run) -> None:
    """GRPO on the training rows."""
    from grpo_kit.training import train as training

    rewards = [load_reward(spec) for spec in config.grpo.reward_funcs]
    with terminal.show_stage(run, "train", "training") as show:
        step = terminal.follow_training(run, config.grpo.max_steps, show)
        last = training.train(config, run, rewards, step, terminal.print_forecast)
    terminal.out.print(f"         {last['step']} steps, reward {last['reward']:.2f} in the last one")
    if (
        run.stages()["train"].get("out_of_time") and processes.is_first()
    ):  # what there is, measured and packed before the session ends
        evaluate(config, run, "after")
        package(config, run, None)


def evaluate(config: RunConfig, run: Run, stage: str) -> None:
    """Held-out accuracy, `stage` before or after."""
    from grpo_kit.evaluation.evaluate import measure

    with terminal.show_stage(run, stage, f"accuracy {stage}") as show:
        found = measure(config, run, stage, progress=show)
    terminal.print_measurement(found)


def package(
    config: RunConfig, run: Run, to: Path | None, adapters: Sequence[Path] = (), base: Policy | None = None,
    dtype: str | None = None, ranks: str = "pad", stacked: str = "auto",
) -> Path:  # fmt: skip
    """The adapter as a zip, the run's own or one from elsewhere for the policy `base`; returns its path."""
    from grpo_kit.policy.load import base_name
    from grpo_kit.submission.package import package_adapter as pack

    notes: list[str] = []
    with terminal.show_progress("packing") if adapters else terminal.show_stage(run, "package", "packing") as show:
        path = pack(
            config, run, to, adapters, base_name(base) if base else None, dtype, ranks, stacked, notes.append, show
        )
    for note in notes:
        terminal.out.print(f"         {escape(note)}")
    terminal.out.print(f"         {path} ({path.stat().st_size / 2**20:.2f} MiB)")
    return path


def score(config: RunConfig, run: Run, problems: int, zip_path: Path | None) -> None:
    """The challenge's scorer, rehearsed; accuracies by family."""
    from grpo_kit.evaluation.rehearsal import rehearse_score

    with terminal.show_stage(run, "score", "scoring") as show:
        found = rehearse_score(config, run, problems, zip_path, show)
    terminal.print_score(found, run)


def check(path: Path, policy: Policy | None, run: Run | None) -> None:
    """What is wrong with a zip, as a table, on the base `policy` or the one the zip names. Raises RuntimeError for a fatal finding."""
    from grpo_kit.adapters.findings import fatal
    from grpo_kit.submission.output_check import check_submission as examine

    findings = examine(path, policy, run.probe if run else None)
    terminal.print_findings(path, findings)
    if fatal(findings):
        raise RuntimeError(f"{path} must not be submitted (see fatal above). Follow the remedy, then check again.")
