"""How a matrix in NF4 lies in one run of bytes, and how a folder of such matrices is recognised and checked.

A plan and the check of a zip need this on machines that never quantise. So neither bitsandbytes nor PyTorch, which take
seconds to import, is imported at the top of this file; `nf4.py` does the arithmetic.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo_kit.runs import activity
from grpo_kit.runs.files import hash_of, write_text

if TYPE_CHECKING:
    import torch

MANIFEST, FORMAT = "nf4.json", 1  # in the folder of an NF4 checkpoint
# The keys of that file and the types of their values. "matrices" is written for people only.
FIELDS = {
    "source": str, "revision": str | None, "commit": str | None, "dtype": str, "count": int, "parts": dict,
}  # fmt: skip
PART_FIELDS = {"bytes": int, "sha256": str, "shard": str, "shard_bytes": int | None}
REMEDY = "Copy it again, or convert again: only what is missing is redone."
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's `nf4.json`.

    Raises:
        ValueError: it is not what a conversion writes, or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if (form := manifest["format"]) != FORMAT:
            raise NotImplementedError
        sound = all(isinstance(manifest[key], kind) for key, kind in FIELDS.items()) and all(
            Path(part).name == part and all(isinstance(record[key], kind) for key, kind in PART_FIELDS.items())
            for part, record in manifest["parts"].items()
        )
    except NotImplementedError:
        raise ValueError(f"{folder} is of format {form}; this version reads {FORMAT}. Convert again.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is not what a conversion writes; it is damaged. {REMEDY}")
    return manifest


def verify_checkpoint(folder: str | Path, check_hashes: bool = False) -> dict[str, Any]:
    """Check that all parts of an NF4 checkpoint have their recorded size.

    Args:
        folder: the NF4 checkpoint.
        check_hashes: also compare each part's sha256, which takes a minute for the 30B.

    Returns:
        The content of `nf4.json`.

    Raises:
        FileNotFoundError: `folder` is not an NF4 checkpoint.
        ValueError: it is unfinished, damaged or of another format.

    Example:
        >>> verify_checkpoint("nf4/nvidia--NVIDIA-Nemotron-3-Nano-4B-BF16", check_hashes=True)  # doctest: +SKIP
    """
    folder = Path(folder)
    if not is_nf4_checkpoint(folder):
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}; an NF4 checkpoint does. Make one with convert_to_nf4.")
    manifest = read_manifest(folder)
    if (done := len(manifest["parts"])) < manifest["count"]:
        raise ValueError(
            f"{folder} holds {done} of {manifest['count']} parts; all are needed. Let the conversion finish."
        )
    for part, record in manifest["parts"].items():
        if not is_part_intact(folder / part, record, check_hashes):
            raise ValueError(f"{folder / part} is not what was written, or is missing. {REMEDY}")
    return manifest


def confirm_parts(folder: Path) -> None:
    """Make sure that a checkpoint's parts are what was written, as each load does, without reading them all again.

    A part of the recorded size and time of change counts as unchanged. One of another time, as after a copy, is hashed
    once, and its time is recorded, so that the next load need not. Where nothing can be recorded (a mounted input of
    Kaggle), each load would read 16 GiB through the network for that, so there the size alone decides: a copy that was
    cut short, the usual damage, has another one.

    Raises:
        FileNotFoundError, ValueError: as for `verify_checkpoint`.
    """
    manifest = verify_checkpoint(folder)
    times = {part: (folder / part).stat().st_mtime_ns for part in manifest["parts"]}
    changed = [part for part, record in manifest["parts"].items() if record.get("changed") != times[part]]
    if not changed or not os.access(folder, os.W_OK):
        return
    for part in changed:
        activity.announce(f"checking {part}")
        if not is_part_intact(folder / part, manifest["parts"][part], check_hash=True):
            raise ValueError(f"{folder / part} is not what was written. {REMEDY}")
        manifest["parts"][part]["changed"] = times[part]
    with contextlib.suppress(OSError):  # such as a full disk: the next load hashes them again
        write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace a checkpoint's `nf4.json` in one step."""
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def is_part_intact(path: Path, record: dict[str, Any], check_hash: bool) -> bool:
    """Whether a part file has the size, and if `check_hash` the sha256, that `nf4.json` records."""
    if not path.is_file() or path.stat().st_size != record["bytes"]:
        return False
    return not check_hash or hash_of(path) == record["sha256"]


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
