"""A model's routed experts as a whole: put into tiers, the coldest in the slower one, opened to LoRA, counted."""

from collections.abc import Sequence

import torch
from torch import nn

from grpo_kit.nemotron.experts import ExpertShape, TieredExperts, Workbench


def find_tiered_layers(model: nn.Module) -> dict[str, TieredExperts]:
    """{module name: a layer's tiered experts}, in the order of the layers."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TieredExperts)}


def open_for_lora(model: nn.Module, targets: Sequence[str]) -> bool:
    """Show routed experts to PEFT if one of `targets`, endings of module names, means them; returns whether one does."""
    chosen = {
        name: tiers
        for name, tiers in find_tiered_layers(model).items()
        for expert in range(tiers.num_experts)
        for leaf in ("up_proj", "down_proj")
        if any(f".{name}.{expert}.{leaf}".endswith(f".{target}") for target in targets)
    }
    for tiers in chosen.values():
        tiers.open_for_lora()
    return bool(chosen)


def unreached_experts(model: nn.Module) -> tuple[str, ...]:
    """Names of the routed experts with a LoRA that no gradient has come to: no token that mattered chose them."""
    opened = {
        name: tiers.reached.tolist() for name, tiers in find_tiered_layers(model).items() if tiers.reached is not None
    }
    return tuple(f"{name}.{expert}." for name, all_ in opened.items() for expert, got in enumerate(all_) if not got)


def reset_traffic(model: nn.Module) -> None:
    """Start counting anew what goes to the host."""
    for tiers in find_tiered_layers(model).values():
        tiers.traffic = [0, 0]


def reset_counts(model: nn.Module) -> None:
    """Start counting anew what goes to the host and whose LoRA is reached."""
    reset_traffic(model)
    for tiers in find_tiered_layers(model).values():
        if tiers.reached is not None:
            tiers.reached.zero_()


def host_traffic_share(model: nn.Module) -> float | None:
    """The share of routed rows, in [0, 1], that went to experts on the host so far; None where none lies there."""
    rows = [tiers.traffic for tiers in find_tiered_layers(model).values() if tiers.on_host]
    return sum(far for _, far in rows) / max(1, sum(all_ for all_, _ in rows)) if rows else None


def choose_host_experts(
    layers: int, count: int, share_on_host: float, hits: torch.Tensor | None = None
) -> list[list[int]]:
    """For each layer which of its `count` experts go to the host, `share_on_host` in [0, 1] of all.

    With `hits`, int64 `(layers, count)`, the coldest of all layers; without, each layer's last ones. Raises ValueError
    for hits of another shape.
    """
    if hits is None:
        return [list(range(count - round(share_on_host * count), count))] * layers
    if tuple(hits.shape) != (layers, count):
        raise ValueError(
            f"The routing statistics are of {tuple(hits.shape)} experts and this model has {layers} layers of {count}; "
            "they belong to another model. Count again with `grpo-kit calibrate`."
        )
    coldest = hits.flatten().argsort(stable=True)[: round(share_on_host * hits.numel())].sort().values.tolist()
    return [[i - layer * count for i in coldest if i // count == layer] for layer in range(layers)]


def expected_host_share(hits: torch.Tensor, on_host: list[list[int]]) -> float:
    """The share of counted rows, in [0, 1], that experts on the host get; `hits` is (layers, count)."""
    return sum(int(hits[layer][chosen].sum()) for layer, chosen in enumerate(on_host)) / max(1, int(hits.sum()))


def replace_experts(
    model: nn.Module, share_on_host: float = 0.0, hits: torch.Tensor | None = None, slots: int = 8,
    device: torch.device | None = None, dtype: torch.dtype | None = None, host: torch.device | None = None,
) -> dict[str, tuple[nn.Module, TieredExperts]]:  # fmt: skip
    """Put tiered experts, still empty, in place of every `NemotronHExperts`: {module name: (what was there, they)}.

    `share_on_host` of the experts lie on the host (or on `host`, a second GPU), by `hits` where there are any (see
    `layout`); `slots` of those can be on their way at once. `device` and `dtype` are the replaced parameters' own
    unless given.
    """
    there = {name: m for name, m in model.named_modules() if type(m).__name__ == "NemotronHExperts"}
    if not there:
        return {}
    count, intermediate, hidden = next(iter(there.values())).up_proj.shape
    lays = choose_host_experts(len(there), count, share_on_host, hits)
    done, bench = {}, None
    for (name, fused), on_host in zip(there.items(), lays, strict=True):
        stack = fused.up_proj
        bench = bench or Workbench(
            ExpertShape(hidden, intermediate), device or stack.device, dtype or stack.dtype, slots
        )
        tiered = TieredExperts(bench.geometry, count, fused.act_fn, bench)
        tiered.place(on_host, host)
        model.set_submodule(name, tiered)
        done[name] = (fused, tiered)
    return done


def install_tiered_experts(
    model: nn.Module, share_on_host: float = 0.0, slots: int = 8, hits: torch.Tensor | None = None,
    host: torch.device | None = None,
) -> list[TieredExperts]:  # fmt: skip
    """Replace every `NemotronHExperts` of a loaded model by tiered NF4 experts made of its weights."""
    layers = []
    for fused, tiered in replace_experts(model, share_on_host, hits, slots, host=host).values():
        for expert in range(tiered.num_experts):
            tiered.write(expert, fused.up_proj.data[expert], fused.down_proj.data[expert])
        layers.append(tiered)
    return layers
