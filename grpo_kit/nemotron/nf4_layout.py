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
INDEX = "model.safetensors.index.json"  # of a published checkpoint
DTYPES = ("float16", "bfloat16", "float32")
# The keys of that file and the types of their values. "matrices" is written for people only.
FIELDS = {
    "source": str, "revision": str | None, "commit": str | None, "dtype": str, "count": int, "parts": dict,
}  # fmt: skip
# Of each part. The shard's size and time are None where they say nothing: on the Hub, in the files of earlier versions.
PART_FIELDS = {"bytes": int, "sha256": str}
SHARD_FIELDS = {"shard": str | None, "shard_bytes": int | None, "shard_changed": int | None}
REMEDY = "Delete it and load the published model, which makes it again, or copy it again."
BLOCK, NESTED = 64, 256  # values per scale, scales per nested scale
ALIGN = 16  # bytes; float32 views need 4, and the packed values are read 16 at a time


class DamagedError(ValueError):
    """An NF4 checkpoint is not what was written, or its source has changed. `what` says it in a sentence."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} {REMEDY}")
        self.what = what


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
        files = manifest.setdefault("files", {})
        sound = (
            all(isinstance(manifest[key], kind) for key, kind in FIELDS.items())
            and manifest["dtype"] in DTYPES
            and manifest["count"] > 0
            and all(Path(name).name == name and isinstance(sha, str | None) for name, sha in files.items())
            and all(
                Path(part).name == part
                and all(isinstance(record[key], kind) for key, kind in PART_FIELDS.items())
                and all(isinstance(record.setdefault(key, None), kind) for key, kind in SHARD_FIELDS.items())
                for part, record in manifest["parts"].items()
            )
        )
    except NotImplementedError:
        raise ValueError(f"{path} is of format {form!r}; this version reads {FORMAT}. {REMEDY}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is not what a conversion writes; it is damaged. {REMEDY}")
    return manifest


def verify_checkpoint(folder: str | Path, check_hashes: bool = False) -> dict[str, Any]:
    """Check that all parts of an NF4 checkpoint have their recorded size, and its small files their content.

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
    intact = {part: is_part_intact(folder / part, record, check_hashes) for part, record in manifest["parts"].items()}
    for name, sha in manifest["files"].items():
        intact[name] = sha is None or name == INDEX or hash_of(folder / name) == sha
    if damaged := [folder / name for name in intact if not intact[name]]:
        raise DamagedError(f"{damaged[0]} is not what was written, or is missing.")
    return manifest


def find_change(manifest: dict[str, Any], source: Path) -> Path | None:
    """A file of a local source that is not the one that an NF4 checkpoint was made of; None if there is none.

    The weights are compared by size and time of change, the small files and the index by content. A folder that may
    only be read, such as a mounted model of Kaggle, has the times of its mounting, so there the size decides. A source
    whose weights are gone is not missed.
    """
    if not any(source.glob("*.safetensors")):
        return None
    changed = [name for name, sha in manifest["files"].items() if hash_of(source / name) != sha]
    for record in manifest["parts"].values():
        if (shard := record["shard"]) and not is_same_shard(record, describe_shard(source / shard)):
            changed.append(shard)
    return source / changed[0] if changed else None


def is_same_shard(record: dict[str, Any], now: dict[str, int | None]) -> bool:
    """Whether a shard is still the one that a part was made of. None, also of a shard that is gone, says nothing."""
    return all(value is None or record[key] in (None, value) for key, value in now.items())


def describe_shard(path: Path) -> dict[str, int | None]:
    """What tells a local shard from another one: its size and, where the folder may be written, its time of change."""
    if not path.is_file():
        return {"shard_bytes": None, "shard_changed": None}
    stat = path.stat()
    can_change = os.access(path.parent, os.W_OK)
    return {"shard_bytes": stat.st_size, "shard_changed": stat.st_mtime_ns if can_change else None}


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
            raise DamagedError(f"{folder / part} is not what was written.")
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
