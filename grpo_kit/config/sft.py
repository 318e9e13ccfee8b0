"""The section `sft`: TRL's `SFTConfig` as far as a run on one GPU needs it, and what the texts are.

Precision, optimiser and gradient checkpointing are those of `grpo`, since both stages train one LoRA on one card.
"""

from dataclasses import dataclass

from grpo_kit.config.checks import require, require_at_least, require_one_of, require_schedule


@dataclass(frozen=True)
class Sft:
    """How the policy learns from texts before GRPO. Keys without a comment are TRL's, with their meaning."""

    # traces (of the solvers of the puzzle families, for the run's own rows), run:NAME (that run's right completions),
    # a file, or a Hub id; several separated by commas.
    source: str = "traces"
    reasoning: str = "keep"  # or recipe: 10 % of the thoughts are left out and 3 % are cut, by seed
    completions_per_prompt: int = 1  # of run:NAME, at most
    limit: int | None = None  # at most this many rows, drawn by seed
    max_length: int | None = None  # tokens of prompt and completion; longer rows are refused. None: as GRPO's rows
    max_steps: int = 100
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 8
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    save_steps: int = 25
    packing: bool = False  # only Mamba's CUDA kernels would keep packed rows apart, so it stays off

    def __post_init__(self) -> None:
        require(
            bool(self.source.strip()), "sft.source is empty; there is nothing to learn from. Set sft.source=traces."
        )
        require_one_of("sft.reasoning", self.reasoning, ("keep", "recipe"))
        require(
            not self.packing,
            "sft.packing is true; packed rows run into each other in Mamba's layers, where only the kernels of "
            "mamba-ssm and causal-conv1d keep them apart. Leave it false; a micro-batch of one row pads nothing.",
        )
        require_at_least(
            "sft.completions_per_prompt", self.completions_per_prompt, 1, "a prompt gives at least one text"
        )
        require_at_least("sft.limit", 1 if self.limit is None else self.limit, 1, "at least one row is needed")
        tokens = 2 if self.max_length is None else self.max_length
        require_at_least("sft.max_length", tokens, 2, "a row has a prompt and a completion")
        require_at_least("sft.max_steps", self.max_steps, 1, "training takes at least one step")
        size, accumulation = self.per_device_train_batch_size, self.gradient_accumulation_steps
        require_at_least("sft.per_device_train_batch_size", size, 1, "a batch has at least one row")
        require_at_least("sft.gradient_accumulation_steps", accumulation, 1, "a step has at least one batch")
        require_at_least("sft.save_steps", self.save_steps, 1, "a checkpoint follows a step")
        require_schedule("sft", self.lr_scheduler_type, self.warmup_steps, self.max_grad_norm)
        require(self.learning_rate > 0, f"sft.learning_rate is {self.learning_rate}; it must be above 0.")
