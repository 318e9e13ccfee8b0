"""How the router spreads tokens over the experts: counted over fixed texts, before and after training, and compared.

The router is frozen, so the load shifts only because a LoRA changes what the router reads. A load far from even wastes
experts, and an expert that lies on the slower tier and becomes busy costs time. `evaluation/expert_choices.py` lets
both policies read the same texts and writes `evaluation/<stage>_experts.json`; this file has the figures and words.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from grpo_kit.nemotron import patches
from grpo_kit.nemotron.placement.placing import choose_host_experts, expected_host_share
from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers
from grpo_kit.policy.routing_counts import MOST_ROWS
from grpo_kit.runs.reading import read_json, remedy_for
from grpo_kit.runs.run import Run
from grpo_kit.runs.trained import MEASURED

TOKENS_AT_ONCE = 2048  # that one forward pass reads, padding included
WORTH = 0.01  # share of routed rows that a new placement has to take off the slower tier before it is proposed


class LayerLoad(NamedTuple):
    """How evenly one layer's experts are loaded.

    Attributes:
        max_violation: rows of the fullest expert over the mean of all, less 1 (MaxVio); 0 for an even load.
        entropy: of the load, as a share of that of an even one, in [0, 1].
        unused: how many experts got no row.
    """

    max_violation: float
    entropy: float
    unused: int


def record_choices(model: Any, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Let the policy read texts, and record which experts each layer's router chooses for each token.

    Texts of about one length are read together, the shorter ones padded at their end, which no token before it sees.

    Args:
        model: a Nemotron-H, its experts in 4 bit or as transformers keeps them, with or without a LoRA.
        texts: token ids, none of them empty.

    Returns:
        (layers, tokens, k) int16 on the CPU; the same texts always give the same order of tokens.

    Raises:
        torch.OutOfMemoryError: the GPU has no room for one text.
    """
    seen: list[list[torch.Tensor]] = [[] for _ in patches.find_routers(model)]
    hooks = [
        router.register_forward_hook(lambda _module, _inputs, output, own=own: own.append(output[2]))
        for router, own in zip(patches.find_routers(model).values(), seen, strict=True)
    ]
    try:
        for batch in _batch_by_length(texts):
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in batch], batch_first=True)
            lengths = torch.tensor([len(text) for text in batch])
            is_token = torch.arange(ids.shape[1]) < lengths[:, None]
            with torch.no_grad():
                model(ids.to(model.device), use_cache=False, logits_to_keep=1)
            for own in seen:
                own[-1] = own[-1].cpu().view(*ids.shape, -1)[is_token].to(torch.int16)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([torch.cat(own) for own in seen])


