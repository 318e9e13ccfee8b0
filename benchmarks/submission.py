"""An adapter of the whole 30B (real shapes, random values, all linear layers at rank 32, bf16), packed and checked.

Both by the command line, each in a process of its own, whose peak memory the kernel tells. `--quick` takes three of the 52
layers, one of each kind. Then the doctor gets broken submissions by the hundred (`tests/fuzz_inspection.py`): the slowest, by processor
time, what memory grew by, and what was written meanwhile. Bar: packing and checking within a minute and 4 GiB on two cores;
a broken submission within 2 s and 200 MiB.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit import config
from grpo_kit.nemotron import base_models
from grpo_kit.runs.files import write_text
from grpo_kit.runs.run import find_run
from tests.helpers.submissions import shapes_of

ROOT = Path(__file__).resolve().parents[1]
RANK, ALPHA = 32, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "out_proj", "up_proj", "down_proj"]


def make(folder: Path, base: str) -> int:
    """Write an adapter for `base` into `folder`, one tensor at a time; returns how many there are."""
    said = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS, "bias": "none",
        "base_model_name_or_path": base, "inference_mode": True, "modules_to_save": None, "lora_dropout": 0.0,
    }  # fmt: skip
    shapes = shapes_of(said, base_models.lora_modules(base), "model.")
    lines, end = {}, 0
    for key, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        lines[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(said))
    header = json.dumps(lines).encode()
    rng = np.random.default_rng(0)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for shape in shapes.values():
            bits = np.frombuffer(rng.bytes(2 * shape[0] * shape[1]), "<u2")
            file.write(((bits & 0x80FF) | 0x3C00).tobytes())  # sign and digits at random, magnitudes 0.008 to 0.03
    return len(shapes)


def call(*words: object, cwd: Path) -> tuple[float, float, str]:
    """(seconds, peak GiB, what it said) of a command; ends the benchmark when that fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", *map(str, words)], cwd=cwd, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        output = said.read()
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: status {child.returncode}\n{output}")
    return time.monotonic() - started, usage.ru_maxrss / 2**20, output


def main() -> None:
    asked = report.arguments(__doc__)
    with tempfile.TemporaryDirectory() as aside:
        here, base = Path(aside), base_models.PUBLISHED
        if asked.quick:
            saved = json.loads(base_models.NANO.read_text())
            saved["hybrid_override_pattern"] = saved["hybrid_override_pattern"][3:6]  # E, M and *
            base = str(here / "three_layers")
            write_text(Path(base) / "config.json", json.dumps(saved))
        run = find_run("large", here / "runs")
        tensors = make(run.adapter, base)
        chosen = config.load_config(["tiny"], [f"policy.model={base}"])
        run.record_stage("train", {}, [], [run.adapter], 0.0, config.to_yaml(chosen))
        pack = call("grpo_kit.cli.main", "package", "--run", "large", cwd=here)
        zipped = here / "submission" / "submission.zip"
        check = call("grpo_kit.cli.main", "check", zipped, f"policy.model={base}", cwd=here)
        if f"{tensors:,} LoRA tensors" not in check[2]:
            raise SystemExit(f"the doctor did not see all tensors:\n{check[2]}")
        size, cases = zipped.stat().st_size / 2**30, 150 if asked.quick else 3000
        fuzz = call("tests.helpers.fuzz_inspection", cases, here, 2, cwd=ROOT)
    found = json.loads(fuzz[2].splitlines()[-1])
    rows = [
        {
            "work": f"pack {tensors:,} tensors, {size:.2f} GiB",
            "seconds": f"{pack[0]:.1f}",
            "peak GiB": f"{pack[1]:.2f}",
        },
        {"work": "check that zip", "seconds": f"{check[0]:.1f}", "peak GiB": f"{check[1]:.2f}"},
        {"work": f"{cases:,} broken submissions", "seconds": f"{fuzz[0]:.1f}", "peak GiB": f"{fuzz[1]:.2f}"},
    ]
    figures = {
        "tensors": tensors, "zip_gib": round(size, 2), "pack_s": round(pack[0], 1), "check_s": round(check[0], 1),
        "pack_and_check_s": round(pack[0] + check[0], 1), "bar_s": 60, "peak_gib": round(max(pack[1], check[1]), 2),
        "bar_gib": 4, "broken": cases, "slowest_broken_cpu_s": found["slowest_cpu_s"], "bar_broken_s": 2,
        "broken_grew_mib": found["mebibytes"], "bar_broken_mib": 200, "broken_wrote": len(found["written"]),
    }  # fmt: skip
    report.finish("submission", rows, figures, asked.record)


if __name__ == "__main__":
    main()
