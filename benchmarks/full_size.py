"""A Nemotron-H at its real widths through the kit's commands on a CPU: converted, asked, trained, packed, checked.

The weights are random in the published form (bf16, several shards), so nothing is downloaded. A shard's file has holes
instead of weights until it is read; then they are drawn, and after it has been converted they are holes again. So the
disk never holds the published model. The conversion is killed once and called again. Products are computed in float32:
16-bit products are 80 times slower on a CPU. The group is of two, the completions of a few tokens. Each command runs in
a process of its own, whose seconds and peak memory are measured. Beside those that load the model stands what `plan`
says of them; on a CPU it does not count the memory of a conversion. Beside the NF4's size stands the planned one.

    python benchmarks/full_size.py --model 4b --record      # 7 GiB of disk, a machine left alone
    python benchmarks/full_size.py --model 30b --layers 12  # the first layers only; all 52 need 25 GiB of disk
    python benchmarks/full_size.py --quick                  # 12 layers of the 4B's pattern, narrow
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import random_nemotron
import report

GIB = 2**30
PROMPT = 50  # tokens of a sum with the embedded policy's tokenizer and template, at most
SHARD = 2 * GIB  # bytes after which the next shard begins
CUT = slice(6, 18)  # of the 4B's layers: MM-M-M*-M-M*
NARROW = {
    "hidden_size": 64, "intermediate_size": 256, "vocab_size": 272, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2,
}  # fmt: skip
SETTINGS = [
    "policy.load_in_4bit=true", "policy.dtype=float32", "policy.experts_on_host=0", "grpo.fp16=false",
    "grpo.max_steps=1", "grpo.num_generations=2", "grpo.per_device_train_batch_size=2", "grpo.resample_budget=0",
    "grpo.gradient_accumulation_steps=1", "grpo.max_completion_length=6", "grpo.mask_truncated_completions=false",
    "grpo.reward_funcs=[spread.py:spread]", "grpo.reward_weights=[1.0]", "grpo.learning_rate=1e-4",
    "data.source=tiny-sums", "data.limit=40", "data.val_size=8", "data.test_size=8", 'data.prompt_suffix=""',
    "data.decontaminate=[]", "run.report_to=[]",
]  # fmt: skip
# Pays completions of the same prompt unequally, so that the step has a gradient.
SPREAD = (
    "def spread(completions, completion_ids, **batch):\n    return [sum(ids) % 97 / 97 for ids in completion_ids]\n"
)
KEYS = ("step_time", "grad_norm", "sampling/logp_gap")  # of the row in metrics.jsonl
CONVERT = """
import sys
from grpo_kit.nemotron.convert import convert_to_nf4

parts = set()

def wait_for_weights(done, total, part):
    if part not in parts:
        parts.add(part)
        print(f"model-{int(part.split()[1]):05}.safetensors", flush=True)
        sys.stdin.readline()

