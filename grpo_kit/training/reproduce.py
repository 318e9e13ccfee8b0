"""Repeat a run from its own record, and list what came out differently."""

from collections.abc import Callable, Container
from dataclasses import replace
from typing import Any

from grpo_kit.config import RunConfig
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import screening
from grpo_kit.evaluation.judge.check import copy_record
from grpo_kit.rewards.tools.calling import reward_names
from grpo_kit.rewards.tools.loading import fingerprint, load_reward
from grpo_kit.rewards.tools.routing import combine_rewards
from grpo_kit.runs.files import hash_of, list_differences
from grpo_kit.runs.metrics import read_metrics
from grpo_kit.runs.records import describe_environment
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import load_run_config
from grpo_kit.training import train
from grpo_kit.training.preferences import prefer
from grpo_kit.training.sft import sft

CLOCK = ("second", "time", "memory_gib")  # parts of names of figures that describe the machine and not the run
OnStage = Callable[[str], None]


def reproduce(run: Run, on_stage: OnStage = lambda stage: None) -> tuple[Run, list[str]]:
    """Repeat a run's data, screening and trainings beside it, as NAME-again, from its `config.yaml` and `run.json`.

    Args:
        run: a trained run.
        on_stage: is called with `data`, `sft`, `screen`, `train` or `prefer` before that stage begins.

    Returns:
        The repetition, and a sentence for each difference: of the machine and the versions, of rewards that were edited
        since, of the data, of the metrics from the first step that differs, of the adapter. Without a difference both
        runs are the same, bit for bit.

    Raises:
        FileNotFoundError: the run is not trained.
        ValueError: one of the run's files is damaged.

    Example:
        >>> again, differences = reproduce(find_run("mine"))  # doctest: +SKIP
        >>> again.name, differences  # doctest: +SKIP
        ('mine-again', [])
    """
    stages = run.stages()
    run.require_trained()
    for stage in ("data", "screen"):  # what is compared in the end has to be whole
        if stage in stages or stage == "data":
            run.require_stage(stage, f"grpo-kit {stage}")
    before = _figures(run)
    config = load_run_config(run)
    again = Run(run.root, f"{run.name}-again")
    config = replace(config, run=replace(config.run, name=again.name, force=True))
    rewards = [load_reward(spec) for spec in config.grpo.reward_funcs]
    judges = combine_rewards(config, run.environments(), rewards).functions
    last = run.trained_stages()[-1]
    recorded = stages.get("train", {}).get("settings", {}).get("rewards", {})
    sentences = list_differences(stages[last].get("environment", {}), describe_environment())
    sentences += [
        f"reward {name} was edited since"
        for name, reward in zip(reward_names(judges), judges, strict=True)
        if recorded and recorded.get(name) != fingerprint(reward)
    ]
    copy_record(run, again)
    _repeat(config, again, rewards, stages, on_stage)
    for split in ("train", "val", "test"):
        first, second = run.data_file(split), again.data_file(split)
        if hash_of(first) != hash_of(second):
            sentences.append(f"the {split} rows differ: {first} and {second}")
    now = _figures(again)
    step = next((a["step"] for a, b in zip(before, now) if a != b), None)
    if step is not None or len(before) != len(now):
        sentences.append(f"the metrics differ from step {step or min(len(before), len(now)) + 1} on")
    if hash_of(run.result.adapter) != hash_of(again.result.adapter):
        sentences.append("the adapter differs")
    return again, sentences


def _repeat(config: RunConfig, again: Run, rewards: list[Any], stages: Container[str], on_stage: OnStage) -> None:
    """Repeat `data` and those of the other stages that are among `stages`."""
    verifier = load_reward(config.evaluation.verifier)
    work = {
        "data": lambda: prepare(config, again, verifier),
        "sft": lambda: sft.sft(config, again),
        "screen": lambda: screening.screen(config, again, verifier),
        "train": lambda: train.train(config, again, rewards),
        "prefer": lambda: prefer.prefer(config, again),
    }
    for stage, repeat in work.items():
        if stage in stages:
            on_stage(stage)
            repeat()


def _figures(run: Run) -> list[dict[str, Any]]:
    """Metrics rows of all trainings without what the clock and the machine decide."""
    rows = [row for stage in run.trained_stages() for row in read_metrics(run.stage_files(stage).metrics)]
    return [{name: value for name, value in row.items() if not any(part in name for part in CLOCK)} for row in rows]
