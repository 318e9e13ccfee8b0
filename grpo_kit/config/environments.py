"""The section `environments`: which rewards judge the rows of each environment.

An environment is a kind of task, which a row names in its column `environment`. The rows of `math` are judged by
`grpo.reward_funcs`.
"""

import re
import reprlib
from dataclasses import dataclass, field
from typing import Any

from grpo_kit.config.checks import require

MATH = "math"  # the environment of rows that name none


@dataclass(frozen=True)
class Environment:
    """The rewards of one environment and their weights; the first is its verifier, which tells right from wrong.

    `environment_factory` (TRL's name) is the class of its world, whose methods are tools that the policy may call.
    """

    reward_funcs: list[str] = field(default_factory=list)  # FILE.py:function, as in grpo.reward_funcs
    reward_weights: list[float] = field(default_factory=lambda: [1.0])
    environment_factory: str | None = None  # FILE.py:Class, or the name of a world of the kit


END_STATE = "end_state.py:end_state_reward"  # pays what the world's `get_reward` says

KNOWN = {
    "structured": Environment(["structured_output.py:structured_output_reward"]),
    "instructions": Environment(["instructions.py:instructions_reward"]),
    "documents": Environment(["documents_qa.py:documents_qa_reward"]),
    "office": Environment([END_STATE], environment_factory="office"),
    "code": Environment(["code_tests.py:code_tests_reward"]),
    "tiny-office": Environment([END_STATE], environment_factory="tiny-office"),
}


def check_environment_name(name: Any, what: str) -> None:
    """Raise ValueError unless `name`, which is `what`, is a plain name that is not `math` in other letters."""
    is_plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,39}", name)
    remedy = f"Write {MATH}." if isinstance(name, str) and name.casefold() == MATH else "Rename it."
    require(
        bool(is_plain) and name.casefold() != MATH,
        f"{what} is {reprlib.repr(name)}; an environment is named by at most 40 letters of English, digits, '_' and "
        f"'-'. {remedy}",
    )


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
