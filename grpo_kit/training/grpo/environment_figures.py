"""Figures of a step by environment: what its groups earned, and how many calls they made."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from grpo_kit.environments.worlds.episode import FIGURES


class Groups(NamedTuple):
    """What is known of the groups of a step.

    Attributes:
        rewards: (groups, completions) floats, NaN where nothing could be judged.
        passed: (groups, completions) bools, whether the verifier was content.
        judged: (groups, completions) bools, whether the verifier could say.
        flat: (groups,) bools, whether a group has no gradient.
        lengths: (groups, completions) floats, in tokens.
        is_cut: (groups, completions) bools, whether a completion has no end.
    """

    rewards: torch.Tensor
    passed: torch.Tensor
    judged: torch.Tensor
    flat: torch.Tensor
    lengths: torch.Tensor
    is_cut: torch.Tensor


def environment_figures(names: Sequence[str], environments: Iterable[str], groups: Groups) -> dict[str, float]:
    """The figures of each environment that the groups have, as `environments/NAME/FIGURE`.

    Args:
        names: the environment of each group.
        environments: the environments in their order.
        groups: what is known of the groups.
    """
    figures = {}
    for name in environments:
        own = torch.tensor([other == name for other in names])
        if not own.any():
            continue
        of_name = {
            "reward": groups.rewards[own].nanmean(),
            "right": groups.passed[own].sum() / groups.judged[own].sum(),  # NaN where nothing could be judged
            "with_gradient": (~groups.flat[own]).float().mean(),
            "length": groups.lengths[own].mean(),
            "clipped": groups.is_cut[own].float().mean(),
        }
        figures |= {f"environments/{name}/{key}": value.item() for key, value in of_name.items()}
    return figures


def call_figures(
    names: Sequence[str], num_generations: int, calls: Sequence[Mapping[str, float]], environments: Iterable[str]
) -> dict[str, float]:
    """The mean figures of the calls in a completion, for each environment that the groups have.

    Args:
        names: the environment of each group.
        num_generations: completions of a group.
        calls: the figures of each completion's calls.
        environments: the environments with a world, in their order.
    """
    figures = {}
    completions = [name for name in names for _ in range(num_generations)]
    for name in environments:
        if own := [each for each, other in zip(calls, completions, strict=True) if other == name]:
            figures |= {f"environments/{name}/{key}": sum(each[key] for each in own) / len(own) for key in FIGURES}
    return figures
