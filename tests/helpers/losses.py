"""The losses on ratios written by hand: TRL's `_compute_loss`, and the kit's around it, without a model.

notes/method.md shows its formulas on these, so that the page says what the code computes.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from trl import GRPOTrainer

from grpo_kit.config import Grpo
from grpo_kit.training.grpo.trainer import GroupTrainer
from grpo_kit.training.trl_settings import trl_epsilon_high


class Loss(NamedTuple):
    """`value`, and of how many completions the model computed log-probs."""

    value: float
    passed: int


def trl_loss(loss_type: str, ratios: list[list[float]], advantages: list[float], **options: Any) -> Loss:
    """TRL's loss of completions whose tokens have these ratios of new to old probability, their log-prob being -1.

    An empty list is a completion that was masked completely. `options`: epsilon and epsilon_high as `grpo` means them,
    max_completion_length, beta with `reference`, the ratio of the reference's probability to the policy's.
    """
    return _loss(GRPOTrainer, loss_type, ratios, advantages, **options)


def kit_loss(loss_type: str, ratios: list[list[float]], advantages: list[float], **options: Any) -> Loss:
    """The same by the kit's trainer."""
    return _loss(GroupTrainer, loss_type, ratios, advantages, **options)


def _loss(
    kind: type, loss_type: str, ratios: list[list[float]], advantages: list[float], epsilon: float = 0.2,
    epsilon_high: float = 0.28, max_completion_length: int = 8, beta: float = 0.0, reference: float = 1.0,
) -> Loss:  # fmt: skip
    width = max(map(len, ratios))
    mask = torch.tensor([[int(t < len(row)) for t in range(width)] for row in ratios])
    ratio = torch.tensor([row + [1.0] * (width - len(row)) for row in ratios], dtype=torch.float)
    passed = []

    def log_probs(model: Any, ids: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        passed.append(len(ids))
        values = torch.full((len(ids), kwargs.get("logits_to_keep") or args[1]), -1.0, requires_grad=True)
        return values, torch.zeros_like(values), None

    trainer = object.__new__(kind)
    unchanged = {name: lambda value, **_: value for name in ("gather", "reduce", "gather_for_metrics")}
    attributes = {
        "loss_type": "grpo" if loss_type == "gspo" else loss_type,
        "importance_sampling_level": "sequence" if loss_type == "gspo" else "token",
        "epsilon_low": epsilon, "epsilon_high": trl_epsilon_high(Grpo(loss_type=loss_type, epsilon_high=epsilon_high)),
        "max_completion_length": max_completion_length,
        "beta": beta, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "aux_loss_enabled": False,
        "use_vllm": False, "_entropy_bonus_enabled": False, "current_gradient_accumulation_steps": 1,
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1, report_to=[]),
        "accelerator": SimpleNamespace(num_processes=1, is_main_process=False, **unchanged),
        "_metrics": {"train": defaultdict(list)},
        "model": SimpleNamespace(training=True, parameters=lambda: [torch.zeros(1, requires_grad=True)]),
        "_get_per_token_logps_and_entropies": log_probs,
    }  # fmt: skip
    vars(trainer).update(attributes)
    old = -1.0 - ratio.log()
    inputs = {
        "prompt_ids": torch.ones(len(ratios), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(ratios), 1, dtype=torch.long),
        "completion_ids": torch.ones_like(mask), "completion_mask": mask, "advantages": torch.tensor(advantages),
        "old_per_token_logps": old, "num_items_in_batch": mask.sum().float(),
        "ref_per_token_logps": torch.full_like(old, -1.0) + torch.tensor(reference).log(),
    }  # fmt: skip
    value = trainer.compute_loss(trainer.model, inputs)
    return Loss(round(value.item(), 4) + 0.0, sum(passed))
