"""How long a step takes at least: its bytes and products divided by bandwidths, and the host's own seconds beside them.

Reading, copying and computing are added up (a roofline). The host's seconds are those of `host_time`. Launches run
beside the GPU's work, so a step takes at least the larger of the two. Where experts lie on the host, it waits for the
router's choice in each of their layers; the nearer the two come to taking turns, the nearer a step comes to their sum.
Without a GPU one processor does both. None of this has been compared with a GPU yet.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from grpo_kit.config import RunConfig
from grpo_kit.data.sources import locate_source, rows_made
from grpo_kit.nemotron import expert_workbench
from grpo_kit.planning import host_time
from grpo_kit.planning.fit import Plan, Seconds, StepTimes
from grpo_kit.planning.host_time import model_seconds
from grpo_kit.planning.machines import Bandwidths, Device
from grpo_kit.planning.memory import sampled_at_once
from grpo_kit.planning.model_size import Architecture
from grpo_kit.runs import processes

COPIED = {"cuda": 2**28, "cpu": 2**26}  # bytes; far more than any cache holds
WIDTH = {"cuda": 4096, "cpu": 1024}  # rows and columns of the matrices that are multiplied
TRIES = 5  # the fastest counts, because others may be slowed down on a shared machine


def measure_speeds(config: RunConfig, device: Device) -> Bandwidths:
    """Measure this machine, its first GPU or its CPU, and the host's own seconds for `config`: a few seconds in all."""
    model, rows = Architecture.of(config.policy), sampled_at_once(config.grpo, device.processes)
    host = host_time.measure_host(model, config, rows, bool(device.gpu))
    return measure_bandwidths("cuda:0" if device.gpu else "cpu")._replace(host=host)


