"""Safetensors files read and written piece by piece, so that no more than a tensor is in memory.

The safetensors library checks a header; it cannot write to a stream, and what it reads through its memory map counts as
memory in use, so tensors are read and written here.

Source: https://github.com/huggingface/safetensors, "Format" (8 bytes for the header's length, the header as JSON, the
tensors).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from grpo_kit.adapters.findings import Refused, printable

if TYPE_CHECKING:
    import torch  # a header is read without it, because importing it takes longer than checking a small adapter

LARGEST_HEADER = 4 << 20  # bytes; the 12,010 tensors of a complete adapter need about 1.9 million
MOST_TENSORS = 30_000  # a complete adapter of the 30B has 12,010
PIECE = 1 << 20  # bytes read at once; a multiple of the size of every type
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # {its name in a file: in torch}


class TensorEntry(NamedTuple):
    """A tensor in a file: its type in safetensors' words (`BF16`), shape, first byte, and the byte after its last."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread.

    On small pieces threads mostly wait for each other. The last bits of a sum would also depend on their number.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, by name, in the order of their bytes.

    Raises:
        Refused: the library rejects the file, its header is too large, or a name is in the header twice.
    """
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError(f"its header claims {length:,} bytes; at most {LARGEST_HEADER:,} are read")
            if size < 8:
                raise ValueError(f"it has {size} bytes")
            with safe_open(path, framework="numpy"):  # checks types, shapes, offsets, and the file's size
                pass
            header = json.loads(file.read(length), object_pairs_hook=_unique)
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise Refused(
            "not-safetensors",
            f"{path.name} is not a safetensors file: {printable(' '.join(str(error).split()), 99)}.",
            "The safetensors library rejects the file, so the submission will fail.",
            "Save the adapter again; the file was cut off or written by something else.",
        ) from None
    header.pop("__metadata__", None)
    if len(header) > MOST_TENSORS:
        what = f"{path.name} holds {len(header):,} tensors; a complete adapter has 12,010."
        does = "vLLM fails on names that it does not know."
        raise Refused("too-many-tensors", what, does, "Save the LoRA alone.")
    entries = {}
    for name, line in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = (8 + length + offset for offset in line["data_offsets"])
        entries[name] = TensorEntry(line["dtype"], tuple(line["shape"]), begin, end)
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name is in its header twice")
    return table


def torch_type(kind: str) -> "torch.dtype":
    """PyTorch's type for one of DTYPES."""
    import torch

    return getattr(torch, DTYPES[kind])


def read_pieces(file: BinaryIO, entry: TensorEntry) -> Iterator[bytearray]:
    """The bytes of a tensor in pieces of at most 1 MiB. Raises ValueError when the file ends too early."""
    file.seek(entry.begin)
    for begin in range(entry.begin, entry.end, PIECE):
        buffer = bytearray(min(PIECE, entry.end - begin))
        if file.readinto(buffer) != len(buffer):
            raise ValueError(f"{file.name} became shorter while it was read. Copy the adapter elsewhere and repeat.")
        yield buffer


def write_safetensors(
    target: BinaryIO, entries: Mapping[str, tuple[str, Iterable[int]]], tensors: "Iterable[torch.Tensor]"
) -> int:
    """Write a safetensors file to a stream.

    Args:
        target: where to write; only `write` is used.
        entries: {name: (type in safetensors' words, shape)}, in the order of `tensors`.
        tensors: taken one by one, each after the one before was written.

    Returns:
        The bytes of all tensors together.
    """
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in entries.items():
        begin, end = end, end + count_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        target.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return end


def count_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor of a type in safetensors' words.

    Example:
        >>> count_bytes("BF16", [3, 4]), count_bytes("F8_E4M3", [5]), count_bytes("BOOL", [7])
        (24, 5, 7)
    """
    bits = 8 if dtype == "BOOL" else int("".join(filter(str.isdigit, dtype.split("_")[0])))
    return bits * math.prod(shape) // 8
