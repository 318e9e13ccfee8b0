"""The size of a Nemotron-H, and the memory that its layers need while they work, counted without loading a weight.

Parameters are counted on the real architecture on the meta device. Activations are counted by running one layer of
each kind on tensors without data and following the memory of each tensor (`layer_bytes`). Nothing here is a measurement
of a GPU.
"""

import contextlib
import functools
import weakref
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grpo_kit.adapters.targets import resolve_targets
from grpo_kit.config import Policy, RunConfig
from grpo_kit.nemotron import expert_workbench, patches
from grpo_kit.nemotron.expert_workbench import ExpertShape
from grpo_kit.policy.model_source import build_config

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# The residual stream: float32 beside fp16 weights (nemotron.patches.keep_residual_in_float32).
STREAM = {"float32": torch.float32, "float16": torch.float32, "bfloat16": torch.bfloat16}
PARTS = {  # text in a parameter's name: the part of the model; the first entry that matches counts
    ".shared_experts.": "shared experts", ".experts.": "routed experts", ".in_proj.": "Mamba in_proj",
    ".out_proj.": "Mamba out_proj", ".q_proj.": "attention", ".k_proj.": "attention", ".v_proj.": "attention",
    ".o_proj.": "attention", ".gate.": "router", "embeddings.": "embeddings", "lm_head.": "lm_head",
    ".up_proj.": "MLP", ".down_proj.": "MLP", "": "norms, convolutions, A, D, dt",
}  # fmt: skip
NOT_IN_4BIT = ("router", "embeddings", "lm_head", "norms, convolutions, A, D, dt")


