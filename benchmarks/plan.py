"""Processor seconds of `grpo-kit plan` and of `grpo-kit check` of small zips, beside those of an earlier version.

    python benchmarks/plan.py [--quick] [--record]

Each command runs in a process of its own, by turns with the code of commit BEFORE, which git unpacks into a temporary
folder; the smallest of three (with --quick, one) counts. Processor seconds are user and system time, which suffer less
from other work on the machine than seconds on the clock; the ratio of the two versions suffers least.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit.nemotron import base_models
from tests.helpers.submissions import submission

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "349ee6e"  # version 0.2.0, before imports were counted
BARS = {"plan": 10.0, "check": 2.0}  # processor seconds


def processor_seconds(code: Path, arguments: list[str], folder: Path) -> float:
    """User and system time of `grpo-kit ARGUMENTS` run from the package in the folder `code`."""
    environment = os.environ | {"PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "grpo_kit", *arguments]
    process = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if "Traceback" in errors or os.waitstatus_to_exitcode(status) not in (0, 1):  # 1: it does not fit this machine
        raise SystemExit(f"{' '.join(words)} failed:\n{errors}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    options = report.arguments(__doc__)
    with tempfile.TemporaryDirectory() as aside:
        folder, before = Path(aside), Path(aside, "before")
        before.mkdir()
        archive = subprocess.run(["git", "archive", BEFORE, "grpo_kit"], cwd=ROOT, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", before], input=archive.stdout, check=True)
        change = {"base_model_name_or_path": base_models.PUBLISHED, "target_modules": ["q_proj", "o_proj"]}
        submission(folder / "30b.zip", change, edit=as_float16, base=base_models.PUBLISHED)
        submission(folder / "tiny.zip")
        commands = [["plan", "-c", "t4"], ["plan", "-c", "80gb"], ["plan"], ["check", "30b.zip"], ["check", "tiny.zip"]]
        seconds: dict[tuple[str, Path], list[float]] = {}
        for _ in range(1 if options.quick else 3):
            for command in commands:
                for code in (before, ROOT):
                    used = processor_seconds(code, command, folder)
                    seconds.setdefault((" ".join(command), code), []).append(used)
    rows, figures = [], {}
    for command in map(" ".join, commands):
        old, new = (min(seconds[command, code]) for code in (before, ROOT))
        bar = BARS[command.split()[0]]
        rows.append(
            {"command": command, BEFORE: f"{old:.1f}", "now": f"{new:.1f}", "ratio": f"{new / old:.2f}", "bar": bar}
        )
        figures[command.replace(" ", "_")] = round(new, 2)
    report.finish("plan", rows, figures, options.record)


def as_float16(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value.astype("float16") for key, value in tensors.items()}


if __name__ == "__main__":
    main()
