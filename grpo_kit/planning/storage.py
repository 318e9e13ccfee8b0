"""The files of a policy: what loading it has yet to download and to write, less what this machine has already."""

import math
from pathlib import Path
from typing import NamedTuple

from grpo_kit.config import Policy
from grpo_kit.nemotron import tiny
from grpo_kit.nemotron.nf4_layout import is_nf4_checkpoint, is_part_intact, read_manifest
from grpo_kit.planning.machines import GIB, Device
from grpo_kit.planning.model_size import Architecture
from grpo_kit.policy.model_source import is_finished, nf4_folder, policy_source
from grpo_kit.policy.nf4_source import LARGEST_UNSTREAMED
from grpo_kit.runs.places import download_folder, drive_nf4_folder

SHARD = 5e9  # bytes of one published safetensors shard; assumed: the default of transformers 4


class Storage(NamedTuple):
    """What loading a policy asks of the network and the disk, in bytes.

    Attributes:
        download: to download.
        checkpoint: of the checkpoint, to write and keep.
        shard: of one source shard, which is deleted after use.
        source: what the checkpoint is, and what of it is there.
        converts: whether an NF4 checkpoint has to be made or finished.
        folder: where the checkpoint lies or will lie; None on a machine that is only named.
        free: free on that folder's disk; None where it is unknown.
        shard_free: free on the disk of the downloads, if that is another one; else None.
    """

    download: float
    checkpoint: float
    shard: float
    source: str
    converts: bool
    folder: Path | None = None
    free: float | None = None
    shard_free: float | None = None

    @property
    def needed(self) -> float:
        """Bytes that the disk of the checkpoint must have free."""
        return self.checkpoint + (self.shard if self.shard_free is None else 0.0)


def assess_storage(model: Architecture, policy: Policy, device: Device) -> Storage:
    """What loading `policy` still needs: of a named machine everything, of this one what is not there yet.

    A finished NF4 checkpoint needs nothing, an unfinished one what its other parts need. A local folder or a mount is
    not downloaded. What the cache of the Hub holds of a 16-bit checkpoint is not downloaded again.

    Raises:
        ValueError: `policy.nf4_folder` is a file.
    """
    published = 2.0 * model.parts.total()  # published in 16 bit
    loaded = float(sum(model.nbytes(part, policy) for part in model.parts))
    is_streamed = policy.load_in_4bit and model.parts.total() > LARGEST_UNSTREAMED
    if policy.nf4_folder:
        nf4_folder(policy)  # refuses a file, for a named machine too
    if policy.model in tiny.FOLDERS:
        return Storage(0.0, 0.0, 0.0, "in the package", False)
    if device.nominal:  # a fresh one
        if is_streamed:
            return Storage(published, loaded, min(SHARD, published), "NF4", True)
        return Storage(published, published, 0.0, "16 bit", False)
    if is_streamed or is_nf4_checkpoint(policy_source(policy)):
        storage = _assess_nf4(policy, loaded, published)
    else:
        storage = _assess_download(policy, published)
    if device.disk is None:
        return storage
    (disk, free), (other, shard_free) = (
        device.disk(nearest_folder(folder)) for folder in (storage.folder, download_folder(storage.folder))
    )
    apart = storage.shard > 0 and other != disk
    return storage._replace(free=free, shard_free=shard_free if apart else None)


def nearest_folder(path: Path) -> Path:
    """The nearest folder above `path`, or `path` itself, that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def describe_disk_remedy(storage: Storage) -> str:
    """How to get the room that is missing on the disk; "" if none is."""
    if storage.shard_free is not None and storage.shard > storage.shard_free:
        missing = _round_up(storage.shard - storage.shard_free)
        return f"free {missing} GiB at {nearest_folder(download_folder(storage.folder))}"
    if storage.free is None or storage.needed <= storage.free:
        return ""
    missing, key = _round_up(storage.needed - storage.free), "policy.nf4_folder" if storage.converts else "HF_HUB_CACHE"
    return f"free {missing} GiB at {nearest_folder(storage.folder)}, or set {key} to a folder on a larger disk"


def _round_up(nbytes: float) -> str:
    """GiB with one digit, never fewer than `nbytes`."""
    return f"{math.ceil(10 * nbytes / GIB) / 10:.1f}"


def _assess_nf4(policy: Policy, loaded: float, published: float) -> Storage:
    folder = nf4_folder(policy)
    if is_finished(folder, policy):
        return Storage(0.0, 0.0, 0.0, "NF4, it is there", False, folder)
    drive = None if policy.nf4_folder else drive_nf4_folder(policy.model)
    if drive and is_finished(drive, policy):
        return Storage(0.0, loaded, 0.0, "NF4, copied from Google Drive", False, folder)
    parts, count = read_finished_parts(folder, policy)
    missing = 1 - min(1.0, sum(parts) / loaded)
    download = 0.0 if Path(policy_source(policy)).is_dir() else published * missing
    source = f"NF4, {len(parts)} of {count} parts are there" if parts else "NF4"
    return Storage(download, loaded * missing, min(SHARD, download), source, True, folder)


def read_finished_parts(folder: Path, policy: Policy) -> tuple[list[int], int]:
    """([bytes of each finished part], how many there will be) of an NF4 checkpoint; ([], 0) without a usable one.

    A part is finished if it has the size that `nf4.json` records. Parts of another conversion do not count.
    """
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError):  # none yet, or damaged: loading it will say so
        return [], 0
    if [manifest[key] for key in ("source", "revision", "dtype")] != [
        policy_source(policy), policy.revision, policy.dtype
    ]:  # fmt: skip
        return [], 0
    parts = manifest["parts"].items()
    return [record["bytes"] for part, record in parts if is_part_intact(folder / part, record, False)], manifest[
        "count"
    ]


def _assess_download(policy: Policy, published: float) -> Storage:
    """A checkpoint that transformers loads as it is, from a folder or through the cache of the Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    source = Path(policy_source(policy))
    if source.is_dir():
        return Storage(0.0, 0.0, 0.0, "16 bit, a local folder", False, source)
    blobs = Path(HF_HUB_CACHE, f"models--{policy.model.replace('/', '--')}", "blobs")
    cached = sum(path.stat().st_size for path in blobs.glob("*") if path.suffix != ".incomplete")
    left = max(0.0, published - cached)
    return Storage(left, left, 0.0, "16 bit", False, Path(HF_HUB_CACHE))
