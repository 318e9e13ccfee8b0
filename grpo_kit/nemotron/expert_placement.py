"""All routed experts of a model: put into tiers with the least used on the host, opened to LoRA, counted."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from grpo_kit.nemotron.base_models import select_modules
from grpo_kit.nemotron.expert_workbench import ExpertShape, Workbench
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


def choose_host_experts(
    layers: int, count: int, share_on_host: float, hits: torch.Tensor | None = None
) -> list[list[int]]:
    """Choose which experts go to the host: the least used of all layers, or without counts each layer's last ones.

    Args:
        layers: number of layers with experts.
        count: experts in a layer.
        share_on_host: share of all experts, in [0, 1].
        hits: (layers, count) int64, how many rows each expert got.

    Returns:
        For each layer the sorted numbers of its experts on the host.

    Raises:
        ValueError: `hits` has another shape.
    """
    if hits is None:
        return [list(range(count - round(share_on_host * count), count))] * layers
    if tuple(hits.shape) != (layers, count):
        raise ValueError(
            f"The routing counts are of {tuple(hits.shape)} experts and this model has {layers} layers of {count}; "
            "they belong to another model. Count again with `grpo-kit calibrate`."
        )
    coldest = hits.flatten().argsort(stable=True)[: round(share_on_host * hits.numel())].sort().values.tolist()
    return [[i - layer * count for i in coldest if i // count == layer] for layer in range(layers)]


def expected_host_share(hits: torch.Tensor, on_host: list[list[int]]) -> float:
    """The share of counted rows, in [0, 1], that would go to the host.

    Args:
        hits: (layers, experts) int64, how many rows each expert got.
        on_host: for each layer the numbers of its experts on the host.
    """
    return sum(int(hits[layer][experts].sum()) for layer, experts in enumerate(on_host)) / max(1, int(hits.sum()))


def replace_experts(
    model: nn.Module,
    share_on_host: float = 0.0,
    hits: torch.Tensor | None = None,
    slots: int = 8,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    host: torch.device | None = None,
) -> dict[str, tuple[nn.Module, TieredExperts]]:
    """Put tiered experts, still empty, in place of every `NemotronHExperts`.

    Args:
        model: A Nemotron-H; it is changed.
        share_on_host: share of the experts on the host, in [0, 1].
        hits: (layers, experts) int64 routing counts, see `choose_host_experts`.
        slots: how many experts from the host can be on their way at once.
        device, dtype: where the experts are computed and in what type; None: like the replaced parameters.
        host: device of the host tier, for example a second GPU; None: host memory.

    Returns:
        {module name: (the replaced module, the tiered experts)}.
    """
    replaced = {name: module for name, module in model.named_modules() if type(module).__name__ == "NemotronHExperts"}
    if not replaced:
        return {}
    count, intermediate, hidden = next(iter(replaced.values())).up_proj.shape
    placement = choose_host_experts(len(replaced), count, share_on_host, hits)
    layers, bench = {}, None
    for (name, fused), on_host in zip(replaced.items(), placement, strict=True):
        stack = fused.up_proj
        bench = bench or Workbench(
            ExpertShape(hidden, intermediate), device or stack.device, dtype or stack.dtype, slots
        )
        tiered = TieredExperts(bench.geometry, count, fused.act_fn, bench)
        tiered.place(on_host, host)
        model.set_submodule(name, tiered)
        layers[name] = (fused, tiered)
    return layers


def install_tiered_experts(
    model: nn.Module,
    share_on_host: float = 0.0,
    slots: int = 8,
    hits: torch.Tensor | None = None,
    host: torch.device | None = None,
) -> list[TieredExperts]:
    """Replace every `NemotronHExperts` of a loaded model by tiered NF4 experts with its weights.

    Args are those of `replace_experts`.

    Returns:
        The tiered experts in the order of the layers.
    """
    layers = []
    for fused, tiered in replace_experts(model, share_on_host, hits, slots, host=host).values():
        for expert in range(tiered.num_experts):
            tiered.write_expert(expert, fused.up_proj.data[expert], fused.down_proj.data[expert])
        layers.append(tiered)
    return layers
