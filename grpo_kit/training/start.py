"""The policy that a stage trains: the base with the run's LoRA, as the stage before left it."""

import warnings
from typing import Any

from grpo_kit.adapters.lora import add_lora, describe_dropped, load_adapter_values
from grpo_kit.nemotron.placement.placing import place_coldest
from grpo_kit.planning import calibrate
from grpo_kit.policy.chat import check_chat_template
from grpo_kit.policy.load import load_policy
from grpo_kit.policy.routing_counts import read_routing_counts
from grpo_kit.runs import activity, processes
from grpo_kit.runs.reading import read_lines
from grpo_kit.training.stage import TrainingStage


def load_for_training(stage: TrainingStage, policy: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """Load the policy with the LoRA that the stage trains, and the tokenizer.

    Args:
        stage: says which run, and where it begins: with a fresh LoRA, or with the adapter of the stage before.
        policy: (model, tokenizer) without a LoRA, if they are loaded already; None loads them.

    Returns:
        (model, tokenizer). The base is frozen, its experts lie where the run's counts say, and the LoRA is in float32.

    Raises:
        ValueError: the chat template cannot write the run's prompts; a target module does not exist; the adapter of the
            stage before does not fit.
    """
    config, run = stage.config, stage.run
    placed = calibrate.use_counts_of(run, config.policy)
    if policy is None:
        check_chat_template(config.policy, (row["prompt"] for row in read_lines(run.data_file("train"))))
        model, tokenizer = load_policy(placed)
    else:
        model, tokenizer = policy
        if placed.load_in_4bit and (hits := read_routing_counts(placed)) is not None:
            place_coldest(model, hits)
    activity.announce("preparing the trainer")
    model = add_lora(model, config.lora, config.run.seed)
    if stage.start:
        load_adapter_values(model, stage.start)
    if (dropped := describe_dropped(model)) and processes.is_first():
        warnings.warn(dropped, stacklevel=2)
    return model, tokenizer
