"""The kit in a machine's Python: where it is installed from, a package that it cannot work beside, imports gone stale.

The install cell of the notebooks is `install_cell.py.txt`. It finds the kit and calls pip; what comes after pip is
here. This module imports only the standard library and packaging, so that it loads beside packages that pip has just
replaced.
"""

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from packaging.version import Version

import grpo_kit

# The kit's owner and name on GitHub, such as "ada/grpo-kit". While it is empty, the notebooks have no badges and no
# address to install from, so that nobody can register a name that they would trust. Then run `make notebooks`.
REPOSITORY = ""
OLDEST_TORCHAO = "0.16"  # PEFT 0.21 raises for an older one as soon as a LoRA is made
CELL = Path(__file__).with_name("install_cell.py.txt")


def release_address(repository: str = REPOSITORY) -> str:
    """The address of this version's wheel among the releases of `repository`; empty without one.

    >>> release_address("ada/grpo-kit").partition("/releases/")[0]
    'https://github.com/ada/grpo-kit'
    """
    version = grpo_kit.__version__
    wheel = f"grpo_kit-{version}-py3-none-any.whl"
    return f"https://github.com/{repository}/releases/download/v{version}/{wheel}" if repository else ""


def read_install_cell(repository: str = REPOSITORY) -> str:
    """The code of the cell that installs the kit, the same in each notebook and in a folder of wheels."""
    return CELL.read_text(encoding="utf-8").replace("RELEASE_ADDRESS", release_address(repository)).rstrip("\n")


def find_version(package: str) -> str | None:
    """The version of an installed package; None if it is missing or its metadata is damaged."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_old_torchao() -> str:
    """A sentence with the remedy if the installed torchao is one that PEFT refuses, else an empty text."""
    version = find_version("torchao")
    if not version or not importlib.util.find_spec("torchao") or Version(version) >= Version(OLDEST_TORCHAO):
        return ""
    return (
        f"PEFT cannot make a LoRA beside torchao {version}; it takes {OLDEST_TORCHAO} or later, or none. Run "
        f"`pip uninstall -y torchao` (the kit does not use it), or `pip install --no-deps --upgrade "
        f"'torchao>={OLDEST_TORCHAO}'`."
    )


def require_no_old_torchao() -> None:
    """Raise RuntimeError with the remedy if the installed torchao is one that PEFT refuses."""
    if sentence := describe_old_torchao():
        raise RuntimeError(sentence)


def finish_installation(before: Mapping[str, str]) -> None:
    """After pip: remove a torchao that PEFT refuses, and say if this session must be restarted.

    Args:
        before: {name in lower case: version} of the packages before pip changed any.

    Raises:
        RuntimeError: pip replaced a package that this session has imported, or could not remove torchao.
    """
    importlib.invalidate_caches()
    if describe_old_torchao():
        version = find_version("torchao")
        command = [sys.executable, "-m", "pip", "uninstall", "-q", "-y", "torchao"]
        subprocess.run(command, capture_output=True, check=False)
        importlib.invalidate_caches()
        require_no_old_torchao()
        print(f"torchao {version} is removed: PEFT refuses versions below {OLDEST_TORCHAO}, and the kit uses none.")
    if stale := find_stale_imports(before):
        raise RuntimeError(
            f"pip replaced {', '.join(stale)}, which this session had already imported. Choose Runtime, Restart "
            "session (on Kaggle: Run, Restart), then Run all."
        )


def find_stale_imports(before: Mapping[str, str]) -> list[str]:
    """Each package that changed since `before` while this process had imported it, as "pyarrow 18.1.0 by 26.0.1"."""
    loaded = {name.replace(".", "/") for name in list(sys.modules)}
    stale, seen = [], set()
    for distribution in importlib.metadata.distributions():
        name, version = distribution.name, distribution.version
        if not name or not version or name.lower() in seen:
            continue  # damaged, or hidden by one that comes earlier on the path
        seen.add(name.lower())
        if before.get(name.lower(), version) != version:
            # As modules: pyarrow/__init__.py is pyarrow, pyarrow/lib.cpython-312-x86_64-linux-gnu.so is pyarrow/lib.
            files = [file for file in distribution.files or () if file.suffix in (".py", ".so")]
            modules = {str(file.with_name(file.name.split(".")[0])).removesuffix("/__init__") for file in files}
            if modules & loaded:
                stale.append(f"{name} {before[name.lower()]} by {version}")
    return sorted(stale)
