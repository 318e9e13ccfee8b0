"""All routed experts of a model, put into tiers with the least used on the host.

Where an expert lies changes no result but for rounding: the sum over a token's experts has another order. So experts
may move at any time, between stages and when the GPU runs out of memory (relief.py).
"""

import functools
import itertools

import torch
from torch import nn

from grpo_kit.nemotron.decoding import early_router
from grpo_kit.nemotron.expert_workbench import ExpertShape, Workbench
from grpo_kit.nemotron.experts import TieredExperts
from grpo_kit.nemotron.placement.relief import with_relief
from grpo_kit.nemotron.placement.tiered_layers import experts_on_host, find_tiered_layers


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


def place_coldest(model: nn.Module, hits: torch.Tensor) -> None:
    """Move experts so that the least used lie on the host, as many as lie there now.

    Layers that give memory back come first, so that the GPU never holds more than it did.

    Args:
        model: a model with tiered experts.
        hits: (layers, experts) int64, how many rows each expert got.

    Raises:
        ValueError: `hits` has another shape.
    """
    layers = list(find_tiered_layers(model).values())
    if not layers:
        return
    placement = choose_host_experts(len(layers), layers[0].num_experts, experts_on_host(model) or 0.0, hits)
    for layer, counts in zip(layers, hits, strict=True):
        layer.hits = counts.clone()
    moves = sorted(zip(layers, placement, strict=True), key=lambda move: len(move[0].on_host) - len(move[1]))
    for layer, on_host in moves:
        layer.place(on_host)


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
        share_on_host: share of the experts on the host, in [0, 1]; more go there if the device has no room.
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
    used = torch.zeros((len(replaced), count), dtype=torch.int64) if hits is None else hits
    layers, bench = {}, None
    for (name, fused), on_host, counts in zip(replaced.items(), placement, used, strict=True):
        stack = fused.up_proj
        bench = bench or Workbench(
            ExpertShape(hidden, intermediate), device or stack.device, dtype or stack.dtype, slots
        )
        tiered = TieredExperts(bench.geometry, count, fused.act_fn, bench)
        tiered.hits, tiered.on_host = counts.clone(), frozenset(on_host)
        model.set_submodule(name, tiered)
        layers[name] = (fused, tiered)
    blocks = [model.get_submodule(name.removesuffix(".mixer.experts")) for name in layers]
    for block, following in itertools.pairwise(blocks):
        early_router.connect(block, following)
    for _, tiered in layers.values():
        with_relief(model, functools.partial(tiered.place, tiered.on_host, host), "loading")
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
