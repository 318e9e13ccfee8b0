"""DPO on pairs of token ids with the SFT term that NeMo-RL adds, and with log-probs of the reference that are kept.

The loss of a pair is -log sigmoid(beta * ((c - c_ref) - (r - r_ref))) - weight * c, where c and r are the log-probs of
the chosen and the rejected completion, summed over their tokens, and the reference is the policy before this stage.

TRL's own `sft` term divides the last part by the number of chosen tokens of the micro-batch, so NVIDIA's weight of 0.2
would mean something else there: with chosen completions of 30 tokens a thirtieth. Here the weight of TRL's term is
`sft_loss_weight` times the mean number of chosen tokens of the micro-batch, which gives NeMo-RL's loss exactly.

Source: DPO is Rafailov et al. 2023, arXiv:2305.18290; the SFT term is that of NeMo-RL's DPO (`sft_loss_weight` with
`sft_average_log_probs=false`, its default).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from grpo_kit.runs.files import to_json, write_text
from grpo_kit.training.trl_internals.rows import OpenDPOTrainer

SEAL = "preferences.json"  # in a checkpoint


class Reference(NamedTuple):
    """Log-probs of the policy before this stage, in nats, summed over a completion's tokens.

    Attributes:
        chosen: `(pairs,)` of the chosen completions.
        rejected: `(pairs,)` of the rejected ones.
        sha256: of the file that keeps them.
    """

    chosen: list[float]
    rejected: list[float]
    sha256: str


class PreferenceTrainer(OpenDPOTrainer):
    """TRL's DPOTrainer with NeMo-RL's SFT term and a reference that is computed once.

    Args:
        rows: `prompt_ids`, `chosen_ids` and `rejected_ids` of each pair; the completions end with their end token.
        sft_loss_weight: NeMo-RL's; it weighs the sum over the chosen tokens.
        kwargs: as for TRL's trainer; its `loss_type` is `sigmoid`, followed by `sft` where the weight is not 0.
    """

    def __init__(self, rows: Sequence[dict[str, list[int]]], sft_loss_weight: float, **kwargs: Any) -> None:
        super().__init__(train_dataset=datasets.Dataset.from_list(list(rows)), **kwargs)
        self.sft_loss_weight = sft_loss_weight
        self.reference: Reference | None = None

    def score_pairs(self) -> tuple[list[float], list[float]]:
        """(chosen, rejected) log-probs of the policy as it is now, in nats, summed over a completion's tokens."""
        chosen: list[float] = []
        rejected: list[float] = []
        size, count = self.args.per_device_train_batch_size, len(self.train_dataset)
        for start in range(0, count, size):
            batch = self.data_collator(
                [self.train_dataset[number] for number in range(start, min(start + size, count))]
            )
            for column, scores in zip((chosen, rejected), self.score_batch(batch), strict=True):
                column.extend(scores.tolist())
        return chosen, rejected

    def use_reference(self, reference: Reference) -> None:
        """Compare with these log-probs, of as many pairs as there are rows."""
        self.reference = reference
        columns = {"ref_chosen_logps": reference.chosen, "ref_rejected_logps": reference.rejected}
        for name, values in columns.items():
            self.train_dataset = self.train_dataset.add_column(name, values)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss of a micro-batch, with NeMo-RL's weight of the SFT term."""
        if len(self.loss_weights) > 1:
            chosen, _ = inputs["completion_mask"].chunk(2)
            self.loss_weights = [1.0, self.sft_loss_weight * chosen.sum().item() / len(chosen)]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def save_extra(self, folder: Path) -> None:
        """Write which reference the steps were taken with, and how many tokens they had."""
        write_text(folder / SEAL, to_json({"reference": self.reference.sha256, "tokens": self.tokens_seen}) + "\n")

    def load_extra(self, folder: Path) -> None:
        """Read it, and refuse another reference.

        Raises:
            ValueError: the log-probs are not those that the checkpoint was trained with.
        """
        kept = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        if kept["reference"] != self.reference.sha256:
            raise ValueError(
                f"{folder} was trained with log-probs of another reference than those that are kept now. Put back a "
                "copy of reference.json, or begin again with --force (run.force=true)."
            )
        self.tokens_seen = kept["tokens"]
