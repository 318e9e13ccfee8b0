"""All routed experts of a model: put into tiers with the least used on the host, opened to LoRA, counted.

Where an expert lies changes no result but for rounding: the sum over a token's experts has another order. So experts
may move at any time, between stages and when the GPU runs out of memory (`with_relief`).
"""

import functools
import gc
import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil
import torch
from torch import nn

from grpo_kit.nemotron.base_models import select_modules
from grpo_kit.nemotron.decoding import early_router
from grpo_kit.nemotron.expert_workbench import ExpertShape, Workbench
from grpo_kit.nemotron.experts import TieredExperts
from grpo_kit.runs import processes

T = TypeVar("T")
RELIEF = 0.05  # share of all experts that go to the host when the GPU runs out of memory, or more if more is missing
AMOUNT = r"([\d.]+) (bytes|[KMG]iB)"
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}  # of PyTorch's message
# What helps where no expert can be moved, by what is being done.
REMEDIES = {
    "loading": "Free the GPU: `nvidia-smi` lists who uses it, and restarting a notebook's session ends its part.",
    "sampling": (
        "Lower the length of completions (max_completion_length) or their number: evaluation.batch_size in a "
        "measurement, grpo.per_device_train_batch_size in a training."
    ),
    "training": (
        "Lower grpo.per_device_train_batch_size or grpo.max_completion_length; `grpo-kit plan` says by how much."
    ),
    "judging": "Lower judge.batch_size, or let another judge do it (judge.model).",
}


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


def list_reliefs(model: nn.Module) -> list[str]:
    """A sentence for each time that the GPU ran out of memory and experts went to the host, the first one first."""
    return next((layer.bench.reliefs for layer in find_tiered_layers(model).values()), [])


def name_host(layers: Sequence[TieredExperts]) -> str:
    """Where the experts of the slower tier lie, in words."""
    return "the host" if layers[0].host.type == "cpu" else str(layers[0].host)


def known_hits(layers: Sequence[TieredExperts]) -> torch.Tensor | None:
    """(layers, experts) int64, how many rows each expert is known to have got; None if nothing was counted."""
    hits = torch.stack([layer.hits for layer in layers])
    return hits if hits.any() else None


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU's memory is full; CUDA's libraries say so in other words than PyTorch."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and re.search(r"_STATUS_ALLOC_FAILED|CUDA(?: driver)? error: out of memory", str(error)) is not None
    )


def with_relief(
    model: nn.Module, work: Callable[[], T], doing: str, remember: Callable[[], Callable[[], None]] | None = None
) -> T:
    """Do a piece of work. If the GPU runs out of memory, more experts go to the host, and it is done again.

    The coldest go first, `RELIEF` of all or as many as the error asks for. Random numbers and what was counted are as
    they were when the work is done again, so that it gives the same and nothing counts twice. A warning says which
    setting keeps the new placement. Several processes wait for each other in the middle of their work, so none of them
    repeats any.

    Args:
        model: the model, whose layers' tiered experts may move.
        work: what to do; it may be called several times.
        doing: a key of `REMEDIES`.
        remember: notes what else the work changes, and returns a function that sets it back.

    Returns:
        What `work` returns.

    Raises:
        torch.OutOfMemoryError: no expert is left to move, or the host has no room for more; the message says what
            helps.
    """
    layers = list(find_tiered_layers(model).values())
    restore = _remember(layers, remember) if layers and processes.process_count() == 1 else None
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            problem = " ".join(str(error).split())
        # Here the error is gone, and with it the frames that held tensors.
        _make_room(layers, problem, doing)
        restore()


def _remember(layers: list[TieredExperts], remember: Callable[[], Callable[[], None]] | None) -> Callable[[], None]:
    """Note random states and counts; returns a function that sets them back, and what `remember` noted."""
    counts = [(layer.hits, list(layer.traffic)) for layer in layers]
    device = layers[0].bench.device
    state, gpu_state = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    undo = remember() if remember else None

    def restore() -> None:
        for layer, (hits, traffic) in zip(layers, counts, strict=True):
            layer.hits, layer.traffic = hits, list(traffic)
        torch.set_rng_state(state)
        if gpu_state is not None:
            torch.cuda.set_rng_state(gpu_state, device)
        if undo:
            undo()

    return restore


def _make_room(layers: list[TieredExperts], problem: str, doing: str) -> None:
    """Move the coldest experts to the host and say so. Raises torch.OutOfMemoryError where that is not possible."""
    asked = re.search(rf"Tried to allocate {AMOUNT}", problem)
    what = f"CUDA is out of memory while {doing}" + (f" ({asked[1]} {asked[2]} more are needed)" if asked else "")
    hits, coldness = known_hits(layers) if layers else None, []
    for i, layer in enumerate(layers):
        for expert in range(layer.num_experts if layer.rows else 0):
            if expert not in layer.on_host:
                # Without counts each layer's last ones go, as `choose_host_experts` places them.
                used = layer.num_experts - expert if hits is None else int(hits[i, expert])
                coldness.append((used, i, expert))
    if not coldness:
        is_moved = layers and all(len(layer.on_host) == layer.num_experts for layer in layers)
        reason = ", and all routed experts lie on the host already" if is_moved else ""
        raise torch.OutOfMemoryError(f"{what}{reason}. {REMEDIES[doing]}")
    nbytes, count = layers[0].geometry.nbytes, sum(layer.num_experts for layer in layers)
    missing = float(asked[1]) * UNITS[asked[2]] if asked else 0.0
    unused = re.findall(rf"{AMOUNT} (?:is free|is reserved by PyTorch but unallocated)", problem)
    movable = len(coldness) * nbytes
    if missing > movable + sum(float(number) * UNITS[unit] for number, unit in unused):
        raise torch.OutOfMemoryError(
            f"{what}, and all routed experts on the GPU are {movable / 2**30:.2f} GiB, so moving them is not enough. "
            f"{REMEDIES[doing]}"
        )
    number = min(len(coldness), max(math.ceil(RELIEF * count), math.ceil(missing / nbytes)))
    share = (sum(len(layer.on_host) for layer in layers) + number) / count
    setting = f"policy.experts_on_host={math.ceil(1000 * share) / 1000:g}"
    if processes.process_count() > 1:
        raise torch.OutOfMemoryError(f"{what}. Several processes move no experts: set {setting}. {REMEDIES[doing]}")
    # A layer's experts pass through ordinary host memory.
    needed, free = (number + layers[0].num_experts) * nbytes, psutil.virtual_memory().available
    if needed > free:
        raise torch.OutOfMemoryError(
            f"{what}, and the host has {free / 2**30:.1f} GiB free, of which moving {number} experts there takes "
            f"{needed / 2**30:.1f}. {REMEDIES[doing]}"
        )
    moved = sorted(coldness)[:number]
    gc.collect()
    if layers[0].bench.device.type == "cuda":
        torch.cuda.synchronize(layers[0].bench.device)  # copies that the work has begun
    for i, layer in enumerate(layers):
        if more := {expert for _, owner, expert in moved if owner == i}:
            layer.place(layer.on_host | more)
    if layers[0].bench.device.type == "cuda":
        torch.cuda.empty_cache()
    sentence = (
        f"{what}: {number} more of the routed experts lie on {name_host(layers)} now, and the work is done again. Keep "
        f"that with {setting}."
    )
    layers[0].bench.reliefs.append(sentence)
    warnings.warn(sentence, stacklevel=3)
