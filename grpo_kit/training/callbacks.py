"""What happens between the steps of a training: context stages, checks, measurements, checkpoints and the time limit.

Every callback gets its trainer when it is made; only `StageCallback` needs TRL's GRPOTrainer.
"""

import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil
from transformers import TrainerCallback

from grpo_kit.config import Grpo, Stage
from grpo_kit.config.checks import parse_duration
from grpo_kit.nemotron.placement.tiered_layers import unreached_experts
from grpo_kit.runs import interrupts, processes
from grpo_kit.training import checkpoints
from grpo_kit.training.metrics_log import MetricsCallback, is_step
from grpo_kit.training.trl_settings import trl_epsilon_high

CLIPPED = 0.3  # share of truncated completions above which a context stage is too short for what the policy writes
PLATEAU = 20  # steps without a better mean reward
BY_USER = "the user stopped it."  # a reason of `StopCallback`
# Hours of a session: Kaggle's rule, and Colab's usual end, which it may cut short.
SESSION_HOURS = {"KAGGLE_KERNEL_RUN_TYPE": 12.0, "COLAB_RELEASE_TAG": 12.0}

Callback = TypeVar("Callback", bound=TrainerCallback)


def find_callback(trainer: Any, kind: type[Callback]) -> Callback:
    """The trainer's callback of this class."""
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kind))


class InterruptCallback(TrainerCallback):
    """Lets SIGTERM and SIGINT end the training anywhere but between an optimiser's step and its row. Comes first."""

    def on_step_begin(self, args, state, control, **kwargs):
        interrupts.release()

    def on_substep_end(self, args, state, control, **kwargs):
        interrupts.check()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        interrupts.hold()

    def on_train_end(self, args, state, control, **kwargs):
        interrupts.release()


