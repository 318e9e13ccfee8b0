"""What every trainer of TRL gets: checkpoints in the kit's own form, and steps repeated where memory runs out."""

import dataclasses
import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.optim.lr_scheduler import LambdaLR

from grpo_kit.adapters import lora
from grpo_kit.nemotron.placement.relief import with_relief
from grpo_kit.runs.files import to_json

T = TypeVar("T")
Batch = dict[str, torch.Tensor]


def remember_optimizer(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Copy the optimiser's parameters and state to the host; returns a function that sets them back."""
    values = [value for group in optimizer.param_groups for value in group["params"]]
    copies = [value.detach().cpu().clone() for value in values]
    states = [
        {key: item.cpu().clone() if isinstance(item, torch.Tensor) else item for key, item in state.items()}
        for state in (optimizer.state.get(value, {}) for value in values)
    ]

    def restore() -> None:
        for value, copy, state in zip(values, copies, states, strict=True):
            value.data.copy_(copy)
            now = optimizer.state.pop(value, {})
            for key, item in state.items():
                if isinstance(item, torch.Tensor):
                    now[key].copy_(item)
                    item = now[key]
                optimizer.state[value][key] = item

    return restore


class ResumableTrainer:
    """A mixin for a trainer of TRL: its checkpoints hold the adapter in the kit's own form.

    The frozen copy `ref`, which TRL makes of an adapter that was trained before, is no part of them.
    `callbacks.CheckpointCallback` writes them; the state of the stage itself goes through `save_extra` and
    `load_extra`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with lora.allow_mamba_targets():
            super().__init__(*args, **kwargs)

    def write_checkpoint(self, folder: Path, base: str) -> None:
        """Write all that resuming needs: adapter, optimiser, schedule, scaler, random numbers, trainer and stage state.

        Args:
            folder: an existing folder.
            base: the base model's name, for `adapter_config.json`.
        """
        lora.save_adapter(self.accelerator.unwrap_model(self.model), folder, base)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.save_extra(folder)
        # As `TrainerState.save_to_json` writes it, without the NaN of a step that had no gradient.
        state = to_json(dataclasses.asdict(self.state), indent=2, sort_keys=True)
        (folder / "trainer_state.json").write_text(state + "\n", encoding="utf-8")

    def load_checkpoint(self, folder: Path, step: int) -> None:
        """Load the policy of a checkpoint after `step` steps, without further training."""
        self._load_from_checkpoint(str(folder))
        self.state.global_step = step

    def undo_step(self) -> None:
        """Forget what the stage has noted since its last whole step, so that a checkpoint can be written."""

    def save_extra(self, folder: Path) -> None:
        """Write what the stage itself has to remember."""

    def load_extra(self, folder: Path) -> None:
        """Read what `save_extra` wrote."""

    def align_with_step(self) -> None:
        """Let a resumed training go on with the learning rate of one that was not interrupted.

        Without it the first step would have the rate of the checkpoint, whose `max_steps` may have been lower.
        """
        schedule = self.lr_scheduler
        if isinstance(schedule, LambdaLR):
            groups = zip(self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, base, factor in groups:
                group["lr"] = base * factor(schedule.last_epoch)
            schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def figures(self) -> dict[str, list[float]]:
        """What TRL has noted for the next row of the log: values by name."""
        return self._metrics["train"]

    def with_relief(self, work: Callable[[], T]) -> T:
        """Do a part of a step, such as a micro-batch's forward and backward pass; again if the GPU's memory runs out.

        See `relief.with_relief`. Gradients and figures are then as they were before.
        """
        return with_relief(self.model, work, "training", self._remember)

    def _remember(self) -> Callable[[], None]:
        trained = [value for value in self.model.parameters() if value.requires_grad]
        gradients = [None if value.grad is None else value.grad.cpu().clone() for value in trained]
        lengths = {name: len(values) for name, values in self.figures.items()}

        def restore() -> None:
            for value, gradient in zip(trained, gradients, strict=True):
                if gradient is None:
                    value.grad = None
                else:
                    value.grad.copy_(gradient)
            for name in list(self.figures):
                if name in lengths:
                    del self.figures[name][lengths[name] :]
                else:
                    del self.figures[name]

        return restore

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimiser of transformers; a step of it that finds no memory is taken again from where it began."""
        is_new, optimizer = self.optimizer is None, super().create_optimizer(*args, **kwargs)
        if is_new:
            plain = type(optimizer).step

            def step(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
                take_step = functools.partial(plain, optimizer, *args, **kwargs)
                remember = functools.partial(remember_optimizer, optimizer)
                return with_relief(self.model, take_step, "training", remember)

            optimizer.step = types.MethodType(step, optimizer)
        return optimizer

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Nothing: transformers calls `on_save` of the callbacks next, and `CheckpointCallback` writes there."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # PEFT's own reader would stack the experts' pairs.
        folder = Path(resume_from_checkpoint)
        lora.load_adapter_values(self.accelerator.unwrap_model(self.model), folder)
        self.load_extra(folder)
