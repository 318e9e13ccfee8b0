"""The same training on one process and on two: how much faster two are, and how long each waits for the other.

The embedded policy trains with one global batch on CPU processes that exchange over gloo, one thread each; the ways
take turns. Before each exchange the processes meet at an extra barrier, and the time there is called waiting; it
includes the barrier itself, about 0.1 ms. A step is timed from its start to the start of the next. The third way, one
process with half of the batch and the other core idle, shows what two could reach if nothing were exchanged. Two
processes on two cores prove the mechanism; they say nothing of a GPU's speed.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import report
import torch
import torch.distributed as dist
from transformers import TrainerCallback

from grpo_kit import config
from grpo_kit.config import RunConfig
from grpo_kit.data.preparation import prepare
from grpo_kit.rewards.tools import loading
from grpo_kit.runs import processes
from grpo_kit.runs.run import find_run
from grpo_kit.training import train

EXCHANGES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "broadcast",
    "broadcast_object_list",
)
WAYS = {"one": (1, 1), "two": (2, 1), "one, half the batch": (1, 2)}  # processes; what the preset's batch is divided by
OVERRIDES = ("grpo.eval_steps=0", "grpo.save_steps=1000", "run.report_to=[none]")


class Clock(TrainerCallback):
    """Times each step but the first, which warms up: in all, in sampling (with rewards), and waiting in either."""

    def __init__(self, trainer) -> None:
        self.trainer, self.rows, self.now = trainer, [], None
        self.phase = "training"
        sample = trainer._generate_and_score_completions

        @functools.wraps(sample)
        def timed(*args, **kwargs):
            started, self.phase = time.perf_counter(), "sampling"
            try:
                return sample(*args, **kwargs)
            finally:
                self.phase = "training"
                self.now["sampling"] += time.perf_counter() - started

        trainer._generate_and_score_completions = timed
        for name in EXCHANGES:
            setattr(dist, name, self.after_waiting(getattr(dist, name)))

    def after_waiting(self, exchange):
        @functools.wraps(exchange)
        def waited(*args, **kwargs):
            self.wait()
            return exchange(*args, **kwargs)

        return waited

    def wait(self) -> None:
        started = time.perf_counter()
        dist.barrier()
        if self.now:
            self.now[f"{self.phase}, waiting"] += time.perf_counter() - started
            self.now["exchanges"] += 1

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if (
            self.now is None and processes.process_count() > 1
        ):  # DDP's own exchange, of gradients, goes past torch.distributed's names
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

            def hook(group, bucket):
                self.wait()
                return allreduce_hook(group, bucket)

            self.trainer.model_wrapped.register_comm_hook(None, hook)
        self.close(state)
        self.now = dict.fromkeys(("sampling", "sampling, waiting", "training, waiting", "exchanges"), 0.0)
        self.now |= {"begun": time.perf_counter(), "tokens": state.num_input_tokens_seen}

    def on_train_end(self, args, state, control, **kwargs):
        self.close(state)

    def close(self, state) -> None:
        if self.now:
            seconds = time.perf_counter() - self.now.pop("begun")
            tokens = state.num_input_tokens_seen - self.now.pop("tokens")
            self.rows.append(self.now | {"seconds": seconds, "tokens": tokens})


def configured(steps: int, divided: int) -> RunConfig:
    batch = config.load_config(["tiny"]).grpo.per_device_train_batch_size // divided
    return config.load_config(
        ["tiny"], [*OVERRIDES, f"grpo.max_steps={steps}", f"grpo.per_device_train_batch_size={batch}"]
    )


def work(root: str, name: str, steps: str, divided: str) -> None:
    """One process of a training: its figures go to `root`/NAME-NUMBER.json."""
    torch.set_num_threads(1)
    chosen = configured(int(steps), int(divided))
    run = find_run(name, root)
    trainer = train.make_trainer(chosen, run, [loading.load_reward(spec) for spec in chosen.grpo.reward_funcs])
    clock = Clock(trainer)
    trainer.add_callback(clock)
    trainer.train()
    Path(root, f"{name}-{processes.process_rank()}.json").write_text(json.dumps(clock.rows[1:]))


def measured(way: str, root: str, name: str, steps: int) -> list[list[dict[str, float]]]:
    """The figures of each process, a row a step."""
    count, divided = WAYS[way]
    prepare(configured(steps, divided), find_run(name, root))
    start = [sys.executable]
    if count > 1:
        start += [
            "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--mixed_precision=no",
            "--dynamo_backend=no", "--main_process_port=0", f"--num_processes={count}",
        ]  # fmt: skip
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    words = [*start, __file__, "--worker", root, name, str(steps), str(divided)]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way} failed: {done.stderr[-2000:]}")
    return [json.loads(Path(root, f"{name}-{i}.json").read_text()) for i in range(count)]


def summed(runs: list[list[list[dict[str, float]]]]) -> dict[str, float]:
    """Of all rounds of one way: seconds and tokens a step, and shares of the processes' time."""
    steps = [row for run in runs for row in run[0]]  # a step is as long for every process
    every = [row for run in runs for process in run for row in process]
    seconds = sum(row["seconds"] for row in every)
    shares = {
        name: sum(row[name] for row in every) / seconds for name in every[0] if "wait" in name or name == "sampling"
    }
    mean = {name: sum(row[name] for row in steps) / len(steps) for name in ("seconds", "tokens", "exchanges")}
    return shares | mean | {"steps": len(steps), "median": statistics.median(row["seconds"] for row in steps)}


def main() -> None:
    arguments = report.arguments(__doc__)
    rounds, steps = (1, 6) if arguments.quick else (3, 21)
    runs = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as root:
        for number in range(rounds):
            for way in list(WAYS)[:: -1 if number % 2 else 1]:
                runs[way].append(measured(way, root, f"round{number}-{way.split()[-1]}-{WAYS[way][0]}", steps))
    summaries = {way: summed(done) for way, done in runs.items()}
    rows = [
        {
            "processes": way, "steps": of["steps"], "median step, ms": f"{1e3 * of['median']:.0f}",
            "tokens/s": f"{of['tokens'] / of['seconds']:,.0f}", "sampling": f"{of['sampling']:.1%}",
            "waiting in it": f"{of['sampling, waiting']:.1%}", "in training": f"{of['training, waiting']:.1%}",
            "exchanges a step": f"{of['exchanges']:.0f}",
        }
        for way, of in summaries.items()
    ]  # fmt: skip
    one, two, half = summaries.values()
    figures = {
        "times_one": round(one["median"] / two["median"], 3), "times_at_best": round(one["median"] / half["median"], 3),
        "waiting": round(two["sampling, waiting"] + two["training, waiting"], 4),
        "same_tokens": all(
            [row["tokens"] for row in a[0]] == [row["tokens"] for row in b[0]]
            for a, b in zip(runs["one"], runs["two"])
        ),
    }  # fmt: skip
    report.finish("scale", rows, figures, arguments.record)


if __name__ == "__main__":
    work(*sys.argv[2:]) if sys.argv[1:2] == ["--worker"] else main()
