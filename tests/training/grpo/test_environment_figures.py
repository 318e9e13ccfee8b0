"""Figures of each environment are those of its own groups, by hand."""

import math

import torch

from grpo_kit.environments.worlds.episode import FIGURES
from grpo_kit.training.grpo.environment_figures import Groups, call_figures, environment_figures


def test_each_environment_has_the_figures_of_its_own_groups():
    groups = Groups(
        rewards=torch.tensor([[1.0, 0.0], [1.0, math.nan], [0.5, 0.5]]),
        passed=torch.tensor([[True, False], [True, False], [False, False]]),
        judged=torch.tensor([[True, True], [True, False], [False, False]]),
        flat=torch.tensor([False, False, True]),
        lengths=torch.tensor([[4.0, 8.0], [2.0, 2.0], [9.0, 9.0]]),
        is_cut=torch.tensor([[False, True], [False, False], [True, True]]),
    )
    figures = environment_figures(["math", "math", "office"], ["math", "json", "office"], groups)
    assert math.isnan(figures.pop("environments/office/right"))  # nothing of it could be judged
    assert {name: round(value, 3) for name, value in figures.items()} == {
        "environments/math/reward": 0.667,  # of the three that were judged
        "environments/math/right": 0.667,
        "environments/math/with_gradient": 1.0,
        "environments/math/length": 4.0,
        "environments/math/clipped": 0.25,
        "environments/office/reward": 0.5,
        "environments/office/with_gradient": 0.0,
        "environments/office/length": 9.0,
        "environments/office/clipped": 1.0,
    }


def test_calls_are_those_of_an_environments_own_completions():
    calls = [dict.fromkeys(FIGURES, number) for number in (1.0, 2.0, 5.0, 9.0)]
    figures = call_figures(["math", "office"], 2, calls, ["office", "desk"])
    assert figures == {f"environments/office/{name}": 7.0 for name in FIGURES}
