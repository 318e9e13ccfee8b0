"""The embedded policy that calls tools as it is shipped, and that a training of its turns has gradients.

What twenty steps gain is in notes/benchmarks.md; six were too few to tell on every machine.
"""

import pytest

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import evaluate
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train


@pytest.mark.slow
def test_it_is_often_right_before_training_and_its_turns_have_gradients(tmp_path):
    sizes = ["data.limit=120", "data.test_size=80", "data.val_size=8", "grpo.max_steps=2", "grpo.resample_budget=0"]
    chosen = config.load_config("tiny-office", sizes)
    run = find_run("office", tmp_path / "runs")
    prepare(chosen, run)
    before = evaluate.measure(chosen, run, "before")
    assert 0.4 <= before["pass@1"] <= 0.75
    train.train(chosen, run, [load_reward(name) for name in chosen.grpo.reward_funcs])
    steps = [line for line in read_lines(run.metrics) if "grad_norm" in line]
    assert len(steps) == 2 and all(line["grad_norm"] > 0 and line["groups/with_gradient"] > 0 for line in steps)
    assert all(line["sampling/logp_gap"] < 1e-4 for line in steps)
    turns = [line["turns"] for line in read_lines(run.completions) if "turns" in line]
    assert len(turns) > 32 and all(turn["role"] in ("assistant", "tool") for one in turns for turn in one)
