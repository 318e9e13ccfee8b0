"""When the GPU's memory is full, more experts go to the host, and the work is done again."""

import gc
import math
import re
import warnings
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch
from torch import nn

from grpo_kit.nemotron.experts import TieredExperts
from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers, known_hits, name_host
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


def list_reliefs(model: nn.Module) -> list[str]:
    """A sentence for each time that the GPU ran out of memory and experts went to the host, the first one first."""
    return next((layer.bench.reliefs for layer in find_tiered_layers(model).values()), [])
