"""Several environments in one run: each row is judged by the rewards of its own environment.

A row names its environment in the column `environment`; without one it belongs to math.
"""

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config import MATH, RunConfig
from grpo_kit.rewards.tools.calling import Reward, call_reward, reward_name
from grpo_kit.rewards.tools.loading import fingerprint, load_reward, resolve_reward

# What only rows of math have. A table of several environments fills it with None for the others, whose rewards may have
# defaults for columns of these names; so they do not see it.
MATH_COLUMNS = ("input", "output", "question", "expected_answer", "responses_create_params", "agent_ref")


class Rewards(NamedTuple):
    """The rewards of a run as TRL takes them: one column each.

    Attributes:
        functions: each pays the rows of its own environment, and None for the others.
        weights: of the functions.
        verifiers: for each environment the place of its verifier among the functions; None where a judge compares
            its answers, which tells better from worse and not right from wrong.
    """

    functions: list[Reward]
    weights: list[float]
    verifiers: dict[str, int | None]


def environment_of(row: Mapping[str, Any]) -> str:
    """The environment of a data row.

    >>> environment_of({"environment": "documents"}), environment_of({})
    ('documents', 'math')
    """
    return row.get("environment") or MATH


class Verifier:
    """One verifier for rows of several environments; it calls the verifier of each row's own.

    Args:
        verifiers: a reward for each environment.

    Example:
        >>> verify = Verifier({"math": lambda answer, **_: [1.0], "short": lambda completions, **_: [0.0]})
        >>> verify(completions=["4", "four"], answer=["4", None], environment=["math", "short"])
        [1.0, 0.0]
    """

    def __init__(self, verifiers: Mapping[str, Reward]) -> None:
        self.verifiers, self.__name__ = dict(verifiers), "verifier"

    def __call__(self, **batch: Any) -> list[float | None]:
        rewards: list[float | None] = [None] * len(batch["completions"])
        for name, verifier in self.verifiers.items():
            for place, reward in _call_for(name, verifier, batch):
                rewards[place] = reward
        return rewards

    def fingerprints(self) -> dict[str, str | None]:
        """What `fingerprint` says of the verifier of each environment."""
        return {name: fingerprint(verifier) for name, verifier in self.verifiers.items()}


def make_verifier(
    config: RunConfig, environments: Iterable[str], verifier: Reward | str | Path | None = None
) -> Reward:
    """The verifier of all rows of a run: that of math alone, or a `Verifier` where there are other environments.

    Args:
        config: names the rewards.
        environments: of the rows.
        verifier: that of math, or the path of its file; None loads `evaluation.verifier`.

    Raises:
        ValueError: an environment has no rewards; other errors are those of `load_reward`.
    """
    math = resolve_reward("verifier", verifier or config.evaluation.verifier)
    others = {
        name: _no_verifier(load_reward(config.rewards_of(name).reward_funcs[0]))
        for name in environments
        if name != MATH
    }
    return Verifier({MATH: math} | others) if others else math


def describe_verifier(verifier: Reward) -> Any:
    """What a run records of a verifier: its fingerprint, or that of each environment's."""
    return verifier.fingerprints() if isinstance(verifier, Verifier) else fingerprint(verifier)


def combine_rewards(config: RunConfig, environments: Sequence[str], math: Sequence[Reward]) -> Rewards:
    """The rewards of all environments of a run, for a training.

    Args:
        config: gives the rewards and weights of each environment.
        environments: of the training rows.
        math: the rewards of math, one for each of `grpo.reward_weights`.

    Returns:
        The rewards; those of math as they are where all rows are math.

    Raises:
        ValueError: an environment has no rewards, the weights would mix scales, or a judge is to judge math.
    """
    if any(map(find_judge, math)):
        raise ValueError(
            "grpo.reward_funcs names a judge, and the rows of math have answers, which a verifier checks. Give the "
            "rows without an answer a column environment, and name the judge in environments.NAME.reward_funcs."
        )
    if list(environments) == [MATH]:
        return Rewards(list(math), config.grpo.reward_weights, {MATH: 0})
    _refuse_mixed_scales(config, environments)
    combined = Rewards([], [], {})
    for name in environments:
        section = config.rewards_of(name)
        rewards = math if name == MATH else [load_reward(spec) for spec in section.reward_funcs]
        combined.verifiers[name] = None if find_judge(rewards[0]) else len(combined.functions)
        combined.functions.extend(_only_for(name, reward) for reward in rewards)
        combined.weights.extend(section.reward_weights)
    return combined


