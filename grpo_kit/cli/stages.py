"""One stage of a run with its terminal output: a progress bar while it works, then its results."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from grpo_kit.adapters.findings import Finding, fatal
from grpo_kit.config import Policy, RunConfig
from grpo_kit.display import console
from grpo_kit.display.terminal.accuracies import print_measurement, print_score
from grpo_kit.display.terminal.checks import print_findings
from grpo_kit.display.terminal.progress import follow_training, print_forecast, show_stage
from grpo_kit.display.terminal.rows import print_data, print_screening, print_texts, print_weakest
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs import processes
from grpo_kit.runs.files import require_folder
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run
from grpo_kit.runs.trained import MEASURED


def prepare_data(config: RunConfig, run: Run) -> None:
    """Read, clean and split the problems; save the funnel as a picture."""
    from grpo_kit.data.preparation import prepare

    verifier = load_reward(config.evaluation.verifier)
    with show_stage(run, "data", "preparing data") as show:
        manifest = prepare(config, run, verifier, show)
    print_data(manifest)
    if manifest["dropped"] and not run.manifest.with_name("funnel.png").exists():
        from grpo_kit.display import data_funnel

        data_funnel.save_funnel(manifest, run)


def screen_prompts(config: RunConfig, run: Run) -> None:
    """Measure the pass rates of the training prompts."""
    from grpo_kit.evaluation.screening import screen

    with show_stage(run, "screen", "screening") as show:
        summary = screen(config, run, progress=show)
    print_screening(summary, config.data.pass_rate)


def train_policy(config: RunConfig, run: Run) -> None:
    """Train on the run's training rows."""
    from grpo_kit.training.train import train

    rewards = [load_reward(spec) for spec in config.grpo.reward_funcs]
    with show_stage(run, "train", "training") as show:
        after_step = follow_training(config.grpo.max_steps, show)
        last = train(config, run, rewards, after_step, print_forecast)
    reward = "no reward" if last["reward"] is None else f"reward {last['reward']:.2f}"
    console.out.print(f"         {last['step']} steps, {reward} in the last one")
    _finish_in_time(config, run, "train")


def learn_from_texts(config: RunConfig, run: Run) -> None:
    """Train on texts, before GRPO."""
    from grpo_kit.training.sft.sft import WEAKEST_FILE, sft

    with show_stage(run, "sft", "learning from texts") as show:
        after_step = follow_training(config.sft.max_steps, show)
        last = sft(config, run, after_step, None, print_texts, print_forecast)
    loss = "no loss" if last["loss"] is None else f"loss {last['loss']:.3f}"
    console.out.print(f"         {last['step']} steps, {loss} in the last one")
    print_weakest(read_json(run.stage_files("sft").folder / WEAKEST_FILE))
    _finish_in_time(config, run, "sft")


def learn_preferences(config: RunConfig, run: Run) -> None:
    """Train on pairs of completions, after GRPO."""
    from grpo_kit.training.preferences.prefer import prefer

    with show_stage(run, "prefer", "learning from pairs", config.run.force) as show:
        last = prefer(config, run, follow_training(config.dpo.max_steps, show))
    if "nothing_to_learn" in last:
        console.out.print(escape(f"         {last['nothing_to_learn']}"))
        return
    console.out.print(f"         {last['step']} steps, loss {last['loss']:.3f} in the last one")
    _finish_in_time(config, run, "prefer")


def _finish_in_time(config: RunConfig, run: Run, stage: str) -> None:
    """Where the session ends soon, measure and package what there is."""
    if run.stages()[stage].get("out_of_time") and processes.is_first():
        from grpo_kit.evaluation.problem_sets import is_only_judged

        if not is_only_judged(config, run):
            measure_accuracy(config, run, MEASURED[stage])
        package_adapter(config, run, None)


def measure_trained(config: RunConfig, run: Run, trained: Sequence[str]) -> None:
    """Measure what each of these stages made. Only the last one's adapter has to be there: it is the run's result."""
    for stage in trained:
        adapter = run.stage_files(stage).adapter
        if stage == trained[-1] or adapter.exists():
            measure_accuracy(config, run, MEASURED[stage])
        else:
            console.err.print(escape(f"note: {adapter} is gone, so stage {stage!r} is not measured anew"))


def measure_accuracy(config: RunConfig, run: Run, stage: str) -> dict[str, Any]:
    """Measure held-out accuracy; `stage` is `before`, or one of `trained.MEASURED`. Returns what `measure` does."""
    from grpo_kit.evaluation.evaluate import measure

    with show_stage(run, stage, f"accuracy {stage.replace('_', ' ')}") as show:
        report = measure(config, run, stage, progress=show)
    print_measurement(report)
    return report


def package_adapter(
    config: RunConfig,
    run: Run,
    zip_path: Path | None,
    adapters: Sequence[Path] = (),
    base: Policy | None = None,
    dtype: str | None = None,
    ranks: str = "pad",
    stacked: str = "auto",
    only_used: bool = False,
) -> Path:
    """Package the run's adapter, or `adapters` from elsewhere for the policy `base`; returns the path of the zip."""
    from grpo_kit.policy.model_source import base_model_name
    from grpo_kit.submission import package

    out = zip_path or run.submission
    if out.is_dir():
        raise IsADirectoryError(f"--out is {out}, a folder; the zip is a file. Write --out {out / 'submission.zip'}.")
    require_folder(out.parent, "Name another path with --out.")
    creates_folder = zip_path and not out.parent.exists()
    notes: list[str] = []
    model = base_model_name(base) if base else None
    with console.show_progress("packing") if adapters else show_stage(run, "package", "packing") as show:
        path = package.package_adapter(
            config, run, zip_path, adapters, model, dtype, ranks, stacked, only_used, notes.append, show
        )
    for note in notes:
        console.out.print(f"         {escape(note)}")
    if creates_folder:
        console.out.print(escape(f"         the folder {path.parent} is new"))
    console.out.print(escape(f"         {path} ({path.stat().st_size / 2**20:.2f} MiB)"))
    return path


def score_puzzles(config: RunConfig, run: Run, problems: int, zip_path: Path | None) -> None:
    """Rehearse the challenge's scorer; print accuracies by family."""
    from grpo_kit.evaluation.rehearsal import rehearse_score

    with show_stage(run, "score", "scoring") as show:
        report = rehearse_score(config, run, problems, zip_path, show)
    print_score(report, run)


def check_zip(path: Path, policy: Policy | None, run: Run | None) -> list[Finding]:
    """Print what is wrong with a zip for the base `policy`, by default the one that the zip names; return the findings.

    Raises:
        RuntimeError: if a finding is fatal.
    """
    from grpo_kit.submission.output_check import check_submission

    findings = check_submission(path, policy, run.result.probe if run else None)
    print_findings(path, findings)
    if fatal(findings):
        raise RuntimeError(
            f"{path} must not be submitted (see fatal above). Follow the remedy, then run "
            f"`grpo-kit check {shlex.quote(str(path))}` again."
        )
    return findings
