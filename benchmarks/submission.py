"""Packing and checking an adapter of the whole 30B: real shapes, random values, all linear layers at rank 32, bf16.

The command line packs and checks it, each in a process of its own; the kernel reports the peak memory. `--quick` takes
three of the 52 layers, one of each kind. Then the check gets hundreds of broken zips
(`tests/helpers/fuzz_inspection.py`); the figures are the slowest one's processor time, the growth of memory, and the
number of files written. The bars: packing and checking take at most a minute and 4 GiB on two cores, a broken zip at
most 2 s and 200 MiB.
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


def write_adapter(folder: Path, base: str) -> int:
    """Write an adapter for `base` into `folder`, one tensor at a time; returns the number of tensors."""
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS,
        "bias": "none",
        "base_model_name_or_path": base, "inference_mode": True, "modules_to_save": None, "lora_dropout": 0.0,
    }  # fmt: skip
    shapes = shapes_of(settings, base_models.lora_modules(base), "model.")
    lines, end = {}, 0
    for key, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        lines[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    header = json.dumps(lines).encode()
    rng = np.random.default_rng(0)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for shape in shapes.values():
            bits = np.frombuffer(rng.bytes(2 * shape[0] * shape[1]), "<u2")
            file.write(((bits & 0x80FF) | 0x3C00).tobytes())  # sign and digits at random, magnitudes 0.008 to 0.03
    return len(shapes)


def run_module(*words: object, cwd: Path) -> tuple[float, float, str]:
    """(seconds, peak GiB, output) of `python -m words`; a failure ends the benchmark."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", *map(str, words)], cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read()
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: status {child.returncode}\n{output}")
    return time.monotonic() - started, usage.ru_maxrss / 2**20, output


def main() -> None:
    options = report.arguments(__doc__)
    with tempfile.TemporaryDirectory() as aside:
        here, base = Path(aside), base_models.PUBLISHED
        if options.quick:
            saved = json.loads(base_models.NANO.read_text())
            saved["hybrid_override_pattern"] = saved["hybrid_override_pattern"][3:6]  # E, M and *
            base = str(here / "three_layers")
            write_text(Path(base) / "config.json", json.dumps(saved))
        run = find_run("large", here / "runs")
        tensors = write_adapter(run.adapter, base)
        chosen = config.load_config(["tiny"], [f"policy.model={base}"])
        run.record_stage("train", {}, [], [run.adapter], 0.0, config.to_yaml(chosen))
        pack = run_module("grpo_kit", "package", "--run", "large", cwd=here)
        zipped = here / "submission" / "submission.zip"
        check = run_module("grpo_kit", "check", zipped, f"policy.model={base}", cwd=here)
        if f"{tensors:,} LoRA tensors" not in check[2]:
            raise SystemExit(f"the check did not see all tensors:\n{check[2]}")
        size, cases = zipped.stat().st_size / 2**30, 150 if options.quick else 3000
        fuzz = run_module("tests.helpers.fuzz_inspection", cases, here, 2, cwd=ROOT)
    fuzzed = json.loads(fuzz[2].splitlines()[-1])
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
        "bar_gib": 4, "broken": cases, "slowest_broken_cpu_s": fuzzed["slowest_cpu_s"], "bar_broken_s": 2,
        "broken_grew_mib": fuzzed["mebibytes"], "bar_broken_mib": 200, "broken_wrote": len(fuzzed["written"]),
    }  # fmt: skip
    report.finish("submission", rows, figures, options.record)


if __name__ == "__main__":
    main()
