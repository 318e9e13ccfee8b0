"""A safetensors file read as a stream: first its header, held against every rule of the format, then one tensor's values
after another in pieces. Whatever the file's size, a few MiB of it are in memory.

Rules as the safetensors library (0.8) has them: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from grpo_kit.submission.findings import Refused, shown

LARGEST_HEADER = 4 << 20  # bytes; 12,010 tensors need about 1.9 million
MOST = 30_000  # tensors; a complete adapter has 12,010
PIECE = 1 << 20  # bytes read at once; a multiple of every type's size
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
# Floating types: the unsigned type of their size, the bits below the sign, and those of infinity; above it lies NaN.
FLOATS = {
    "F16": ("<u2", 0x7FFF, 0x7C00), "BF16": ("<u2", 0x7FFF, 0x7F80), "F32": ("<u4", 0x7FFFFFFF, 0x7F800000),
    "F64": ("<u8", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}  # fmt: skip
FAILS = "The safetensors library refuses the file: the submission fails."
AGAIN = "Save the adapter again; the file was cut off or written by something else."


class Bytes(Protocol):
    """What can be read from, forwards."""

    def read(self, size: int, /) -> bytes: ...


class Entry(NamedTuple):
    """A tensor's place: bytes `start` to `end` behind the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Values(NamedTuple):
    """What a tensor's values are like. `largest` is the largest magnitude, NaN where one is NaN, infinity likewise."""

    zero: bool
    finite: bool
    largest: float


def read_header(file: Bytes, size: int) -> list[Entry]:
    """The tensors of a safetensors file of `size` bytes, in the order of their bytes; `file` is left where those begin.

    Raises Refused for whatever the library would refuse, for a header that is too large, and for names twice.
    """
    if size < 8:
        raise _broken(f"it has {size} bytes")
    length = int.from_bytes(_exactly(file, 8), "little")
    if length > min(LARGEST_HEADER, size - 8):
        raise _broken(
            f"its header claims {length:,} bytes, of {size - 8:,} there are and {LARGEST_HEADER:,} that are sane"
        )
    text = _exactly(file, length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise _broken("its header is nested too deeply") from None
    except Refused:
        raise
    except ValueError as error:
        raise _broken(f"its header is no JSON: {shown(str(error))}") from None
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise _broken("its header is no JSON object")
    if len(header) > MOST:
        what = f"adapter_model.safetensors holds {len(header):,} tensors; a complete adapter has 12,010."
        raise Refused("too-many-tensors", what, "It fails on names it does not know.", "Save the LoRA alone.")
    about = header.pop("__metadata__", None)
    if about is not None and not (isinstance(about, dict) and all(isinstance(v, str) for v in about.values())):
        raise _broken("its metadata are not text")
    entries = sorted((_entry(name, said) for name, said in header.items()), key=lambda entry: entry[3:])
    end = 0
    for entry in entries:
        if entry.start != end:
            raise _broken(f"{shown(entry.name)} begins at byte {entry.start:,}, where {end:,} is next")
        end = entry.end
    if end != size - 8 - length:
        raise _broken(f"its tensors take {end:,} bytes and {size - 8 - length:,} are there")
    return entries


def read_values(file: Bytes, entries: list[Entry]) -> Iterator[tuple[Entry, Values | None]]:
    """Each tensor with what its values are like, None for types that are not floating; in order, from where
    `read_header` left the file. Raises Refused when it ends too early."""
    for entry in entries:
        kind, below_sign, infinity = FLOATS.get(entry.dtype, ("<u1", 0, 0))
        left, largest = entry.end - entry.start, 0
        while left:
            piece = _exactly(file, min(left, PIECE))
            left -= len(piece)
            if below_sign:
                bits = np.frombuffer(piece, kind)
                largest = max(largest, int(np.bitwise_and(bits, bits.dtype.type(below_sign)).max()))
        if below_sign:
            yield entry, Values(largest == 0, largest < infinity, _as_float(largest, entry.dtype))
        else:
            yield entry, None
    if file.read(1):
        raise _broken("more bytes follow its last tensor")


def _as_float(bits: int, dtype: str) -> float:
    if dtype == "BF16":
        bits, dtype = bits << 16, "F32"
    width = BITS[dtype] // 8
    return float(np.frombuffer(bits.to_bytes(width, "little"), f"<f{width}")[0])


def _entry(name: str, said: Any) -> Entry:
    """A header's line, checked by itself."""
    if not isinstance(said, dict) or not {"dtype", "shape", "data_offsets"} <= set(said):
        raise _broken(f"{shown(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken(f"{shown(name)} is of type {shown(dtype)}, which safetensors does not have")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise _broken(f"{shown(name)} has no shape or place of whole numbers")
    start, end = offsets
    if math.prod(shape) * BITS[dtype] != 8 * (end - start):
        raise _broken(f"{shown(name)} is {shape[:6]} of {dtype} in {end - start:,} bytes, which it does not fill")
    return Entry(name, dtype, tuple(shape), start, end)


def _counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _broken("a name stands twice in its header")
    return found


def _no_constant(name: str) -> None:
    raise _broken(f"its header holds {name}, which is no JSON")


def _exactly(file: Bytes, count: int) -> bytes:
    pieces, left = [], count
    while left and (piece := file.read(min(left, PIECE))):
        pieces.append(piece)
        left -= len(piece)
    if left:
        raise _broken("it ends too early")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _broken(why: str) -> Refused:
    return Refused("not-safetensors", f"adapter_model.safetensors is no safetensors file: {why}.", FAILS, AGAIN)