class AlignCallback(TrainerCallback):
    """Lets a resumed training go on as one that was not interrupted (`ResumableTrainer.align_with_step`)."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.align_with_step()


class StageCallback(AlignCallback):
    """Sets length, KL, upper clip and learning rate of the context stage of the coming step, and notes its number.

    With stages the context grows over a run; DeepScaleR trained with 8K, 16K and 24K tokens. A batch that is trained on
    several times keeps the stage in which it was drawn.
    """

    def __init__(self, trainer: Any, grpo: Grpo, metrics: MetricsCallback) -> None:
        super().__init__(trainer)
        self.grpo, self.metrics = grpo, metrics

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.grpo.stages:
            return
        rows = self.metrics.rows
        number = find_stage(self.grpo.stages, rows[: len(rows) - len(rows) % args.num_iterations])
        stage = self.grpo.stages[number]
        length = stage.max_completion_length
        self.trainer.max_completion_length = args.max_completion_length = length
        self.trainer.generation_config.max_new_tokens = length
        self.trainer.beta = self.grpo.beta if stage.beta is None else stage.beta
        self.trainer.epsilon_high = trl_epsilon_high(self.grpo, stage)
        self._set_rate(self.grpo.learning_rate if stage.learning_rate is None else stage.learning_rate)
        self.metrics.extra["stage"] = number

    def _set_rate(self, rate: float) -> None:
        """Let the schedule go on from where it is, as a multiple of `rate`."""
        schedule, groups = self.trainer.lr_scheduler, self.trainer.optimizer.param_groups
        for group, current, base in zip(groups, schedule.get_last_lr(), schedule.base_lrs, strict=True):
            if base != rate:
                group["lr"] = current * rate / base
        schedule.base_lrs = [rate] * len(groups)


def find_stage(stages: list[Stage], rows: list[dict[str, Any]]) -> int:
    """The number, from 0, of the context stage that the step after `rows` is in.

    It depends on the metrics rows alone, so a resumed run is in the stage it was in. A stage ends when its `steps` are
    over, or earlier when the next stage's `enter` holds: `clipped`, when more than 30 % of the completions of 10 steps
    were truncated; `plateau`, when the mean reward of the last 20 steps is not better than that of the 20 before.
    """
    number, began = 0, 0
    for done in range(1, len(rows) + 1):
        if number + 1 < len(stages) and _is_over(stages[number], stages[number + 1], rows[began:done]):
            number, began = number + 1, done
    return number


def _is_over(stage: Stage, following: Stage, rows: list[dict[str, Any]]) -> bool:
    if stage.steps is not None and len(rows) >= stage.steps:
        return True
    if following.enter == "clipped" and len(rows) >= 10:
        return _mean(rows[-10:], "completions/clipped_ratio") > CLIPPED
    if following.enter == "plateau" and len(rows) >= 2 * PLATEAU:
        return _mean(rows[-PLATEAU:], "reward") <= _mean(rows[-2 * PLATEAU : -PLATEAU], "reward")
    return False


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row.get(key) or 0.0 for row in rows) / len(rows)


class GradientCheckCallback(TrainerCallback):
    """Stops a run in which some LoRA pairs are dead: before the first update with a gradient, every pair must have one.

    A LoRA's B starts at 0, so at first only B gets a gradient. A batch without any gradient (all groups flat) says
    nothing yet, and neither does a routed expert that no token with an advantage chose.
    """

    def __init__(self) -> None:
        self.done = False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.done:
            return
        trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        alive = {n: p.grad is not None and bool(p.grad.any()) for n, p in trained if ".lora_B." in n}
        if not any(alive.values()):
            return
        self.done = True
        waiting = unreached_experts(model)
        pairs = {name.split(".lora_B.")[0]: has for name, has in alive.items() if not name.startswith(waiting)}
        dead = [name for name, has in pairs.items() if not has]
        if dead:
            raise RuntimeError(
                f"{len(dead)} of {len(pairs)} LoRA pairs get no gradient ({', '.join(dead[:3])}); training them "
                "changes nothing. Take them out of lora.target_modules."
            )


class HeldOutCallback(TrainerCallback):
    """Calls `measure` every `steps` steps and adds the accuracy on validation rows to the next metrics row.

    A row that was written without it, because the measurement was interrupted, gets it when the training is resumed.
    """

    def __init__(self, steps: int, measure: Callable[[], dict[str, Any]], metrics: MetricsCallback) -> None:
        self.steps, self.measure, self.metrics = steps, measure, metrics

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step and self._is_due(state) and "held_out" not in self.metrics.rows[-1]:
            self.metrics.complete_last_row(self.measure())

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if not self._is_due(state):
            return
        training = model.training
        try:
            interrupts.release()
            self.metrics.extra |= self.measure()
        except (KeyboardInterrupt, SystemExit):
            if not interrupts.pending():
                raise
        interrupts.hold()
        model.train(training)

    def _is_due(self, state: Any) -> bool:
        return bool(self.steps) and state.global_step % self.steps == 0


class StopCallback(TrainerCallback):
    """Ends the run after a step, and says why: the user stops it, a new alarm rings, or the time is up.

    Args:
        metrics: the callback whose last row is read; it must come before this one.
        deadline: in seconds of `time.time()`; a step that is expected to end later is not begun.
        should_stop: whether the user wants to stop; asked after every step.
        on_alarm: `grpo.on_alarm`; `stop` ends the run at the first alarm.
    """

    def __init__(
        self,
        metrics: MetricsCallback,
        deadline: float | None,
        should_stop: Callable[[], bool] | None,
        on_alarm: str,
    ) -> None:
        self.metrics, self.deadline, self.should_stop, self.on_alarm = metrics, deadline, should_stop, on_alarm
        self.began, self.longest = 0.0, 0.0  # of a step, in seconds
        self.out_of_time = False

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.time()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not is_step(logs):
            return
        self.longest = max(self.longest, time.time() - self.began)
        # One process decides for all: clocks differ, and only the first sees a button.
        reason, self.out_of_time = processes.broadcast_from_first(self._find_reason)
        if reason and state.global_step < state.max_steps:
            control.should_training_stop = True
            if reason != BY_USER:  # who knows
                warnings.warn(
                    f"Stopped at step {state.global_step} of {state.max_steps}: {reason} Run the training again to "
                    "continue.",
                    stacklevel=2,
                )

    def _find_reason(self) -> tuple[str | None, bool]:
        """(the reason to stop or None, whether the time is up)."""
        ringing = self.metrics.rows[-1].get("alarms", [])
        if ringing and self.on_alarm == "stop":
            return ringing[0], False
        if self.should_stop and self.should_stop():
            return BY_USER, False
        if self.deadline and time.time() + self.longest > self.deadline:
            return "its time is up (run.time_limit).", True
        return None, False


def session_deadline(limit: str | None, reserve: float, environ: Mapping[str, str] = os.environ) -> float | None:
    """When training must stop so that what follows still fits into the session.

    Args:
        limit: `run.time_limit`, such as 3h30m, counted from the start of this process; None: what Kaggle or Colab give.
        reserve: seconds for what comes after training.
        environ: the environment variables that tell where this runs.

    Returns:
        Seconds of `time.time()`, never before now; None where nothing ends the session.
    """
    hours = next((hours for name, hours in SESSION_HOURS.items() if environ.get(name)), None)
    if limit is None and hours is None:
        return None
    allowed = parse_duration("run.time_limit", limit) if limit else hours * 3600
    return max(psutil.Process().create_time() + allowed - reserve, time.time())


class CheckpointCallback(TrainerCallback):
    """Writes a checkpoint every `steps` and one at the end. Comes last, so that it sees whether the run stops.

    Args:
        trainer: a `trl_internals.resumable.ResumableTrainer`.
        folder: the run's `checkpoints`.
        steps: between checkpoints.
        settings: those of the training; a checkpoint with other settings is not resumed.
        base: name of the base model.
    """

    def __init__(self, trainer: Any, folder: Path, steps: int, settings: dict[str, Any], base: str) -> None:
        self.trainer, self.folder, self.steps, self.settings, self.base = trainer, folder, steps, settings, base

    def on_log(self, args, state, control, logs=None, **kwargs):
        if is_step(logs):
            last = state.global_step >= state.max_steps or control.should_training_stop
            complete = state.global_step % getattr(args, "num_iterations", 1) == 0  # no batch is half used
            control.should_save = last or (complete and state.global_step % self.steps == 0)

    def on_save(self, args, state, control, **kwargs):
        self.save(state.global_step)
        self.trainer.accelerator.wait_for_everyone()

    def save(self, step: int) -> Path | None:
        """Write the checkpoint of the step just taken; returns its path, None where it could not be written."""
        if not processes.is_first():  # all processes have the same: gradients are shared, prompts drawn alike
            return None

        def write(folder: Path) -> None:
            self.trainer.write_checkpoint(folder, self.base)

        return checkpoints.save_checkpoint(self.folder, step, self.settings, write)
