"""Which experts do real prompts hit? Counted once, so that the coldest can lie in the slower memory.

The policy answers some of the run's training prompts; every row that a router sends to an expert is counted, prompts and
completions alike. What was counted lies beside the NF4 checkpoint and decides where experts are put from then on.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from grpo_kit.config import RunConfig
from grpo_kit.nemotron import expert_placement
from grpo_kit.policy.generate import sample
from grpo_kit.policy.load import load_policy, routing_file
from grpo_kit.runs.files import read_lines, write_text
from grpo_kit.runs.run import Run

TOKENS = 128  # of each completion; what a router likes shows early


def calibrate(
    config: RunConfig, run: Run, prompts: int = 64, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Count on the run's first `prompts` training rows; write `routing.json` and return what was found.

    `rows` routed, `hits` as (layers, experts), and the share of the rows that goes to the host, in [0, 1], with
    `experts_on_host` of the experts there: `host_share_last`, each layer's last ones, and `host_share_coldest`, as they
    are laid out from now on. Raises ValueError where no experts lie in tiers, FileNotFoundError without data.
    """
    if prompts < 1:
        raise ValueError(f"{prompts} prompts are no sample; at least one is needed. Ask for 64.")
    run.require_stage("data", "grpo-kit data")
    model, tokenizer = load_policy(replace(config.policy, routing=None))
    layers = list(expert_placement.tiers_of(model).values())
    if not layers:
        raise ValueError(
            f"policy.model {config.policy.model!r} has no routed experts in 4 bit, so there is nothing to place. "
            "Set policy.load_in_4bit=true on a Nemotron-H."
        )
    for layer in layers:
        layer.counting = True
    asked = [row["prompt"] for row in read_lines(run.data_file("train"))[:prompts]]
    how = replace(
        config.evaluation, max_completion_length=min(TOKENS, config.grpo.max_completion_length), temperature=1.0
    )
    sample(model, tokenizer, asked, how, config.run.seed, config.policy.enable_thinking, progress)
    hits, share = torch.stack([layer.hits for layer in layers]), config.policy.experts_on_host
    found = {
        "model": config.policy.model,
        "prompts": len(asked),
        "rows": int(hits.sum()),
        "experts_on_host": share,
        "host_share_last": expert_placement.host_share(hits, expert_placement.layout(*hits.shape, share)),
        "host_share_coldest": expert_placement.host_share(hits, expert_placement.layout(*hits.shape, share, hits)),
        "hits": hits.tolist(),
    }
    write_text(routing_file(config.policy), json.dumps(found) + "\n")
    return found