convert_to_nf4("published", "nf4", "float32", progress=wait_for_weights)
"""


def main() -> None:
    arguments = report.arguments(__doc__, model=("4b", "30b"), layers=("all", "12", "6"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        preset = "t4-4b" if arguments.quick or arguments.model == "4b" else "t4"
        layers = None if arguments.layers == "all" else int(arguments.layers)
        published = Published(folder / "published", preset, slice(layers), NARROW if arguments.quick else {})
        (folder / "spread.py").write_text(SPREAD)
        grpo_kit = [sys.executable, "-m", "grpo_kit"]
        run = ["--run", "full", f"policy.model={folder / 'nf4'}", f"run.root={folder / 'runs'}"]
        zip_path = str(folder / "submission.zip")
        half = len(published.shards) // 2
        rows = [measure(folder, "convert, killed", [sys.executable, "-c", CONVERT], published.answer(half))]
        kept = {path: path.stat().st_mtime_ns for path in (folder / "nf4").glob("*.safetensors")}
        rows += [
            measure(folder, "convert, the rest", [sys.executable, "-c", CONVERT], published.answer()),
            measure(folder, "data", [*grpo_kit, "data", "-c", preset, *run, *SETTINGS]),
            measure(
                folder, "load, two tokens", [*grpo_kit, "ask", *run, "12+34=", "evaluation.max_completion_length=2"]
            ),
            measure(folder, "train, one step", [*grpo_kit, "train", *run]),
            measure(folder, "package", [*grpo_kit, "package", *run, "--out", zip_path]),
            measure(folder, "check", [*grpo_kit, "check", zip_path, *run]),
        ]
        step = json.loads((folder / "runs" / "full" / "metrics.jsonl").read_text().splitlines()[-1])
        again = [path.name for path, written in kept.items() if path.stat().st_mtime_ns != written]
        nf4 = sum(path.stat().st_size for path in (folder / "nf4").glob("*.safetensors"))
        planned, checkpoint = plan(preset, folder)
    for row in rows:
        row["plan, GiB"] = f"{planned[row['phase']] / GIB:.2f}" if row["phase"] in planned else ""
    figures = {
        "model": "narrow" if arguments.quick else arguments.model,
        "layers": arguments.layers,
        "parameters": published.parameters,
        "published_gib": round(published.nbytes / GIB, 2),
        "nf4_gib": round(nf4 / GIB, 2),
        "planned_nf4_gib": round(checkpoint / GIB, 2),
        "parts_kept": len(kept),
        "parts_written_again": len(again),
        **{key: step.get(key) for key in KEYS},
    }
    report.finish("full_size", rows, figures, arguments.record)


class Published:
    """A checkpoint with random weights as it would be published; its shards are holes while nobody reads them.

    Attributes:
        shards: {file: {published name: (shape, dtype)}}.
        parameters, nbytes: of the whole model.
    """

    def __init__(self, folder: Path, preset: str, layers: slice, changed: dict[str, int]) -> None:
        import torch

        from grpo_kit import config
        from grpo_kit.nemotron import base_models, nf4_checkpoint, tiny

        folder.mkdir()
        ignored = shutil.ignore_patterns("*.safetensors", "config.json")
        shutil.copytree(tiny.FOLDER, folder, dirs_exist_ok=True, ignore=ignored)
        fields = json.loads(base_models.CONFIGS[config.load_config([preset]).policy.model].read_text()) | changed
        fields["hybrid_override_pattern"] = fields["hybrid_override_pattern"][CUT if changed else layers]
        fields |= {"eos_token_id": 11, "bos_token_id": 1, "pad_token_id": 0}
        (folder / "config.json").write_text(json.dumps(fields))
        skeleton, _ = nf4_checkpoint.build_skeleton(folder, torch.bfloat16)
        specs = {
            name.replace("model.", "backbone.", 1): (torch.Size(shape), dtype or torch.bfloat16)
            for name, (shape, dtype) in nf4_checkpoint.list_model_tensors(skeleton, torch.bfloat16).items()
        }
        self.folder, self.parameters = folder, sum(shape.numel() for shape, _ in specs.values())
        sizes = {name: shape.numel() * dtype.itemsize for name, (shape, dtype) in specs.items()}
        self.nbytes, self.shards, filled = sum(sizes.values()), {}, SHARD
        for name, nbytes in sizes.items():
            if filled + nbytes > min(SHARD, self.nbytes / 4):
                filled, file = 0, f"model-{len(self.shards) + 1:05}.safetensors"
                self.shards[file] = {}
            self.shards[file][name], filled = specs[name], filled + nbytes
        for file in self.shards:
            self.empty(file)
        where = {name: file for file, names in self.shards.items() for name in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))

    def empty(self, file: str) -> None:
        """Make a shard a hole of its size."""
        (self.folder / file).write_bytes(b"")
        os.truncate(
            self.folder / file, sum(shape.numel() * dtype.itemsize for shape, dtype in self.shards[file].values())
        )
        os.utime(self.folder / file, (0, 0))  # a source that changes would be converted again

    def fill(self, file: str) -> None:
        """Draw a shard's weights, the same ones every time."""
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(list(self.shards).index(file))
        drawn = {
            name: random_nemotron.draw_tensor(name.replace("backbone.", "model.", 1), shape, dtype, "cpu")
            for name, (shape, dtype) in self.shards[file].items()
        }
        save_file(drawn, self.folder / file, metadata={"format": "pt"})

    def answer(self, killed_after: int | None = None) -> Callable[[subprocess.Popen], bool]:
        """A function that gives a conversion its shards; after `killed_after` of them it kills it and returns True."""

        def serve(child: subprocess.Popen) -> bool:
            before = None
            for number, line in enumerate(child.stdout):
                if before:
                    self.empty(before)
                if number == killed_after:
                    child.kill()
                    return True
                before = line.strip()
                self.fill(before)
                child.stdin.write("\n")
                child.stdin.flush()
            if before:
                self.empty(before)
            return False

        return serve


def measure(
    folder: Path, phase: str, words: list[str], talk: Callable[[subprocess.Popen], bool] | None = None
) -> dict[str, Any]:
    """Run a command in `folder`; its seconds, processor seconds and the most memory it held.

    `talk` answers its questions, and returns whether it killed the command.
    """
    root = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environ, pipe = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}, subprocess.PIPE
    streams = {"stdin": pipe, "stdout": pipe} if talk else {"stdout": 2}
    started = time.monotonic()
    child = subprocess.Popen(words, cwd=folder, env=environ, text=True, **streams)
    killed = talk(child) if talk else False
    _, status, used = os.wait4(child.pid, 0)
    if status and not killed:
        sys.exit(f"{phase} ended with status {os.waitstatus_to_exitcode(status)}.")
    return {
        "phase": phase,
        "seconds": f"{time.monotonic() - started:.1f}",
        "processor seconds": f"{used.ru_utime + used.ru_stime:.1f}",
        "peak RSS, GiB": f"{used.ru_maxrss / 2**20:.2f}",
    }


def plan(preset: str, folder: Path) -> tuple[dict[str, float], float]:
    """({phase: bytes of memory that the planner expects on a CPU}, bytes of the NF4 checkpoint)."""
    from grpo_kit import config
    from grpo_kit.planning.model_size import Architecture
    from grpo_kit.planning.plan import plan as make_plan

    chosen = config.load_config([preset], [*SETTINGS, f"policy.model={folder / 'published'}"])
    planned, model = make_plan(chosen, "cpu", PROMPT, search=False), Architecture.of(chosen.policy)
    rows = [row for row in planned.rows if row.place == "host" and (not row.phases or "load" in row.phases)]
    load = sum(row.nbytes for row in rows)
    phases = {"load, two tokens": load, "train, one step": planned.needs["host"].nbytes, "check": load}
    return phases, float(sum(model.nbytes(part, chosen.policy) for part in model.parts))


if __name__ == "__main__":
    main()
