"""Published ways to measure, by name: a figure taken so means what the publisher's own figure means."""

from dataclasses import dataclass
from typing import Any

# The challenge's scorer appends exactly this, back-ticks included, to every problem (one user turn, no system text).
CHALLENGE_SUFFIX = "\nPlease put your final answer inside `\\boxed{}`. For example: `\\boxed{your answer}`"


@dataclass(frozen=True)
class Protocol:
    """What a published scorer fixes: keys of `evaluation`, the words after the problem (no system turn), thinking, room.

    `max_model_len`: prompt and completion together have at most so many tokens.
    """

    evaluation: dict[str, Any]
    prompt_suffix: str
    enable_thinking: bool
    max_model_len: int


PROTOCOLS = {
    # Kaggle's NVIDIA Nemotron Model Reasoning Challenge, by its Evaluation page; the verifier is the metric's last version.
    "challenge": Protocol(
        {
            "num_generations": 1, "max_completion_length": 7680, "temperature": 0.0, "top_p": 1.0, "top_k": 0,
            "verifier": "challenge.py:challenge_reward",
        },
        CHALLENGE_SUFFIX, enable_thinking=True, max_model_len=8192,
    ),
}  # fmt: skip


def apply_protocol(evaluation: Any) -> None:
    """Set in an `Evaluation`, frozen as it is, what `evaluation.protocol` fixes; None fixes nothing.

    Raises ValueError for an unknown protocol.
    """
    if evaluation.protocol is None:
        return
    if evaluation.protocol not in PROTOCOLS:
        raise ValueError(
            f"evaluation.protocol is {evaluation.protocol!r}; there is {', '.join(PROTOCOLS)}. Name one, or leave it out."
        )
    for key, value in PROTOCOLS[evaluation.protocol].evaluation.items():
        object.__setattr__(evaluation, key, value)
