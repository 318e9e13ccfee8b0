"""The section `dpo`: TRL's `DPOConfig` as far as a run on one GPU needs it, and which pairs are made.

Precision, optimiser and gradient checkpointing are those of `grpo`, since both stages train one LoRA on one card.
"""

from dataclasses import dataclass

from grpo_kit.config.checks import require, require_at_least, require_schedule


@dataclass(frozen=True)
class Dpo:
    """How the policy learns from pairs after GRPO. Keys without a comment are TRL's, with their meaning."""

    source: str = "completions"  # the run's own, judged already; or a JSON Lines file with prompt, chosen and rejected
    pairs_per_prompt: int = 2  # at most
    beta: float = 0.05
    sft_loss_weight: float = 0.2  # NeMo-RL's: it weighs the sum over the chosen tokens (training.preferences)
    max_length: int | None = None  # tokens of prompt and completion; longer pairs are refused. None: as GRPO's rows
    max_steps: int = 50
    per_device_train_batch_size: int = 1  # pairs
    gradient_accumulation_steps: int = 8
    learning_rate: float = 3e-6
    lr_scheduler_type: str = "constant"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    save_steps: int = 10

    def __post_init__(self) -> None:
        require(
            bool(self.source.strip()), "dpo.source is empty; there is nothing to compare. Set dpo.source=completions."
        )
        require_at_least("dpo.pairs_per_prompt", self.pairs_per_prompt, 1, "a prompt gives at least one pair")
        require(self.beta > 0, f"dpo.beta is {self.beta}; at 0 no pair is preferred. Set it above 0, such as 0.05.")
        require(
            self.sft_loss_weight >= 0,
            f"dpo.sft_loss_weight is {self.sft_loss_weight}; it is a weight. Set it to 0 or more.",
        )
        tokens = 2 if self.max_length is None else self.max_length
        require_at_least("dpo.max_length", tokens, 2, "a pair has a prompt and a completion")
        require_at_least("dpo.max_steps", self.max_steps, 1, "training takes at least one step")
        size, accumulation = self.per_device_train_batch_size, self.gradient_accumulation_steps
        require_at_least("dpo.per_device_train_batch_size", size, 1, "a batch has at least one pair")
        require_at_least("dpo.gradient_accumulation_steps", accumulation, 1, "a step has at least one batch")
        require_at_least("dpo.save_steps", self.save_steps, 1, "a checkpoint follows a step")
        require_schedule("dpo", self.lr_scheduler_type, self.warmup_steps, self.max_grad_norm)
        require(self.learning_rate > 0, f"dpo.learning_rate is {self.learning_rate}; it must be above 0.")
