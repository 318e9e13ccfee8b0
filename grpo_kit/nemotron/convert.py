"""Convert a published Nemotron-H to an NF4 checkpoint, shard by shard.

Nemotron-3-Nano-30B has 59 GiB as published and 16 GiB in NF4. The machines that need NF4 have 12 GB of memory and less
than 59 GiB of disk. So one shard is read at a time (from the Hub, and deleted after use; from a folder or a Kaggle
mount, which is only read), one tensor at a time within it, and each shard becomes one part file. A part is finished
when `nf4.json` records its sha256; an interrupted conversion continues after the last finished part.
"""

import errno
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    SUFFIX,
    TensorSpecs,
    build_skeleton,
    list_model_tensors,
    stored_nbytes,
)
from grpo_kit.nemotron.nf4_layout import (
    DTYPES,
    FORMAT,
    is_nf4_checkpoint,
    is_part_intact,
    is_same_shard,
    read_manifest,
    write_manifest,
)
from grpo_kit.runs import activity
from grpo_kit.runs.files import hash_of, new_file

HEADER_BYTES = 256  # at most; what a tensor takes in the header of a part file
PUBLISHED_BYTES = 2  # of a value; most checkpoints are published in 16 bit
Progress = Callable[[float, float, str], None]  # called with (bytes done, bytes in all, the part in words)


def convert_to_nf4(
    source: str | Path,
    out: str | Path,
    dtype: str = "float16",
    revision: str | None = None,
    progress: Progress | None = None,
    downloads: Path | None = None,
) -> Path:
    """Convert a published checkpoint, or continue an interrupted conversion, whose finished parts are hashed first.

    Memory holds one part (a quarter of its shard, more where the embeddings are) and one tensor. The first GPU
    quantises, where there is one. The same source, kind of device and versions give the same bytes.

    Args:
        source: a folder with safetensors files, or a Hub id.
        out: the NF4 checkpoint's folder.
        dtype: the type of the tensors that are not quantised: float16, bfloat16 or float32.
        revision: branch, tag or commit on the Hub.
        progress: called with (bytes done, bytes in all, "part 3 of 13"). Counted are the published bytes; of a shard
            from the Hub, the download is one half of them and the conversion the other.
        downloads: the folder for shards from the Hub; None: one in `out`. It is deleted at the end.

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
    checkpoint = PublishedCheckpoint(str(source), manifest["commit"], downloads or out / ".download")
    try:
        files = copy_small_files(checkpoint, out)
        specs = list_model_tensors(build_skeleton(out, getattr(torch, dtype))[0], getattr(torch, dtype))
        shards = checkpoint.list_shards(specs)
        manifest |= {"commit": checkpoint.revision, "count": len(shards), "files": files}
        manifest["matrices"] = {name: shape for name, (shape, kind) in specs.items() if kind is None}
        origins = {
            f"nf4-{number:05}-of-{len(shards):05}.safetensors": {"shard": shard, "tensors": names}
            | checkpoint.describe_shard(shard)
            for number, (shard, names) in enumerate(shards.items(), 1)
        }
        _forget_parts(manifest, origins, out)
        sizes = {shard: sum(_published_nbytes(specs, names)) for shard, names in shards.items()}
        done, total = 0, sum(sizes.values())
        for number, (name, origin) in enumerate(origins.items(), 1):
            part, shard = out / name, origin["shard"]
            record = manifest["parts"].get(name)
            if record:
                activity.announce(f"checking {name}")
            if not (record and is_part_intact(part, record, check_hash=True)):

                def show(share: float, at: int = done, size: int = sizes[shard], number: int = number) -> None:
                    if progress:
                        progress(at + share * size, total, f"part {number} of {len(shards)}")

                _write_part(checkpoint, shard, origin["tensors"], specs, part, show)
                record = {"sha256": hash_of(part), "bytes": part.stat().st_size} | origin
                manifest["parts"][name] = record | {"changed": part.stat().st_mtime_ns}
                write_manifest(out, manifest)
            done += sizes[shard]
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


def _forget_parts(manifest: dict[str, Any], origins: dict[str, dict[str, Any]], out: Path) -> None:
    """Take the parts that were made of other shards out of `nf4.json`; delete those that will not be made again."""
    if not is_nf4_checkpoint(out):
        return
    for part, record in list(manifest["parts"].items()):
        origin = origins.get(part)
        same = origin and all(record.get(key) == origin[key] for key in ("shard", "tensors"))
        if not (same and is_same_shard(record, origin)):
            del manifest["parts"][part]
            if part not in origins and part.startswith("nf4-"):
                (out / part).unlink(missing_ok=True)
    write_manifest(out, manifest)


def _published_nbytes(specs: TensorSpecs, names: list[str]) -> list[int]:
    """Bytes of each of the tensors `names` as it is published."""
    return [PUBLISHED_BYTES * math.prod(specs[name][0]) for name in names]


def _write_part(
    checkpoint: PublishedCheckpoint,
    shard: str,
    names: list[str],
    specs: TensorSpecs,
    part: Path,
    show: Callable[[float], None],
) -> None:
    """Quantise the tensors `names` of `shard` into the file `part`, which is written aside and then renamed.

    `show` is called with the share of the work that is done.
    """
    show(0.0)
    needs = {part.parent: sum(stored_nbytes(*specs[name]) + HEADER_BYTES for name in names)}
    download = not checkpoint.has_file(shard)
    if download:
        checkpoint.cache.mkdir(parents=True, exist_ok=True)
        one_disk = checkpoint.cache.stat().st_dev == part.parent.stat().st_dev
        disk = part.parent if one_disk else checkpoint.cache
        needs[disk] = needs.get(disk, 0) + sum(_published_nbytes(specs, names))
    for disk, needed in needs.items():
        if (free := shutil.disk_usage(disk).free) < needed:
            sizes = f"{free / 2**20:,.1f} MiB free, {needed / 2**20:,.1f} MiB needed for {part.name}"
            raise OSError(errno.ENOSPC, sizes, str(disk))
    path = checkpoint.get_file(shard, lambda share: show(share / 2))
    if path is None:
        raise FileNotFoundError(
            f"{shard} is not in {checkpoint.name}, where its weights should be. Download it; finished parts are kept."
        )
    begun = 0.5 if download else 0.0
    try:
        with new_file(part) as aside:
            tensors = _quantise_shard(path, names, specs, lambda share: show(begun + (1 - begun) * share))
            save_file(tensors, aside, metadata={"format": "pt"})
            aside.chmod(0o644)  # safetensors makes it readable for its owner only
    except ValueError:
        checkpoint.delete_download(path)  # it is damaged; the next call downloads it again
        raise
    checkpoint.delete_download(path)


def _quantise_shard(
    path: Path, names: list[str], specs: TensorSpecs, show: Callable[[float], None]
) -> dict[str, torch.Tensor]:
    """{stored name: tensor} on the CPU, for the tensors `names` of the shard at `path`.

    Raises:
        ValueError: the shard is damaged, or does not have the tensors that the model needs.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, done = _published_nbytes(specs, names), 0
    try:
        with safe_open(path, "pt") as file:
            stored_names = file.keys()
            published = {transformers_name(name): name for name in stored_names}
            check_tensor_names(published, names, specs, path)
            tensors = {}
            for name, size in zip(names, sizes):
                stored, value = _convert_tensor(name, file.get_tensor(published[name]), *specs[name], device, path)
                tensors[stored] = value
                done += size
                show(done / sum(sizes))
            return tensors
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
