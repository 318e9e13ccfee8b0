"""LoRA on routed experts: what PEFT is shown of a matrix that lies in NF4, and what it has trained for it."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class ExpertMatrix(nn.Linear):
    """Stands for one matrix of one expert, so that PEFT can hang a LoRA on it; the values lie in NF4, `weight` is empty."""

    def __init__(self, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.weight = nn.Parameter(torch.empty(0, device=device, dtype=dtype), requires_grad=False)
        self.bias = None


class ExpertLora(NamedTuple):
    """What PEFT trains for one matrix: `a` (r, in), `b` (out, r), and alpha / r."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def added(self, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """`result`, (rows, out), with the update for `x`, (rows, in), computed in the LoRA's own type."""
        return result + (F.linear(F.linear(x.to(self.a.dtype), self.a), self.b) * self.scale).to(result.dtype)


ExpertLoras = tuple[ExpertLora | None, ExpertLora | None]  # of an expert's up and down matrix


def add_update(lora: ExpertLora | None, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """`result` with the update of `lora`, if there is one."""
    return lora.added(x, result) if lora else result


def active_lora(matrix: nn.Module) -> ExpertLora | None:
    """The active LoRA that PEFT has put around `matrix`, if any."""
    if isinstance(matrix, ExpertMatrix) or matrix.disable_adapters:
        return None
    (name,) = [name for name in matrix.active_adapters if name in matrix.lora_A]
    return ExpertLora(matrix.lora_A[name].weight, matrix.lora_B[name].weight, matrix.scaling[name])
