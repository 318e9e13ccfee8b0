"""Write the base with the adapter merged into it, in bf16, shard by shard with one tensor in memory at a time.

A 30B has 59 GiB in bf16, and the machine that trained its adapter in NF4 has a fifth of that in memory. So each shard
is written while it is read: the header first, because every size is known from the base's own headers, then each
tensor's bytes.
"""

import errno
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from grpo_kit.adapters.checkpoints.opening import open_adapter
from grpo_kit.adapters.layouts import Pair, read_pairs
from grpo_kit.adapters.model_files import INDEX, list_shards, modules_in, open_shard
from grpo_kit.adapters.names import is_multi_token, published_name
from grpo_kit.adapters.safetensors_files import DTYPES, count_bytes, torch_type, write_safetensors
from grpo_kit.handoff.companions import read_companions
from grpo_kit.nemotron.checkpoint_files import transformers_name
from grpo_kit.nemotron.layer_pattern import read_config_file
from grpo_kit.nemotron.nf4_checkpoint import KEPT_IN_FLOAT32
from grpo_kit.runs.files import hash_of

SPARE = 1 << 28  # bytes for the files other than weights
MOST_LOST = 0.9  # of the update's norm; what is below half a step of bf16 is lost, and a weight has 128 to 256 steps
ROWS = 4096  # of a matrix that are summed at a time

Progress = Callable[[int, int, str], None]


class Merged(NamedTuple):
    """A merged model.

    Attributes:
        digests: {name of a file: its sha256}; those of the shards were computed while they were written.
        lost: how far the stored matrices are from base plus update, as a share of the update (Frobenius norms).
    """

    digests: dict[str, str]
    lost: float


