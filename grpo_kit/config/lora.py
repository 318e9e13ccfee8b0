"""The section `lora`: PEFT's LoRA, and how its target modules may be written."""

import re
from dataclasses import dataclass, field

from grpo_kit.config.checks import require, require_at_least
from grpo_kit.config.protocols import MAX_LORA_RANK

ALL_LINEAR = "all-linear"  # PEFT's word for all linear layers but the output layer


def is_pattern(target: str) -> bool:
    """Whether a target module is a regular expression and not a name."""
    return bool(re.search(r"[\\^$*+?()\[\]{}|]", target))


def compile_target(target: str) -> re.Pattern[str]:
    """The regular expression of a target module; ValueError for one that cannot be read."""
    try:
        return re.compile(target)
    except re.error as error:
        raise ValueError(
            f"lora.target_modules is {target!r}, which is not a regular expression ({error}). Correct it, or list "
            "names."
        ) from None


def split_targets(text: str) -> list[str]:
    """The target modules in one text: names with commas between them, `all-linear`, or a regular expression.

    >>> split_targets("q_proj, v_proj"), split_targets(".*[qv]_proj")
    (['q_proj', 'v_proj'], ['.*[qv]_proj'])
    """
    return [text] if is_pattern(text) else [name.strip() for name in text.split(",") if name.strip()]


@dataclass(frozen=True)
class Lora:
    """PEFT's LoRA. `target_modules` are endings of module names, regular expressions, or `all-linear`.

    Each must match a module of the model. One text, also with commas, stands for a list.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])

    def __post_init__(self) -> None:
        require_at_least("lora.r", self.r, 1, "a LoRA update has at least rank 1")
        require(
            self.r <= MAX_LORA_RANK,
            f"lora.r is {self.r}; the challenge's scorer accepts ranks up to {MAX_LORA_RANK}. "
            f"Set lora.r to {MAX_LORA_RANK} or less.",
        )
        require_at_least("lora.lora_alpha", self.lora_alpha, 1, "the update is scaled by it, and 0 trains nothing")
        require(
            0 <= self.lora_dropout < 1,
            f"lora.lora_dropout is {self.lora_dropout}; it is the share of inputs that a step leaves out. Set "
            "lora.lora_dropout to 0 or more and below 1.",
        )
        require(
            bool(self.target_modules),
            "lora.target_modules is empty; without a target nothing is trained. Name at least one module.",
        )
        for target in filter(is_pattern, self.target_modules):
            compile_target(target)
