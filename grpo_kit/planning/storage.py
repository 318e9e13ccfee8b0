"""The files of a policy: what loading it has yet to download and to write, less what this machine has already."""

import json
from pathlib import Path
from typing import NamedTuple

from grpo_kit.config import Policy
from grpo_kit.nemotron.nf4_layout import MANIFEST
from grpo_kit.planning.machines import GIB, Device
from grpo_kit.planning.model_size import Architecture
from grpo_kit.policy.load import LARGEST_UNSTREAMED, nf4_folder, policy_source

SHARD = 5e9  # bytes of one published safetensors shard; assumed: the default of transformers 4


class Storage(NamedTuple):
    """What loading a policy asks of the network and the disk, in bytes.

    Attributes:
        download: to download.
        checkpoint: of the checkpoint, to write and keep.
        shard: of one source shard, which is deleted after use.
        folder: where the checkpoint lies or will lie; None on a machine that is only named.
        free: free on that folder's disk; None where it is unknown.
        source: what the checkpoint is, and what of it is there.
        converts: whether an NF4 checkpoint has to be made or finished.
    """

    download: float
    checkpoint: float
    shard: float
    folder: Path | None
    free: float | None
    source: str
    converts: bool

    @property
    def needed(self) -> float:
        """Bytes that the disk must have free."""
        return self.checkpoint + self.shard


def assess_storage(model: Architecture, policy: Policy, device: Device) -> Storage:
    """What loading `policy` still needs: of a named machine everything, of this one what is not there yet.

    A finished NF4 checkpoint needs nothing, an unfinished one what its other parts need. A local folder or a mount is
    not downloaded. What the cache of the Hub holds of a 16-bit checkpoint is not downloaded again.
    """
    published = 2.0 * model.parts.total()  # published in 16 bit
    loaded = float(sum(model.nbytes(part, policy) for part in model.parts))
    is_streamed = policy.load_in_4bit and model.parts.total() > LARGEST_UNSTREAMED
    if device.nominal or policy.model == "tiny":  # a named machine is a fresh one
        written = 0.0 if policy.model == "tiny" else loaded if is_streamed else published
        shard = min(SHARD, published) if is_streamed else 0.0
        source = "NF4" if is_streamed else "16 bit"
        download = published if written else 0.0
        return Storage(download, written, shard, None, None, source, is_streamed)
    if is_streamed or Path(policy_source(policy), MANIFEST).is_file():
        storage = _assess_nf4(policy, loaded, published)
    else:
        storage = _assess_download(policy, published)
    return storage._replace(free=device.disk(nearest_folder(storage.folder))[1] if device.disk else None)


def nearest_folder(path: Path) -> Path:
    """The nearest folder above `path`, or `path` itself, that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def describe_disk_remedy(storage: Storage) -> str:
    """How to get the room that is missing on the disk."""
    missing, key = (storage.needed - storage.free) / GIB, "policy.nf4_folder" if storage.converts else "HF_HUB_CACHE"
    return f"free {missing:.1f} GiB at {nearest_folder(storage.folder)}, or set {key} to a folder on a larger disk"


def _assess_nf4(policy: Policy, loaded: float, published: float) -> Storage:
    folder = nf4_folder(policy)
    parts, count = read_finished_parts(folder, policy)
    if parts and len(parts) == count:
        return Storage(0.0, 0.0, 0.0, folder, None, "NF4, it is there", False)
    missing = 1 - min(1.0, sum(parts) / loaded)
    is_local = Path(policy_source(policy)).is_dir()
    source = f"NF4, {len(parts)} of {count} parts are there" if parts else "NF4"
    download = 0.0 if is_local else published * missing
    return Storage(download, loaded * missing, min(SHARD, download), folder, None, source, True)


def read_finished_parts(folder: Path, policy: Policy) -> tuple[list[int], int]:
    """([bytes of each finished part], how many there will be) of an NF4 checkpoint; ([], 0) without a usable one.

    A part is finished if it has the size that `nf4.json` records. Parts made for another `policy.dtype` do not count.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {folder / Path(name).name: int(part["bytes"]) for name, part in manifest["parts"].items()}
        if manifest["dtype"] != policy.dtype:
            return [], 0
        parts = [nbytes for path, nbytes in sizes.items() if path.is_file() and path.stat().st_size == nbytes]
        return parts, int(manifest["count"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or damaged: loading it will say so
        return [], 0


def _assess_download(policy: Policy, published: float) -> Storage:
    """A checkpoint that transformers loads as it is, from a folder or through the cache of the Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    source = Path(policy_source(policy))
    if source.is_dir():
        return Storage(0.0, 0.0, 0.0, source, None, "16 bit, a local folder", False)
    blobs = Path(HF_HUB_CACHE, f"models--{policy.model.replace('/', '--')}", "blobs")
    cached = sum(path.stat().st_size for path in blobs.glob("*") if path.suffix != ".incomplete")
    left = max(0.0, published - cached)
    return Storage(left, left, 0.0, Path(HF_HUB_CACHE), None, "16 bit", False)
