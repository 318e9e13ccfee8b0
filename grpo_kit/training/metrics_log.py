"""What a training records: a row of figures for each step, and a line for each completion with its rewards."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from grpo_kit.nemotron.placement.relief import list_reliefs
from grpo_kit.nemotron.placement.tiered_layers import experts_on_host, host_traffic_share, reset_traffic
from grpo_kit.policy.chat import completion_text
from grpo_kit.rewards.tools.calling import Reward, call_rewards, reward_names
from grpo_kit.runs import processes
from grpo_kit.runs.files import append_lines, drop_nonfinite, to_json, write_text
from grpo_kit.training import alarms, checkpoints

OnStep = Callable[[dict[str, Any]], None]


class MetricsCallback(TrainerCallback):
    """Appends a row per step to `metrics.jsonl`: `step`, `seconds` since the first step, and the trainer's own figures.

    The kit's figures beside them:

    - `tokens_per_second`: tokens sampled in the step, per second of the step;
    - `memory_gib`: the most GPU memory that PyTorch held;
    - `host_share`: share of the step's routed rows whose expert lies on the host, if experts lie there;
    - `experts_on_host`: share of the routed experts that lie there;
    - `reliefs`: a sentence for each time that experts went there because memory ran out;
    - `skipped_steps`: steps so far that the scaler skipped because gradients overflowed in fp16;
    - `alarms`: the sentences of alarms that began to ring at this step.

    A figure that is NaN or infinite is None. What `extra` holds is added to the next row. A resumed training drops the
    rows after its checkpoint; `rows` are the rows that remain.

    Args:
        trainer: the transformers Trainer whose steps are recorded.
        path: the file.
        settings: the settings of `grpo`, or of the section that they name as `section`; the alarms name them.
        on_step: is called with each row, in the first process.
    """

    def __init__(self, trainer: Any, path: Path, settings: dict[str, Any], on_step: OnStep | None = None) -> None:
        self.trainer, self.path, self.settings, self.on_step = trainer, path, settings, on_step
        self.rows: list[dict[str, Any]] = []
        self.extra: dict[str, Any] = {}
        self.skipped, self.started, self.tokens, self.step_began = 0, 0.0, 0.0, 0.0
        self.reliefs = 0  # that are recorded

    def on_train_begin(self, args, state, control, **kwargs):
        self.rows = processes.broadcast_from_first(lambda: checkpoints.drop_rows_after(self.path, state.global_step))
        last = self.rows[-1] if self.rows else {}
        self.skipped, self.tokens = last.get("skipped_steps", 0), last.get("num_tokens", 0.0)
        self.started = time.monotonic() - last.get("seconds", 0.0)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step_began = time.monotonic()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.skipped += bool(self.trainer.accelerator.optimizer_step_was_skipped)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not is_step(logs):
            return
        row, self.extra = drop_nonfinite(self._figures(state.global_step, logs) | self.extra), {}
        ringing = {name for name, _ in alarms.find_alarms(self.rows, self.settings)}
        self.rows.append(row)
        begun = [text for name, text in alarms.find_alarms(self.rows, self.settings) if name not in ringing]
        if begun:
            row["alarms"] = begun
        if not processes.is_first():
            return
        append_lines(self.path, to_json(row) + "\n")
        if self.on_step:
            self.on_step(row)

    def complete_last_row(self, figures: dict[str, Any]) -> None:
        """Add figures to the row written last, before its alarms, as if they had been there in time."""
        row = self.rows[-1]
        alarms_of_row = {"alarms": row.pop("alarms")} if "alarms" in row else {}
        row |= figures | alarms_of_row
        if processes.is_first():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self.path, [*lines[:-1], to_json(row) + "\n"])

    def _figures(self, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        now = time.monotonic()
        row = {"step": step, "seconds": round(now - self.started, 3), **logs}
        row.pop("epoch", None)  # prompts are drawn, so no epoch passes
        tokens = row.get("num_tokens", 0.0)
        row["tokens_per_second"] = round((tokens - self.tokens) / max(now - self.step_began, 1e-9), 1)
        self.tokens = tokens
        if torch.cuda.is_available():
            row["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        if (share := host_traffic_share(self.trainer.model)) is not None:
            row["host_share"] = round(share, 6)
            row["experts_on_host"] = round(experts_on_host(self.trainer.model), 6)
            reset_traffic(self.trainer.model)
        if reliefs := list_reliefs(self.trainer.model)[self.reliefs :]:
            row["reliefs"] = reliefs
            self.reliefs += len(reliefs)
        if self.trainer.accelerator.scaler is not None:
            row["skipped_steps"] = self.skipped
        return row


def is_step(logs: dict[str, Any] | None) -> bool:
    """Whether what the trainer logs are the figures of a step, and not the closing summary."""
    return bool(logs) and "train_runtime" not in logs


class CompletionRecorder(TrainerCallback):
    """Stands between TRL and the rewards and records what each completion was paid, in `completions.jsonl`.

    When TRL calls the first of them with a batch, all are called, those that are async side by side. Then the batch is
    written, one line per completion: `step`, `group` (counted from 1 within the step), `prompt`, `completion`,
    `answer`, and `rewards` by name, and `turns`, with calls and results, of one that called tools. When TRL calls the
    others, with the same batch, they answer what is known already.

    Args:
        path: the file.
        group_size: completions of a group, which lie side by side.
        rewards: the reward functions. `watched` are the same, recorded, each with a name of its own; TRL takes those.
        is_mixed: whether the rows are of several environments. Then a line also has its `environment`, and only the
            rewards that judged it.
    """

    def __init__(self, path: Path, group_size: int, rewards: list[Reward], is_mixed: bool = False) -> None:
        self.path, self.group_size, self.is_mixed = path, group_size, is_mixed
        self.rewards, self.names = rewards, reward_names(rewards)
        self.counted = (0, 0)  # a step, and how many of its completions are written
        self.paid: list[list[float | None]] = []
        self.watched = [self._watch(number, name) for number, name in enumerate(self.names)]

    def on_train_begin(self, args, state, control, **kwargs):
        self.counted = (0, 0)
        processes.broadcast_from_first(lambda: checkpoints.drop_rows_after(self.path, state.global_step))

    def _watch(self, number: int, name: str) -> Reward:
        def watched(**batch: Any) -> list[float | None]:
            if number == 0:
                self.paid = call_rewards(self.rewards, **batch)
                self._write(batch)
            return self.paid[number]

        watched.__name__ = name
        return watched

    def _write(self, batch: dict[str, Any]) -> None:
        step = batch["trainer_state"].global_step + 1
        lines = processes.all_gather(
            [
                {
                    "step": step,
                    "prompt": completion_text(batch["prompts"][i][-1:]),
                    "completion": completion_text(completion),
                    "answer": batch["answer"][i],
                    "rewards": {
                        name: values[i]
                        for name, values in zip(self.names, self.paid, strict=True)
                        if not self.is_mixed or values[i] is not None
                    },
                }
                | ({"environment": batch["environment"][i]} if self.is_mixed else {})
                | ({"turns": completion} if _has_calls(completion) else {})
                for i, completion in enumerate(batch["completions"])
            ]
        )
        at, written = self.counted
        written = written if at == step else 0
        self.counted = (step, written + len(lines))
        for place, line in enumerate(lines, start=written):
            line["group"] = 1 + place // self.group_size
        if processes.is_first():
            append_lines(self.path, "".join(to_json(line, ensure_ascii=False) + "\n" for line in lines))


def _has_calls(completion: Any) -> bool:
    """Whether a completion is a list of turns in which the policy called tools, or tried to."""
    turns = completion if isinstance(completion, list) else []
    return len(turns) > 1 or any({"tool_calls", "malformed_calls"} & turn.keys() for turn in turns)
