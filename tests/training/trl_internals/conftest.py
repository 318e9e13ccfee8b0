"""A trainer of the embedded policy, as the stage `train` builds it."""

import pytest

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from tests.helpers.settings import SMALL


def length_reward(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]


@pytest.fixture
def build_trainer(tmp_path):
    """A function that prepares a small run and builds its trainer."""

    def build():
        chosen, run = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=2"]), find_run("r", tmp_path / "runs")
        prepare(chosen, run)
        return train.make_trainer(chosen, run, [length_reward] * 2)

    return build
