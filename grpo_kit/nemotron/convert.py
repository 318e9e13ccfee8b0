"""Convert a published Nemotron-H to an NF4 checkpoint, shard by shard.

Nemotron-3-Nano-30B has 59 GiB as published and 16 GiB in NF4. The machines that need NF4 have 12 GB of memory and less
than 59 GiB of disk. So one shard is read at a time (from the Hub, and deleted after use; from a folder or a Kaggle
mount, which is only read), one tensor at a time within it, and each shard becomes one part file. A part is finished
when `nf4.json` records its sha256; an interrupted conversion continues after the last finished part.
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
from grpo_kit.runs.files import hash_of, new_file, write_text

DTYPES = ("float16", "bfloat16", "float32")
HEADER_BYTES = 256  # at most; what a tensor takes in the header of a part file


def convert_to_nf4(
    source: str | Path,
    out: str | Path,
    dtype: str = "float16",
    revision: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Convert a published checkpoint, or continue an interrupted conversion.

    Memory holds one part (a quarter of its shard, more where the embeddings are) and one tensor. The first GPU
    quantises, where there is one. The same source, kind of device and versions give the same bytes.

    Args:
        source: a folder with safetensors files, or a Hub id.
        out: the NF4 checkpoint's folder.
        dtype: the type of the tensors that are not quantised: float16, bfloat16 or float32.
        revision: branch, tag or commit on the Hub.
        progress: called with (number, count, shard) before each shard that is read.

    Returns:
        `out` as a Path.

    Raises:
        FileNotFoundError: `source` is not a checkpoint, or the Hub does not provide it.
        ValueError: `source` is another kind of model, damaged or incomplete, or `out` holds another conversion.
        OSError: the disk is full (ENOSPC). Finished parts are kept.
    """
    out = Path(out)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be a floating-point type. Choose one of {', '.join(DTYPES)}.")
    settings = {"format": FORMAT, "source": str(source), "revision": revision, "dtype": dtype}
    manifest = read_manifest(out) if is_nf4_checkpoint(out) else settings | {"commit": revision, "parts": {}}
    for key, value in settings.items():
        if manifest[key] != value:
            raise ValueError(
                f"{out} holds a conversion with {key} {manifest[key]!r}, now {value!r}; parts of two conversions "
                "cannot be mixed. Choose another folder."
            )
    checkpoint = PublishedCheckpoint(str(source), manifest["commit"], out / ".download")
    try:
        copy_small_files(checkpoint, out)
        specs = list_model_tensors(build_skeleton(out, getattr(torch, dtype))[0], getattr(torch, dtype))
        shards = checkpoint.list_shards(specs)
        manifest |= {"commit": checkpoint.revision, "count": len(shards)}
        manifest["matrices"] = {name: shape for name, (shape, kind) in specs.items() if kind is None}
        for number, (shard, names) in enumerate(shards.items(), 1):
            part = out / f"nf4-{number:05}-of-{len(shards):05}.safetensors"
            origin = {"shard": shard, "shard_bytes": checkpoint.file_size(shard), "tensors": names}
            record = manifest["parts"].get(part.name, {})
            if record.items() >= origin.items() and is_part_intact(part, record, check_hash=True):
                continue
            if progress:
                progress(number, len(shards), shard)
            _write_part(checkpoint, shard, names, specs, part)
            manifest["parts"][part.name] = {"sha256": hash_of(part), "bytes": part.stat().st_size} | origin
            write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise OSError(
            errno.ENOSPC,
            f"The disk of {out} is full: {shorten_error(error)}. The disk must hold a whole part. Make "
            f"room and call again; the {len(manifest['parts'])} finished parts are kept.",
        ) from None
    shutil.rmtree(checkpoint.cache, ignore_errors=True)
    return out


def _write_part(checkpoint: PublishedCheckpoint, shard: str, names: list[str], specs: TensorSpecs, part: Path) -> None:
    """Quantise the tensors `names` of `shard` into the file `part`, which is written aside and then renamed."""
    needed = sum(stored_nbytes(*specs[name]) + HEADER_BYTES for name in names)
    if not checkpoint.has_file(shard):
        needed += 2 * sum(math.prod(specs[name][0]) for name in names)  # the download has 16 bit a value
    if (free := shutil.disk_usage(part.parent).free) < needed:
        raise OSError(errno.ENOSPC, f"{free / 2**20:,.1f} MiB free, {needed / 2**20:,.1f} MiB needed for {part.name}")
    path = checkpoint.get_file(shard)
    if path is None:
        raise FileNotFoundError(
            f"{shard} is not in {checkpoint.name}, where its weights should be. Download it; finished parts are kept."
        )
    try:
        with new_file(part) as aside:
            save_file(_quantise_shard(path, names, specs), aside, metadata={"format": "pt"})
            aside.chmod(0o644)  # safetensors makes it readable for its owner only
    except ValueError:
        checkpoint.delete_download(path)  # it is damaged; the next call downloads it again
        raise
    checkpoint.delete_download(path)


def _quantise_shard(path: Path, names: list[str], specs: TensorSpecs) -> dict[str, torch.Tensor]:
    """{stored name: tensor} on the CPU, for the tensors `names` of the shard at `path`.

    Raises:
        ValueError: the shard is damaged, or does not have the tensors that the model needs.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with safe_open(path, "pt") as file:
            stored_names = file.keys()
            published = {transformers_name(name): name for name in stored_names}
            check_tensor_names(published, names, specs, path)
            return dict(
                _convert_tensor(name, file.get_tensor(published[name]), *specs[name], device, path) for name in names
            )
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({shorten_error(error)}). Download it and call again; finished parts are kept."
        ) from None


def _convert_tensor(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype | None, device: torch.device, path: Path
) -> tuple[str, torch.Tensor]:
    """(stored name, value on the CPU): the tensor in `dtype`, or its NF4 bytes where `dtype` is None."""
    if tuple(tensor.shape) != shape or tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(
            f"{name} in {path} is {tuple(tensor.shape)} of {tensor.dtype}; config.json calls for {shape} in 16 or 32 "
            "bit. Give the unquantised checkpoint that this config belongs to."
        )
    value = tensor.to(device, dtype or torch.float32)
    if not torch.stack(value.aminmax()).isfinite().all():
        raise ValueError(
            f"{name} in {path} is not finite in {value.dtype}; weights must be. Download it again, or "
            "choose another dtype."
        )
    if dtype:
        return name, value.cpu().contiguous()
    return name + SUFFIX, nf4.pack_matrix(value).cpu()
