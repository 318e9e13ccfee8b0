"""A Nemotron-H at its real widths through the kit's commands on a CPU: converted, trained one step, packed, checked.

The weights are random in the published form (bf16, several shards), so nothing is downloaded. Products are computed in
float32: 16-bit products are 80 times slower on a CPU. The group is of two, the completions of a few tokens. Each
command runs in a process of its own, whose seconds and peak memory are measured; beside them stands what `plan` says.

    python benchmarks/full_size.py --model 4b --record      # 11 GiB of disk, a machine left alone
    python benchmarks/full_size.py --model 30b --layers 6   # the first layers only; all 52 need 75 GiB of disk
    python benchmarks/full_size.py --quick                  # 12 layers of the 4B's pattern, narrow
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
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
CONVERT = "import sys; from grpo_kit.nemotron.convert import convert_to_nf4; convert_to_nf4(*sys.argv[1:])"


def main() -> None:
    arguments = report.arguments(__doc__, model=("4b", "30b"), layers=("all", "12", "6"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        preset = "t4-4b" if arguments.quick or arguments.model == "4b" else "t4"
        layers = None if arguments.layers == "all" else int(arguments.layers)
        count, nbytes = write_published(folder / "published", preset, slice(layers), NARROW if arguments.quick else {})
        (folder / "spread.py").write_text(SPREAD)
        grpo_kit = [sys.executable, "-m", "grpo_kit"]
        run = ["--run", "full", f"policy.model={folder / 'nf4'}", f"run.root={folder / 'runs'}"]
        zip_path = str(folder / "submission.zip")
        rows = [
            measure(folder, "convert", [sys.executable, "-c", CONVERT, "published", "nf4", "float32"]),
            measure(folder, "data", [*grpo_kit, "data", "-c", preset, *run, *SETTINGS]),
            measure(folder, "train, one step", [*grpo_kit, "train", *run]),
            measure(folder, "package", [*grpo_kit, "package", *run, "--out", zip_path]),
            measure(folder, "check", [*grpo_kit, "check", zip_path, *run]),
        ]
        step = json.loads((folder / "runs" / "full" / "metrics.jsonl").read_text().splitlines()[-1])
        kept = sum(path.stat().st_size for path in (folder / "nf4").glob("*.safetensors"))
        planned = plan(preset, folder)
    figures = {
        "model": "narrow" if arguments.quick else arguments.model,
        "layers": arguments.layers,
        "parameters": count,
    }
    figures |= {"published_gib": round(nbytes / GIB, 2), "nf4_gib": round(kept / GIB, 2)}
    figures |= {"planned_host_gib": round(planned / GIB, 2), **{key: step.get(key) for key in KEYS}}
    report.finish("full_size", rows, figures, arguments.record)


def write_published(folder: Path, preset: str, layers: slice, changed: dict[str, int]) -> tuple[int, int]:
    """Write a checkpoint with random weights as it would be published; returns its parameters and bytes."""
    import torch
    from safetensors.torch import save_file

    from grpo_kit import config
    from grpo_kit.nemotron import base_models, nf4_checkpoint, tiny

    folder.mkdir()
    shutil.copytree(
        tiny.FOLDER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "config.json")
    )
    fields = json.loads(base_models.CONFIGS[config.load_config([preset]).policy.model].read_text()) | changed
    fields["hybrid_override_pattern"] = fields["hybrid_override_pattern"][CUT if changed else layers]
    fields |= {"eos_token_id": 11, "bos_token_id": 1, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(fields))
    torch.manual_seed(0)
    specs = nf4_checkpoint.list_model_tensors(nf4_checkpoint.build_skeleton(folder, torch.bfloat16)[0], torch.bfloat16)
    where: dict[str, str] = {}
    shard: dict[str, Any] = {}
    for number, (name, (shape, kind)) in enumerate(specs.items(), 1):
        value = random_nemotron.draw_tensor(name, shape, kind or torch.bfloat16, "cpu")
        shard[name.replace("model.", "backbone.", 1)] = value
        if sum(value.nbytes for value in shard.values()) > SHARD or number == len(specs):
            file = f"model-{len(set(where.values())) + 1:05}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            where |= dict.fromkeys(shard, file)
            shard = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return sum(torch.Size(shape).numel() for shape, _ in specs.values()), nbytes


def measure(folder: Path, phase: str, words: list[str]) -> dict[str, Any]:
    """Run a command in `folder`; its seconds, processor seconds and the most memory it held."""
    root = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    started = time.monotonic()
    child = subprocess.Popen(words, cwd=folder, env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}, stdout=2)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{phase} ended with status {os.waitstatus_to_exitcode(status)}.")
    return {
        "phase": phase,
        "seconds": f"{time.monotonic() - started:.1f}",
        "processor seconds": f"{used.ru_utime + used.ru_stime:.1f}",
        "peak RSS, GiB": f"{used.ru_maxrss / 2**20:.2f}",
    }


def plan(preset: str, folder: Path) -> float:
    """Bytes of the host that the planner expects of this step on a CPU."""
    from grpo_kit import config
    from grpo_kit.planning.plan import plan as make_plan

    chosen = config.load_config([preset], [*SETTINGS, f"policy.model={folder / 'published'}"])
    return make_plan(chosen, "cpu", PROMPT, search=False).needs["host"].nbytes


if __name__ == "__main__":
    main()
