"""How fast can a step be at best on this machine? Bytes and operations of a step, over bandwidths that were measured.

A roofline: without launches, nothing waits for anything else, one thing at a time. What a run reaches of it is what the
code makes of the machine.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from grpo_kit.nemotron import pinned_memory
from grpo_kit.planning.model_size import Architecture
from grpo_kit.runs import processes

COPIED = {"cuda": 2**28, "cpu": 2**26}  # bytes; far more than any cache holds
WIDE = {"cuda": 4096, "cpu": 1024}  # rows and columns of the product
TRIES = 5  # the best counts: on a shared machine the others are slower


class Bandwidths(NamedTuple):
    """Measured on the device: 1e9 bytes a second from its memory and over PCIe, 1e12 operations a second in products."""

    vram_gb_s: float
    pcie_gb_s: float
    matmul_tflops: float


def measure(device: str | torch.device | None = None) -> Bandwidths:
    """What `device` (without it the first GPU, or the CPU) does, in about a second.

    Its memory: read and written by a copy. PCIe: page-locked host memory to the GPU; on a CPU, which has none, a copy.
    Products: float16 on a GPU, float32 on a CPU. Takes half a GiB on a GPU while it runs.
    """
    device = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    gpu, nbytes, n = device.type == "cuda", COPIED[device.type], WIDE[device.type]
    here, to = (torch.ones(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    host = pinned_memory.empty(1, nbytes)[0].zero_() if gpu else here
    a, b = (torch.randn(n, n, dtype=torch.float16 if gpu else torch.float32, device=device) for _ in range(2))
    copied = _seconds(device, lambda: to.copy_(here))
    brought = _seconds(device, lambda: to.copy_(host, non_blocking=True))
    multiplied = _seconds(device, lambda: torch.mm(a, b))
    return Bandwidths(2 * nbytes / copied / 1e9, nbytes / brought / 1e9, 2 * n**3 / multiplied / 1e12)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The shortest of a few runs of `work`, after one to warm up; on a GPU by its own clock."""
    work()
    taken = []
    for _ in range(TRIES):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize(device)
            taken.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    return min(taken)


def token_bytes(model: Architecture, found: Any, sequences: int) -> float:
    """Bytes that a sampled token of so many sequences reads, whatever it chooses: the dense weights, and the states twice.

    `found`: a `memory.Plan`.
    """
    others = [part for part in model.parts if part not in ("routed experts", "embeddings")]
    policy = found.config.policy
    return sum(model.nbytes(part, policy) for part in others) + 2 * sequences * model.state_bytes(policy)


def sampling(model: Architecture, found: Any, speed: Bandwidths, routed_away: float, sequences: int) -> float:
    """Seconds at best in which one process draws `sequences` completions of full length, all at once; the rest as `seconds`.

    A token reads `token_bytes` and the experts that some sequence chooses.
    """
    vram, pcie, _ = _speeds(found, speed)
    away, k, count = found.share_off, model.config.num_experts_per_tok, model.config.n_routed_experts
    routed = model.nbytes("routed experts", found.config.policy)

    def hit(share: float, choices: float) -> float:
        """Bytes of the experts that some sequence chooses, of a `share` of them that gets a share `choices` of tokens."""
        return routed * share * (1 - (1 - min(1.0, choices * k / (share * count))) ** sequences) if share else 0.0

    near = token_bytes(model, found, sequences) + hit(1 - away, 1 - routed_away)
    return (near / vram + hit(away, routed_away) / pcie) * found.config.grpo.max_completion_length


def seconds(model: Architecture, found: Any, speed: Bandwidths, routed_away: float) -> tuple[float, float]:
    """(sampling, training) seconds of a step at best, of `found`, a `memory.Plan`, with no group replaced.

    Training passes three times (twice without checkpointing) over all weights, each expert dequantised for each micro-batch.
    `routed_away` in [0, 1] is the share of routed tokens that go to experts off the GPU, alike among themselves. Of several
    processes it is each one's, on a GPU of its own; without a GPU they share what was measured.
    """
    policy, c, grpo = found.config.policy, model.config, found.config.grpo
    vram, pcie, flops = _speeds(found, speed)
    micro, times = processes.split_batch(grpo, found.device.processes)
    sampled = micro * times
    params, routed = model.parts["routed experts"], model.nbytes("routed experts", policy)
    moved = 4.5 * params if policy.load_in_4bit else routed  # NF4 is read, 16 bit written and read again
    active = (
        model.parts.total() - params - model.parts["embeddings"] + params * c.num_experts_per_tok / c.n_routed_experts
    )
    products = 2 * active * sampled * (found.prompt_tokens + grpo.max_completion_length) / flops
    once = products + times * (moved / vram + routed * found.share_off / pcie)
    drawing = sampling(model, found, speed, routed_away, sampled)
    return drawing, once * (3 if grpo.gradient_checkpointing else 2)


def _speeds(found: Any, speed: Bandwidths) -> tuple[float, float, float]:
    """Bytes a second from memory and over PCIe, operations a second: one process's."""
    shared = 1 if found.device.gpu else found.device.processes
    return speed.vram_gb_s * 1e9 / shared, speed.pcie_gb_s * 1e9 / shared, speed.matmul_tflops * 1e12 / shared
