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
from grpo_kit.runs import interrupts, processes
from grpo_kit.runs.files import hash_of, new_folder
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run
from grpo_kit.submission import output_check
from grpo_kit.training import checkpoints

RESERVED = 120.0  # seconds of a session reserved for packing, in addition to what measuring took before training
PROBED = 8  # test prompts whose logits prove later that the zip holds this policy


@dataclass(frozen=True)
class TrainingStage:
    """The stage `train` of a run.

    Args:
        config: the run's configuration.
        run: the run.
        settings: what decides the result besides the files that are read.
        steps: optimiser steps until the stage is finished.
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
        steps = self.run.stages().get("train", {}).get("steps")
        stands = processes.broadcast_from_first(
            lambda: self.run.is_done("train", self.settings, self.reads, self.config.run.force)
        )
        return stands and steps == self.steps

    def find_checkpoint(self) -> tuple[int, Path] | None:
        """(step, folder) to resume from; None if the stage starts again, after removing its old checkpoints."""

        def find() -> tuple[int, Path] | None:
            newest = None if self.config.run.force else checkpoints.find_checkpoint(self.checkpoints, self.identity)
            if newest is None:
                checkpoints.clear_checkpoints(self.checkpoints)
            return newest

        return processes.broadcast_from_first(find)

    def train(self, trainer: Any, checkpoint: tuple[int, Path] | None) -> None:
        """Take the steps that are left, from `checkpoint` on; an interrupted training keeps the steps that it took."""
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

    def save_results(self, trainer: Any, out_of_time: bool) -> None:
        """Write the adapter, whole or not at all, and the probe; record the stage in `run.json`."""

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
                steps=steps,
                out_of_time=out_of_time and steps < self.steps,
            )

        processes.broadcast_from_first(save)
