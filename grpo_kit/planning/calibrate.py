"""Count which routed experts real prompts hit, so that the coldest ones can lie in the slower memory.

The policy answers some of the run's training prompts. Every row that a router sends to an expert is counted, of prompts
and completions alike. The counts lie beside the NF4 checkpoint and decide from then on where experts are put.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from grpo_kit.config import RunConfig
from grpo_kit.nemotron import expert_placement
from grpo_kit.policy.generate import sample_completions
from grpo_kit.policy.load import load_policy, routing_path
from grpo_kit.runs.files import write_text
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run

TOKENS = 128  # of each completion; so few already show what a router prefers


def count_routed_rows(
    config: RunConfig, run: Run, prompts: int = 64, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Answer the run's first training prompts, count the rows that each expert gets, and write `routing.json`.

    Args:
        config: the run's configuration.
        run: the run, whose data stage must be done.
        prompts: how many prompts to answer, at least 1.
        progress: called with (prompts answered, prompts in all).

    Returns:
        What `routing.json` holds: `model`, `prompts`, `rows` (how many were routed), `hits` (rows of each expert, shape
        (layers, experts)), `experts_on_host` (the configured share of experts in host memory, in [0, 1]), and the share
        of rows that need them: `host_share_last` if these are each layer's last experts, `host_share_coldest` if they
        are the coldest ones, which later runs put there.

    Raises:
        ValueError: if the policy has no routed experts in 4 bit, or `prompts` is below 1.
        FileNotFoundError: if the run has no data.
    """
    if prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {prompts} (default 64).")
    run.require_stage("data", "grpo-kit data")
    model, tokenizer = load_policy(replace(config.policy, routing=None))
    layers = list(expert_placement.find_tiered_layers(model).values())
    if not layers:
        raise ValueError(
            f"policy.model {config.policy.model!r} has no routed experts in 4 bit, so there is nothing to place. "
            "Set policy.load_in_4bit=true on a Nemotron-H."
        )
    for layer in layers:
        layer.counting = True
    questions = [row["prompt"] for row in read_lines(run.data_file("train"))[:prompts]]
    length = min(TOKENS, config.grpo.max_completion_length)
    settings = replace(config.evaluation, max_completion_length=length, temperature=1.0)
    sample_completions(model, tokenizer, questions, settings, config.run.seed, config.policy.enable_thinking, progress)
    hits, share = torch.stack([layer.hits for layer in layers]), config.policy.experts_on_host
    last, coldest = (expert_placement.choose_host_experts(*hits.shape, share, by) for by in (None, hits))
    counts = {
        "model": config.policy.model,
        "prompts": len(questions),
        "rows": int(hits.sum()),
        "experts_on_host": share,
        "host_share_last": expert_placement.expected_host_share(hits, last),
        "host_share_coldest": expert_placement.expected_host_share(hits, coldest),
        "hits": hits.tolist(),
    }
    write_text(routing_path(config.policy), json.dumps(counts) + "\n")
    return counts
