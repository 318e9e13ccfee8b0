"""Machines for tests: what their drivers, disks and folders say, written down."""

import json
from pathlib import Path

from grpo_kit.nemotron import base_models
from grpo_kit.nemotron.nf4_layout import MANIFEST
from grpo_kit.planning.machines import GIB, Card, Device, Readings, this_device

T4 = Card("Tesla T4", 14.56 * GIB, 14.43 * GIB, 0, 7)
# With the 30B in it: this process holds 13.1 GiB.
FULL_T4 = T4._replace(free=1.33 * GIB, held=13.1 * GIB)
L4 = Card("NVIDIA L4", 22.03 * GIB, 21.8 * GIB, 0, 8)
P100 = Card("Tesla P100-PCIE-16GB", 15.89 * GIB, 15.6 * GIB, 0, 6)


def machine(*cards: Card, host: float, disks: dict[str, float]) -> Device:
    """A machine with these GPUs, GiB of available host memory, and {folder: GiB free on its disk}."""

    def disk(folder: Path) -> tuple[str, float]:
        name = max((name for name in disks if folder.is_relative_to(name)), key=len)
        return name, disks[name] * GIB

    return this_device(Readings(cards, host * GIB, disk))


def write_source(folder: Path) -> Path:
    """A folder that passes for a mounted checkpoint: its config.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(base_models.CONFIGS[base_models.PUBLISHED].read_text())
    return folder


def write_nf4(folder: Path, done: int = 13, **changed) -> Path:
    """An NF4 checkpoint of the 30B with `done` of 13 parts and a manifest so `changed`; the files take no disk."""
    write_source(folder)
    nbytes, parts, count = int(16.17 * GIB / 13), {}, 13
    for number in range(1, done + 1):
        part = folder / f"nf4-{number:05}-of-{count:05}.safetensors"
        with part.open("wb") as file:
            file.truncate(nbytes)
        parts[part.name] = {"bytes": nbytes, "sha256": "0" * 64, "shard": f"model-{number:05}.safetensors"}
        parts[part.name]["shard_bytes"] = None  # the Hub's: there is no shard here to compare
    manifest = {
        "format": 1,
        "source": base_models.PUBLISHED,
        "revision": None,
        "commit": None,
        "dtype": "float16",
        "count": count,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest | {"parts": parts} | changed))
    return folder
