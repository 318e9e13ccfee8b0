"""One weight matrix in 4 bit, as one run of bytes that can be moved, stored and multiplied with.

The format is NF4 with double quantisation: blocks of 64 values share a scale, and blocks of 256 scales are stored in 8
bit themselves, which makes 4.127 bits a value. bitsandbytes does the arithmetic. The layout is the kit's
(nf4_layout.py): packed values, 8-bit scales, their scales and their mean follow one another, so that a matrix is a
single copy over PCIe.

bitsandbytes' private parts are used here only. Checked with bitsandbytes 0.50.2; `tests/nemotron/test_nf4.py` compares
every result with bitsandbytes' public functions.

Source: QLoRA, arXiv:2305.14314, section 3.
"""

import functools
import logging
from collections.abc import Callable

import torch

# On import bitsandbytes warns that it lacks a CPU kernel which is not used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "Failed to load CPU gemm_4bit_forward" not in record.getMessage()
)
import bitsandbytes  # noqa: E402 (after the filter)
from bitsandbytes import functional as bnb  # noqa: E402 (after the filter)

from grpo_kit.nemotron.nf4_layout import BLOCK, NESTED, Nf4, packed_nbytes, unpack_matrix  # noqa: E402


def pack_matrix(weight: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """Quantise a matrix.

    Args:
        weight: (out, in) floating-point.
        into: (packed_nbytes,) uint8 that receives the bytes; None allocates it on the weight's device.

    Returns:
        The bytes, (packed_nbytes,) uint8.

    Raises:
        ValueError: the number of values is not a multiple of 64.
    """
    shape = tuple(weight.shape)
    if into is None:  # zeros, because the gaps between the sections belong to the bytes that are stored
        into = torch.zeros(packed_nbytes(shape), dtype=torch.uint8, device=weight.device)
    packed, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
    target = unpack_matrix(into, shape)
    target.packed.copy_(packed.view(-1, 1))
    target.absmax.copy_(state.absmax)
    target.nested.copy_(state.state2.absmax)
    target.offset.copy_(state.offset)
    return into


def dequantise_matrix(matrix: Nf4, out: torch.Tensor) -> torch.Tensor:
    """Write the matrix's values into `out`, (out, in) of any floating-point type, and return `out`."""
    scales = torch.ops.bitsandbytes.dequantize_blockwise.default(
        matrix.absmax, matrix.nested, scale_values(out.device), NESTED, torch.float32
    )
    scales += matrix.offset
    operator = torch.ops.bitsandbytes.dequantize_4bit
    if out.is_cuda:
        operator.out(matrix.packed, scales, BLOCK, "nf4", matrix.shape, out.dtype, out=out)
        return out
    # On a CPU bitsandbytes 0.50.2 has no in-place operator. Some of its CPU kernels also take wrong scales when a row
    # is not a multiple of 64 values long. As rows of exactly one block every matrix comes out right.
    one_block_rows = (matrix.packed.numel() * 2 // BLOCK, BLOCK)
    values = operator.default(matrix.packed, scales, BLOCK, "nf4", one_block_rows, out.dtype)
    return out.copy_(values.view(matrix.shape))


def dequantise_matrices(matrices: list[Nf4], dtype: torch.dtype) -> torch.Tensor:
    """The values of several matrices of the same number of values, in a few operations for all of them.

    Args:
        matrices: one or more; their shapes may differ.
        dtype: the floating-point type of the values.

    Returns:
        (matrices, values of each), bit for bit what `dequantise_matrix` writes.
    """
    packed, absmax, nested, offset = (torch.stack(parts) for parts in list(zip(*matrices))[:4])
    blocks = absmax.shape[1]
    codes = torch.nn.functional.pad(absmax, (0, nested.shape[1] * NESTED - blocks))  # no nested scale of two matrices
    scales = torch.ops.bitsandbytes.dequantize_blockwise.default(
        codes.flatten(), nested.flatten(), scale_values(codes.device), NESTED, torch.float32
    )
    scales = (scales.view_as(codes)[:, :blocks] + offset[:, None]).flatten()
    # As rows of exactly one block, for the reason in `dequantise_matrix`.
    one_block_rows = (len(scales), BLOCK)
    operator = torch.ops.bitsandbytes.dequantize_4bit.default
    return operator(packed.view(-1, 1), scales, BLOCK, "nf4", one_block_rows, dtype).view(len(matrices), -1)


def multiply_rows(x: torch.Tensor, matrix: Nf4) -> torch.Tensor:
    """`x @ W.T` for a few rows, without a gradient. CUDA uses the fused 4-bit product and never stores W in 16 bit.

    Args:
        x: (rows, in) floating-point.
        matrix: W, (out, in).

    Returns:
        (rows, out) in x's type.
    """
    if not x.is_cuda:
        return torch.nn.functional.linear(x, dequantise_matrix(matrix, x.new_empty(matrix.shape)))
    return torch.ops.bitsandbytes.gemm_4bit.default(
        x,
        matrix.packed,
        matrix.shape,
        matrix.nested,
        BLOCK,
        "nf4",
        absmax_8bit=matrix.absmax,
        absmax_code=scale_values(x.device),
        absmax_offset=matrix.offset,
    )


def read_linear(module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    """A 4-bit linear layer's forward pass without a gradient, with what does not depend on the input done once.

    That saves a third of the time of a small product.

    Args:
        module: bitsandbytes' 4-bit linear layer. Its weight must not change while the function is used.

    Returns:
        A function of (rows, in), whose result is bit for bit the module's. By a second argument, (rows, out) in the
        type of the first, it adds its result to that, in place, and returns that.
    """
    state, dtype = module.weight.quant_state, module.compute_dtype
    as_packed_here = state.nested and (state.quant_type, state.blocksize, state.shape[1] % BLOCK) == ("nf4", BLOCK, 0)
    if not as_packed_here or module.bias is not None or dtype is None:
        return lambda x, into=None: add_into(into, module(x))
    packed = module.weight.data.view(-1, 1)
    matrix = Nf4(packed, state.absmax, state.state2.absmax, state.offset, tuple(state.shape))
    if packed.is_cuda:
        return lambda x, into=None: add_into(into, multiply_rows(x.to(dtype), matrix).to(x.dtype))
    scales = bnb.dequantize_blockwise(state.absmax, state.state2)
    scales += state.offset
    dequantise = functools.partial(
        torch.ops.bitsandbytes.dequantize_4bit.default, packed, scales, BLOCK, "nf4", matrix.shape, dtype
    )

    def multiply(x: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        if x.dtype is not dtype:
            return add_into(into, torch.nn.functional.linear(x.to(dtype), dequantise()).to(x.dtype))
        if into is None:
            return torch.nn.functional.linear(x, dequantise())
        return into.addmm_(x, dequantise().T)

    return multiply


def add_into(into: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """`result`, or `into` after it was added there in place."""
    return result if into is None else into.add_(result)


def is_4bit_linear(module: torch.nn.Module) -> bool:
    """Whether the module is bitsandbytes' 4-bit linear layer."""
    return isinstance(module, bitsandbytes.nn.Linear4bit)


def set_4bit_weight(module: torch.nn.Module, data: torch.Tensor, dtype: torch.dtype) -> None:
    """Give a `Linear4bit` the weight with the bytes `data`. Nothing is copied.

    Args:
        module: bitsandbytes' 4-bit linear layer.
        data: the bytes of an (out_features, in_features) matrix, as `pack_matrix` makes them.
        dtype: the type to compute with.
    """
    shape, device = (module.out_features, module.in_features), data.device
    matrix = unpack_matrix(data, shape)
    scales = bnb.QuantState(matrix.nested, code=scale_values(device), blocksize=NESTED, dtype=torch.float32)
    state = bnb.QuantState(
        matrix.absmax, torch.Size(shape), bnb.get_4bit_type("nf4", device), BLOCK, "nf4", dtype, matrix.offset, scales
    )
    module.weight = bitsandbytes.nn.Params4bit(
        matrix.packed,
        quant_state=state,
        blocksize=BLOCK,
        compress_statistics=True,
        quant_type="nf4",
        quant_storage=torch.uint8,
        module=module,
        bnb_quantized=True,
    )
    module.quant_state = state
    disable_bf16_path(module)


def disable_bf16_path(model: torch.nn.Module) -> None:
    """Switch off bitsandbytes' path for CPUs with AVX-512, which rounds to bf16 and needs multiples of 32 as sizes."""
    for module in model.modules():
        if is_4bit_linear(module):
            module.support_avx512bf16_for_cpu = False


@functools.cache
def lookup_tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(the 256 values of the scales' 8-bit codes, the 16 values of the packed codes), float32, kept once per device."""
    return bnb.create_dynamic_map().to(device), bnb.get_4bit_type("nf4", device)


def scale_values(device: torch.device) -> torch.Tensor:
    """(256,) float32: the values of the scales' 8-bit codes."""
    return lookup_tables(device)[0]