def find_judge(reward: Reward) -> Any:
    """The judge that a reward is, also inside a partial or another wrapper; None where it is none.

    A judge compares the answers of a group. It has a method `use_policy(model, tokenizer, **settings)`, which gets the
    policy and the section `judge`, and a method `compare` (rewards/judge.py).
    """
    inner: Any = reward
    while inner is not None and not callable(getattr(inner, "use_policy", None)):
        inner = inner.func if isinstance(inner, functools.partial) else getattr(inner, "__wrapped__", None)
    return inner


def is_judged(config: RunConfig, environment: str) -> bool:
    """Whether a judge stands where the verifier of an environment would."""
    return find_judge(load_reward(config.rewards_of(environment).reward_funcs[0])) is not None


def list_judged(config: RunConfig, environments: Iterable[str]) -> list[str]:
    """The environments in which a judge stands where the verifier would."""
    return [name for name in environments if name != MATH and is_judged(config, name)]


def find_judges(rewards: Iterable[Reward]) -> list[Any]:
    """The judges among rewards, as `find_judge` finds them."""
    return [judge for reward in rewards if (judge := find_judge(reward)) is not None]


def _no_verifier(reward: Reward) -> Reward:
    """The reward, or for a judge one that judges nothing: outside training there is no group to compare."""
    if not find_judge(reward):
        return reward

    def judge_nothing(completions: Sequence[Any], **columns: Any) -> list[None]:
        return [None] * len(completions)

    judge_nothing.__name__ = reward_name(reward)
    judge_nothing.__wrapped__ = reward  # whose file is what the run records
    return judge_nothing


def _refuse_mixed_scales(config: RunConfig, environments: Sequence[str]) -> None:
    largest = {name: sum(map(abs, config.rewards_of(name).reward_weights)) for name in environments}
    if config.grpo.normalize_rewards or len(set(largest.values())) == 1:
        return
    scales = ", ".join(f"{name} {weight:g}" for name, weight in largest.items())
    raise ValueError(
        f"grpo.normalize_rewards is false, and the reward weights of the environments have different sums ({scales}); "
        "without the division by each group's spread, the environment with the largest rewards would decide for the "
        "others. Set grpo.normalize_rewards=true, or give the environments weights of equal sum."
    )


def _only_for(environment: str, reward: Reward) -> Reward:
    def judge_own_rows(**batch: Any) -> list[float | None]:
        rewards: list[float | None] = [None] * len(batch["completions"])
        for place, paid in _call_for(environment, reward, batch):
            rewards[place] = paid
        return rewards

    judge_own_rows.__name__ = reward_name(reward)
    judge_own_rows.__wrapped__ = reward  # whose file is what the run records
    return judge_own_rows


def _call_for(environment: str, reward: Reward, batch: Mapping[str, Any]) -> Iterable[tuple[int, float | None]]:
    """(place, reward) of each row of `environment` in a batch; the reward sees only these rows."""
    count = len(batch["completions"])
    names = batch.get("environment") or [None] * count
    own = [place for place, name in enumerate(names) if (name or MATH) == environment]
    if not own:
        return ()
    columns = {
        key: [value[place] for place in own] if isinstance(value, list | tuple) and len(value) == count else value
        for key, value in batch.items()
    }
    if environment != MATH:
        absent = [key for key in MATH_COLUMNS if key in columns and columns[key] == [None] * len(own)]
        columns = {key: value for key, value in columns.items() if key not in absent or _requires(reward, key)}
    return zip(own, call_reward(reward, **columns), strict=True)


def _requires(reward: Reward, name: str) -> bool:
    """Whether a reward has a parameter of this name without a default."""
    try:
        parameter = inspect.signature(reward).parameters.get(name)
    except (TypeError, ValueError):  # a callable without a signature
        return False
    return parameter is not None and parameter.default is parameter.empty
