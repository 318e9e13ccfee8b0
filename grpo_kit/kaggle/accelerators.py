"""The machines that Kaggle lends: their names, the cell that stops on the wrong one, and which of them ran."""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from grpo_kit.config.checks import require


@dataclass(frozen=True)
class Accelerator:
    """A machine that Kaggle lends.

    Attributes:
        gpu: part of the name that its GPU reports.
        preset: our preset that suits it.
        note: what to know about it, for messages.
    """

    gpu: str
    preset: str
    note: str = ""


# Kaggle's names, from its client's documentation of February 2026. Today's client says that P100 is retired.
ACCELERATORS = {
    "NvidiaTeslaT4": Accelerator("T4", "t4x2", "two T4"),
    "NvidiaTeslaT4Highmem": Accelerator("T4", "t4", "not open to everyone"),
    "NvidiaTeslaP100": Accelerator("P100", "t4", "retired: Kaggle runs it on NvidiaTeslaT4 instead"),
    "NvidiaL4": Accelerator("L4", "24gb", "four L4; some competitions only"),
    "NvidiaL4X1": Accelerator("L4", "24gb", "some competitions only"),
    "NvidiaTeslaA100": Accelerator("A100", "80gb", "some competitions only"),
    "NvidiaH100": Accelerator("H100", "80gb", "some competitions only"),
    "NvidiaRtxPro6000": Accelerator("RTX PRO 6000", "80gb", "this competition; no internet"),
}
OFFLINE = "NvidiaRtxPro6000"  # "Internet cannot be enabled for this competition with the current accelerator."
GPU_LINE = "grpo-kit kernel on"  # the first cell prints it before the GPU's name; `find_gpu` looks for it in the log
FIRST_CELL = """\
# Added by `grpo-kit push`. Kaggle may start another machine than the one requested: stop before hours are spent.
import subprocess

REQUESTED, GPU = {requested!r}, {gpu!r}
query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
try:
    gpus = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
except (OSError, subprocess.CalledProcessError):
    gpus = []
print("{gpu_line}", ", ".join(gpus) or "no GPU", flush=True)
if not any(GPU in gpu for gpu in gpus):
    raise RuntimeError(
        f"{{REQUESTED}} was requested, but this machine has {{', '.join(gpus) or 'no GPU'}}. Stopped to save the quota."
    )"""


def find_accelerator(name: str) -> Accelerator:
    """The accelerator called `name`. Raises ValueError, with the nearest name, for one that Kaggle does not have."""
    near = [other for other in ACCELERATORS if name and name.lower() in other.lower()]
    near = near or difflib.get_close_matches(name, ACCELERATORS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    require(name in ACCELERATORS, f"accelerator is {name!r}; Kaggle has {', '.join(ACCELERATORS)}.{hint}")
    return ACCELERATORS[name]


def make_first_cell(accelerator: str) -> str:
    """The code of a kernel's first cell, which prints the GPU's name and stops on another than `accelerator` has."""
    return FIRST_CELL.format(requested=accelerator, gpu=find_accelerator(accelerator).gpu, gpu_line=GPU_LINE)


def find_gpu(folder: Path, since: str) -> tuple[str, str] | None:
    """The GPU that a run had, from the first cell's line in the log or else from a stage that ended after `since`.

    Args:
        folder: the downloaded output.
        since: UTC, ISO 8601.

    Returns:
        (GPU, the file that says so), or None when no file does.
    """
    for log in sorted(folder.glob("*.log")):
        line = re.search(rf"{GPU_LINE} (.*?)(?:\\n|\n|\"|$)", log.read_text(encoding="utf-8", errors="replace"))
        if line:
            return line[1], str(log)
    for path in sorted(folder.glob("**/run.json")):
        try:
            stages = json.loads(path.read_text(encoding="utf-8"))["stages"].values()
            gpus = [stage["environment"]["gpu"] for stage in stages if stage["finished"] >= since]
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # not a run.json of the kit
        if gpus:
            return gpus[-1] or "no GPU", str(path)
    return None


def compare_gpu(source: tuple[str, str] | None, accelerator: str) -> tuple[bool | None, str]:
    """Compare what `find_gpu` returned with the requested accelerator.

    Returns:
        (whether the requested machine ran, None when unknown; the same in words).
    """
    if source is None:
        return None, "It is not known which GPU ran: neither the log nor a run.json in the output names it."
    gpu, file = source
    if re.search(rf"\b{re.escape(find_accelerator(accelerator).gpu)}\b", gpu, re.IGNORECASE):
        return True, f"It ran on {gpu}, which is the requested {accelerator} ({file})."
    return False, (
        f"{accelerator} was requested, but it ran on {gpu} ({file}). Kaggle offers some accelerators only in some "
        "competitions."
    )
