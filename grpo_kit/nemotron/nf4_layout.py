"""How a matrix in NF4 lies in one run of bytes, and how a folder of such matrices is recognised.

A plan and the check of a zip need this on machines that never quantise. So neither bitsandbytes nor PyTorch, which take
seconds to import, is imported at the top of this file; `nf4.py` does the arithmetic.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

MANIFEST = "nf4.json"  # in the folder of an NF4 checkpoint
BLOCK, NESTED = 64, 256  # values per scale, scales per nested scale
ALIGN = 16  # bytes; float32 views need 4, and the packed values are read 16 at a time


class Nf4(NamedTuple):
    """A matrix as views into its bytes, in the form that bitsandbytes' 4-bit operators take."""

    packed: "torch.Tensor"  # (values / 2, 1) uint8
    absmax: "torch.Tensor"  # (values / 64,) uint8: the scales' codes
    nested: "torch.Tensor"  # (values / 64 / 256,) float32: the scales of the codes
    offset: "torch.Tensor"  # () float32: the scales' mean
    shape: tuple[int, int]  # (out, in)


def is_nf4_checkpoint(folder: str | Path) -> bool:
    """Whether `convert_to_nf4` made this folder, finished or not."""
    return Path(folder, MANIFEST).is_file()


def packed_nbytes(shape: tuple[int, int]) -> int:
    """Bytes that a matrix of `shape` (out, in) takes in this layout.

    Raises:
        ValueError: the number of values is not a multiple of 64.
    """
    return section_offsets(shape)[-1]


def unpack_matrix(data: "torch.Tensor", shape: tuple[int, int]) -> Nf4:
    """Views into `data`, the bytes that `pack_matrix` made of a matrix of `shape` (out, in). Nothing is copied."""
    import torch

    packed_at, absmax_at, nested_at, offset_at, _ = section_offsets(shape)
    blocks = shape[0] * shape[1] // BLOCK
    return Nf4(
        packed=data[packed_at : packed_at + blocks * BLOCK // 2].view(-1, 1),
        absmax=data[absmax_at : absmax_at + blocks],
        nested=data[nested_at : nested_at + 4 * -(-blocks // NESTED)].view(torch.float32),
        offset=data[offset_at : offset_at + 4].view(torch.float32)[0],
        shape=shape,
    )


def section_offsets(shape: tuple[int, int]) -> tuple[int, ...]:
    """Where the four sections of a matrix's bytes begin, in the order of `Nf4`, and where the last one ends.

    Args:
        shape: (out, in).

    Returns:
        Five byte offsets, multiples of 16.

    Raises:
        ValueError: the number of values is not a multiple of 64.
    """
    values = shape[0] * shape[1]
    if values % BLOCK:
        raise ValueError(
            f"A {shape[0]} x {shape[1]} matrix has {values} values; NF4 needs whole blocks of {BLOCK}. "
            "Keep it in 16 bit."
        )
    sizes = (values // 2, values // BLOCK, 4 * -(-values // BLOCK // NESTED), 4)
    end, offsets = 0, []
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGN) * ALIGN
    return (*offsets, end)