def _batch_by_length(texts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """The texts, short ones first, in batches of at most TOKENS_AT_ONCE tokens with padding, or of one text."""
    batches: list[list[Sequence[int]]] = [[]]
    for text in sorted(texts, key=len):
        if batches[-1] and (len(batches[-1]) + 1) * len(text) > TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(text)
    return batches


def count_choices(choices: torch.Tensor, experts: int) -> torch.Tensor:
    """(layers, experts) int64: how many tokens chose each expert, from the choices of `record_choices`."""
    return torch.stack([torch.bincount(layer.flatten().long(), minlength=experts) for layer in choices])


def describe_layers(hits: Sequence[Sequence[int]]) -> list[LayerLoad]:
    """How evenly each layer's experts are loaded.

    Args:
        hits: for each layer the rows that each of its experts got, at least two experts.

    Source: MaxVio is that of arXiv:2408.15664.

    Example:
        >>> describe_layers([[4, 4, 0, 0]])
        [LayerLoad(max_violation=1.0, entropy=0.5, unused=2)]
    """
    loads = []
    for layer in hits:
        rows = max(1, sum(layer))
        entropy = -sum(count / rows * math.log(count / rows) for count in layer if count) / math.log(len(layer))
        loads.append(LayerLoad(max(layer) * len(layer) / rows - 1, entropy, layer.count(0)))
    return loads


def compare_choices(before: torch.Tensor, after: torch.Tensor) -> tuple[list[float], list[float]]:
    """What became of the choices of two policies for the same tokens, by layer.

    Args:
        before, after: (layers, tokens, k), from `record_choices`.

    Returns:
        (the share of tokens whose set of experts is another one, the mean share of a token's experts that stayed), each
        in [0, 1] and for each layer.

    Example:
        >>> compare_choices(torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([[[1, 0], [2, 4]]]))
        ([0.5], [0.75])
    """
    changed, overlap = [], []
    for old, new in zip(before, after, strict=True):
        stayed = (old[:, :, None] == new[:, None, :]).any(-1)
        changed.append(float((~stayed.all(-1)).double().mean()))
        overlap.append(float(stayed.double().mean()))
    return changed, overlap


def count_zero_pairs(model: Any) -> tuple[int, int]:
    """(LoRA pairs on routed experts whose B is still zero, all LoRA pairs on routed experts).

    B begins at zero, and only a gradient changes it: of a token that counts in the loss and chose the expert.
    """
    layers = find_tiered_layers(model).values()
    pairs = [lora for layer in layers for both in layer.active_loras().values() for lora in both if lora]
    return sum(not bool(lora.b.any()) for lora in pairs), len(pairs)


def number_layers(model: Any) -> list[int]:
    """The places of the layers with experts in the model, counted from 0."""
    return [int(re.findall(r"\.(\d+)\.", name)[-1]) for name in patches.find_routers(model)]


def read_load(path: Path) -> dict[str, Any]:
    """Read `evaluation/<stage>_experts.json`.

    Returns:
        `hits_before` and `hits` (rows that each expert got, by layer), `layers` (their places in the model), `changed`
        and `overlap` (see `compare_choices`), `on_host` (for each layer the experts on the slower tier), `lora_pairs`
        and `lora_pairs_zero` (see `count_zero_pairs`), `top_k`, `tokens` and `prompts`, among others.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is damaged. The message names the remedy.
    """
    load = read_json(path)
    layers, experts = len(load["hits"]), len((load["hits"] or [[]])[0])
    counts = [count for table in ("hits", "hits_before") for row in load[table] for count in row]
    shares = [*load["changed"], *load["overlap"]]
    wrong = None
    if not layers or experts < 2 or {len(row) for row in load["hits"] + load["hits_before"]} != {experts}:
        wrong = "its counts are no tables of layers and experts"
    elif {len(load[key]) for key in ("hits_before", "layers", "changed", "overlap", "on_host")} != {layers}:
        wrong = "its tables have different numbers of layers"
    elif not all(0 <= count <= MOST_ROWS for count in counts):
        wrong = f"a count is a whole number, 0 to {MOST_ROWS:,}"
    elif not all(0 <= share <= 1 for share in shares):  # false for NaN too
        wrong = "a share is a number from 0 to 1"
    elif not all(0 <= expert < experts for row in load["on_host"] for expert in row):
        wrong = f"an expert on the host is a number from 0 to {experts - 1}"
    if wrong:
        raise ValueError(f"{path} is damaged: {wrong}. {remedy_for(path)}")
    return load


def find_load_file(run: Run) -> Path | None:
    """The file on the load of the run's last measured policy; None where none was written."""
    stages = run.stages()
    for stage in reversed(MEASURED.values()):
        path = run.evaluation / f"{stage}_experts.json"
        if stage in stages:
            return path if path.relative_to(run.path).as_posix() in stages[stage]["wrote"] else None
    return None


def find_hot(load: dict[str, Any]) -> list[tuple[int, int]]:
    """(layer of the model, expert) for each expert on the slower tier that became hot.

    It is hot when it gets more rows than the mean of its layer, and was not before training. None is named unless the
    placement by the new counts takes at least WORTH of all rows off that tier.
    """
    hits, old = (torch.tensor(load[key]).double() for key in ("hits", "hits_before"))
    share, renewed = _host_shares(load)[1:]
    if share - renewed < WORTH:
        return []
    is_hot = (hits > hits.mean(1, keepdim=True)) & (old <= old.mean(1, keepdim=True))
    return [
        (number, expert)
        for place, number in enumerate(load["layers"])
        for expert in load["on_host"][place]
        if is_hot[place, expert]
    ]


def _host_shares(load: dict[str, Any]) -> tuple[float, float, float]:
    """The share of rows that need the slower tier: before training, after it, and after it in the placement by it."""
    hits, on_host = torch.tensor(load["hits"]), load["on_host"]
    renewed = choose_host_experts(*hits.shape, sum(map(len, on_host)) / hits.numel(), hits)
    share = expected_host_share
    return share(torch.tensor(load["hits_before"]), on_host), share(hits, on_host), share(hits, renewed)


def describe_load(load: dict[str, Any], path: Path) -> list[str]:
    """What training did to the load of the experts, in two to four sentences; the last one may be an alarm.

    Args:
        load: from `read_load`.
        path: its file, which the alarm names as `policy.routing`.
    """
    old, new = (describe_layers(load[key]) for key in ("hits_before", "hits"))
    layers, experts = len(load["hits"]), len(load["hits"][0])
    worst, entropy, unused = (
        [figure([getattr(layer, name) for layer in side]) for side in (old, new)]
        for name, figure in (("max_violation", max), ("entropy", lambda all_: sum(all_) / layers), ("unused", sum))
    )
    sentences = [
        f"Load of the experts over {load['prompts']} fixed texts ({load['tokens']:,} tokens; {layers} layers of "
        f"{experts} experts, {load['top_k']} a token): the fullest has {worst[0] + 1:.2f} times its layer's mean "
        f"before and {worst[1] + 1:.2f} after; entropy {entropy[0]:.3f} and {entropy[1]:.3f} of that of an even load; "
        f"{unused[0]} and {unused[1]} of {layers * experts} unused.",
        f"For {sum(load['changed']) / layers:.1%} of the tokens a layer's choice changed; "
        f"{sum(load['overlap']) / layers:.1%} of the chosen experts stayed.",
    ]
    if load["lora_pairs"]:
        zero = (
            f"{load['lora_pairs_zero']:,} of them are still zero: no token that counted in the loss chose their expert"
        )
        zero = zero if load["lora_pairs_zero"] else "a gradient has reached each of them"
        sentences.append(f"The experts have {load['lora_pairs']:,} LoRA pairs; {zero}.")
    if hot := find_hot(load):
        named = ", ".join(f"{expert} of layer {layer}" for layer, expert in hot[:4])
        more = f" and {len(hot) - 4} more" if len(hot) > 4 else ""
        shares = "{:.1%} of the rows needed that tier before training, {:.1%} do now".format(*_host_shares(load))
        sentences.append(
            f"Alarm: {len(hot)} of the experts on the slower tier became hot (expert {named}{more}): {shares}, and "
            f"{_host_shares(load)[2]:.1%} would in a placement by these counts. Set policy.routing={path} to use it."
        )
    return sentences