class Architecture:
    """A Nemotron-H without weights: `kinds` of layers, `linears` by name, `parts` (parameters) and `nf4` (bytes)."""

    def __init__(self, config: Any) -> None:
        from transformers import AutoModelForCausalLM

        import grpo_kit.policy.load  # noqa: F401 (hides warnings about what is intended)

        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        self.config = skeleton.config
        self.kinds = {kind: config.layers_block_type.count(kind) for kind in sorted(set(config.layers_block_type))}
        self.routed = self.kinds.get("moe", 0) * config.n_routed_experts
        self.linears = {n: m.weight.shape for n, m in skeleton.named_modules() if isinstance(m, nn.Linear)}
        self.expert = ExpertShape(config.moe_latent_size or config.hidden_size, config.moe_intermediate_size)
        self.parts, self.nf4 = Counter(), Counter()
        for name, value in [*skeleton.named_parameters(), *skeleton.named_buffers()]:
            part, n = next(part for text, part in PARTS.items() if text in name), value.numel()
            self.parts[part] += n
            self.nf4[part] += -(-n // 2) + -(-n // 64) + 4 * -(-n // (64 * 256))  # bitsandbytes' double quantisation

    @staticmethod
    @functools.cache
    def of(policy: Policy) -> "Architecture":
        """The architecture of `policy.model`.

        Raises:
            FileNotFoundError: if neither a folder nor the Hub gives a config.json.
            ValueError: if the policy is not a Nemotron-H.
        """
        config = build_config(policy)
        if (kind := config.model_type) != "nemotron_h":
            raise ValueError(
                f"policy.model is {policy.model!r}, a {kind}; only a Nemotron-H can be planned. Name a Nemotron-H."
            )
        return Architecture(config)

    def find_targets(self, targets: list[str]) -> list[str]:
        """The endings of module names that `lora.target_modules` means.

        Raises:
            ValueError: a target means no module of the model.
        """
        return list(_find_targets(self, tuple(targets)))

    def nbytes(self, part: str, policy: Policy) -> int:
        """Bytes of a part's weights. In 4 bit, experts.py lays out the routed experts, and the router is in float32."""
        if not policy.load_in_4bit or part in NOT_IN_4BIT:
            in_float32 = part == "router" and policy.load_in_4bit
            return self.parts[part] * (4 if in_float32 else BYTES[policy.dtype])
        return self.routed * self.expert.nbytes if part == "routed experts" else self.nf4[part]

    @property
    def ssm_bytes(self) -> int:
        """Bytes of one Mamba layer's recurrent state of a sequence, float32."""
        c = self.config
        return c.mamba_num_heads * c.mamba_head_dim * c.ssm_state_size * 4

    def state_bytes(self, policy: Policy) -> int:
        """Bytes of a sequence's states in all Mamba layers; those of the convolutions are in the policy's type."""
        c = self.config
        channels = c.mamba_num_heads * c.mamba_head_dim + 2 * c.n_groups * c.ssm_state_size
        each = self.ssm_bytes + channels * c.conv_kernel * BYTES[policy.dtype]
        return each * self.kinds.get("linear_attention", 0)


@functools.lru_cache(maxsize=64)  # a plan asks the same some ninety times
def _find_targets(model: Architecture, targets: tuple[str, ...]) -> tuple[str, ...]:
    linears = [name for name in model.linears if name != "lm_head"]
    layers = [i for i, kind in enumerate(model.config.layers_block_type) if kind == "moe"]
    experts = [f"model.layers.{i}.mixer.experts.0.{leaf}" for i in layers for leaf in ("up_proj", "down_proj")]
    return tuple(resolve_targets(list(targets), linears, experts))


class Alive(TorchDispatchMode):
    """Adds up, while it is active, the memory of all new tensors by storage until they are freed."""

    def __init__(self, existing: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = {value.untyped_storage()._cdata: 0 for value in existing}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        leaves = [out] if isinstance(out, torch.Tensor) else tree_leaves(out)  # nearly all return one tensor
        for storage in [value.untyped_storage() for value in leaves if isinstance(value, torch.Tensor)]:
            if (key := storage._cdata) not in self.seen:
                self.seen[key] = storage.nbytes()
                weakref.finalize(storage, self._gone, key)
                self.now += self.seen[key]
                self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.seen.pop(key)


class _FusedAttention(torch.autograd.Function):
    """Attention as a fused kernel holds it: no scores, one sum for each query and head. Only memory, no values."""

    @staticmethod
    def forward(ctx, query, key, value, mask):
        out, sums = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, sums)
        return out

    @staticmethod
    def backward(ctx, grad):
        return *(torch.empty_like(value) for value in ctx.saved_tensors[:3]), None


class _AttentionIsFused(TorchFunctionMode):
    """While active, attention is `_FusedAttention`; on the meta device PyTorch itself would hold all scores."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, key, value = args
        mask = kwargs["attn_mask"]
        mask = torch.where(mask, torch.zeros((), dtype=query.dtype), -torch.inf)  # PyTorch makes it additive too
        return _FusedAttention.apply(query, key, value, mask)


def _with_lora(base: nn.Linear, a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What PEFT's LoRA on a 4-bit layer computes: a copy of the result, and rank r in float32 on a float32 input."""
    result = nn.functional.linear(x, base.weight, base.bias).clone()
    return result + (x.float() @ a @ b * 1.0).to(result.dtype)


@functools.lru_cache(maxsize=4096)
def layer_bytes(
    model: Architecture, kind: str, seq: int, dtype: str, r: int, targets: tuple[str, ...], grad: bool
) -> tuple[int, int]:
    """Memory of one layer with LoRA on one sequence of `seq` tokens; its input, weights and routed experts not counted.

    transformers' own code runs on tensors without data, in PyTorch's operations (an upper bound where mamba_ssm is
    installed), on the meta device, which is ten times as fast as PyTorch's fake tensors and counts the same. Attention
    is fused, as on CUDA, so only the mask is seq x seq.

    Returns:
        (bytes kept for the backward pass, most bytes alive until its end), or of the forward pass without `grad`.
    """
    from transformers.models.nemotron_h import modeling_nemotron_h as code

    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(getattr(torch, dtype))
        stack.enter_context(torch.device("meta"))
        stack.enter_context(_AttentionIsFused())
        block = code.NemotronHBlock(model.config, model.config.layers_block_type.index(kind))
        block.requires_grad_(False).train(grad)
        patches.keep_mlps_in_range(block)
        existing = [*block.parameters(), *block.buffers()]
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear) and f".{name}".endswith(targets):
                sizes = (module.in_features, r), (r, module.out_features)
                pair = [torch.empty(size, dtype=torch.float32, requires_grad=True) for size in sizes]
                module.forward = functools.partial(_with_lora, module, *pair)
                existing += pair
        if kind == "moe":  # a stand-in with the result's shape and type
            block.mixer.experts.forward = lambda hidden, _, weights: (
                hidden * weights[:, :1].to(patches.output_dtype(hidden.dtype))
            )
        x = torch.empty(1, seq, model.config.hidden_size, dtype=STREAM[dtype], requires_grad=grad)
        mask = torch.ones(1, 1, seq, seq, dtype=torch.bool) if kind == "full_attention" else None
        stack.enter_context(torch.set_grad_enabled(grad))
        alive = stack.enter_context(Alive([x, *existing]))
        y = block(x, attention_mask=mask)
        kept = alive.now
        if grad:
            y.backward(torch.empty_like(y))
    return kept, alive.peak + (0 if mask is None else mask.numel())


