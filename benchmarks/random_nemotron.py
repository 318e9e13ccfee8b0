"""A Nemotron-H of any size with random weights in 4 bit, drawn and quantised matrix by matrix, built in three ways.

`tiered` is the kit's own. `parametrised` keeps transformers' fused stacks of experts and quantises them by
bitsandbytes' `replace_parameter_4bit`. `offloaded` gives every matrix of an expert its own `Linear4bit` and lets
accelerate keep some experts on the CPU. The rest is the same: dense layers in NF4, embeddings and head in the model's
type.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import bitsandbytes
import bitsandbytes.nn.parametrize as parametrize
import torch
from torch import nn

from grpo_kit.nemotron import nf4, nf4_checkpoint, patches
from grpo_kit.policy import generation_loop

NF4 = {"compress_statistics": True, "quant_type": "nf4"}


def tiered(folder: Path, dtype: torch.dtype, device: str, share: float) -> Any:
    """The kit's own model; `share` of each layer's experts in host memory. `folder` holds the config.json."""
    drawn = ((folder, name, value) for name, value in draw_tensors(folder, dtype, device))
    return generation_loop.install_loop(nf4_checkpoint.assemble_model(folder, dtype, drawn, device, share))


def parametrised(folder: Path, dtype: torch.dtype, device: str, share: float) -> Any:
    """Fused stacks, quantised as parameters. Part of a stack cannot be kept elsewhere, so `share` is ignored."""
    model, quantizer = nf4_checkpoint.build_skeleton(folder, dtype)
    for module in find_fused_experts(model).values():
        for name in ("up_proj", "down_proj"):
            stack = torch.empty(getattr(module, name).shape, dtype=dtype, device=device)
            for matrix in stack:
                matrix.normal_(std=0.02)
            setattr(module, name, nn.Parameter(stack, requires_grad=False))
            del stack
            parametrize.replace_parameter_4bit(module, name, blocksize=nf4.BLOCK, **NF4)
    model.set_experts_implementation("eager")  # the others need grouped_mm, or copy the weights of each choice
    return fill_other_tensors(model, quantizer, folder, dtype, device)


def offloaded(folder: Path, dtype: torch.dtype, device: str, share: float) -> Any:
    """Single experts, `share` of each layer's on the CPU; accelerate brings them when they are called."""
    model, quantizer = nf4_checkpoint.build_skeleton(folder, dtype)
    for name, stacks in find_fused_experts(model).items():
        experts = SingleExperts(stacks, dtype, device)
        for expert in list(experts)[len(experts) - round(share * len(experts)) :]:
            accelerate.cpu_offload(expert, execution_device=torch.device(device))
        model.set_submodule(name, experts)
    return fill_other_tensors(model, quantizer, folder, dtype, device)


class Scales(bitsandbytes.functional.QuantState):
    """A matrix's scales, which stay where they are when accelerate offloads the matrix by moving it to `meta`.

    bitsandbytes 0.50 moves the scales along, and a matrix offloaded that way can never be used again.
    """

    def to(self, device: Any) -> None:
        if torch.device(device).type != "meta":
            super().to(device)


class SingleExperts(nn.ModuleList):
    """A layer's experts, each two 4-bit linear layers, called one after the other."""

    def __init__(self, stacks: nn.Module, dtype: torch.dtype, device: str) -> None:
        super().__init__(Expert(stacks.up_proj.shape[1:], stacks.act_fn, dtype, device) for _ in stacks.up_proj)

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(hidden.shape, dtype=weights.dtype, device=hidden.device)
        for expert in index.unique().tolist():
            rows, choice = torch.where(index == expert)
            output = self[expert](hidden[rows])
            out.index_add_(0, rows, output * weights[rows, choice, None])
        return out.to(hidden.dtype)


class Expert(nn.Module):
    """down(act(up(x))), as transformers quantises a linear layer."""

    def __init__(self, shape: tuple[int, int], act: Any, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self.up, self.down = make_linear(shape, dtype, device), make_linear(shape[::-1], dtype, device)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.up(x)))


def make_linear(shape: tuple[int, int], dtype: torch.dtype, device: str) -> nn.Module:
    layer = bitsandbytes.nn.Linear4bit(shape[1], shape[0], bias=False, compute_dtype=dtype, device="meta", **NF4)
    weight = torch.empty(shape, dtype=dtype, device=device).normal_(std=0.02)
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, blocksize=nf4.BLOCK, module=layer, **NF4)
    nf4.disable_bf16_path(layer)
    layer = layer.to(device)
    layer.weight.quant_state.__class__ = Scales
    return layer


def find_fused_experts(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if type(m).__name__ == "NemotronHExperts"}


def fill_other_tensors(model: Any, quantizer: Any, folder: Path, dtype: torch.dtype, device: str) -> Any:
    """Draw everything except routed experts, and finish the model as a loaded one is finished."""
    for name, value in draw_tensors(folder, dtype, device, without=".experts."):
        owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if nf4.is_4bit_linear(owner):
            nf4.set_4bit_weight(owner, value, dtype)
        elif leaf in owner._buffers:
            owner._buffers[leaf] = value
        else:
            setattr(owner, leaf, nn.Parameter(value, requires_grad=False))
    quantizer.postprocess_model(model)
    patches.prepare_model(model)
    return model.eval()


def draw_tensors(
    folder: Path, dtype: torch.dtype, device: str, without: str | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, value) of every tensor whose name does not contain `without`, one at a time, quantised ones as bytes."""
    specs = nf4_checkpoint.list_model_tensors(nf4_checkpoint.build_skeleton(folder, dtype)[0], dtype)
    for name, (shape, kind) in specs.items():
        if without is None or without not in name:
            value = draw_tensor(name, shape, kind or dtype, device)
            yield name, value if kind else nf4.pack_matrix(value)


def draw_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """A tensor with values like those of a fresh model, so that activations stay finite."""
    value = torch.empty(shape, dtype=dtype, device=device)
    if name.endswith(("norm.weight", "norm_f.weight", ".D")):
        return value.fill_(1)
    if name.endswith("A_log"):
        return value.uniform_(1, 16).log_()
    if name.endswith("dt_bias"):
        return value.uniform_(0.001, 0.1).expm1_().log_()  # its softplus is the step
    return value.fill_(0) if name.endswith("bias") else value.normal_(std=0.02)
