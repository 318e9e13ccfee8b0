"""What stages that train share: whether a stage is finished, where it resumes, and what it writes into the run folder.

A stage brings its own settings and its own trainer, a `trl_internals.resumable.ResumableTrainer`. `sft`, `train`
(GRPO) and `prefer` (DPO) train the run's one LoRA one after the other.
"""

import functools
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_kit.adapters.lora import save_adapter
from grpo_kit.config import RunConfig, to_yaml
from grpo_kit.runs import activity, interrupts, processes
from grpo_kit.runs.files import hash_of, list_differences, new_folder
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run
from grpo_kit.runs.trained import StageFiles
from grpo_kit.submission import output_check
from grpo_kit.training import checkpoints

RESERVED = 120.0  # seconds of a session reserved for packing, in addition to what measuring took before training
STEADY = ("constant", "constant_with_warmup", "inverse_sqrt")  # schedules that do not depend on the number of steps
SECTIONS = {"sft": "sft", "train": "grpo", "prefer": "dpo"}  # of the configuration, for each stage
PROBED = 8  # test prompts whose logits prove later that the zip holds this policy


@dataclass(frozen=True)
class TrainingStage:
    """One of a run's stages that train.

    Args:
        config: the run's configuration.
        run: the run.
        settings: what decides the result besides the files that are read; among them the section of the stage.
        steps: optimiser steps until the stage is finished; `settings` have them as `max_steps` of the stage's section.
            A training that differs in a higher number only goes on from the one before.
        screened: whether the training rows are the screened ones.
        name: `sft`, `train` or `prefer`.
        more_reads: files that the stage reads besides the data, the screened rows and the adapter it begins with.
    """

    config: RunConfig
    run: Run
    settings: dict[str, Any]
    steps: int
    screened: bool = False
    name: str = "train"
    more_reads: Sequence[Path] = ()
    began: float = field(default_factory=time.monotonic)

    @property
    def section(self) -> str:
        """The section of the configuration that says how the stage trains."""
        return SECTIONS[self.name]

    @property
    def files(self) -> StageFiles:
        """Where the stage keeps its files."""
        return self.run.stage_files(self.name)

    @functools.cached_property
    def before(self) -> str | None:
        """The stage whose adapter this one goes on from; None where it begins with a fresh LoRA."""
        return self.run.stage_before(self.name)

    @property
    def start(self) -> Path | None:
        """The folder of the adapter that the stage begins with; None for a fresh LoRA."""
        return self.run.stage_files(self.before).adapter if self.before else None

    @property
    def reads(self) -> list[Path]:
        """The files that the stage reads, for the record."""
        screened = [self.run.screened] if self.screened else []
        return [self.run.manifest, *screened, *([self.start] if self.start else []), *self.more_reads]

    @property
    def checkpoints(self) -> Path:
        """The folder of the stage's checkpoints."""
        return self.files.checkpoints

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` has on the stage; empty where it is not finished."""
        return self.run.stages().get(self.name, {})

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Settings and hashes of the inputs; a checkpoint with another identity is not resumed."""
        names = {path: path.relative_to(self.run.path) if path == self.start else path.name for path in self.reads}
        return self.settings | {"reads": {str(names[path]): hash_of(path) for path in self.reads}}

    def reserved_seconds(self) -> float:
        """Seconds of the session that what follows training needs."""
        return self.run.stages().get("before", {}).get("seconds", 0.0) + RESERVED

    def is_finished(self) -> bool:
        """Whether the stage is up to date, with all its steps.

        Raises:
            ValueError: it was made with other settings, or a later stage went on without it, and `run.force` is not
                set; or the stage before has another LoRA or policy.
        """
        stands = processes.broadcast_from_first(self._is_recorded)
        return stands and self.record.get("steps") == self.steps

    def _is_recorded(self) -> bool:
        force, settings = self.config.run.force, self._with_steps_of(self.record.get("settings", {}), self.settings)
        if self.before:
            self.run.require_stage(self.before, f"grpo-kit {self.before}")
            made_with = self.run.stages()[self.before]["settings"]
            if changes := list_differences(
                *({key: of[key] for key in ("policy", "lora")} for of in (made_with, self.settings))
            ):
                raise ValueError(
                    f"Stage {self.name!r} goes on from the adapter of stage {self.before!r}, which was made with "
                    f"different settings ({'; '.join(changes[:3])}). Use the same, or --run (run.name) for a new run."
                )
        stands = self.run.is_done(self.name, settings, self.reads, force)
        later = self.run.stages_after(self.name)
        if later and not force and not (stands and self.record.get("steps") == self.steps):
            raise ValueError(
                f"Stage {later[0]!r} of run {self.run.name!r} is finished, and stage {self.name!r} comes before it. "
                f"Use --run (run.name) for a new run; or make this stage again with --force (run.force=true), and then "
                f"stage {later[0]!r}, which goes on from its result."
            )
        return stands

    @functools.cached_property
    def earlier(self) -> dict[str, dict[str, Any]]:
        """{name: record} of the trainings with fewer steps that this one goes on from, the first one first."""
        records = {} if self.config.run.force else self.run.stages()
        earlier = f"{self.name} to step "
        parts = {name: record for name, record in records.items() if name.startswith(earlier)}
        last = records.get(self.name)
        if last and last["settings"][self.section]["max_steps"] < self.steps:
            parts[f"{earlier}{last['steps']}"] = last
        return parts

    @property
    def differs_from_one_training(self) -> str | None:
        """What makes the result differ from that of one training with all steps; None where nothing does."""
        settings = self.settings[self.section]
        if not self.earlier:
            return None
        if (kind := settings["lr_scheduler_type"]) not in STEADY:
            return f"the learning rate of {self.section}.lr_scheduler_type={kind} was planned for fewer steps"
        if self.screened:
            return "the screened prompts begin again with the easy ones"
        if self.parts[-1] % settings.get("num_iterations", 1):
            return "the last batch was trained on fewer times than grpo.num_iterations"
        return None

    @property
    def parts(self) -> list[int]:
        """Each `max_steps` of those trainings."""
        return [record["settings"][self.section]["max_steps"] for record in self.earlier.values()]

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
                newest = checkpoints.find_checkpoint(self.checkpoints, self.identity, self._with_steps_of)
                if newest is None and self.record and self.files.adapter.exists():
                    raise ValueError(
                        f"Stage {self.name!r} of run {self.run.name!r} is trained to step {self.record['steps']} and "
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
            for path in filter(Path.exists, (self.files.metrics, self.files.completions)):
                processes.broadcast_from_first(functools.partial(checkpoints.drop_rows_after, path, step))

    def save_results(self, trainer: Any, out_of_time: bool, wrote: Sequence[Path] = (), **more: Any) -> None:
        """Write the adapter, whole or not at all, and the probe; record the stage, further files, and `more`."""
        activity.announce("saving the adapter")

        def save() -> None:
            run, files, steps = self.run, self.files, trainer.state.global_step
            model = trainer.accelerator.unwrap_model(trainer.model).eval()
            with new_folder(files.adapter) as aside:
                save_adapter(model, aside, self.config.policy.model)
            prompts = [row["prompt"] for row in read_lines(run.data_file("test"))[:PROBED]]
            thinking = self.config.policy.enable_thinking
            output_check.write_probe(model, trainer.processing_class, prompts, thinking, files.probe)
            run.record_stage(
                self.name,
                self.settings,
                self.reads,
                [files.adapter, files.probe, files.metrics, *wrote],
                time.monotonic() - self.began,
                to_yaml(self.config),
                earlier=self.earlier,
                steps=steps,
                out_of_time=out_of_time and steps < self.steps,
                **more,
            )

        processes.broadcast_from_first(save)

    def _with_steps_of(self, before: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """`settings` with the `max_steps` of `before`, where that is lower: so far both trainings are the same."""
        own = settings[self.section]
        steps = min(before.get(self.section, {}).get("max_steps", own["max_steps"]), own["max_steps"])
        return settings | {self.section: own | {"max_steps": steps}}
