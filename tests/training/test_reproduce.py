"""A run repeated from its record is the same, and every difference is named."""

import json

import pytest

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.files import hash_of, write_lines
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import reproduce, train
from tests.helpers.settings import SMALL


@pytest.fixture
def run(tmp_path, math_reward):
    chosen = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=2", "run.name=r"])
    prepared = find_run("r", tmp_path / "runs")
    prepare(chosen, prepared, math_reward)
    train.train(chosen, prepared, [load_reward(spec) for spec in chosen.grpo.reward_funcs])
    return prepared


@pytest.mark.slow
def test_a_run_is_reproduced_bit_for_bit_in_its_own_folder(run):
    stages = []
    again, sentences = reproduce.reproduce(run, stages.append)
    assert sentences == [] and stages == ["data", "train"] and again.path.name == "r-again"
    assert hash_of(again.adapter) == hash_of(run.adapter)


@pytest.mark.slow
def test_differences_to_the_original_run_are_listed(run):
    notes = json.loads(run.notes.read_text())
    notes["stages"]["train"]["environment"]["packages"]["torch"] = "1.0"
    notes["stages"]["train"]["settings"]["rewards"]["math_reward"] = "0" * 64
    (run.adapter / "adapter_config.json").write_text("{}")
    notes["stages"]["train"]["wrote"]["adapter"] = hash_of(run.adapter)  # or it would be refused as changed by hand
    run.notes.write_text(json.dumps(notes))
    rows = read_lines(run.metrics)
    rows[1]["reward"] = 9.0
    write_lines(run.metrics, rows)
    _, sentences = reproduce.reproduce(run)
    assert sentences[0].startswith("packages.torch was 1.0, now 2.")
    assert sentences[1:] == [
        "reward math_reward was edited since",
        "the metrics differ from step 2 on",
        "the adapter differs",
    ]


def test_a_run_that_is_not_trained_cannot_be_repeated(tmp_path):
    with pytest.raises(FileNotFoundError, match="grpo-kit train"):
        reproduce.reproduce(find_run("none", tmp_path))
