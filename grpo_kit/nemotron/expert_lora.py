"""LoRA on routed experts: a stand-in that PEFT can wrap for a matrix in NF4, and the LoRA that PEFT trains for it."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class ExpertMatrix(nn.Linear):
    """Stands for one matrix of one expert, so that PEFT can add a LoRA to it. The values are in NF4; `weight` is empty.

    Args:
        shape: (out, in) of the matrix.
        device: where PEFT puts the LoRA.
        dtype: type of the empty weight.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.weight = nn.Parameter(torch.empty(0, device=device, dtype=dtype), requires_grad=False)
        self.bias = None


class ExpertLora(NamedTuple):
    """The LoRA of one matrix: `a` (r, in), `b` (out, r), and the scale alpha / r."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


ExpertLoras = tuple[ExpertLora | None, ExpertLora | None]  # of an expert's up and down matrix


def add_update(lora: ExpertLora | None, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Add a LoRA's update to a product.

    Args:
        lora: the LoRA; None adds nothing.
        x: (rows, in), the input of the matrix.
        result: (rows, out), the product of x and the frozen matrix.

    Returns:
        (rows, out) in `result`'s type; the update is computed in the LoRA's type.
    """
    if lora is None:
        return result
    return result + (F.linear(F.linear(x.to(lora.a.dtype), lora.a), lora.b) * lora.scale).to(result.dtype)


def active_lora(matrix: nn.Module) -> ExpertLora | None:
    """The active LoRA that PEFT has added to `matrix`; None without one, or while adapters are disabled."""
    if isinstance(matrix, ExpertMatrix) or matrix.disable_adapters:
        return None
    (name,) = [name for name in matrix.active_adapters if name in matrix.lora_A]
    return ExpertLora(matrix.lora_A[name].weight, matrix.lora_B[name].weight, matrix.scaling[name])
