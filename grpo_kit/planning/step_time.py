"""How long a step takes at best: its bytes and operations, divided by measured bandwidths.

This is a roofline, a lower bound on the time. It adds up reading, copying and computing, and counts neither kernel
launches nor waiting. It has not been compared with a GPU yet.
"""

import time
from collections.abc import Callable

import torch

from grpo_kit.nemotron import pinned_memory
from grpo_kit.planning.fit import Plan
from grpo_kit.planning.machines import Bandwidths
from grpo_kit.planning.model_size import Architecture
from grpo_kit.runs import processes

COPIED = {"cuda": 2**28, "cpu": 2**26}  # bytes; far more than any cache holds
WIDTH = {"cuda": 4096, "cpu": 1024}  # rows and columns of the matrices that are multiplied
TRIES = 5  # the fastest counts, because others may be slowed down on a shared machine


def measure_bandwidths(device: str | torch.device | None = None) -> Bandwidths:
    """Measure `device` (by default the first GPU, else the CPU), in about a second.

    Memory: read and written by a copy. PCIe: from page-locked host memory to the GPU; a CPU has none, so there it is a
    copy. Products: float16 on a GPU, float32 on a CPU. On a GPU it takes half a GiB while it runs.
    """
    device = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    gpu, nbytes, n = device.type == "cuda", COPIED[device.type], WIDTH[device.type]
    source, target = (torch.ones(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    host = pinned_memory.allocate_pinned(1, nbytes)[0].zero_() if gpu else source
    a, b = (torch.randn(n, n, dtype=torch.float16 if gpu else torch.float32, device=device) for _ in range(2))
    copy = shortest_seconds(device, lambda: target.copy_(source))
    transfer = shortest_seconds(device, lambda: target.copy_(host, non_blocking=True))
    product = shortest_seconds(device, lambda: torch.mm(a, b))
    return Bandwidths(2 * nbytes / copy / 1e9, nbytes / transfer / 1e9, 2 * n**3 / product / 1e12)


def shortest_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The shortest of TRIES runs of `work`, after one to warm up; on a GPU by its own clock."""
    work()
    seconds = []
    for _ in range(TRIES):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize(device)
            seconds.append(start.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
    return min(seconds)


def resident_token_bytes(model: Architecture, plan: Plan, sequences: int) -> float:
    """Bytes read to sample a token of each of `sequences`, without experts: dense weights once, states twice."""
    policy = plan.config.policy
    dense = [part for part in model.parts if part not in ("routed experts", "embeddings")]
    return sum(model.nbytes(part, policy) for part in dense) + 2 * sequences * model.state_bytes(policy)


def sampling_seconds(
    model: Architecture, plan: Plan, bandwidths: Bandwidths, rows_off_gpu: float, sequences: int
) -> float:
    """Seconds at best in which one process samples `sequences` completions of full length, all at once.

    Each token reads `resident_token_bytes` and the experts that some sequence chooses. `rows_off_gpu` as for
    `step_seconds`.
    """
    memory_speed, pcie_speed, _ = _speeds(plan, bandwidths)
    chosen, experts = model.config.num_experts_per_tok, model.config.n_routed_experts
    routed = model.nbytes("routed experts", plan.config.policy)

    def expert_bytes(share: float, rows: float) -> float:
        """Bytes of the experts that some sequence chooses, of a `share` of all that gets a share `rows` of tokens."""
        if not share:
            return 0.0
        unhit = (1 - min(1.0, rows * chosen / (share * experts))) ** sequences
        return routed * share * (1 - unhit)

    near = resident_token_bytes(model, plan, sequences) + expert_bytes(1 - plan.share_off_gpu, 1 - rows_off_gpu)
    away = expert_bytes(plan.share_off_gpu, rows_off_gpu)
    return (near / memory_speed + away / pcie_speed) * plan.config.grpo.max_completion_length


def step_seconds(model: Architecture, plan: Plan, bandwidths: Bandwidths, rows_off_gpu: float) -> tuple[float, float]:
    """(sampling, training) seconds of a step at best, with no group replaced.

    Training passes three times (twice without checkpointing) over all weights; each expert is dequantised for each
    micro-batch. `rows_off_gpu` in [0, 1] is the share of routed tokens that go to experts off the GPU, evenly among
    those. Each of several processes takes these seconds on a GPU of its own; without a GPU they share the measured
    bandwidths.
    """
    policy, shapes, grpo = plan.config.policy, model.config, plan.config.grpo
    memory_speed, pcie_speed, product_speed = _speeds(plan, bandwidths)
    micro_batch, micro_batches = processes.split_batch(grpo, plan.device.processes)
    sequences = micro_batch * micro_batches
    parameters, routed = model.parts["routed experts"], model.nbytes("routed experts", policy)
    moved = 4.5 * parameters if policy.load_in_4bit else routed  # NF4 is read, 16 bit written and read again
    active = model.parts.total() - parameters - model.parts["embeddings"]
    active += parameters * shapes.num_experts_per_tok / shapes.n_routed_experts
    tokens = sequences * (plan.prompt_tokens + grpo.max_completion_length)
    products = 2 * active * tokens / product_speed
    one_pass = products + micro_batches * (moved / memory_speed + routed * plan.share_off_gpu / pcie_speed)
    sampling = sampling_seconds(model, plan, bandwidths, rows_off_gpu, sequences)
    return sampling, one_pass * (3 if grpo.gradient_checkpointing else 2)


def _speeds(plan: Plan, bandwidths: Bandwidths) -> tuple[float, float, float]:
    """Bytes a second from memory and over PCIe, operations a second: those of one process."""
    shared = 1 if plan.device.gpu else plan.device.processes
    vram, pcie, tflops = bandwidths
    return vram * 1e9 / shared, pcie * 1e9 / shared, tflops * 1e12 / shared
