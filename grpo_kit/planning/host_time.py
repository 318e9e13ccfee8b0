"""The host's own seconds of a step: Python, PyTorch and the launches, which a fast GPU has to wait for.

`measure_host` runs one layer of each kind, narrow, as a run does: with the kit's corrections, 4-bit layers, LoRA,
routed experts in their tiers and the generation loop. A decoding step is timed in `generate`, a training micro-batch as
a forward and backward pass with checkpointing. Seconds a layer, times layers, are those of the model; they hardly
depend on its widths.

It is a measurement of the processor, not of a GPU. A launch costs about as much as the small product that stands for
it. The sum was within a quarter of what all layers take, for a token of the 30B within 5 % (notes/t4.md). Not in it:
the reward, TRL's bookkeeping, the optimiser (some 0.1 s a step), and processors that wait for others.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from grpo_kit.config import RunConfig
from grpo_kit.planning.machines import OUTSIDE, HostSeconds
from grpo_kit.planning.model_size import Architecture

NARROW = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "num_nextn_predict_layers": 0,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 4096,
}  # fmt: skip
PROMPT, TOKENS = 16, 12  # of a sampled sequence
TRAINED = 64  # tokens of a trained sequence; so many that nearly every expert is chosen
TRIES = 2  # the fastest counts
# For machines that are only named: seconds by kind of layer, by `python benchmarks/hardware.py --host` while other work
# shared the cores, as on the virtual cores that one can rent. A core left alone takes two thirds of them.
RECORDED_ON = "recorded on a shared core of another machine (AMD EPYC, 2026-11-30), assumed here"
RECORDED = {  # {weights: (token, micro-batch)}
    "4 bit, experts off the GPU": (
        {"linear_attention": 0.0026, "full_attention": 0.0021, "moe": 0.0022, "mlp": 0.0010, OUTSIDE: 0.0014},
        {"linear_attention": 0.031, "full_attention": 0.011, "moe": 0.056, "mlp": 0.005},
    ),
    "4 bit": (
        {"linear_attention": 0.0028, "full_attention": 0.0022, "moe": 0.0014, "mlp": 0.0010, OUTSIDE: 0.0013},
        {"linear_attention": 0.032, "full_attention": 0.012, "moe": 0.049, "mlp": 0.005},
    ),
    "16 bit": (
        {"linear_attention": 0.0021, "full_attention": 0.0011, "moe": 0.0026, "mlp": 0.0010, OUTSIDE: 0.0009},
        {"linear_attention": 0.025, "full_attention": 0.006, "moe": 0.013, "mlp": 0.005},
    ),
}


def model_seconds(layer_seconds: dict[str, float], model: Architecture) -> float:
    """The whole model's seconds from those of a layer of each kind, `HostSeconds.token` or `.micro_batch`."""
    layers = sum(count * layer_seconds[kind] for kind, count in model.kinds.items())
    return layers + layer_seconds.get(OUTSIDE, 0.0)


def measure_host(model: Architecture, config: RunConfig, rows: int, gpu: bool) -> HostSeconds:
    """Measure this processor, in about a second.

    Args:
        model: the architecture, whose kinds of layers and experts count; widths are narrow.
        config: the run's configuration: 4 bit or not, experts on the host, LoRA, checkpointing.
        rows: sequences that are sampled at once.
        gpu: whether the run computes on a GPU. Routed experts then take their way there, with launches left out.
    """
    with torch.random.fork_rng([]), _launching_nothing() if gpu else contextlib.nullcontext():
        torch.manual_seed(0)
        policy = _build(model, config)
        layers = dict(zip(model.kinds, policy.get_base_model().model.layers, strict=True))
        token = _time_token(policy, list(model.kinds), min(rows, 32))
        micro_batch = _time_micro_batch(policy, layers, config)
    return HostSeconds(token, micro_batch, "measured here")


def _build(model: Architecture, config: RunConfig) -> Any:
    """A policy with one narrow layer of each kind, in float32 on the CPU, with LoRA."""
    from transformers import AutoModelForCausalLM, NemotronHConfig

    import grpo_kit.policy.load  # noqa: F401 (hides warnings about what is intended)
    from grpo_kit.adapters import lora
    from grpo_kit.nemotron import nf4_checkpoint, patches
    from grpo_kit.nemotron.decoding import early_router
    from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers
    from grpo_kit.policy import generation_loop

    left = ("hybrid_override_pattern", "layers_block_type", "num_hidden_layers", "mtp_layers_block_type")
    fields = {key: value for key, value in model.config.to_dict().items() if key not in left}
    narrow = NemotronHConfig.from_dict(fields | NARROW | {"layers_block_type": list(model.kinds)})
    if config.policy.load_in_4bit:
        with tempfile.TemporaryDirectory() as folder:
            narrow.save_pretrained(folder)
            drawn, share = _draw(Path(folder)), config.policy.experts_on_host
            base = nf4_checkpoint.assemble_model(Path(folder), torch.float32, drawn, "cpu", share)
        for name, layer in find_tiered_layers(base).items():
            # Narrow experts would all fit into one group.
            layer.bench.together = model.expert.count_together(getattr(torch, config.policy.dtype))
            block = base.get_submodule(name.removesuffix(".mixer.experts"))
            early_router.connect(block, block)  # as if the next layer were like this one
    else:
        base = AutoModelForCausalLM.from_config(narrow, dtype=torch.float32, attn_implementation="sdpa").eval()
        patches.prepare_model(base)
    return lora.add_lora(generation_loop.install_loop(base), config.lora, seed=0)


