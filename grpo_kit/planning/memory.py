"""What a run needs of a machine's memory, part by part: weights, LoRA, sampling, training, and files on the disk.

Nothing here is a measurement. Parameters are counted on the real architecture, built without memory; activations by
running one layer of each kind without data and following every tensor that lives (`model_size`). The rest is arithmetic
on the configuration. Each row names its source, and is marked `assumed` if that source is only a convention. A row
belongs to some of the phases of a run, or to all of them. Routed experts are not counted here, because their place
depends on what the other rows leave free (`fit`).
"""

from typing import NamedTuple

import torch

from grpo_kit.config import Grpo, RunConfig
from grpo_kit.nemotron import expert_workbench
from grpo_kit.nemotron.decoding import graph
from grpo_kit.planning.machines import GIB, Device
from grpo_kit.planning.model_size import BYTES, STREAM, Architecture, activation_bytes, expert_bytes
from grpo_kit.planning.storage import SHARD, Storage
from grpo_kit.runs import processes

PLACES = ("GPU", "second GPU", "host", "disk", "disk for downloads")
PHASES = ("prefill", "decode", "loss", "backward", "convert", "load")  # the last two are the host's
RESERVE = 0.75 * GIB  # kernels' code, cuBLAS workspaces and fragmentation of each GPU; assumed
GRAPHS = 32 * 2**20  # tensors within a decoding step's CUDA graphs, cuBLAS' workspace there, some 900 launches; assumed
SYSTEM = 2.0 * GIB  # the operating system, Python and CUDA's libraries; assumed
PYTHON = 0.5 * GIB  # Python and its libraries without CUDA's; measured on one machine, see notes/benchmarks.md
# trl/kernels/chunked_logprob.py computes logits in tiles of TRL_TILE_TOKENS x TILE_WORDS in the weights' type. Without
# Triton its backward pass holds TILE_COPIES more of them in float32 (z, log p, p, the gradient and what they are made
# of; tests/planning/test_memory.py counts them). So training/trl_internals/ sets the tile to TILE_TOKENS there: the
# largest power of two with which, on a T4, a layer's backward pass needs more than the logits do.
TRL_TILE_TOKENS, TILE_WORDS, TILE_COPIES = 4096, 32768, 7.25
TILE_TOKENS = 512


class Row(NamedTuple):
    """One line of a plan: `nbytes` of `part` in one of PLACES, during `phases` of PHASES (none: during all of them).

    `source` says how the bytes were counted; `kind` is computed or assumed.
    """

    place: str
    part: str
    nbytes: float
    source: str
    phases: tuple[str, ...] = ()
    kind: str = "computed"


class Workload(NamedTuple):
    """What memory is counted for: a model without weights, a run's configuration, a machine, prompts, and files."""

    model: Architecture
    config: RunConfig
    device: Device
    prompt_tokens: int
    storage: Storage

    @property
    def place(self) -> str:
        """Where the policy computes."""
        return "GPU" if self.device.gpu else "host"

    @property
    def micro_batch(self) -> int:
        """Completions in one forward pass of one process."""
        return processes.split_batch(self.config.grpo, self.device.processes)[0]

    @property
    def sequence_tokens(self) -> int:
        """Tokens of a prompt and its completion of full length."""
        return self.prompt_tokens + self.config.grpo.max_completion_length

    @property
    def weight_bytes(self) -> dict[str, int]:
        """{part of the model: bytes of its weights as they are loaded}, the routed experts among them."""
        return {part: self.model.nbytes(part, self.config.policy) for part in self.model.parts}


def count_rows(work: Workload) -> list[Row]:
    """Every row of the plan except those of the routed experts; some may need 0 bytes."""
    return [
        *weight_rows(work),
        *lora_rows(work),
        *buffer_rows(work),
        *sampling_rows(work),
        *training_rows(work),
        *loading_rows(work),
    ]


