"""Will it fit? What a run needs of a machine, part by part, before anything is downloaded.

Nothing here is a measurement. Parameters are counted on the real architecture, built without memory; activations by
running one layer of each kind without data and following every tensor that lives (`footprint`); the rest is arithmetic on
the configuration, its source in each row, `assumed` where that is a convention. A row belongs to some of the phases
that follow one another, or to all; what must fit is a place's largest phase, whose rows sum to the total.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from grpo_kit.config import Grpo, RunConfig
from grpo_kit.nemotron import expert_placement, experts
from grpo_kit.planning import step_time
from grpo_kit.planning.machines import DEVICES, GIB, Device, device, this_device
from grpo_kit.planning.model_size import BYTES, STREAM, Architecture, activation_bytes
from grpo_kit.planning.step_time import Bandwidths
from grpo_kit.runs import processes

__all__ = ["DEVICES", "Bandwidths", "Device", "Need", "Plan", "Row", "device", "plan", "sampled_at_once", "this_device"]
PLACES = ("GPU", "second GPU", "host", "disk")
PHASES = ("prefill", "decode", "loss", "backward", "convert", "load")  # the last two are the host's
KEYS = ("per_device_train_batch_size", "num_generations", "max_completion_length")
SHARD = 5e9  # bytes of a published shard; assumed: what transformers 4 wrote unless told otherwise
RESERVE = 0.75 * GIB  # CUDA context, cuBLAS workspaces and fragmentation of each GPU; assumed
CONTEXT = ("CUDA context, fragmentation", RESERVE, "convention", (), "assumed")
SYSTEM = 2.0 * GIB  # the operating system, Python and CUDA's libraries; assumed
# trl/kernels/chunked_logprob.py: one tile of logits in the weights' type. Without Triton its backward pass holds 7.25
# more in float32 (z, log p, p, the gradient and what they are made of), counted in tests/test_memory.py. There train.py
# sets the tile to TILE_TOKENS: the largest power of two with which, on a T4, a layer's backward pass needs more.
TRL_TILE_TOKENS, TILE_WORDS, TILE_COPIES = 4096, 32768, 7.25
TILE_TOKENS = 512
DECODE_STATES = 5  # float32 tensors of the size of one layer's state in transformers' mamba2_selective_state_update


class Row(NamedTuple):
    """One line of a plan. `place`: GPU, second GPU, host or disk. `kind`: computed or assumed."""

    place: str
    part: str
    nbytes: float
    source: str
    phases: tuple[str, ...] = ()
    kind: str = "computed"


class Need(NamedTuple):
    """Bytes a place must hold in its largest phase, and has (None: unknown)."""

    nbytes: float
    has: float | None
    phase: str


@dataclass(frozen=True)
class Plan:
    """What `config` needs of `device`; `rows` that are `at_peak` of a place sum to its `needs`.

    Of a device's several `processes` it is one's, save that the host's rows are of all. `experts`: routed experts by place.
    `share_off`: of each layer's, those not on the first GPU. `largest`: for each of KEYS the largest value that fits with the
    others as configured, 0 for none. `seconds`: (sampling, training) of a step
    at best by the `bandwidths`, no group replaced, None without them; `sampling_all` is its sampling with all groups that
    may replace others (`grpo.resample_budget`) asked at once, as many sequences as `rows` have room for. `verdict`: one sentence.
    """

    config: RunConfig
    device: Device
    prompt_tokens: int
    rows: list[Row]
    needs: dict[str, Need]
    experts: dict[str, int]
    share_off: float
    fits: bool
    largest: dict[str, int]
    bandwidths: Bandwidths | None
    seconds: tuple[float, float] | None
    verdict: str
    sampling_all: float | None = None

    def at_peak(self, place: str) -> list[Row]:
        """The rows that are there when `place` is fullest."""
        return _during(self.rows, place, self.needs[place].phase)


def plan(
    config: RunConfig, device: Device, prompt_tokens: int = 256, bandwidths: Bandwidths | None = None,
    hits: torch.Tensor | None = None, search: bool = True,
) -> Plan:  # fmt: skip
    """Will `config` fit `device`, with prompts of `prompt_tokens`? As many routed experts as fit stay on the GPU.

    With the device's `bandwidths` it says how long a step takes at best; `hits`, (layers, experts), are what `calibrate`
    counted, without them every expert counts as chosen alike. Without `search`, which takes most of the time, `largest`
    is empty. Raises ValueError for a policy that is no Nemotron-H, FileNotFoundError for one that cannot be found.
    """
    if prompt_tokens < 1:
        raise ValueError(f"prompt_tokens is {prompt_tokens}; a prompt has at least one token. Set it to 1 or more.")
    model = Architecture.of(config.policy)
    found = _solve(model, config, device, prompt_tokens)
    largest = {key: _largest(model, found, key) for key in KEYS} if search else {}
    away = (
        found.share_off
        if hits is None
        else expert_placement.host_share(hits, expert_placement.layout(*hits.shape, found.share_off, hits))
    )
    found = replace(found, largest=largest, verdict=_verdict(model, found, largest))
    if not bandwidths:
        return found
    sequences = sampled_at_once(config.grpo, device.processes)
    sampling_all = step_time.sampling(model, found, bandwidths, away, sequences)
    seconds = step_time.seconds(model, found, bandwidths, away)
    return replace(found, bandwidths=bandwidths, seconds=seconds, sampling_all=sampling_all)


def sampled_at_once(grpo: Grpo, count: int = 1) -> int:
    """Sequences of the largest generation batch, a step's groups and all that may replace them, in each of `count` processes."""
    groups = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps // grpo.num_generations
    return -(-(groups + round(grpo.resample_budget * groups)) * grpo.num_generations // count)


def _solve(model: Architecture, config: RunConfig, device: Device, prompt: int) -> Plan:
    """The plan without what takes a search: rows, tiers, and whether each place holds what it must."""
    grpo, policy, c, in_4bit = config.grpo, config.policy, model.config, config.policy.load_in_4bit
    size, stream, here = BYTES[policy.dtype], STREAM[policy.dtype].itemsize, "GPU" if device.gpu else "host"
    micro, seq = processes.split_batch(grpo, device.processes)[0], prompt + grpo.max_completion_length
    sampled, group = sampled_at_once(grpo, device.processes), grpo.num_generations
    tokens = f"{micro} x {seq} tokens"

    weights = {part: model.nbytes(part, policy) for part in model.parts}
    whole, routed = sum(weights.values()), weights.pop("routed experts", 0)
    rows = [Row(here, part, n, f"{model.parts[part] / 1e6:,.2f} M parameters") for part, n in weights.items()]
    targets = tuple(f".{name}" for name in config.lora.target_modules)
    wide = sum(sum(shape) for name, shape in model.linears.items() if name.endswith(targets))
    if in_4bit:  # each routed expert is a target of its own there
        leaves = [leaf for leaf in (".experts.0.up_proj", ".experts.0.down_proj") if leaf.endswith(targets)]
        wide += model.routed * len(leaves) * sum(model.expert)
    lora = 4 * config.lora.r * wide
    rows += [
        Row(here, "LoRA", lora, "float32, r x (in + out)"),
        Row(here, "AdamW states", 2 * lora, "two for each LoRA parameter"),
        Row(here, "LoRA gradients", lora, "one for each LoRA parameter", ("loss", "backward")),
    ]
    if device.gpu:
        rows.append(Row("GPU", *CONTEXT))
    if in_4bit:
        dense = size * max(shape.numel() for name, shape in model.linears.items() if name != "lm_head")
        rows.append(Row(here, "one matrix dequantised", dense, "bitsandbytes' backward pass", ("backward",)))
    if in_4bit and routed:
        bench = experts.Workbench(model.expert, torch.device("meta"), getattr(torch, policy.dtype))
        buffers = bench.up.nbytes + bench.down.nbytes + bench.slots.nbytes
        rows.append(Row(here, "experts' buffers and slots", buffers, "experts.Workbench"))

    # Sampling: the whole generation batch at once. A group's prompt is read once, then each of the group gets its state. The
    # part of one of several processes may begin and end within a group.
    prompts = max((i + sampled - 1) // group - i // group + 1 for i in range(0, sampled * device.processes, sampled))
    states, read = (n * model.state_bytes(policy) for n in (sampled, prompts))
    kv = sampled * seq * 2 * c.num_key_value_heads * c.head_dim * size * (model.kinds.get("full_attention", 0) + 1)
    reading = prompts * prompt * c.hidden_size * stream + activation_bytes(model, config, prompts, prompt, False)[1]
    logits = c.vocab_size * (size + 4 * 4)  # in the policy's type; scores and probabilities in float32
    token = sampled * (model.ssm_bytes * DECODE_STATES + logits)
    if device.gpu and not in_4bit:  # transformers' batched_mm copies the expert of each choice
        token += sampled * c.num_experts_per_tok * 2 * model.expert.hidden * model.expert.intermediate * size
    rows += [
        Row(here, "recurrent states", states, f"{sampled} sequences", ("prefill", "decode")),
        Row(here, "keys and values", kv, "one layer's twice while it grows", ("prefill", "decode")),
        Row(here, "the prompts' states, to copy from", read, f"{prompts} prompts", ("prefill",)),
        Row(here, "one layer reads the prompts", reading, f"{prompts} x {prompt} tokens", ("prefill",)),
        Row(here, "one token's states and choices", token, "transformers' update and sampler", ("decode",)),
    ]
    # Training, one micro-batch. The optimiser's own step comes when all this is gone. TRL's buffer for logits is
    # TILE_WORDS wide whatever the vocabulary; on a CPU, pages that are never touched take nothing.
    kept, alive = activation_bytes(model, config, micro, seq, True)
    what = "layer inputs kept" if grpo.gradient_checkpointing else "activations of all layers kept"
    scored = micro * (grpo.max_completion_length if device.triton else seq - 1)
    width = min(c.vocab_size, TILE_WORDS)
    wide = (TILE_WORDS if device.gpu else width) * size + (0 if device.triton else width * 4 * TILE_COPIES)
    at_once = min(scored, TRL_TILE_TOKENS if device.triton else TILE_TOKENS)
    tile = at_once * wide + scored * c.hidden_size * (4 + 2 * size)
    rows += [
        Row(here, what, kept, tokens, ("loss", "backward")),
        Row(here, "one layer forward and backward", alive, tokens, ("backward",)),
        Row(here, "logits, a tile at a time", tile, f"TRL, {at_once} of {scored} tokens", ("loss",)),
    ]
    published = 2 * model.parts.total()
    shard = min(SHARD, published)
    made, phase = (shard * (1 + whole / published), "convert") if in_4bit else (shard, "load")
    rows.append(Row("disk", "checkpoint", whole if in_4bit else published, "NF4" if in_4bit else "16 bit"))
    rows.append(Row("disk", "one source shard", shard * in_4bit, "deleted after use", (), "assumed"))
    if device.gpu:
        rows.append(Row("host", "the system, Python, CUDA", SYSTEM, "convention", (), "assumed"))
        rows.append(Row("host", "one source shard, and what is made of it", made, "5 GB", (phase,), "assumed"))

    # Routed experts, the same number in each layer: on the GPU what fits, the rest on the second GPU, else on the host.
    second = device.gpu if device.gpus > 1 and device.processes == 1 else 0.0
    sizes = (device.gpu, second, device.host, device.disk)
    has = {place: gib and gib * GIB for place, gib in zip(PLACES, sizes)}
    layers, count = model.kinds.get("moe", 0), c.n_routed_experts if model.routed else 0
    each = routed / count if count else 0  # one expert of every layer
    placed = {here: count}
    if in_4bit and device.gpu and count:
        near = max(0, min(count, int((has["GPU"] - _need(rows, "GPU").nbytes) // each)))
        place = "second GPU" if (count - near) * each <= has["second GPU"] - RESERVE else "host"
        placed = {"GPU": near, place: count - near}
    for place, number in placed.items():
        pinned = place == "host" != here
        if number and place == "second GPU":
            rows.append(Row(place, *CONTEXT))
        if number:
            text = f"{number * layers:,} of {model.routed:,}"
            rows.append(Row(place, "routed experts", number * each, text, ("load",) if pinned else ()))
    rows = [_of_all(row, device.processes) for row in rows if row.nbytes]
    needs = {place: _need(rows, place, has[place]) for place in has if any(row.place == place for row in rows)}
    holds = all(need.has is None or need.nbytes <= need.has for need in needs.values())
    fits = holds and not _lacks_bf16(config, device)
    share = 1 - placed[here] / count if count else 0.0
    by_place = {place: number * layers for place, number in placed.items() if number}
    return Plan(config, device, prompt, rows, needs, by_place, share, fits, {}, None, None, "")


def _of_all(row: Row, count: int) -> Row:
    """What `count` processes need of the host: each what one does, save for converting, which one does for all."""
    if count == 1 or row.place != "host" or "convert" in row.phases:
        return row
    return row._replace(nbytes=count * row.nbytes, source=f"{count} processes: {row.source}")


def _lacks_bf16(config: RunConfig, device: Device) -> bool:
    return config.policy.dtype == "bfloat16" and device.gpu > 0 and not device.triton


def _during(rows: list[Row], place: str, phase: str) -> list[Row]:
    return [row for row in rows if row.place == place and (not row.phases or phase in row.phases)]


def _need(rows: list[Row], place: str, has: float | None = None) -> Need:
    sums = {phase: sum(row.nbytes for row in _during(rows, place, phase)) for phase in PHASES}
    phase = max(sums, key=sums.__getitem__)
    return Need(sums[phase], has, phase)


def _vary(config: RunConfig, key: str, m: int, count: int = 1) -> RunConfig:
    """`config` with one of KEYS at the m-th value that lets whole groups fill whole micro-batches, and `count` processes
    share the step. A larger group keeps the prompts of a step and the micro-batch, and accumulates more."""
    batch, times = config.grpo.per_device_train_batch_size, config.grpo.gradient_accumulation_steps
    group, prompts = config.grpo.num_generations, batch * times // config.grpo.num_generations
    changes = {key: m}
    if key == "per_device_train_batch_size":
        whole = math.lcm(group, count)
        changes[key] = m * whole // math.gcd(whole, times)
    if key == "num_generations":
        whole = math.lcm(batch, count)
        changes[key] = max(2, m * whole // math.gcd(whole, prompts))
        changes["gradient_accumulation_steps"] = prompts * changes[key] // batch
    return replace(config, grpo=replace(config.grpo, **changes))


def _largest(model: Architecture, found: Plan, key: str, most: int = 2**16) -> int:
    """The largest value of `key` that fits, the others as configured; 0 where none does. `most` ends the search."""
    varied = functools.partial(_vary, found.config, key, count=found.device.processes)

    def fits(m: int) -> bool:
        return _solve(model, varied(m), found.device, found.prompt_tokens).fits

    low, high = 0, 1
    if key == "max_completion_length":  # m is the length itself, which takes longest to try; one answer is known
        length = found.config.grpo.max_completion_length
        low, high = (length, 2 * length) if found.fits else (0, length if fits(1) else 1)
    while high < most and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return getattr(varied(low).grpo, key) if low else 0


def _verdict(model: Architecture, found: Plan, largest: dict[str, int]) -> str:
    """One sentence: how it fits, or what is short and the first change found that makes it fit."""
    config, device, prompt, grpo = found.config, found.device, found.prompt_tokens, found.config.grpo
    if found.fits:
        off = [row for row in found.rows if row.part == "routed experts" and found.share_off and row.place != "GPU"]
        texts = [
            f"{found.experts[row.place]:,} of {model.routed:,} routed experts on the {row.place} ({row.nbytes / GIB:.2f} GiB"
            + (f" for {device.processes} processes)" if device.processes > 1 else ")")
            for row in off
        ]
        how = " and ".join(texts) or "every weight in one place"
        policy, tier = config.policy, "cuda:1" if "second GPU" in found.experts else "host"
        other = abs(policy.experts_on_host - found.share_off) > 0.002
        changes = [f"policy.experts_on_host={found.share_off:.3f}"] * other
        changes += [f"policy.experts_overflow={tier}"] * (
            policy.experts_overflow != tier and (found.share_off > 0 or device.processes > 1)
        )
        to_set = f"; set {' '.join(changes)}" if policy.load_in_4bit and changes else ""
        return f"It fits {device.name} with {how}{to_set}."
    if _lacks_bf16(config, device):
        return f"It does not fit {device.name}, whose GPU has no bf16; first set policy.dtype=float16."
    place, need = next((p, n) for p, n in found.needs.items() if n.has is not None and n.nbytes > n.has)
    has, asked = need.has / GIB, need.nbytes / GIB
    short = f"It does not fit {device.name}, whose {place} has {has:.1f} of {asked:.1f} GiB needed"
    total = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps  # the same step in smaller pieces:
    pieces = [n for n in range(grpo.per_device_train_batch_size - 1, 0, -1) if total % n == 0]
    tries: list[dict[str, Any]] = [{"gradient_checkpointing": True}]
    tries += [{"per_device_train_batch_size": n, "gradient_accumulation_steps": total // n} for n in pieces]
    tries += [{"max_completion_length": n} for n in [largest.get("max_completion_length")] if n]
    texts = [" ".join(f"grpo.{key}={value}" for key, value in to.items()) for to in tries]
    changes = {text: replace(config, grpo=replace(grpo, **to)) for text, to in zip(texts, tries)}
    changes["policy.load_in_4bit=true"] = replace(config, policy=replace(config.policy, load_in_4bit=True))
    for change, changed in changes.items():
        if changed != config and _solve(model, changed, device, prompt).fits:
            return f"{short}; first set {change.lower()}."
    if device.processes > 1 and _solve(model, config, replace(device, processes=1), prompt).fits:
        return f"{short}; start one process."
    names = [name for name, other in DEVICES.items() if _solve(model, config, other, prompt).fits]
    return f"{short}, and no one setting changes that; take {names[0] if names else 'a larger device'}."