def expert_bytes(model: Architecture, tokens: int, policy: Policy, grad: bool) -> tuple[int, int]:
    """(bytes kept, most bytes alive) of a layer's routed experts on a number of tokens.

    In 4 bit, expert_groups.py holds one group's matrices and rows at a time, and the results of the first product until
    the backward pass. transformers' own experts (grouped_mm, frozen weights) hold the rows of all experts at once.
    """
    (hidden, inner), size, k = model.expert, BYTES[policy.dtype], model.config.num_experts_per_tok
    if not policy.load_in_4bit:
        routing, result = tokens * k * 12, tokens * hidden * (4 + size)  # summed in float32, then cast
        held = tokens * k * ((2 * hidden + 2 * inner) * size + 4 * hidden) + tokens * hidden * size
        return routing + tokens * k * (hidden + inner) * size, routing + held + result
    padded = 2 * tokens * k  # at most
    kept = 12 * padded + 8 * tokens * k + (padded * inner * size if grad else 0)  # int64 and float32
    together = min(model.expert.count_together(getattr(torch, policy.dtype)), model.config.n_routed_experts)
    # Dequantised; in 4 bit side by side, and where they arrived.
    matrices = together * 2 * (hidden * inner * size + model.expert.nbytes)
    rows = min(max(tokens, expert_workbench.GROUP_ROWS), padded)
    # Bytes of a float32 beside an output in float16 (nemotron.patches.feed_forward).
    wide = 4 if policy.dtype == "float16" else 0
    # x, up, relu, square, down; weighted. All tokens' rows and their sum.
    most = rows * ((2 * hidden + 3 * inner) * size + (4 + wide) * hidden) + tokens * hidden * (4 + 2 * size)
    if grad:  # relu, square, their gradients, and float32 for the weights' gradient; the gradients of all tokens' rows
        backward = rows * ((2 * hidden + 5 * inner) * size + (8 + wide) * hidden + 8 * inner)
        most = max(most, backward + tokens * hidden * (8 + 2 * size))
    return kept, kept + matrices + most


def activation_bytes(model: Architecture, config: RunConfig, batch: int, seq: int, grad: bool) -> tuple[int, int]:
    """(bytes that all layers keep, most bytes that one layer has alive beside them) on (batch, seq) tokens."""
    lora, dtype, costs, kept, most = config.lora, config.policy.dtype, {}, 0, 0
    # A full name, of one layer, counts for all layers of its kind.
    targets = tuple({f".{'.'.join(name.split('.')[-2:])}" for name in model.find_targets(lora.target_modules)})
    for kind in model.kinds:
        costs[kind] = [batch * n for n in layer_bytes(model, kind, seq, dtype, lora.r, targets, grad)]
        if kind == "moe":
            (saved, peak), (more, inside) = costs[kind], expert_bytes(model, batch * seq, config.policy, grad)
            costs[kind] = [saved + more, max(peak + more, saved + inside)]
    if not grad or config.grpo.gradient_checkpointing:  # each layer's input, in the residual stream's type
        one = batch * seq * model.config.hidden_size * STREAM[dtype].itemsize
        return one * sum(model.kinds.values()), max(peak for _, peak in costs.values())
    for saved, peak in [
        costs[kind] for kind in model.config.layers_block_type
    ]:  # the backward pass has freed the later layers by then
        kept, most = kept + saved, max(most, kept + peak)
    return kept, max(0, most - kept)
