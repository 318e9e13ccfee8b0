"""TRL's SFTTrainer and DPOTrainer, which learn from rows as they are."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from trl import DPOTrainer, SFTTrainer

from grpo_kit.adapters import lora
from grpo_kit.training.trl_internals.machine import leave_sampling
from grpo_kit.training.trl_internals.resumable import Batch, ResumableTrainer


class RowsTrainer(ResumableTrainer):
    """A mixin for a trainer of TRL that learns from rows as they are, and samples none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        leave_sampling(self._base_model())

    def _base_model(self) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        return getattr(model, "get_base_model", lambda: model)()

    @property
    def tokens_seen(self) -> int:
        """Tokens of all steps so far, prompts included, padding not: the figure `num_tokens`."""
        return self._total_train_tokens

    @tokens_seen.setter
    def tokens_seen(self, count: int) -> None:
        self._total_train_tokens = count

    def _remember(self) -> Callable[[], None]:
        restore, tokens = super()._remember(), self.tokens_seen

        def restore_all() -> None:
            restore()
            self.tokens_seen = tokens

        return restore_all

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's micro-batch; its passes are repeated where memory ran out."""
        return self.with_relief(functools.partial(super().training_step, model, inputs, num_items_in_batch))


class OpenSFTTrainer(RowsTrainer, SFTTrainer):
    """TRL's SFTTrainer with public names for the steps that the kit changes. By itself it does what TRL does."""

    @torch.no_grad()
    def score_tokens(self, ids: list[int], labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """How likely the policy finds the tokens of one row.

        Args:
            ids: the row's tokens.
            labels: the same, -100 where a token is not scored.

        Returns:
            `(tokens - 1,)` log-probs of the tokens after the first one, in nats, 0 where a token is not scored; and as
            many bools, whether the token is the most likely one.
        """
        device = self.accelerator.device
        row = {"input_ids": torch.tensor([ids], device=device), "labels": torch.tensor([labels], device=device)}
        with self.compute_loss_context_manager():
            outputs = self.with_relief(functools.partial(self._base_model(), **row, fused_lm_head=True))
        return outputs.log_probs[0].float().cpu(), outputs.is_top1[0].bool().cpu()


class OpenDPOTrainer(RowsTrainer, DPOTrainer):
    """TRL's DPOTrainer on rows of token ids, with the log-probs of the reference in two columns of them.

    TRL keeps a frozen copy `ref` of an adapter that was trained before. It is removed: the columns say what the
    reference, the policy before its first step, finds. Rows are taken as they are; TRL would write them by the chat
    template once more.

    Args:
        args, kwargs: TRL's. `model` is PEFT's; rows have `prompt_ids`, `chosen_ids` and `rejected_ids`, and
            `ref_chosen_logps` and `ref_rejected_logps` before the first step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        trained = [(value, value.data) for value in kwargs["model"].parameters() if value.requires_grad]
        super().__init__(*args, **kwargs)
        for value, data in trained:  # TRL casts the LoRA of a 4-bit model to bf16, which a T4 lacks
            value.data = data
        lora.drop_copies(self.accelerator.unwrap_model(self.model))
        self.precompute_ref_logps = True

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset

    @torch.no_grad()
    def score_batch(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The policy's log-probs of a batch, computed as its loss computes them.

        Args:
            batch: of the trainer's own collator.

        Returns:
            `(pairs,)` of the chosen and of the rejected completions, in nats, each summed over the tokens.
        """
        inputs = self._prepare_inputs(batch)
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        rows = {key: inputs[key] for key in ("input_ids", "attention_mask")} | {"labels": labels, "use_cache": False}
        with self.compute_loss_context_manager():
            outputs = self.with_relief(functools.partial(self.model, **rows, fused_lm_head=True))
        chosen, rejected = outputs.log_probs.sum(dim=1).float().cpu().chunk(2)
        return chosen, rejected
