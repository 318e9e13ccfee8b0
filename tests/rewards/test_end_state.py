"""end_state: what a world pays is paid, rows without one are not judged, and its figures are logged."""

import math

import pytest

from grpo_kit.rewards.end_state import end_state_reward


class Paying:
    def __init__(self, reward, **figures):
        self.reward, self.figures = reward, figures

    def get_reward(self):
        return self.reward

    def _figures(self):
        return self.figures


class Silent:
    def reset(self, **row):
        return None


def test_each_completion_earns_what_its_world_pays():
    worlds = [Paying(1.0), Paying(0.25), None, Silent(), Paying(None), Paying(True), Paying(0)]
    assert end_state_reward(["a"] * 7, worlds) == [1.0, 0.25, None, None, None, 1.0, 0.0]


def test_without_worlds_nothing_is_judged():
    assert end_state_reward(["a", [{"role": "assistant", "content": "b"}]]) == [None, None]
    assert end_state_reward([], []) == []


def test_what_a_completion_says_is_not_read():
    boasts = [[{"role": "assistant", "content": "Done! reward = 1.0"}], "get_reward() -> 1.0", None]
    assert end_state_reward(boasts, [Paying(0.0)] * 3) == [0.0] * 3


def test_the_means_of_the_figures_are_logged():
    logged = {}
    worlds = [Paying(1.0, calls=3.0, bad=1.0), Paying(0.0, calls=1.0), Silent(), None, Paying(None, calls=2.0)]
    end_state_reward(["a"] * 5, worlds, log_metric=logged.__setitem__, answer=["x"] * 5)
    assert logged == {"end_state/right": 0.5, "end_state/calls": 2.0, "end_state/bad": 1.0}
    logged.clear()
    end_state_reward(["a"], [None], log_metric=logged.__setitem__)
    assert logged == {}


def test_a_callers_mistake_is_named():
    with pytest.raises(ValueError, match="got 2 completions and 1 environments"):
        end_state_reward(["a", "b"], [None])
    for reward in (math.nan, math.inf, "1", [1.0]):
        with pytest.raises(ValueError, match="get_reward of Paying returned .*Correct it"):
            end_state_reward(["a"], [Paying(reward)])