def merge_adapter(base: Path, adapter: Path, out: Path, progress: Progress | None = None) -> Merged:
    """Write the model of a base with a LoRA added, in bf16, and the files that belong to it (companions.py).

    Tensors that routers and state-space scans need in float32 keep their type.

    Args:
        base: a folder of safetensors under published names, with experts one by one or stacked as (experts, out, in).
        adapter: what `open_adapter` opens; ranks and alphas by pattern are read as PEFT reads them.
        out: a new folder.
        progress: called with (number, count, shard) before each shard.

    Raises:
        OSError: the disk has no room (ENOSPC); raised before the first byte is written.
        ValueError: a shard or the adapter is damaged, the adapter is not a plain LoRA, it changes nothing or holds a
            value that is not finite, a pair has no matrix in the base, a sum is not finite, or rounding to bf16 takes
            more than MOST_LOST.
    """
    shards = list_shards(base)
    check_disk_space(base, out.parent)
    matrices = _read_matrices(base, shards)
    pairs = _read_fitting(base, adapter, matrices)
    _check_values(pairs, adapter)
    companions = read_companions(base)
    total, shard_of, digests, sums = 0, {}, {}, _Sums()
    out.mkdir(parents=True)
    for number, shard in enumerate(shards, 1):
        if progress:
            progress(number, len(shards), shard)
        with open_shard(base / shard) as file, (out / shard).open("wb") as target:
            names, stream = file.keys(), _HashedFile(target)
            entries = {name: _stored_form(file, name) for name in names}
            total += write_safetensors(stream, entries, (_merge_tensor(file, name, pairs, sums) for name in names))
            shard_of |= dict.fromkeys(entries, shard)
            digests[shard] = stream.digest.hexdigest()
    lost = math.sqrt(sums.lost / sums.update) if sums.update else 1.0
    if lost > MOST_LOST:
        raise ValueError(
            f"The merged model would hardly differ from its base: the error of rounding to bf16 is {lost:,.0%} of the "
            f"update of {adapter} (Frobenius norms), and at most {MOST_LOST:.0%} may be. Keep the adapter beside its "
            "base (`grpo-kit export --to gguf-lora`), or train it longer."
        )
    for name, content in companions.items():
        (out / name).write_bytes(content)
    if (base / INDEX).is_file():
        index = {"metadata": {"total_size": total}, "weight_map": shard_of}
        (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    digests |= {path.name: hash_of(path) for path in out.iterdir() if path.name not in digests}
    return Merged(dict(sorted(digests.items())), lost)


def check_disk_space(base: Path, out: Path) -> None:
    """Raise OSError (ENOSPC) unless the merged model fits on the disk of the folder `out`, which need not exist."""
    needed = SPARE
    for shard in list_shards(base):
        with open_shard(base / shard) as file:
            names = file.keys()
            needed += sum(count_bytes(*_stored_form(file, name)) for name in names)
    while not out.exists():
        out = out.parent
    if (free := shutil.disk_usage(out).free) < needed:
        raise OSError(
            errno.ENOSPC,
            f"The merged model takes {needed / 2**30:,.2f} GiB and the disk of {out} has {free / 2**30:,.2f} GiB "
            "free; nothing was written. Make room, or choose another disk with --out.",
        )


def _stored_form(file: Any, name: str) -> tuple[str, list[int]]:
    """(type, shape) in which a tensor is written."""
    piece = file.get_slice(name)
    kind = piece.get_dtype()
    keep = kind not in DTYPES or name.endswith(KEPT_IN_FLOAT32)
    return kind if keep else "BF16", piece.get_shape()


def _read_matrices(base: Path, shards: list[str]) -> dict[str, tuple[tuple[int, ...], bool]]:
    """{module, as transformers names it: (shape of its matrix, whether it has 16 bit or more)}, from headers alone."""
    matrices: dict[str, tuple[tuple[int, ...], bool]] = {}
    for shard in shards:
        with open_shard(base / shard) as file:
            names = file.keys()
            for name in names:
                piece = file.get_slice(name)
                found = tuple(piece.get_shape()[-2:]), piece.get_dtype() in DTYPES
                matrices |= dict.fromkeys(modules_in(name, piece.get_shape()), found)
    return matrices


def _read_fitting(base: Path, adapter: Path, matrices: dict[str, tuple[tuple[int, ...], bool]]) -> dict[str, Pair]:
    """The adapter's pairs by the names in `matrices`. Raises ValueError unless each finds a matrix of its shape."""
    modules = None
    if read_config_file(base / "config.json", base.name).get("model_type") == "nemotron_h":
        # Every form in which its adapters are saved is known. The experts of a stack go by their numbers.
        names = sorted((name for name in matrices if not is_multi_token(name)), key=_natural_order)
        modules = {published_name(name): matrices[name][0] for name in names}
    pairs, _ = read_pairs(open_adapter(adapter, str(base)), modules)
    pairs = {transformers_name(name): pair for name, pair in pairs.items()}
    for module, pair in sorted(pairs.items()):
        shape, is_wide = matrices.get(module, ((), False))
        if shape != pair.shape or not is_wide:
            raise ValueError(
                f"The pair {module} of {adapter} is for a matrix of {pair.shape}, but {base} has "
                f"{shape if is_wide else 'no matrix in 16 bit or more'} there. The adapter belongs to another model. "
                "Give the base that it was trained on as policy.model (in an export --base)."
            )
    return pairs


def _natural_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _check_values(pairs: dict[str, Pair], adapter: Path) -> None:
    """Raise ValueError for an adapter that changes nothing, or that would spread NaN into the model."""
    changes = False
    for module, pair in sorted(pairs.items()):
        a, b = pair.load()
        if not (a.isfinite().all() and b.isfinite().all()):
            raise ValueError(
                f"The pair {module} of {adapter} has a value that is NaN or infinite, and so would the merged model. "
                "Take the adapter of an earlier checkpoint, or train again."
            )
        changes = changes or bool((a.any(1) & b.any(0)).any())  # numbers that meet in a rank
    if not changes:
        raise ValueError(f"{adapter} changes nothing: the update of every pair is zero. Train it first.")


class _HashedFile:
    """A stream whose bytes are hashed while they are written; reading 59 GiB again would take minutes."""

    def __init__(self, target: BinaryIO) -> None:
        self.target, self.digest = target, hashlib.sha256()

    def write(self, data: Any) -> None:
        """Write and hash bytes."""
        self.digest.update(data)
        self.target.write(data)


class _Sums:
    """Squared norms of the update, and of what rounding takes from it."""

    def __init__(self) -> None:
        self.update = self.lost = 0.0

    def add(self, source: torch.Tensor, total: torch.Tensor, stored: torch.Tensor) -> None:
        """Count some rows: the base's, those plus the update in float32, and what is stored."""
        self.update += _square(total - source)
        self.lost += _square(total - stored)


def _square(values: torch.Tensor) -> float:
    """The squared norm, in float64: the square of 1e20 is infinite in float32."""
    return values.double().square().sum().item()


def _merge_tensor(file: Any, name: str, pairs: dict[str, Pair], sums: _Sums) -> torch.Tensor:
    """The tensor plus the adapter's update, summed in float32, in the type in which it is written."""
    tensor, kind = file.get_tensor(name), _stored_form(file, name)[0]
    if kind not in DTYPES:
        return tensor
    merged = tensor.to(torch_type(kind), copy=True)
    for place, module in enumerate(modules_in(name, list(tensor.shape))):
        if module in pairs:
            a, b = (half.float() for half in pairs[module].load())
            target, source = (merged[place], tensor[place]) if tensor.ndim == 3 else (merged, tensor)
            for rows in (slice(first, first + ROWS) for first in range(0, len(source), ROWS)):
                total = torch.addmm(source[rows].float(), b[rows], a, alpha=pairs[module].scale)
                target[rows] = total
                if not torch.isfinite(target[rows]).all():
                    raise ValueError(_explain_infinity(name, kind, source))
                sums.add(source[rows], total, target[rows])
    return merged


def _explain_infinity(name: str, kind: str, source: torch.Tensor) -> str:
    if not torch.isfinite(source).all():
        return f"{name} of the base holds NaN or infinity, so the merged model would too. Fetch the base again."
    return (
        f"The adapter's update takes {name} beyond the numbers of {kind}, so the merged model would hold infinity. "
        "Take the adapter of an earlier checkpoint, or train again."
    )
