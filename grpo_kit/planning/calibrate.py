"""Count which routed experts real prompts hit, so that the coldest ones can lie in the slower memory.

Every row that a router sends to an expert is counted, of prompts and completions alike. The stage `before` counts while
it answers, and the run's later stages place experts by that. `grpo-kit calibrate` counts alone: the policy answers some
of the run's training prompts, and the counts lie beside the NF4 checkpoint, for every run of that model.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from grpo_kit.config import Policy, RunConfig
from grpo_kit.nemotron.placement.placing import choose_host_experts, expected_host_share
from grpo_kit.nemotron.placement.tiered_layers import experts_on_host, find_tiered_layers, known_hits, name_host
from grpo_kit.policy.episodes import sample_completions
from grpo_kit.policy.load import load_policy
from grpo_kit.policy.routing_counts import read_routing_counts, routing_path
from grpo_kit.runs.files import write_text
from grpo_kit.runs.reading import read_json, read_lines
from grpo_kit.runs.run import Run

T = TypeVar("T")
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
        What `routing.json` holds, see `summarise_hits`.

    Raises:
        ValueError: if the policy has no routed experts in 4 bit, or `prompts` is below 1.
        FileNotFoundError: if the run has no data.
    """
    if prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {prompts} (default 64).")
    run.require_stage("data", "grpo-kit data")
    model, tokenizer = load_policy(replace(config.policy, routing=None))
    if not find_tiered_layers(model):
        raise ValueError(
            f"policy.model {config.policy.model!r} has no routed experts in 4 bit, so there is nothing to place. "
            "Set policy.load_in_4bit=true on a Nemotron-H."
        )
    questions = [row["prompt"] for row in read_lines(run.data_file("train"))[:prompts]]
    length = min(TOKENS, config.grpo.max_completion_length)
    settings = replace(config.evaluation, max_completion_length=length, temperature=1.0)

    def answer() -> None:
        seed, thinking = config.run.seed, config.policy.enable_thinking
        sample_completions(model, tokenizer, questions, settings, seed, thinking, progress)

    _, hits = count_hits(model, answer)
    counts = summarise_hits(config.policy, hits, len(questions))
    write_text(routing_path(config.policy), json.dumps(counts) + "\n")
    return counts


def count_hits(model: Any, work: Callable[[], T]) -> tuple[T, torch.Tensor | None]:
    """Do some work and count the rows that each expert gets meanwhile.

    Returns:
        (what the work returns; int64 counts of shape (layers, experts), None without tiered experts).
    """
    layers = list(find_tiered_layers(model).values())
    before = [layer.hits for layer in layers]
    for layer in layers:
        layer.counting = True
    try:
        result = work()
    finally:
        for layer in layers:
            layer.counting = False
    counts = [layer.hits - hits for layer, hits in zip(layers, before, strict=True)]
    return result, torch.stack(counts) if counts else None


def summarise_hits(policy: Policy, hits: torch.Tensor, prompts: int) -> dict[str, Any]:
    """What a file of counts holds.

    Args:
        policy: whose experts were counted.
        hits: (layers, experts) int64, how many rows each expert got.
        prompts: how many prompts were answered.

    Returns:
        `model`, `prompts`, `rows` (how many were routed), `hits`, `experts_on_host` (the configured share of experts on
        the host, in [0, 1]), and the share of rows that need those: `host_share_last` if they are each layer's last
        experts, `host_share_coldest` if they are the coldest ones, which later runs put there.
    """
    share = policy.experts_on_host
    last, coldest = (choose_host_experts(*hits.shape, share, by) for by in (None, hits))
    return {
        "model": policy.model,
        "prompts": prompts,
        "rows": int(hits.sum()),
        "experts_on_host": share,
        "host_share_last": expected_host_share(hits, last),
        "host_share_coldest": expected_host_share(hits, coldest),
        "hits": hits.tolist(),
    }


def use_counts_of(run: Run, policy: Policy) -> Policy:
    """The policy with its experts placed by what the run's stage `before` counted, unless `policy.routing` is set.

    Without a file of these counts, or if it is damaged or of another model, the policy is returned as it is. Its
    experts are then placed by the counts beside its NF4 checkpoint, if there are any.
    """
    if policy.routing is None and run.routing.is_file():
        counted = replace(policy, routing=str(run.routing))
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if "model" in read_json(run.routing) and read_routing_counts(counted) is not None:
                return counted
    return policy


def describe_placement(model: Any) -> str:
    """How many experts lie on the host, and what share of the rows counted before needs them; "" if none lies there."""
    layers = list(find_tiered_layers(model).values())
    if not (share := experts_on_host(model)):
        return ""
    count, place = sum(len(layer.on_host) for layer in layers), name_host(layers)
    words = f"{count:,} of the routed experts ({share:.0%}) lie on {place}"
    if (hits := known_hits(layers)) is None:
        return f"{words}; which are used least was not counted"
    laid_out = choose_host_experts(*hits.shape, share)
    shares = [
        expected_host_share(hits, placement) for placement in (laid_out, [list(layer.on_host) for layer in layers])
    ]
    return f"{words}; of the rows counted before, {shares[0]:.0%} need them as laid out, {shares[1]:.0%} as counted"
