"""What is done between the steps of a training: context stages, checks, checkpoints, the clock."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from grpo_kit.config import Grpo
from grpo_kit.nemotron import expert_placement
from grpo_kit.runs import processes
from grpo_kit.training import checkpoints
from grpo_kit.training.length_stages import stage_of
from grpo_kit.training.metrics_log import MetricsCallback, is_step
from grpo_kit.training.trl_settings import trl_epsilon_high


class StageCallback(TrainerCallback):
    """Sets length, KL, upper clip and learning rate of the stage that the coming step is in, and notes its number as `stage`.

    A batch that is trained on several times keeps the stage it was drawn in.
    """

    def __init__(self, grpo: Grpo, metrics: MetricsCallback) -> None:
        self.grpo, self.metrics, self.trainer = grpo, metrics, None

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.grpo.stages:
            return
        whole = len(self.metrics.rows) - len(self.metrics.rows) % args.num_iterations
        number = stage_of(self.grpo.stages, self.metrics.rows[:whole])
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
        for group, at, base in zip(groups, schedule.get_last_lr(), schedule.base_lrs, strict=True):
            if base != rate:
                group["lr"] = at * rate / base
        schedule.base_lrs = [rate] * len(groups)


class GradientCheckCallback(TrainerCallback):
    """Stops a run whose LoRA is dead in part: before the first update that has a gradient, every pair must have one.

    A LoRA's B starts at 0, so at first only B gets a gradient. A batch without any (all groups alike) says nothing yet, nor
    does a routed expert that no token of weight chose.
    """

    def __init__(self) -> None:
        self.done = False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.done:
            return
        alive = {n: p.grad is not None and bool(p.grad.any()) for n, p in model.named_parameters() if ".lora_B." in n}
        if not any(alive.values()):
            return
        self.done = True
        waiting = expert_placement.unreached(model)
        pairs = {name.split(".lora_B.")[0]: has for name, has in alive.items() if not name.startswith(waiting)}
        dead = [name for name, has in pairs.items() if not has]
        if dead:
            raise RuntimeError(
                f"{len(dead)} of {len(pairs)} LoRA pairs get no gradient ({', '.join(dead[:3])}); training them changes "
                "nothing. Take them out of lora.target_modules."
            )


class HeldOutCallback(TrainerCallback):
    """Measures accuracy on validation rows every `steps`, by `measure`, and notes it as `held_out` with `held_out_ci95`."""

    def __init__(self, steps: int, measure: Callable[[], dict[str, Any]], metrics: MetricsCallback) -> None:
        self.steps, self.measure, self.metrics = steps, measure, metrics

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.steps and state.global_step % self.steps == 0:
            training = model.training
            self.metrics.extra |= self.measure()
            model.train(training)


class StopCallback(TrainerCallback):
    """Ends the run after a step, and says why: it was asked to, a new alarm rings, or the next step would pass `deadline`
    (`time.time()`). Stands behind the metrics, whose last row it looks at."""

    def __init__(
        self, metrics: MetricsCallback, deadline: float | None, asked: Callable[[], bool] | None, on_alarm: str
    ) -> None:
        self.metrics, self.deadline, self.asked, self.on_alarm = metrics, deadline, asked, on_alarm
        self.began, self.longest = 0.0, 0.0
        self.out_of_time = False

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.time()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not is_step(logs):
            return
        self.longest = max(self.longest, time.time() - self.began)
        why, self.out_of_time = processes.broadcast_from_first(
            self._why
        )  # by one clock, and by whoever sees the button
        if why and state.global_step < state.max_steps:
            control.should_training_stop = True
            warnings.warn(
                f"Stopped at step {state.global_step} of {state.max_steps}: {why} Call again to go on.", stacklevel=2
            )

    def _why(self) -> tuple[str | None, bool]:
        """(why to stop, whether for the time)."""
        rung = self.metrics.rows[-1].get("alarms", [])
        if rung and self.on_alarm == "stop":
            return rung[0], False
        if self.asked and self.asked():
            return "it was asked to.", False
        if self.deadline and time.time() + self.longest > self.deadline:
            return "its time is up (run.time_limit).", True
        return None, False


class CheckpointCallback(TrainerCallback):
    """Asks for a checkpoint every `steps`, and for one at the end; the trainer writes it by `keep`. Stands last."""

    def __init__(self, folder: Path, steps: int, settings: dict[str, Any], base: str) -> None:
        self.folder, self.steps, self.settings, self.base, self.trainer = folder, steps, settings, base, None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if is_step(logs):
            last = state.global_step >= state.max_steps or control.should_training_stop
            whole = state.global_step % args.num_iterations == 0  # no batch is half used
            control.should_save = last or (whole and state.global_step % self.steps == 0)

    def keep(self) -> None:
        """Write `checkpoints/step_N`, whole or not at all."""
        step = self.trainer.state.global_step
        if processes.is_first():  # all have the same: gradients are shared, prompts drawn alike
            checkpoints.save_checkpoint(
                self.folder, step, self.settings, lambda folder: self.trainer.write_checkpoint(folder, self.base)
            )
        self.trainer.accelerator.wait_for_everyone()