def measure_bandwidths(device: str | torch.device | None = None) -> Bandwidths:
    """Measure `device` (by default the first GPU, else the CPU), in about a second.

    Memory: read and written by a copy. PCIe: from page-locked host memory to the GPU; a CPU has none, so there it is a
    copy. Products: float16 on a GPU, float32 on a CPU. On a GPU it takes half a GiB while it runs.
    """
    device = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    try:
        return _measure(device, COPIED[device.type])
    except RuntimeError as error:  # a loaded policy fills the GPU; less is still more than its cache holds
        from grpo_kit.nemotron.placement.relief import is_out_of_memory  # loads bitsandbytes

        if not is_out_of_memory(error):
            raise
        return _measure(device, COPIED[device.type] // 16)


def _measure(device: torch.device, nbytes: int) -> Bandwidths:
    gpu, n = device.type == "cuda", WIDTH[device.type]
    source, target = (torch.ones(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    host = expert_workbench.allocate_pinned(1, nbytes)[0].zero_() if gpu else source
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


def estimate_times(model: Architecture, plan: Plan, bandwidths: Bandwidths, rows_off_gpu: float) -> StepTimes:
    """The seconds of a step and of an evaluation.

    Args:
        model: the architecture.
        plan: what fits where.
        bandwidths: the device's; their `host` is counted where there is one. Each of several processes has them to
            itself on a GPU of its own; without a GPU they share them.
        rows_off_gpu: the share of routed tokens, in [0, 1], that go to experts off the GPU, evenly among those.
    """
    grpo, settings, count = plan.config.grpo, plan.config.evaluation, plan.device.processes
    micro_batch, micro_batches = processes.split_batch(grpo, count)
    batches = math.ceil(count_evaluated(plan) / settings.batch_size / count)
    tokens, evaluated = grpo.max_completion_length, batches * settings.max_completion_length

    def token(sequences: int) -> float:
        return token_seconds(model, plan, bandwidths, rows_off_gpu, sequences)

    device = Seconds(
        tokens * token(micro_batch * micro_batches),
        tokens * token(sampled_at_once(grpo, count)),
        training_seconds(model, plan, bandwidths),
        evaluated * token(settings.batch_size),
    )
    host = Seconds(0.0, 0.0, 0.0, 0.0)
    if bandwidths.host:
        each = model_seconds(bandwidths.host.token, model)
        training = micro_batches * model_seconds(bandwidths.host.micro_batch, model)
        host = Seconds(tokens * each, tokens * each, training, evaluated * each)
    return StepTimes(device, host, plan.device.gpu > 0)


def count_evaluated(plan: Plan) -> int:
    """Completions of one evaluation, without those of sets whose size is unknown (`count_problems`)."""
    return sum(n or 0 for n in count_problems(plan.config).values()) * plan.config.evaluation.num_generations


def count_problems(config: RunConfig) -> dict[str, int | None]:
    """{set of `evaluation.sets`: how many problems it asks at most}; None where only reading it would tell.

    Known are the run's own test split, the recipes' sets, those that the kit makes, and a user's `.jsonl` file.

    Raises:
        ValueError: as for `load_set`: the set is unknown.
    """
    limit, counts = config.evaluation.num_problems, {}
    for name in config.evaluation.sets:
        size = config.data.test_size if name == "test" else _count_rows(name, config)
        counts[name] = limit if size is None else min(size, limit or size)
    return counts


def _count_rows(name: str, config: RunConfig) -> int | None:
    try:
        source = locate_source(name, config.data)
    except FileNotFoundError:  # it may be on the machine that is planned for
        return None
    if source.generated:
        return rows_made(name)
    if source.files == (Path(name),) and Path(name).suffix == ".jsonl":
        with Path(name).open("rb") as file:
            return sum(not line.isspace() for line in file)
    return source.recipe.rows


def resident_token_bytes(model: Architecture, plan: Plan, sequences: int) -> float:
    """Bytes read to sample a token of each of `sequences`, without experts: dense weights once, states twice."""
    policy = plan.config.policy
    dense = [part for part in model.parts if part not in ("routed experts", "embeddings")]
    return sum(model.nbytes(part, policy) for part in dense) + 2 * sequences * model.state_bytes(policy)


def token_seconds(
    model: Architecture, plan: Plan, bandwidths: Bandwidths, rows_off_gpu: float, sequences: int
) -> float:
    """Seconds in which a device samples one token of each of `sequences` completions.

    It reads `resident_token_bytes` and the experts that some sequence chooses. `rows_off_gpu` as for `estimate_times`.
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
    return near / memory_speed + away / pcie_speed


def training_seconds(model: Architecture, plan: Plan, bandwidths: Bandwidths) -> float:
    """Seconds in which a device trains a step on completions of full length.

    It passes three times (twice without checkpointing) over all weights; each expert is dequantised for each
    micro-batch.
    """
    policy, shapes, grpo = plan.config.policy, model.config, plan.config.grpo
    memory_speed, pcie_speed, product_speed = _speeds(plan, bandwidths)
    micro_batch, micro_batches = processes.split_batch(grpo, plan.device.processes)
    parameters, routed = model.parts["routed experts"], model.nbytes("routed experts", policy)
    moved = 4.5 * parameters if policy.load_in_4bit else routed  # NF4 is read, 16 bit written and read again
    active = model.parts.total() - parameters - model.parts["embeddings"]
    active += parameters * shapes.num_experts_per_tok / shapes.n_routed_experts
    tokens = micro_batch * micro_batches * (plan.prompt_tokens + grpo.max_completion_length)
    products = 2 * active * tokens / product_speed
    one_pass = products + micro_batches * (moved / memory_speed + routed * plan.share_off_gpu / pcie_speed)
    return one_pass * (3 if grpo.gradient_checkpointing else 2)


def _speeds(plan: Plan, bandwidths: Bandwidths) -> tuple[float, float, float]:
    """Bytes a second from memory and over PCIe, operations a second: those of one process."""
    shared = 1 if plan.device.gpu else plan.device.processes
    vram, pcie, tflops, _ = bandwidths
    return vram * 1e9 / shared, pcie * 1e9 / shared, tflops * 1e12 / shared
