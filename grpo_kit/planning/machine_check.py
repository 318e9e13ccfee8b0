"""Check this machine: its Python, the versions of the libraries, its GPU, where runs will lie, and the disk."""

import importlib.metadata
import shutil
import sys

from grpo_kit.config import load_config
from grpo_kit.nemotron import tiny
from grpo_kit.planning.machines import GIB, auto_preset, distinct_gib, this_device
from grpo_kit.planning.model_size import Architecture
from grpo_kit.planning.storage import assess_storage, describe_disk_remedy, nearest_folder
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.installation import OLDEST_TORCHAO, describe_old_torchao, find_version
from grpo_kit.runs.places import find_root

PYTHONS = (3, 11), (3, 14)  # the first that works, and the first that does not


def check_machine(sources: list[str] | None = None) -> list[tuple[str, str, bool, str]]:
    """Check each thing that a run needs.

    Args:
        sources: presets or YAML files, whose policy must have room on the disk; None: the preset that `auto` takes.

    Returns:
        (thing, what is there, whether that is fine, the remedy if not) for each of them.
    """
    import torch

    findings = [_check_python(), *_check_packages()]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: the tiny policy runs, the 30B does not"
    findings.append(("GPU", gpu, True, ""))
    root = find_root().absolute()
    free = shutil.disk_usage(nearest_folder(root)).free / GIB
    findings.append(("runs", f"{root} ({free:.1f} GiB free)", free > 1, "free at least 1 GiB"))
    for name, folder in tiny.FOLDERS.items():
        weights = folder / "model.safetensors"
        intact = weights.is_file() and hash_of(weights) == tiny.SHA256[name]
        script = f"scripts/make_{name.replace('-', '_')}_policy.py"
        remedy = f"reinstall grpo-kit, or make it in a clone: python {script}"
        findings.append(("embedded policy", str(folder), intact, remedy))
    findings.append(_check_disk(sources))
    return findings


def _check_disk(sources: list[str] | None) -> tuple[str, str, bool, str]:
    """What the policy's files still need on the disk where they will lie, by the same count as `plan`."""
    device = this_device()
    sources = sources or [auto_preset(device)]
    policy, subject = load_config(sources).policy, f"disk for {' '.join(sources)}"
    storage = assess_storage(Architecture.of(policy), policy, device)
    if not storage.needed or storage.folder is None or storage.free is None:
        return subject, f"nothing to write ({storage.source})", True, ""
    needed, free = distinct_gib(storage.needed, storage.free)
    found = f"{needed} GiB needed, {free} GiB free at {nearest_folder(storage.folder)}"
    remedy = describe_disk_remedy(storage)
    return subject, found, not remedy, remedy


def _check_python() -> tuple[str, str, bool, str]:
    fine = PYTHONS[0] <= sys.version_info < PYTHONS[1]
    return "Python", sys.version.split()[0], fine, "use Python 3.11, 3.12 or 3.13"


def _check_packages() -> list[tuple[str, str, bool, str]]:
    """The libraries that grpo-kit requires on every machine; none when it runs from a folder, not installed."""
    from packaging.requirements import Requirement

    findings = []
    for text in (importlib.metadata.requires("grpo-kit") if find_version("grpo-kit") else None) or []:
        requirement = Requirement(text)
        if requirement.marker is None:  # the others are for extras
            version = find_version(requirement.name)
            fine = bool(version) and version in requirement.specifier
            findings.append((requirement.name, version or "missing", fine, f"pip install '{requirement}'"))
    if describe_old_torchao():
        remedy = f"pip uninstall -y torchao (PEFT refuses versions below {OLDEST_TORCHAO})"
        findings.append(("torchao", find_version("torchao") or "", False, remedy))
    return findings
