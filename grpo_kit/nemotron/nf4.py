"""One weight matrix in real 4 bit, as one run of bytes that can be moved, stored and multiplied with.

NF4 with double quantisation (QLoRA, arXiv:2305.14314, section 3): blocks of 64 values share a scale, and blocks of 256
scales are themselves kept in 8 bit. 4.127 bits a value. bitsandbytes does the arithmetic; what is ours is the layout:
packed values, 8-bit scales, their scales, their mean, one behind the other, so that a matrix is one copy over PCIe.
"""

import functools
import logging
from typing import NamedTuple

import torch

# bitsandbytes says on import that it lacks a kernel for CPUs that nothing here asks for.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "Failed to load CPU gemm_4bit_forward" not in record.getMessage()
)
import bitsandbytes  # noqa: E402
from bitsandbytes import functional as bnb  # noqa: E402

BLOCK, NESTED = 64, 256  # values a scale, scales a nested scale
ALIGN = 16  # bytes; float32 views need 4, the packed values are read 16 at a time


class Nf4(NamedTuple):
    """Views into a matrix's bytes: what bitsandbytes' 4-bit operators take."""

    packed: torch.Tensor  # (values / 2, 1) uint8
    absmax: torch.Tensor  # (values / 64,) uint8
    nested: torch.Tensor  # (values / 64 / 256,) float32
    offset: torch.Tensor  # () float32
    shape: tuple[int, int]  # (out, in)


def packed_nbytes(shape: tuple[int, int]) -> int:
    """Bytes of a matrix of `shape` (out, in) in this layout. Raises ValueError unless blocks of 64 fill it."""
    return section_offsets(shape)[-1]


def pack_matrix(weight: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """The bytes, `(nbytes,)` uint8, of a 2-D floating-point `weight` (out, in), on its device or into `into`."""
    shape = tuple(weight.shape)
    if into is None:  # zeros: what lies between the sections is part of the bytes
        into = torch.zeros(packed_nbytes(shape), dtype=torch.uint8, device=weight.device)
    packed, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
    target = unpack_matrix(into, shape)
    target.packed.copy_(packed.view(-1, 1))
    target.absmax.copy_(state.absmax)
    target.nested.copy_(state.state2.absmax)
    target.offset.copy_(state.offset)
    return into


def unpack_matrix(data: torch.Tensor, shape: tuple[int, int]) -> Nf4:
    """Views into `data`, bytes that `pack` made of a matrix of `shape`; nothing is copied."""
    a, b, c, d, end = section_offsets(shape)
    blocks = shape[0] * shape[1] // BLOCK
    return Nf4(
        packed=data[a : a + blocks * BLOCK // 2].view(-1, 1),
        absmax=data[b : b + blocks],
        nested=data[c : c + 4 * -(-blocks // NESTED)].view(torch.float32),
        offset=data[d : d + 4].view(torch.float32)[0],
        shape=shape,
    )


def dequantise_matrix(matrix: Nf4, out: torch.Tensor) -> torch.Tensor:
    """Write the matrix into `out`, (out, in) in any floating-point type, and return it."""
    scales = torch.ops.bitsandbytes.dequantize_blockwise.default(
        matrix.absmax, matrix.nested, scale_values(out.device), NESTED, torch.float32
    )
    scales += matrix.offset
    operator = torch.ops.bitsandbytes.dequantize_4bit
    if out.is_cuda:
        operator.out(matrix.packed, scales, BLOCK, "nf4", matrix.shape, out.dtype, out=out)
        return out
    # On the CPU bitsandbytes 0.50.2 has no in-place form, and takes wrong scales where a row is no multiple of 64 long:
    # as rows of one block each it gets every matrix right.
    rows = (matrix.packed.numel() * 2 // BLOCK, BLOCK)
    return out.copy_(operator.default(matrix.packed, scales, BLOCK, "nf4", rows, out.dtype).view(matrix.shape))


def multiply_rows(x: torch.Tensor, matrix: Nf4) -> torch.Tensor:
    """`x @ W.T` for a few rows of x, (rows, in); on CUDA by the fused 4-bit product, without W in 16 bit. No gradient."""
    if not x.is_cuda:
        return torch.nn.functional.linear(x, dequantise_matrix(matrix, x.new_empty(matrix.shape)))
    return torch.ops.bitsandbytes.gemm_4bit.default(
        x, matrix.packed, matrix.shape, matrix.nested, BLOCK, "nf4",
        absmax_8bit=matrix.absmax, absmax_code=scale_values(x.device), absmax_offset=matrix.offset,
    )  # fmt: skip


def is_4bit_linear(module: torch.nn.Module) -> bool:
    """Whether it is bitsandbytes' 4-bit linear layer."""
    return isinstance(module, bitsandbytes.nn.Linear4bit)


def set_4bit_weight(module: torch.nn.Module, data: torch.Tensor, dtype: torch.dtype) -> None:
    """Give a `Linear4bit` the weight whose bytes are `data`, to be computed with in `dtype`; nothing is copied."""
    shape, device = (module.out_features, module.in_features), data.device
    matrix = unpack_matrix(data, shape)
    scales = bnb.QuantState(matrix.nested, code=scale_values(device), blocksize=NESTED, dtype=torch.float32)
    state = bnb.QuantState(
        matrix.absmax, torch.Size(shape), bnb.get_4bit_type("nf4", device), BLOCK, "nf4", dtype, matrix.offset, scales
    )
    module.weight = bitsandbytes.nn.Params4bit(
        matrix.packed, quant_state=state, blocksize=BLOCK, compress_statistics=True, quant_type="nf4",
        quant_storage=torch.uint8, module=module, bnb_quantized=True,
    )  # fmt: skip
    module.quant_state = state
    module.support_avx512bf16_for_cpu = False  # that path rounds to bf16 and refuses sizes not of 32


@functools.cache
def lookup_tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The 256 values that 8-bit scales stand for, and the 16 that packed ones do; float32, one copy a device."""
    return bnb.create_dynamic_map().to(device), bnb.get_4bit_type("nf4", device)


def scale_values(device: torch.device) -> torch.Tensor:
    """The 256 values that 8-bit scales stand for, float32."""
    return lookup_tables(device)[0]


def section_offsets(shape: tuple[int, int]) -> tuple[int, ...]:
    """Where the bytes of a matrix of `shape` have their four sections, in the order of `Nf4`, and where they end."""
    values = shape[0] * shape[1]
    if values % BLOCK:
        raise ValueError(
            f"A {shape[0]} x {shape[1]} matrix has {values} values; NF4 needs whole blocks of {BLOCK}. Keep it in 16 bit."
        )
    sizes = (values // 2, values // BLOCK, 4 * -(-values // BLOCK // NESTED), 4)
    at, offsets = 0, []
    for size in sizes:
        offsets.append(at)
        at += -(-size // ALIGN) * ALIGN
    return (*offsets, at)
