"""What this machine is, whether the tested versions of the libraries are there, and where runs will lie."""

import importlib.metadata
import shutil
import sys

from grpo_kit.nemotron import tiny
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.run import find_root


def check_machine() -> list[tuple[str, str, bool, str]]:
    """(what, what was found, whether that is fine, the remedy if not), one for each thing a run needs."""
    import torch
    from packaging.requirements import Requirement

    found = [("Python", sys.version.split()[0], (3, 11) <= sys.version_info < (3, 14), "use Python 3.11, 3.12 or 3.13")]
    for text in (importlib.metadata.requires("grpo-kit") if _version("grpo-kit") else None) or []:
        need = Requirement(text)
        if need.marker is None:
            has = _version(need.name)
            fine = bool(has) and has in need.specifier
            found.append((need.name, has or "missing", fine, f"pip install '{need}'"))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: the tiny policy runs, the 30B does not"
    found.append(("GPU", gpu, True, ""))
    root = find_root().absolute()
    free = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists())).free / 2**30
    found.append(("runs", f"{root} ({free:.1f} GiB free)", free > 1, "free at least 1 GiB"))
    weights = tiny.FOLDER / "model.safetensors"
    intact = weights.is_file() and hash_of(weights) == tiny.WEIGHTS_SHA256
    remedy = "reinstall grpo-kit, or make it in a clone: python scripts/make_tiny_policy.py"
    found.append(("embedded policy", str(tiny.FOLDER), intact, remedy))
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
