"""One stage of a run, done and shown: a bar while it works, then what came of it."""

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from grpo_kit import processes, screens, workspace
from grpo_kit.config import Policy, RunConfig
from grpo_kit.reward_files import load_reward


def data(config: RunConfig, run: workspace.Run) -> None:
    """Read, clean, split; the funnel as a picture."""
    from grpo_kit.data import prepare

    verifier = load_reward(config.evaluation.verifier)
    with screens.stage(run, "data", "preparing data") as show:
        manifest = prepare(config, run, verifier, show)
    screens.data(manifest)
    if manifest["dropped"] and not run.manifest.with_name("funnel.png").exists():
        from grpo_kit import funnel

        funnel.save(manifest, run)


def screen(config: RunConfig, run: workspace.Run) -> None:
    """Pass rates of the training prompts."""
    from grpo_kit.screening import screen as screening

    verifier = load_reward(config.evaluation.verifier)
    with screens.stage(run, "screen", "screening") as show:
        found = screening(config, run, verifier, show)
    screens.screening(found, config.data.pass_rate)


def train(config: RunConfig, run: workspace.Run) -> None:
    """GRPO on the training rows."""
    from grpo_kit import train as training

    rewards = [load_reward(spec) for spec in config.grpo.reward_funcs]
    with screens.stage(run, "train", "training") as show:
        step = screens.training(run, config.grpo.max_steps, show)
        last = training.train(config, run, rewards, step, screens.forecast)
    screens.out.print(f"         {last['step']} steps, reward {last['reward']:.2f} in the last one")
    if (
        run.stages()["train"].get("out_of_time") and processes.is_first()
    ):  # what there is, measured and packed before the session ends
        evaluate(config, run, "after")
        package(config, run, None)


def evaluate(config: RunConfig, run: workspace.Run, stage: str) -> None:
    """Held-out accuracy, `stage` before or after."""
    from grpo_kit import evaluate as evaluating

    verifier = load_reward(config.evaluation.verifier)
    with screens.stage(run, stage, f"accuracy {stage}") as show:
        found = getattr(evaluating, stage)(config, run, verifier, show)
    screens.measured(found)


def package(
    config: RunConfig, run: workspace.Run, to: Path | None, adapters: Sequence[Path] = (), base: Policy | None = None,
    dtype: str | None = None, ranks: str = "pad", stacked: str = "auto",
) -> Path:  # fmt: skip
    """The adapter as a zip, the run's own or one from elsewhere for the policy `base`; returns its path."""
    from grpo_kit.policy import base_name
    from grpo_kit.submission import package as pack

    notes: list[str] = []
    with screens.working("packing") if adapters else screens.stage(run, "package", "packing") as show:
        path = pack(
            config, run, to, adapters, base_name(base) if base else None, dtype, ranks, stacked, notes.append, show
        )
    for note in notes:
        screens.out.print(f"         {escape(note)}")
    screens.out.print(f"         {path} ({path.stat().st_size / 2**20:.2f} MiB)")
    return path


def score(config: RunConfig, run: workspace.Run, problems: int, zip_path: Path | None) -> None:
    """The challenge's scorer, rehearsed; accuracies by family."""
    from grpo_kit import score as scoring

    with screens.stage(run, "score", "scoring") as show:
        found = scoring.score(config, run, load_reward(scoring.VERIFIER), problems, zip_path, show)
    screens.scored(found, run)


def check(path: Path, policy: Policy | None, run: workspace.Run | None) -> None:
    """The doctor's table for a zip, on the base `policy` or the one the zip names. Raises RuntimeError for a fatal finding."""
    from grpo_kit.inspection import is_fatal
    from grpo_kit.outputs import check as examine

    findings = examine(path, policy, run.probe if run else None)
    screens.findings(path, findings)
    if is_fatal(findings):
        raise RuntimeError(f"{path} must not be submitted (see fatal above). Follow the remedy, then check again.")
