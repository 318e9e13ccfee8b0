"""TRL's SFTTrainer on texts: rows in an order of their own, and a trial of the longest before the first step.

TRL computes the loss, the mean negative log-prob of the replies' tokens over all rows of a step.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback

from grpo_kit.nemotron.placement.tiered_layers import reset_counts
from grpo_kit.runs import activity
from grpo_kit.runs.files import to_json
from grpo_kit.training.grpo.worst_step import time_work
from grpo_kit.training.sft.rows import Row, order_rows
from grpo_kit.training.trl_internals.rows import OpenSFTTrainer

TEXTS_FILE = "texts.json"  # of a checkpoint


class TextTrainer(OpenSFTTrainer):
    """An SFTTrainer that takes rows in the order of `order_rows`.

    Args:
        model: the policy with its LoRA.
        args: a `trl.SFTConfig`, as `trl_settings.make_sft_config` makes it.
        rows: the texts, in tokens.
        processing_class: the tokenizer.
    """

    def __init__(self, model: Any, args: Any, rows: Sequence[Row], processing_class: Any) -> None:
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        lengths = [len(row.input_ids) for row in rows]
        order = order_rows(lengths, args.per_device_train_batch_size, per_step, args.max_steps, args.seed)
        table = datasets.Dataset.from_list([row.as_trainer_takes_it() for row in rows])
        trained = [(value, value.data) for value in model.parameters() if value.requires_grad]
        super().__init__(model=model, args=args, train_dataset=table.select(order), processing_class=processing_class)
        for value, data in trained:  # TRL casts the LoRA of a 4-bit model to bf16, which a T4 lacks
            value.data = data
        self.remove_callback(PrinterCallback)  # it prints every row in full; `on_step` is the caller's to show
        self.rows = rows
        self._digest = hashlib.sha256(to_json([row.input_ids for row in rows]).encode()).hexdigest()

    def save_extra(self, folder: Path) -> None:
        """Write how many tokens were seen, and which rows the order is of."""
        (folder / TEXTS_FILE).write_text(to_json({"num_tokens": self.tokens_seen, "sha256": self._digest}))

    def load_extra(self, folder: Path) -> None:
        """Read what `save_extra` wrote.

        Raises:
            ValueError: the checkpoint's training had other texts.
        """
        texts = json.loads((folder / TEXTS_FILE).read_text())
        if texts["sha256"] != self._digest:
            raise ValueError(
                f"The checkpoint {folder} was trained on other texts than sft.source gives now, or the template writes "
                "them in another way. Put the sources back, or use --force (run.force=true) to start again."
            )
        self.tokens_seen = texts["num_tokens"]


class LongestTextsCallback(TrainerCallback):
    """Tries the longest micro-batch when the first step is about to begin; nothing of it stays.

    Args:
        trainer: whose rows are trained.
        on_forecast: is called with what the longest step takes, in the form of `grpo.worst_step.Forecast`.
    """

    def __init__(self, trainer: TextTrainer, on_forecast: Callable[[dict[str, Any]], None]) -> None:
        self.trainer, self.on_forecast, self.done = trainer, on_forecast, False

    def on_step_begin(self, args, state, control, **kwargs):
        if self.done:
            return
        self.done = True
        activity.announce("measuring the longest step")
        count = args.per_device_train_batch_size
        longest = sorted(self.trainer.rows, key=lambda row: -len(row.input_ids))[:count]
        try:
            once, peak = _try_rows(self.trainer, longest)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"The longest texts of this run ({count} x {len(longest[0].input_ids)} tokens in training) do not fit "
                f"the GPU; nothing was trained. Lower sft.max_length. {error}"
            ) from None
        steps, seconds = args.max_steps - state.global_step, once * args.gradient_accumulation_steps
        self.on_forecast(
            {
                "prompt_tokens": longest[0].prompt_length,
                "completion_tokens": len(longest[0].input_ids) - longest[0].prompt_length,
                "sampling_seconds": 0.0,
                "training_seconds": seconds,
                "steps": steps,
                "peak_bytes": peak,
                "seconds": steps * seconds,
            }
        )


def _try_rows(trainer: TextTrainer, rows: Sequence[Row]) -> tuple[float, int | None]:
    """Seconds of a forward and backward pass, and the most bytes that PyTorch held on the GPU."""
    cuda, tokens = torch.cuda.is_available(), trainer.tokens_seen
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    batch = trainer.data_collator([row.as_trainer_takes_it() for row in rows])
    inputs = {name: value.to(trainer.accelerator.device) for name, value in batch.items()}

    def forward_and_backward() -> None:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model_wrapped, dict(inputs))
        trainer.accelerator.backward(loss)

    with torch.random.fork_rng():
        seconds = time_work(trainer, lambda: trainer.with_relief(forward_and_backward))
    trainer.model.zero_grad(set_to_none=True)
    trainer.figures.clear()  # what the loss noted is not a figure of the run
    trainer.tokens_seen = tokens
    reset_counts(trainer.model)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    if cuda:
        torch.cuda.empty_cache()
    return seconds, peak
