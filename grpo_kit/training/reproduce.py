"""A run repeated from its own record: the same data, the same training, and what came out otherwise."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from grpo_kit.config import RunConfig, load_config
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import screening
from grpo_kit.rewards.tools.loading import fingerprint, load_reward
from grpo_kit.runs.files import hash_of, list_differences
from grpo_kit.runs.metrics import read_metrics
from grpo_kit.runs.run import Run, describe_environment
from grpo_kit.training import train

CLOCK = ("second", "time", "memory_gib")  # what a metrics row says of the machine and not of the run
Show = Callable[[str], None]


def reproduce(run: Run, show: Show = lambda _: None) -> tuple[Run, list[str]]:
    """Repeat `run` beside it, as NAME-again, from its `config.yaml` and `run.json`; (the repetition, what differs).

    Each difference is a sentence: of the machine and the versions, of rewards edited since, of the data, of metrics from the
    first step that differs, of the adapter; none means bit for bit the same. `show(stage)` is called before each stage.
    Raises FileNotFoundError for a run that is not trained.
    """
    run.require_stage("train", "grpo-kit train")
    notes = run.stages()
    config = load_config([str(run.config)])
    again = Run(run.root, f"{run.name}-again")
    config = replace(config, run=replace(config.run, name=again.name, force=True))
    rewards = [load_reward(spec) for spec in config.grpo.reward_funcs]
    told = notes["train"]["settings"]["rewards"]
    found = list_differences(notes["train"]["environment"], describe_environment())
    found += [
        f"reward {reward.__name__} was edited since"
        for reward in rewards
        if told.get(reward.__name__) != fingerprint(reward)
    ]
    _repeat(config, again, rewards, "screen" in notes, show)
    for split in ("train", "val", "test"):
        if hash_of(run.data_file(split)) != hash_of(again.data_file(split)):
            found.append(f"the {split} rows differ: {run.data_file(split)} and {again.data_file(split)}")
    before, now = _figures(run), _figures(again)
    step = next((a["step"] for a, b in zip(before, now) if a != b), None)
    if step is not None or len(before) != len(now):
        found.append(f"the metrics differ from step {step or min(len(before), len(now)) + 1} on")
    if hash_of(run.adapter) != hash_of(again.adapter):
        found.append("the adapter differs")
    return again, found


def _repeat(config: RunConfig, again: Run, rewards: list[Any], screened: bool, show: Show) -> None:
    verifier = load_reward(config.evaluation.verifier)
    show("data")
    prepare(config, again, verifier)
    if screened:
        show("screen")
        screening.screen(config, again, verifier)
    show("train")
    train.train(config, again, rewards)


def _figures(run: Run) -> list[dict[str, Any]]:
    rows = read_metrics(run.metrics)
    return [{key: value for key, value in row.items() if not any(word in key for word in CLOCK)} for row in rows]
