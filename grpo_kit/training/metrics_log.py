"""What a training leaves behind as it goes: a row of figures a step, and a line a completion with what it was paid."""

import functools
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from grpo_kit.nemotron import expert_placement
from grpo_kit.policy.chat import completion_text
from grpo_kit.runs import processes
from grpo_kit.training import alarms, checkpoints

Reward = Callable[..., list[float | None]]
OnStep = Callable[[dict[str, Any]], None]


class MetricsCallback(TrainerCallback):
    """Appends TRL's figures to `metrics.jsonl`, one row a step: `step`, `seconds` since the first, and TRL's names.

    Ours beside them: `tokens_per_second`, sampled, of the step; `memory_gib`, at most, on a GPU; `host_share`, of the step's
    routed rows, where experts lie on the host; `skipped_steps` so far, whose gradients overflowed in fp16 so that the scaler
    dropped them, where there is a scaler; `alarms`, sentences, when one begins to ring (`settings` are `grpo`'s). What `extra` holds is added to the next row and forgotten. A training that goes
    on from a checkpoint drops the rows behind it; `rows` are those that stand.
    """

    def __init__(self, path: Path, settings: dict[str, Any], on_step: OnStep | None = None) -> None:
        self.path, self.settings, self.on_step = path, settings, on_step
        self.trainer: Any = None
        self.rows: list[dict[str, Any]] = []
        self.extra: dict[str, Any] = {}
        self.skipped, self.started, self.tokens, self.began = 0, 0.0, 0.0, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.rows = processes.broadcast_from_first(lambda: checkpoints.drop_rows_after(self.path, state.global_step))
        last = self.rows[-1] if self.rows else {}
        self.skipped, self.tokens = last.get("skipped_steps", 0), last.get("num_tokens", 0.0)
        self.started = time.monotonic() - last.get("seconds", 0.0)

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.skipped += bool(self.trainer.accelerator.optimizer_step_was_skipped)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not is_step(logs):
            return
        now = time.monotonic()
        row = {"step": state.global_step, "seconds": round(now - self.started, 3), **logs}
        row.pop("epoch", None)  # prompts are drawn; no epoch passes
        drawn = row.get("num_tokens", 0.0) - self.tokens
        row["tokens_per_second"], self.tokens = (
            round(drawn / max(now - self.began, 1e-9), 1),
            row.get("num_tokens", 0.0),
        )
        if torch.cuda.is_available():
            row["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        if (share := expert_placement.traffic(self.trainer.model)) is not None:
            row["host_share"] = round(share, 6)
            expert_placement.forget_traffic(self.trainer.model)
        if self.trainer.accelerator.scaler is not None:
            row["skipped_steps"] = self.skipped
        row, self.extra = row | self.extra, {}
        rang = {name for name, _ in alarms.find_alarms(self.rows, self.settings)}
        self.rows.append(row)
        if new := [said for name, said in alarms.find_alarms(self.rows, self.settings) if name not in rang]:
            row["alarms"] = new
        if not processes.is_first():
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.on_step:
            self.on_step(row)


def is_step(logs: dict[str, Any] | None) -> bool:
    """Whether what the trainer logs is a step's figures, and not the closing summary."""
    return bool(logs) and "train_runtime" not in logs


class CompletionRecorder(TrainerCallback):
    """Stands between TRL and the rewards and keeps what each completion was paid, in `completions.jsonl`.

    TRL calls the rewards one after the other on the same batch; when the last has answered, the batch is written:
    `step`, `prompt`, `completion`, `answer` and `rewards` by name, one line a completion.
    """

    def __init__(self, path: Path, rewards: list[Reward]) -> None:
        self.path, self.paid = path, {}
        # An async reward is awaited by TRL, side by side with others; it works as ever and is not recorded.
        recorded = [reward for reward in rewards if not inspect.iscoroutinefunction(reward)]
        self.last = recorded[-1] if recorded else None
        self.watched = [self._watch(reward) if reward in recorded else reward for reward in rewards]

    def on_train_begin(self, args, state, control, **kwargs):
        processes.broadcast_from_first(lambda: checkpoints.drop_rows_after(self.path, state.global_step))

    def _watch(self, reward: Reward) -> Reward:
        @functools.wraps(reward)
        def watched(**batch: Any) -> list[float | None]:
            paid = list(reward(**batch))
            self.paid[reward.__name__] = paid
            if reward is self.last:
                self._write(batch)
            return paid

        return watched

    def _write(self, batch: dict[str, Any]) -> None:
        step, paid, self.paid = batch["trainer_state"].global_step + 1, self.paid, {}
        lines = processes.all_gather(
            [
                {
                    "step": step,
                    "prompt": completion_text(batch["prompts"][i][-1:]),
                    "completion": completion_text(completion),
                    "answer": batch["answer"][i],
                    "rewards": {name: values[i] for name, values in paid.items()},
                }
                for i, completion in enumerate(batch["completions"])
            ]
        )
        if processes.is_first():
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
