"""A published Nemotron-H becomes an NF4 checkpoint, as a stream.

Nemotron-3-Nano-30B is 59 GiB as published and 16 GiB in NF4; the machines that need it in NF4 have 12 GB of memory and
less than 59 GiB of disk. One shard is read at a time (from the Hub, deleted after use; from a folder or a Kaggle mount,
only read), one tensor at a time within it, and one part file written for each shard. A part counts once `nf4.json` records
its sha256; an interrupted conversion goes on behind the last such part.
"""

import errno
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from grpo_kit.nemotron import nf4
from grpo_kit.nemotron.checkpoint_files import (
    PublishedCheckpoint,
    check_tensor_names,
    copy_small_files,
    is_disk_full,
    shorten_error,
    transformers_name,
)
from grpo_kit.nemotron.nf4_checkpoint import (
    FORMAT,
    MANIFEST,
    SUFFIX,
    TensorSpecs,
    build_skeleton,
    is_nf4_checkpoint,
    is_part_intact,
    list_model_tensors,
    read_manifest,
    stored_nbytes,
)
from grpo_kit.runs.files import hash_of, write_text

DTYPES = ("float16", "bfloat16", "float32")


def convert_to_nf4(
    source: str | Path, out: str | Path, dtype: str = "float16", revision: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:  # fmt: skip
    """Make the NF4 checkpoint `out` of `source`, a folder of safetensors or a Hub id at `revision`; returns `out`.

    `dtype` is what stays unquantised is kept in. Held in memory: one part (a quarter of its shard, more where the
    embeddings are) and one tensor. `progress(number, count, shard)` is called before each shard that is read. Quantised
    on the first GPU, where there is one. The same source, kind of device and versions give the same bytes.

    Raises FileNotFoundError when `source` is no checkpoint or cannot be had, ValueError when it is of another kind,
    damaged or incomplete or `out` holds another conversion, OSError (ENOSPC) when the disk is full. What was done is kept.
    """
    out = Path(out)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be a floating-point type. Choose one of {', '.join(DTYPES)}.")
    settings = {"format": FORMAT, "source": str(source), "revision": revision, "dtype": dtype}
    notes = read_manifest(out) if is_nf4_checkpoint(out) else settings | {"commit": revision, "parts": {}}
    for key, now in settings.items():
        if notes[key] != now:
            was = f"{out} holds a conversion with {key} {notes[key]!r}, now {now!r}"
            raise ValueError(f"{was}; parts of two do not mix. Choose another folder.")
    origin = PublishedCheckpoint(str(source), notes["commit"], out / ".download")
    try:
        copy_small_files(origin, out)
        wanted = list_model_tensors(build_skeleton(out, getattr(torch, dtype))[0], getattr(torch, dtype))
        shards = origin.shards(wanted)
        notes |= {"commit": origin.revision, "count": len(shards)}
        notes["matrices"] = {name: shape for name, (shape, kind) in wanted.items() if kind is None}
        for number, (shard, names) in enumerate(shards.items(), 1):
            part = out / f"nf4-{number:05}-of-{len(shards):05}.safetensors"
            read = {"shard": shard, "shard_bytes": origin.size(shard), "tensors": names}
            done = notes["parts"].get(part.name, {})
            if done.items() >= read.items() and is_part_intact(part, done, check_hash=True):
                continue
            if progress:
                progress(number, len(shards), shard)
            _write_part(origin, shard, names, wanted, part)
            whole = {"sha256": hash_of(part), "bytes": part.stat().st_size}
            notes["parts"][part.name] = whole | read
            write_text(out / MANIFEST, json.dumps(notes, indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise OSError(
            errno.ENOSPC, f"The disk of {out} is full: {shorten_error(error)}. A part must fit; make room and call again, "
            f"the {len(notes['parts'])} parts done are kept.",
        ) from None  # fmt: skip
    shutil.rmtree(origin.cache, ignore_errors=True)
    return out


def _write_part(origin: PublishedCheckpoint, shard: str, names: list[str], wanted: TensorSpecs, part: Path) -> None:
    """Quantise what `shard` promises into the file `part`, written aside and renamed."""
    need = sum(stored_nbytes(*wanted[name]) + 256 for name in names)  # 256: its place in the header
    if not origin.has(shard):
        need += 2 * sum(math.prod(wanted[name][0]) for name in names)  # published in 16 bit
    if (free := shutil.disk_usage(part.parent).free) < need:
        raise OSError(errno.ENOSPC, f"{free / 2**20:,.1f} MiB free, {need / 2**20:,.1f} MiB needed for {part.name}")
    path = origin.file(shard)
    if path is None:
        raise FileNotFoundError(f"{shard} is not in {origin.name}; weights lie there. Fetch it; parts done are kept.")
    aside = part.with_name(f".{part.name}.partial")
    try:
        save_file(_quantised(path, names, wanted), aside, metadata={"format": "pt"})
        aside.chmod(0o644)  # safetensors leaves it to its owner alone
        aside.replace(part)
    except ValueError:
        origin.drop(path)  # damaged: the next call fetches it anew
        raise
    finally:
        aside.unlink(missing_ok=True)
    origin.drop(path)


def _quantised(path: Path, names: list[str], wanted: TensorSpecs) -> dict[str, torch.Tensor]:
    """{stored name: tensor} on the CPU for `names` of the shard at `path`. Raises ValueError when it is damaged."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with safe_open(path, "pt") as file:
            held = {transformers_name(name): name for name in file.keys()}  # noqa: SIM118 (no mapping)
            check_tensor_names(held, names, wanted, path)
            return dict(_stored(name, file.get_tensor(held[name]), *wanted[name], device, path) for name in names)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({shorten_error(error)}). Fetch it and call again; parts done are kept."
        ) from None


def _stored(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype | None, device: torch.device, path: Path
) -> tuple[str, torch.Tensor]:
    if tuple(tensor.shape) != shape or tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(
            f"{name} in {path} is {tuple(tensor.shape)} of {tensor.dtype}; config.json calls for {shape} in 16 or 32 bit. "
            "Give the unquantised checkpoint this config belongs to."
        )
    value = tensor.to(device, dtype or torch.float32)
    if not torch.stack(value.aminmax()).isfinite().all():
        raise ValueError(f"{name} in {path} is not finite in {value.dtype}; weights are. Fetch it again, or set dtype.")
    if dtype:
        return name, value.cpu().contiguous()
    return name + SUFFIX, nf4.pack_matrix(value).cpu()
