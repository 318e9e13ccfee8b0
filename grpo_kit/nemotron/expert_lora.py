"""LoRA on routed experts: a stand-in that PEFT can wrap for a matrix in NF4, and the LoRA that PEFT trains for it.

The decoding kernel reads the values where PEFT keeps them, by a table of their addresses. Copies of all experts' pairs
side by side would take as much memory as the pairs themselves.
"""

import functools
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


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
    """The LoRA of one matrix: `a` (r, in), `b` (out, r), and the scale alpha / r.

    `stack_loras` makes one of several: `a` (experts, r, in), `b` (experts, out, r), and one scale or (experts, 1, 1).
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float | torch.Tensor


class LoraTable(NamedTuple):
    """Where the decoding kernel finds the LoRA of one matrix of every expert.

    `pairs` is (experts, 4) int64: the addresses of a and b, r, and the bits of the scale as float64; zeros for an
    expert without a LoRA. `width` is the largest r.
    """

    pairs: torch.Tensor
    width: int


ExpertLoras = tuple[ExpertLora | None, ExpertLora | None]  # of an expert's up and down matrix


def add_update(lora: ExpertLora | None, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Add a LoRA's update to a product.

    Args:
        lora: the stacked LoRA; None adds nothing.
        x: (experts, rows, in), the input of the matrices.
        result: (experts, rows, out), the product of x and the frozen matrices.

    Returns:
        (experts, rows, out) in `result`'s type; the update is computed in the LoRA's type.
    """
    if lora is None:
        return result
    return result + (x.to(lora.a.dtype) @ lora.a.mT @ lora.b.mT * lora.scale).to(result.dtype)


def differentiate_update(
    lora: ExpertLora, x: torch.Tensor, d_result: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of a stacked LoRA: of `a` and of `b`, for the input x and the gradient of the result."""
    x, d_update = x.to(lora.a.dtype), d_result.to(lora.a.dtype) * lora.scale
    return (d_update @ lora.b).mT @ x, d_update.mT @ (x @ lora.a.mT)


def add_input_gradient(lora: ExpertLora | None, d_result: torch.Tensor, d_x: torch.Tensor) -> torch.Tensor:
    """Add what a stacked LoRA contributes to the gradient of its input, (experts, rows, in) in d_x's type."""
    if lora is None:
        return d_x
    return d_x + (d_result.to(lora.a.dtype) * lora.scale @ lora.b @ lora.a).to(d_x.dtype)


def stack_loras(loras: Sequence[ExpertLora | None]) -> ExpertLora | None:
    """The LoRAs of one matrix of several experts as one; smaller ranks, and experts without one, are filled with zeros.

    Returns:
        The stacked LoRA; None if no expert has one.
    """
    if (some := next(filter(None, loras), None)) is None:
        return None
    pairs = [lora or ExpertLora(some.a[:0], some.b[:, :0], some.scale) for lora in loras]
    scales = [lora.scale for lora in pairs]
    same = len(set(scales)) == 1
    return ExpertLora(
        nn.utils.rnn.pad_sequence([lora.a for lora in pairs], batch_first=True),
        nn.utils.rnn.pad_sequence([lora.b.T for lora in pairs], batch_first=True).mT,
        scales[0] if same else torch.tensor(scales, device=some.a.device)[:, None, None],
    )


def active_lora(matrix: nn.Module) -> ExpertLora | None:
    """The active LoRA that PEFT has added to `matrix`; None without one, or while adapters are disabled."""
    if isinstance(matrix, ExpertMatrix) or matrix.disable_adapters:
        return None
    # Not by attributes of modules, which are slow: a decoding step reads some 6,000 LoRAs.
    modules = matrix._modules
    a, b = modules["lora_A"]._modules, modules["lora_B"]._modules
    names = [name for name in matrix.active_adapters if name in a]
    if len(names) > 1:
        raise ValueError(
            f"The adapters {' and '.join(names)} are active on the same routed expert; experts take one at a time. "
            "Activate one of them with model.set_adapter."
        )
    if not names:
        return None
    (name,) = names
    return ExpertLora(a[name]._parameters["weight"], b[name]._parameters["weight"], matrix.scaling[name])


def tabulate(loras: Sequence[ExpertLora | None], device: torch.device) -> LoraTable | None:
    """The table of one matrix's LoRA of every expert. It is made again only when an address, rank or scale changes.

    Args:
        loras: the experts' LoRAs in order; None for an expert without one.
        device: where the kernel runs.

    Returns:
        The table; None if the kernel cannot read a LoRA, because it is not float32 or does not lie in one piece there.
    """
    for half in [half for lora in loras if lora for half in (lora.a, lora.b)]:
        if half.dtype is not torch.float32 or half.device != device or not half.is_contiguous():
            return None
    rows = [lora and (lora.a.data_ptr(), lora.b.data_ptr(), lora.a.shape[0], lora.scale) for lora in loras]
    return _make_table(tuple(rows), device)


def tabulate_layer(loras: dict[int, ExpertLoras], num_experts: int, device: torch.device) -> list[LoraTable] | None:
    """The tables of a layer's up and down matrices; empty if no expert has a LoRA, None if the kernel cannot read one.

    Args:
        loras: {expert: its LoRAs}.
        num_experts: how many experts the layer has.
        device: where the kernel runs.
    """
    if not loras:
        return []
    pairs = [loras.get(expert, (None, None)) for expert in range(num_experts)]
    tables = [tabulate(matrices, device) for matrices in zip(*pairs)]
    return None if None in tables else tables


@functools.lru_cache(maxsize=1024)  # the layers of a model have some 50, of 4 KiB each
def _make_table(rows: tuple[tuple[int, int, int, float] | None, ...], device: torch.device) -> LoraTable:
    rows = [row or (0, 0, 0, 0.0) for row in rows]
    pairs = [(a, b, r, *struct.unpack("q", struct.pack("d", scale))) for a, b, r, scale in rows]
    return LoraTable(torch.tensor(pairs, device=device), max(r for _, _, r, _ in rows))