def sampled_at_once(grpo: Grpo, count: int = 1) -> int:
    """How many sequences each of `count` processes samples at once: the groups of a step and all their replacements."""
    groups = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps // grpo.num_generations
    return -(-(groups + round(grpo.resample_budget * groups)) * grpo.num_generations // count)


def weight_rows(work: Workload) -> list[Row]:
    """All weights except those of the routed experts."""
    return [
        Row(work.place, part, nbytes, f"{work.model.parts[part] / 1e6:,.2f} M parameters")
        for part, nbytes in work.weight_bytes.items()
        if part != "routed experts"
    ]


def lora_rows(work: Workload) -> list[Row]:
    """LoRA's matrices, their gradients and the optimiser's states, all in float32."""
    model, lora = work.model, work.config.lora
    targets = tuple(f".{name}" for name in model.find_targets(lora.target_modules))
    width = sum(sum(shape) for name, shape in model.linears.items() if f".{name}".endswith(targets))
    if work.config.policy.load_in_4bit:  # there each routed expert is a target of its own
        leaves = [leaf for leaf in (".experts.0.up_proj", ".experts.0.down_proj") if leaf.endswith(targets)]
        width += model.routed * len(leaves) * sum(model.expert)
    nbytes = 4 * lora.r * width
    return [
        Row(work.place, "LoRA", nbytes, "float32, r x (in + out)"),
        Row(work.place, "AdamW states", 2 * nbytes, "two for each LoRA parameter"),
        Row(work.place, "LoRA gradients", nbytes, "one for each LoRA parameter", ("loss", "backward")),
    ]


def buffer_rows(work: Workload) -> list[Row]:
    """What CUDA reserves, and the buffers into which 4-bit weights are dequantised."""
    model, policy = work.model, work.config.policy
    rows = [context_row("GPU")] if work.device.gpu else []
    if work.device.gpu:
        rows.append(Row(work.place, "CUDA graphs of a step", GRAPHS, "decoding/graph.py", ("decode",), "assumed"))
    if policy.load_in_4bit:
        matrix = max(shape.numel() for name, shape in model.linears.items() if name != "lm_head")
        nbytes = BYTES[policy.dtype] * matrix
        rows.append(Row(work.place, "one matrix dequantised", nbytes, "bitsandbytes' backward pass", ("backward",)))
    if policy.load_in_4bit and work.weight_bytes.get("routed experts"):
        bench = expert_workbench.Workbench(model.expert, torch.device("meta"), getattr(torch, policy.dtype))
        rows.append(Row(work.place, "slots for arriving experts", bench.memory.nbytes, "experts.Workbench"))
    return rows


def context_row(place: str) -> Row:
    """What CUDA takes of a GPU that is used at all, beside the context (`machines.CONTEXT`)."""
    return Row(place, "CUDA kernels, workspaces, fragmentation", RESERVE, "convention", (), "assumed")


def sampling_rows(work: Workload) -> list[Row]:
    """The states, the prompts and the single token of a whole generation batch, which is sampled at once."""
    model, config, device, prompt_tokens, _ = work
    grpo, policy, shapes = config.grpo, config.policy, model.config
    size, stream, group = BYTES[policy.dtype], STREAM[policy.dtype].itemsize, grpo.num_generations
    sampled = sampled_at_once(grpo, device.processes)
    # A group's prompt is read once, and each of its completions gets a copy of the state. The sequences of one of
    # several processes may begin and end within a group.
    starts = range(0, sampled * device.processes, sampled)
    prompts = max((start + sampled - 1) // group - start // group + 1 for start in starts)
    states, prompt_states = (count * model.state_bytes(policy) for count in (sampled, prompts))
    # One layer's is there twice when the decoder takes them out of transformers' cache, and while rows leave.
    attention_layers = model.kinds.get("full_attention", 0) + 1
    keys_values = sampled * work.sequence_tokens * 2 * shapes.num_key_value_heads * shapes.head_dim * size
    reading = prompts * prompt_tokens * shapes.hidden_size * stream
    reading += activation_bytes(model, config, prompts, prompt_tokens, grad=False)[1]
    logits = shapes.vocab_size * (size + 4 * 4)  # in the policy's type; scores and probabilities in float32
    token = copied_rows(model, device, sampled) * model.ssm_bytes + sampled * logits
    if device.gpu and not policy.load_in_4bit:  # transformers' batched_mm copies the expert of each choice
        expert = 2 * model.expert.hidden * model.expert.intermediate * size
        token += sampled * shapes.num_experts_per_tok * expert
    if not device.gpu and policy.load_in_4bit and model.routed:  # a GPU computes them with the kernel
        token += expert_bytes(model, sampled, policy, grad=False)[1]
    place, reading_source = work.place, f"{prompts} x {prompt_tokens} tokens"
    return [
        Row(place, "recurrent states", states, f"{sampled} sequences", ("prefill", "decode")),
        Row(
            place,
            "keys and values",
            keys_values * attention_layers,
            "one layer's twice while rows leave",
            ("prefill", "decode"),
        ),
        Row(place, "the prompts' states, to copy from", prompt_states, f"{prompts} prompts", ("prefill",)),
        Row(place, "one layer reads the prompts", reading, reading_source, ("prefill",)),
        Row(place, "one token's states and choices", token, "copies while rows leave; the sampler", ("decode",)),
    ]


def copied_rows(model: Architecture, device: Device, rows: int) -> int:
    """Most states of a sequence in a Mamba layer that are there twice in decoding, which changes states in place.

    All rows of a layer are copied while some leave. Before that, on a GPU, some rows of the first layers are copied
    twice, to try CUDA graphs.
    """
    others = [kind for kind in model.config.layers_block_type if kind != "full_attention"]
    tried = others[: graph.TRIED].count("linear_attention") if device.gpu else 0
    return max(2 * tried * min(rows, graph.TRIED_ROWS), rows if "linear_attention" in others else 0)


def training_rows(work: Workload) -> list[Row]:
    """The activations and logits of one micro-batch, which are freed before the optimiser's own step."""
    model, config, device, *_ = work
    grpo, shapes, size = config.grpo, model.config, BYTES[config.policy.dtype]
    micro_batch, tokens = work.micro_batch, work.sequence_tokens
    kept, alive = activation_bytes(model, config, micro_batch, tokens, grad=True)
    part = "layer inputs kept" if grpo.gradient_checkpointing else "activations of all layers kept"
    # TRL's buffer for logits is TILE_WORDS wide whatever the vocabulary; on a CPU, pages that are never touched take
    # no memory.
    scored = micro_batch * (grpo.max_completion_length if device.triton else tokens - 1)
    width = min(shapes.vocab_size, TILE_WORDS)
    token_bytes = (TILE_WORDS if device.gpu else width) * size
    token_bytes += 0 if device.triton else width * 4 * TILE_COPIES
    at_once = min(scored, TRL_TILE_TOKENS if device.triton else TILE_TOKENS)
    logits = at_once * token_bytes + scored * shapes.hidden_size * (4 + 2 * size)
    batch = f"{micro_batch} x {tokens} tokens"
    return [
        Row(work.place, part, kept, batch, ("loss", "backward")),
        Row(work.place, "one layer forward and backward", alive, batch, ("backward",)),
        Row(work.place, "logits, a tile at a time", logits, f"TRL, {at_once} of {scored} tokens", ("loss",)),
    ]


def loading_rows(work: Workload) -> list[Row]:
    """What loading the checkpoint still writes to the disk, and what converting or loading it takes of the host."""
    storage, published = work.storage, 2 * work.model.parts.total()
    loaded, shard = sum(work.weight_bytes.values()), min(SHARD, published)
    rows = [
        Row("disk", "checkpoint", storage.checkpoint, storage.source),
        Row(
            "disk" if storage.shard_free is None else "disk for downloads",
            "one source shard",
            storage.shard,
            "deleted after use",
            (),
            "assumed",
        ),  # fmt: skip
    ]
    if work.device.gpu:
        rows.append(Row("host", "the system, Python, CUDA", SYSTEM, "convention", (), "assumed"))
        if storage.converts:
            held, part = shard * (1 + loaded / published), "one source shard, and what is made of it"
            rows.append(Row("host", part, held, "5 GB", ("convert",), "assumed"))
        elif not work.config.policy.load_in_4bit:
            rows.append(Row("host", "one shard while it loads", shard, "5 GB", ("load",), "assumed"))
    else:
        part = shard * loaded / published  # its mapped pages lie beside what has been read of it
        rows.append(Row("host", "Python and its libraries", PYTHON, "convention", (), "assumed"))
        rows.append(Row("host", "one part while it loads", part, "of a shard of 5 GB", ("load",), "assumed"))
    return rows
