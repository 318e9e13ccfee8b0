"""Protocols: the settings of published scorers, by name, so that our figures are comparable with theirs."""

from dataclasses import dataclass
from typing import Any

# The challenge's scorer appends exactly this, back-ticks included, to every problem (one user turn, no system text).
CHALLENGE_SUFFIX = "\nPlease put your final answer inside `\\boxed{}`. For example: `\\boxed{your answer}`"
MAX_LORA_RANK = 32  # the challenge's scorer refuses an adapter with a higher rank


@dataclass(frozen=True)
class Protocol:
    """The settings that a published scorer fixes.

    Attributes:
        evaluation: keys of the section `evaluation` with their values.
        prompt_suffix: text after the problem; there is no system turn.
        enable_thinking: passed to the chat template.
        max_model_len: tokens of prompt and completion together, at most.
    """

    evaluation: dict[str, Any]
    prompt_suffix: str
    enable_thinking: bool
    max_model_len: int


PROTOCOLS = {
    # Kaggle's NVIDIA Nemotron Model Reasoning Challenge, from its Evaluation page.
    # The verifier is the last version of the challenge's metric.
    "challenge": Protocol(
        {
            "num_generations": 1,
            "max_completion_length": 7680,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "verifier": "challenge.py:challenge_reward",
        },
        CHALLENGE_SUFFIX,
        enable_thinking=True,
        max_model_len=8192,
    ),
}


def apply_protocol(evaluation: Any) -> None:
    """Set the keys of an `Evaluation` that its protocol fixes, although the section is frozen.

    Args:
        evaluation: the section; with `protocol` None nothing is changed.

    Raises:
        ValueError: the protocol is unknown.
    """
    if evaluation.protocol is None:
        return
    if evaluation.protocol not in PROTOCOLS:
        raise ValueError(
            f"evaluation.protocol is {evaluation.protocol!r}; it must be one of {', '.join(PROTOCOLS)}. "
            "Name one, or leave it out."
        )
    for key, value in PROTOCOLS[evaluation.protocol].evaluation.items():
        object.__setattr__(evaluation, key, value)
