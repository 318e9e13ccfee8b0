"""The section `environments`: which rewards judge the rows of each environment.

An environment is a kind of task, which a row names in its column `environment`. The rows of `math` are judged by
`grpo.reward_funcs`.
"""

from dataclasses import dataclass, field

from grpo_kit.config.checks import require

MATH = "math"  # the environment of rows that name none


@dataclass(frozen=True)
class Environment:
    """The rewards of one environment and their weights; the first is its verifier, which tells right from wrong."""

    reward_funcs: list[str] = field(default_factory=list)  # FILE.py:function, as in grpo.reward_funcs
    reward_weights: list[float] = field(default_factory=lambda: [1.0])


KNOWN = {
    "structured": Environment(["structured_output.py:structured_output_reward"]),
    "instructions": Environment(["instructions.py:instructions_reward"]),
    "documents": Environment(["documents_qa.py:documents_qa_reward"]),
}


def require_rewards(section: str, reward_funcs: list[str], reward_weights: list[float]) -> None:
    """Raise ValueError unless there is a reward, and a weight for each."""
    rewards, weights = len(reward_funcs), len(reward_weights)
    require(
        rewards > 0,
        f"{section}.reward_funcs is empty; GRPO needs at least one reward. Name one as FILE.py:function.",
    )
    require(
        weights == rewards,
        f"{section}.reward_weights has {weights} entries and {section}.reward_funcs has {rewards}; each reward has one "
        "weight. Give both lists the same length.",
    )