def _draw(folder: Path) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """Every tensor of a 4-bit model: matrices in 4 bit are zeros, the others random, so that routers spread tokens."""
    from grpo_kit.nemotron import nf4_checkpoint, nf4_layout

    specs = nf4_checkpoint.list_model_tensors(nf4_checkpoint.build_skeleton(folder, torch.float32)[0], torch.float32)
    for name, (shape, dtype) in specs.items():
        if dtype is None:
            yield folder, name, torch.zeros(nf4_layout.packed_nbytes(shape), dtype=torch.uint8)
        else:
            yield folder, name, torch.zeros(shape, dtype=dtype) if "bias" in name else 0.1 * torch.randn(shape)


def _time_token(policy: Any, kinds: list[str], rows: int) -> dict[str, float]:
    """Seconds of a decoding step by kind of layer, each the median of TOKENS steps."""
    from grpo_kit.nemotron.decoding.one_token import Decoder

    policy.eval()
    ids = torch.randint(16, 256, (rows, PROMPT))
    starts: list[list[float]] = [[] for _ in kinds]
    spans: list[list[float]] = [[] for _ in kinds]
    run_layer = Decoder.run_layer

    def timed(decoder: Decoder, number: int, *args: Any) -> Any:
        starts[number].append(time.thread_time())
        result = run_layer(decoder, number, *args)
        spans[number].append(time.thread_time() - starts[number][-1])
        return result

    Decoder.run_layer = timed
    try:
        with torch.inference_mode():
            policy.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS + 3,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
    finally:
        Decoder.run_layer = run_layer
    seconds = {kind: median(spans[i][-TOKENS:]) for i, kind in enumerate(kinds)}
    step = median(later - earlier for earlier, later in itertools.pairwise(starts[0][-TOKENS - 1 :]))
    return seconds | {OUTSIDE: max(0.0, step - sum(seconds.values()))}


def _time_micro_batch(policy: Any, layers: dict[str, Any], config: RunConfig) -> dict[str, float]:
    """Seconds of a layer's forward and backward pass by kind."""
    base = policy.get_base_model()
    policy.train()
    if config.grpo.gradient_checkpointing:
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    rows, seconds = config.grpo.per_device_train_batch_size, {}
    for kind, layer in layers.items():
        mask = torch.ones(1, 1, TRAINED, TRAINED, dtype=torch.bool) if kind == "full_attention" else None
        tries = []
        for _ in range(TRIES):
            x = torch.randn(rows, TRAINED, NARROW["hidden_size"], requires_grad=True)
            started = time.thread_time()
            layer(x, attention_mask=mask).sum().backward()
            tries.append(time.thread_time() - started)
        seconds[kind] = min(tries)
    return seconds


def recorded_host(model: Architecture, config: RunConfig) -> HostSeconds:
    """The figures of another machine, for one that is only named."""
    policy = config.policy
    weights = "4 bit" if policy.load_in_4bit else "16 bit"
    if policy.load_in_4bit and policy.experts_on_host and model.routed:
        weights = "4 bit, experts off the GPU"
    token, micro_batch = RECORDED[weights]
    if policy.load_in_4bit:  # training passes over groups of experts; 128 were recorded
        micro_batch = micro_batch | {"moe": micro_batch["moe"] * model.config.n_routed_experts / 128}
    return HostSeconds(token, micro_batch, RECORDED_ON)


@contextlib.contextmanager
def _launching_nothing() -> Iterator[None]:
    """Let routed experts take on a CPU the way that they take on a GPU, with kernel launches that do nothing."""
    from grpo_kit.nemotron import expert_kernel

    kept = expert_kernel.is_usable, expert_kernel.compile_kernel
    expert_kernel.is_usable, expert_kernel.compile_kernel = lambda *_: True, lambda *_: lambda **_: None
    try:
        yield
    finally:
        expert_kernel.is_usable, expert_kernel.compile_kernel = kept
