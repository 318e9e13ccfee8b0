"""What stages that train share: whether a stage is finished, where it resumes, and what it writes into the run folder.

A stage brings its own settings and its own trainer, a `trl_internals.ResumableTrainer`; `train` is GRPO's.
"""

import functools
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_kit.adapters.lora import save_adapter
from grpo_kit.config import RunConfig, to_yaml
from grpo_kit.runs import activity, interrupts, processes
from grpo_kit.runs.files import hash_of, new_folder
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run
from grpo_kit.submission import output_check
from grpo_kit.training import checkpoints

RESERVED = 120.0  # seconds of a session reserved for packing, in addition to what measuring took before training
STEADY = ("constant", "constant_with_warmup", "inverse_sqrt")  # schedules that do not depend on the number of steps
EARLIER = "train to step "  # the names of what was trained before grpo.max_steps was raised begin so in run.json
PROBED = 8  # test prompts whose logits prove later that the zip holds this policy


@dataclass(frozen=True)
class TrainingStage:
    """The stage `train` of a run.

    Args:
        config: the run's configuration.
        run: the run.
        settings: what decides the result besides the files that are read.
        steps: optimiser steps until the stage is finished; `settings` have them as `grpo.max_steps`. A training that
            differs in a higher number only goes on from the one before.
        screened: whether the training rows are the screened ones.
    """

    config: RunConfig
    run: Run
    settings: dict[str, Any]
    steps: int
    screened: bool
    began: float = field(default_factory=time.monotonic)

    @property
    def reads(self) -> list[Path]:
        """The files that the stage reads, for the record."""
        return [self.run.manifest, *([self.run.screened] if self.screened else [])]

    @property
    def checkpoints(self) -> Path:
        """The folder of the stage's checkpoints."""
        return self.run.path / "checkpoints"

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Settings and hashes of the inputs; a checkpoint with another identity is not resumed."""
        return self.settings | {"reads": {path.name: hash_of(path) for path in self.reads}}

    def reserved_seconds(self) -> float:
        """Seconds of the session that what follows training needs."""
        return self.run.stages().get("before", {}).get("seconds", 0.0) + RESERVED

    def is_finished(self) -> bool:
        """Whether the stage is up to date, with all its steps.

        Raises:
            ValueError: it was made with other settings, and `run.force` is not set.
        """
        stands = processes.broadcast_from_first(
            lambda: self.run.is_done("train", self._settings_of_record(), self.reads, self.config.run.force)
        )
        return stands and self.run.stages()["train"].get("steps") == self.steps

    def _settings_of_record(self) -> dict[str, Any]:
        return _with_steps_of(self.run.stages().get("train", {}).get("settings", {}), self.settings)

    @functools.cached_property
    def earlier(self) -> dict[str, dict[str, Any]]:
        """{name: record} of the trainings with fewer steps that this one goes on from, the first one first."""
        records = {} if self.config.run.force else self.run.stages()
        parts = {name: record for name, record in records.items() if name.startswith(EARLIER)}
        last = records.get("train")
        if last and last["settings"]["grpo"]["max_steps"] < self.steps:
            parts[f"{EARLIER}{last['steps']}"] = last
        return parts

    @property
    def differs_from_one_training(self) -> str | None:
        """What makes the result differ from that of one training with all steps; None where nothing does."""
        kind = self.config.grpo.lr_scheduler_type
        if not self.earlier:
            return None
        if kind not in STEADY:
            return f"the learning rate of grpo.lr_scheduler_type={kind} was planned for fewer steps"
        if self.screened:
            return "the screened prompts begin again with the easy ones"
        if self.parts[-1] % self.config.grpo.num_iterations:
            return "the last batch was trained on fewer times than grpo.num_iterations"
        return None

    @property
    def parts(self) -> list[int]:
        """Each `grpo.max_steps` of those trainings."""
        return [record["settings"]["grpo"]["max_steps"] for record in self.earlier.values()]

    def find_checkpoint(self) -> tuple[int, Path] | None:
        """(step, folder) to resume from; None if the stage starts again, after removing its old checkpoints.

        Raises:
            ValueError: the checkpoint was made with other settings; or the run has an adapter without a checkpoint, and
                `run.force` is not set.
        """

        def find() -> tuple[int, Path] | None:
            if self.config.run.force:
                newest = None
            else:
                newest = checkpoints.find_checkpoint(self.checkpoints, self.identity, _with_steps_of)
                if newest is None and "train" in self.run.stages() and self.run.adapter.exists():
                    raise ValueError(
                        f"Run {self.run.name!r} is trained to step {self.run.stages()['train'].get('steps')} and "
                        f"{self.checkpoints} holds no checkpoint to go on from. Use --force (run.force=true) to train "
                        "from the start, or --run (run.name) for a new run."
                    )
            if newest is None:
                checkpoints.clear_checkpoints(self.checkpoints)
            return newest

        return processes.broadcast_from_first(find)

    def train(self, trainer: Any, checkpoint: tuple[int, Path] | None) -> None:
        """Take the steps that are left, from `checkpoint` on; an interrupted training keeps the steps that it took."""
        if checkpoint and self.differs_from_one_training and processes.is_first():
            warnings.warn(
                f"The training goes on from step {checkpoint[0]} to step {self.steps}. Its result differs from that of "
                f"one training of {self.steps} steps: {self.differs_from_one_training}.",
                stacklevel=2,
            )
        try:
            self._take_steps(trainer, checkpoint)
        except BaseException:
            if interrupts.pending() in (KeyboardInterrupt, interrupts.Terminated):
                self._save_interrupted(trainer)
            raise

    def _save_interrupted(self, trainer: Any) -> None:
        from grpo_kit.training import callbacks

        step = trainer.state.global_step
        if not step or not processes.is_first():
            return
        interrupts.hold()  # a second Ctrl-C does not lose what the first one saves
        trainer.undo_step()
        if (self.checkpoints / f"step_{step}").is_dir() or callbacks.find_callback(
            trainer, callbacks.CheckpointCallback
        ).save(step):
            warnings.warn(
                f"Interrupted after step {step} of {self.steps}, of which a checkpoint is kept. Run the training again "
                "to continue.",
                stacklevel=2,
            )

    def _take_steps(self, trainer: Any, checkpoint: tuple[int, Path] | None) -> None:
        if checkpoint is None:
            trainer.train()
        elif checkpoint[0] < self.steps:
            trainer.train(resume_from_checkpoint=str(checkpoint[1]))
        else:  # killed between its last step and its record; transformers would take a further step
            step, folder = checkpoint
            trainer.load_checkpoint(folder, step)
            for path in (self.run.metrics, self.run.completions):
                processes.broadcast_from_first(functools.partial(checkpoints.drop_rows_after, path, step))

    def save_results(self, trainer: Any, out_of_time: bool, **more: Any) -> None:
        """Write the adapter, whole or not at all, and the probe; record the stage and `more` in `run.json`."""

        activity.announce("saving the adapter")

        def save() -> None:
            run, steps = self.run, trainer.state.global_step
            model = trainer.accelerator.unwrap_model(trainer.model).eval()
            with new_folder(run.adapter) as aside:
                save_adapter(model, aside, self.config.policy.model)
            prompts = [row["prompt"] for row in read_lines(run.data_file("test"))[:PROBED]]
            thinking = self.config.policy.enable_thinking
            output_check.write_probe(model, trainer.processing_class, prompts, thinking, run.probe)
            run.record_stage(
                "train",
                self.settings,
                self.reads,
                [run.adapter, run.probe, run.metrics, run.completions],
                time.monotonic() - self.began,
                to_yaml(self.config),
                earlier=self.earlier,
                steps=steps,
                out_of_time=out_of_time and steps < self.steps,
                **more,
            )

        processes.broadcast_from_first(save)


def _with_steps_of(before: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with the `grpo.max_steps` of `before`, where that is lower: so far both trainings are the same."""
    steps = min(before.get("grpo", {}).get("max_steps", settings["grpo"]["max_steps"]), settings["grpo"]["max_steps"])
    return settings | {"grpo": settings["grpo"] | {"max_steps": steps}}
