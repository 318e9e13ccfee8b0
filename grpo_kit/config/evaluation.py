"""The section `evaluation`: how accuracy on held-out problems is measured."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from grpo_kit.config.checks import require, require_at_least, require_sampling
from grpo_kit.config.protocols import apply_protocol


@dataclass(frozen=True)
class Evaluation:
    """How accuracy on held-out problems is measured. A `protocol` fixes the settings that it publishes."""

    sets: list[str] = field(default_factory=lambda: ["test"])  # the run's own test split; recipes, files, Hub ids
    protocol: str | None = None  # challenge: its scorer's sampling, prompt and verifier replace the other keys
    use_vllm: bool = True  # if it can be imported and gives the same answers as transformers; else transformers
    num_problems: int | None = None  # of each set; None: all
    num_generations: int = 1  # samples per problem
    max_completion_length: int = 512  # tokens
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 64  # completions that are sampled at a time
    verifier: str = "math_answer.py:math_reward"
    # Measured besides: on, off, 128 (a budget that the prompt states), cut128 (thoughts are closed by force)
    modes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        apply_protocol(self)
        self._check_modes()
        problems = 1 if self.num_problems is None else self.num_problems
        require_at_least("evaluation.num_problems", problems, 1, "an accuracy needs a problem")
        require_at_least("evaluation.num_generations", self.num_generations, 1, "each problem is tried at least once")
        length = self.max_completion_length
        require_at_least("evaluation.max_completion_length", length, 1, "a completion has at least one token")
        require_at_least("evaluation.batch_size", self.batch_size, 1, "a batch has at least one completion")
        require(
            self.temperature >= 0,
            f"evaluation.temperature is {self.temperature}; 0 (greedy) is the least. Set it to 0 or more.",
        )
        require_sampling("evaluation", self.top_p, self.top_k)

    def _check_modes(self) -> None:
        words = {"True": "on", "False": "off"}  # what YAML reads these two words as
        self.modes[:] = [words.get(mode, mode) for mode in self.modes]
        for mode in self.modes:
            require(
                bool(re.fullmatch(r"on|off|(cut)?[1-9]\d{0,8}", mode)) and self.modes.count(mode) == 1,
                f"evaluation.modes has {mode!r}; a mode is on, off, a budget in tokens such as 128, or cut128 for one "
                "that is kept by force, and each is named once. Correct the list.",
            )
            length = self.max_completion_length
            require(
                not mode.isdigit() or int(mode) < length,
                f"evaluation.modes has {mode} and evaluation.max_completion_length is {length}; no thought could "
                f"exceed that budget and be answered. Name budgets below {length}, or set the length higher.",
            )
        require(
            not (self.modes and self.protocol),
            f"evaluation.protocol is {self.protocol!r}, which fixes how the policy thinks, and evaluation.modes is "
            f"{self.modes}. Leave one of them out.",
        )

    def identity(self) -> dict[str, Any]:
        """The settings that decide a measurement; `modes`, which are measured besides, are left out."""
        return {key: value for key, value in asdict(self).items() if key != "modes"}
