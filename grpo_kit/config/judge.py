"""The section `judge`: who compares answers where `judge.py` is among the rewards, and how lengths count."""

from dataclasses import asdict, dataclass
from typing import Any

from grpo_kit.config.checks import require, require_at_least, require_share


@dataclass(frozen=True)
class Judge:
    """The settings of `judge.py`; those without a comment have NeMo-Gym's names and meaning. Lengths are characters."""

    model: str = "policy"  # the untrained policy; a folder or an id on the Hub; or a server, http://HOST:PORT/v1
    served_model: str | None = None  # the model's name at the server; None: the only one that it serves
    threshold: float = 0.65  # training needs this agreement with known winners (`grpo-kit rewards judge-check`)
    reasoning_bonus: float = 0.5
    answer_bonus: float = 0.5
    top_percentile: float = 0.2
    group_reasoning_length_penalty_coeff: float = 0.5
    group_answer_length_penalty_coeff: float = 0.5
    batch_size: int = 8  # comparisons in one forward pass of a model
    concurrency: int = 8  # comparisons that a server makes at a time
    timeout: float = 120.0  # seconds for one request to a server
    max_tokens: int = 2048  # that a server's reply may have, its thinking included

    def __post_init__(self) -> None:
        require(bool(self.model), "judge.model is empty. Set it to policy, a model, or the address of a server.")
        require_share("judge.threshold", self.threshold)
        require_share("judge.top_percentile", self.top_percentile)
        for name in ("reasoning_bonus", "answer_bonus", *COEFFICIENTS):
            value = getattr(self, name)
            require(value >= 0, f"judge.{name} is {value}; it rewards brevity. Set it to 0 or more.")
        require_at_least("judge.batch_size", self.batch_size, 1, "a pass makes at least one comparison")
        require_at_least("judge.concurrency", self.concurrency, 1, "at least one request is sent")
        require_at_least("judge.max_tokens", self.max_tokens, 1, "a verdict needs room, and thinking needs more")
        require(self.timeout > 0, f"judge.timeout is {self.timeout}; a request takes time. Set it above 0 seconds.")

    @property
    def is_server(self) -> bool:
        """Whether the judge is at an address."""
        return "://" in self.model

    def identity(self) -> dict[str, Any]:
        """The settings that decide rewards; how long to wait for whom, and what agreement to ask for, are left out."""
        others = ("threshold", "concurrency", "timeout", "max_tokens")
        return {key: value for key, value in asdict(self).items() if key not in others}

    def arguments(self) -> dict[str, Any]:
        """What the reward's `use_policy` takes beside a model and a tokenizer."""
        settings = {key: value for key, value in asdict(self).items() if key != "threshold"}
        return settings | {"model": self.model if self.is_server else "policy"}


COEFFICIENTS = ("group_reasoning_length_penalty_coeff", "group_answer_length_penalty_coeff")
