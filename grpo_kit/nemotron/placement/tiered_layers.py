"""The layers of a model that hold tiered experts: found, opened to LoRA, and what they counted."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from grpo_kit.nemotron.base_models import select_modules
from grpo_kit.nemotron.experts import TieredExperts


def find_tiered_layers(model: nn.Module) -> dict[str, TieredExperts]:
    """{module name: a layer's tiered experts}, in the order of the layers."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TieredExperts)}


def open_for_lora(model: nn.Module, targets: Sequence[str]) -> bool:
    """Show routed experts to PEFT, where the targets include them.

    Args:
        model: the model with tiered experts.
        targets: LoRA's target modules, as endings of module names.

    Returns:
        Whether some target means a routed expert.
    """
    chosen = {name.rsplit(".", 2)[0] for name in select_modules(targets, list_expert_matrices(model))}
    layers = find_tiered_layers(model)
    for name in chosen:
        layers[name].open_for_lora()
    return bool(chosen)


def list_expert_matrices(model: nn.Module) -> list[str]:
    """Names of the routed experts' matrices, as PEFT sees them once they are open."""
    return [
        f"{name}.{expert}.{leaf}"
        for name, layer in find_tiered_layers(model).items()
        for expert in range(layer.num_experts)
        for leaf in ("up_proj", "down_proj")
    ]


def count_packed_parameters(model: nn.Module) -> int:
    """How many weights the routed experts hold that are not parameters of the module."""
    return sum(2 * layer.num_experts * math.prod(layer.geometry) for layer in find_tiered_layers(model).values())


def unreached_experts(model: nn.Module) -> tuple[str, ...]:
    """Names of the routed experts whose LoRA no gradient has reached, because no token with an advantage chose them."""
    return tuple(
        f"{name}.{expert}."
        for name, layer in find_tiered_layers(model).items()
        if layer.reached is not None
        for expert, reached in enumerate(layer.reached.tolist())
        if not reached
    )


def reset_traffic(model: nn.Module) -> None:
    """Count again from zero how many rows go to the host."""
    for layer in find_tiered_layers(model).values():
        layer.traffic = [0, 0]


def reset_counts(model: nn.Module) -> None:
    """Count again from zero how many rows go to the host and which experts' LoRA is reached."""
    reset_traffic(model)
    for layer in find_tiered_layers(model).values():
        if layer.reached is not None:
            layer.reached.zero_()


def host_traffic_share(model: nn.Module) -> float | None:
    """The share of routed rows, in [0, 1], that went to experts on the host; None if no expert is there."""
    counts = [layer.traffic for layer in find_tiered_layers(model).values() if layer.on_host]
    if not counts:
        return None
    return sum(on_host for _, on_host in counts) / max(1, sum(rows for rows, _ in counts))


def experts_on_host(model: nn.Module) -> float | None:
    """The share of the routed experts, in [0, 1], that lie on the host; None if none does."""
    layers = find_tiered_layers(model).values()
    share = sum(len(layer.on_host) for layer in layers) / max(1, sum(layer.num_experts for layer in layers))
    return share or None


def name_host(layers: Sequence[TieredExperts]) -> str:
    """Where the experts of the slower tier lie, in words."""
    return "the host" if layers[0].host.type == "cpu" else str(layers[0].host)


def known_hits(layers: Sequence[TieredExperts]) -> torch.Tensor | None:
    """(layers, experts) int64, how many rows each expert is known to have got; None if nothing was counted."""
    hits = torch.stack([layer.hits for layer in layers])
    return hits if hits.any() else None
