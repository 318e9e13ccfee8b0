"""Does a run that is killed again and again end like one that was not? SIGKILLs at random moments of every stage.

The commands `data`, `sft`, `screen`, `evaluate`, `train`, `prefer`, `evaluate`, `package` and `check` of the embedded
policy run once undisturbed: one LoRA learns from solvers' traces, with GRPO and from pairs of its own completions. Then
they run again, each killed at a random moment and repeated until it ends, run after run until there were enough kills.
Each of these runs must have the same files as the undisturbed one, with the same bytes apart from what the clock
decides, and nothing else. Truncated answers are trained on, so that GRPO gets gradients; the trial fails if the
`lora_B` of a stage are those of the stage before. The processes are forked from one that has imported the libraries.

    python benchmarks/kill_trial.py [--kills 20] [--seed 0] [--steps 8] [key=value ...]
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SETTINGS = [
    "data.limit=140", "data.test_size=40", "data.val_size=20", "data.pass_rate=[0.0,1.0]", "evaluation.batch_size=20",
    "screening.num_generations=4", "grpo.num_generations=4", "grpo.per_device_train_batch_size=16",
    "grpo.resample_budget=1", "grpo.eval_steps=4", "grpo.save_steps=2", "grpo.mask_truncated_completions=false",
    "data.source=tiny-sums,tiny-puzzles", "sft.max_length=512", "sft.limit=24", "sft.gradient_accumulation_steps=2",
    "sft.save_steps=2",
    "dpo.max_length=512", "dpo.gradient_accumulation_steps=2", "dpo.learning_rate=1e-4", "dpo.save_steps=2",
]  # fmt: skip
STAGES = ("data", "sft", "screen", "evaluate", "train", "prefer", "evaluate", "package", "check")
TRAINED = {"sft": "sft/", "train": "", "prefer": "prefer/"}  # the folders of the stages that train, in the run's
MOST = {"sft": 2, "train": 3, "prefer": 2}  # kills of a stage in one run; one for the others
CLOCK = ("second", "time", "memory_gib", "finished")  # parts of names of figures that the clock decides
# Files with such figures, whose hashes differ.
HASHED_CLOCK = (
    "metrics.jsonl", "weakest.json", "/before.json", "/after_sft.json", "/after.json", "/after_prefer.json"
)  # fmt: skip
# Files that hold times throughout; only their names count.
OWN_CLOCK = tuple(f"{folder}{name}" for folder in TRAINED.values() for name in ("checkpoints/", "forecast.json"))


def run_command(root: Path, words: list[str]) -> None:
    """The body of a forked process: the command, its output in a file."""
    log = os.open(root / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["GRPO_KIT_ROOT"] = str(root / "runs")
    from grpo_kit.cli.main import app

    app(words)


def start_stage(root: Path, number: int, steps: int, more: Sequence[str] = ()) -> multiprocessing.Process:
    """Start stage `number` of the run in `root`, with `more` settings."""
    words = [STAGES[number], *([str(root / "submission/submission.zip")] if STAGES[number] == "check" else [])]
    words += ["--run", "trial", *([] if number else ["-c", "tiny"]), *SETTINGS]
    words += [*(f"{section}.max_steps={steps}" for section in ("sft", "grpo", "dpo")), *more]
    child = multiprocessing.get_context("fork").Process(target=run_command, args=(root, words))
    child.start()
    return child


def end_stage(root: Path, child: multiprocessing.Process) -> None:
    """Wait for a stage that must succeed."""
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"A stage ended with status {child.exitcode}:\n{(root / 'log.txt').read_text()[-3000:]}")


def read_files(root: Path) -> dict[str, object]:
    """{path: content} of all files of the run and its zip; figures that the clock decides are left out."""
    files = {}
    for path in sorted(p for p in (root / "runs", root / "submission") for p in p.rglob("*") if p.is_file()):
        name = path.relative_to(root).as_posix()
        inside = name.removeprefix("runs/trial/")
        if "tensorboard" in path.parts:
            name, content = name.partition("tensorboard/")[0] + "tensorboard", None  # each process adds a file
        elif inside.startswith(OWN_CLOCK):
            content = None
        elif path.suffix == ".json" and "adapter" not in path.parts:
            content = without_clock(json.loads(path.read_text().replace(str(root), "")))
        elif path.name == "metrics.jsonl":
            content = [without_clock(json.loads(line)) for line in path.read_text().splitlines()]
        else:
            content = path.read_bytes()
        files[name] = content
    return files


def without_clock(value: object) -> object:
    """JSON without what the clock decides, and without the hashes of files that hold times."""
    if isinstance(value, dict):
        return {
            key: without_clock(item)
            for key, item in value.items()
            if not any(part in key for part in CLOCK) and not key.endswith(HASHED_CLOCK)
        }
    return [without_clock(item) for item in value] if isinstance(value, list) else value


def moved_by_stage(root: Path) -> dict[str, float]:
    """The largest absolute change of a `lora_B` in each stage that trains; they are zero before the first."""
    from safetensors.torch import load_file

    moved, before = {}, None
    for stage, folder in TRAINED.items():
        tensors = load_file(root / f"runs/trial/{folder}adapter/adapter_model.safetensors")
        changes = (value - before[name] if before else value for name, value in tensors.items() if "lora_B" in name)
        moved[stage], before = max(float(change.abs().max()) for change in changes), tensors
    return moved


def try_kills(folder: Path, kills: int, seed: int, steps: int, more: Sequence[str] = ()) -> dict[str, object]:
    """Run the trial; returns how many kills each stage had, which files differ, and which were left over."""
    import grpo_kit.evaluation.screening
    import grpo_kit.training.grpo.trainer
    import grpo_kit.training.preferences.trainer
    import grpo_kit.training.sft.trainer
    import grpo_kit.training.train  # noqa: F401 (what the forked processes share)

    pick, seconds = random.Random(seed), []
    alone = folder / "undisturbed"
    alone.mkdir(parents=True)
    for number in range(len(STAGES)):
        started = time.monotonic()
        end_stage(alone, start_stage(alone, number, steps, more))
        seconds.append(time.monotonic() - started)
    expected, by_stage, runs, differences, leftovers = read_files(alone), dict.fromkeys(STAGES, 0), 0, [], []
    while sum(by_stage.values()) < kills:
        root, runs = folder / f"killed_{runs}", runs + 1
        root.mkdir()
        for number, stage in enumerate(STAGES):
            left = MOST.get(stage, 1)
            while True:
                child = start_stage(root, number, steps, more)
                if left and sum(by_stage.values()) < kills:
                    child.join(pick.uniform(0, 1.2 * seconds[number]))
                    child.kill()
                    child.join()
                if child.exitcode == -signal.SIGKILL:
                    by_stage[stage], left = by_stage[stage] + 1, left - 1
                    continue
                end_stage(root, child)
                break
        files = read_files(root)
        differences += [f"{root.name}/{name}" for name in expected if files.get(name) != expected[name]]
        leftovers += [f"{root.name}/{name}" for name in files if name not in expected]
    return {
        "kills": sum(by_stage.values()), "by_stage": by_stage, "runs": runs, "files": len(expected),
        "differences": differences, "leftovers": leftovers, "moved": moved_by_stage(alone),
        "steps_with_gradient": {
            stage: sum(row["grad_norm"] > 0 for row in expected[f"runs/trial/{folder}metrics.jsonl"])
            for stage, folder in TRAINED.items()
        },
        "seconds_undisturbed": round(sum(seconds), 1),
    }  # fmt: skip


def main() -> int:
    """Print the trial as JSON; status 1 where a killed run differs or the adapter was not trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("kills", 20), ("seed", 0), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("settings", nargs="*", help="more settings of the run, such as policy.load_in_4bit=true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = try_kills(Path(folder), options.kills, options.seed, options.steps, options.settings)
    print(json.dumps(result, indent=1))
    return int(bool(result["differences"] or result["leftovers"] or not min(result["moved"].values()) > 0))


if __name__ == "__main__":
    sys.exit(main())
