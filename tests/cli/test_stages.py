"""Trainings as a user types them, with rewards and rows of forms that once ended them."""

import json

import pytest
from typer.testing import CliRunner

from grpo_kit.cli import stages
from grpo_kit.cli.main import app
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from tests.helpers.commands import call

DATA = ["data", "-c", "tiny", "--run", "r", "data.limit=60", "data.val_size=5", "data.test_size=10"]
SHORT = [
    "train", "--run", "r", "grpo.max_steps=2", "grpo.num_generations=4", "grpo.per_device_train_batch_size=8",
    "grpo.max_completion_length=40", "grpo.eval_steps=0", "grpo.resample_budget=0", "run.report_to=[]",
]  # fmt: skip
REWARDS = """
import functools

import numpy as np
import torch


def length(completions, **kwargs):
    return [float(len(c[0]["content"]) % 7) for c in completions]


def array_reward(completions, log_metric, **kwargs):
    log_metric("longest", np.float32(max(length(completions))))
    return np.array(length(completions), dtype=np.float32)


def tensor_reward(completions, **kwargs):
    return torch.tensor(length(completions), dtype=torch.bfloat16, requires_grad=True)


bonus_reward = functools.partial(functools.partial(length, bonus=0.1), note="")


class Judge:
    async def __call__(self, completions, **kwargs):
        return (value for value in length(completions))


judge_reward = Judge()


def none_reward(completions, **kwargs):
    return [None] * len(completions)


def infinite_reward(completions, **kwargs):
    return [float("inf")] * len(completions)


def short_reward(completions, **kwargs):
    return [1.0]
"""


@pytest.fixture(autouse=True)
def rewards(here):
    (here / "rw.py").write_text(REWARDS)


def train_with(*names, status=0):
    specs = ",".join(f"rw.py:{name}" for name in names)
    call(*DATA)
    weights = ",".join("1.0" for _ in names)
    return call(*SHORT, f"grpo.reward_funcs=[{specs}]", f"grpo.reward_weights=[{weights}]", status=status)


def read_strictly(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_rewards_of_every_form_train_together_and_are_recorded(here):
    names = ["array_reward", "tensor_reward", "bonus_reward", "judge_reward"]
    assert "2 steps, reward" in train_with(*names)
    rows = read_strictly(here / "runs/r/completions.jsonl")
    assert len(rows) == 16
    for row in rows:
        assert list(row["rewards"]) == names
        assert set(row["rewards"].values()) == {float(len(row["completion"]) % 7)}
    assert read_strictly(here / "runs/r/metrics.jsonl")[0]["rewards/judge_reward/mean"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none_reward", "infinite_reward"])
@pytest.mark.filterwarnings("ignore:The reward infinite_reward returned inf")
def test_a_training_in_which_nothing_is_judged_ends_with_an_alarm(here, name):
    output = train_with(name)
    assert "not one completion could be judged" in output and "2 steps, no reward in the last one" in output
    rows = read_strictly(here / "runs/r/metrics.jsonl")
    assert [row["reward"] for row in rows] == [None, None]
    assert [bool(row.get("alarms")) for row in rows] == [True, False]
    assert read_strictly(here / "runs/r/completions.jsonl")[0]["rewards"] == {name: None}
    json.loads((here / "runs/r/forecast.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_a_reward_of_the_wrong_length_ends_in_one_sentence():
    output = train_with("short_reward", status=2)
    assert "error: The reward short_reward returned 1 values for 8 completions. Return a list with one" in output


@pytest.mark.slow
def test_a_batch_that_is_trained_on_twice_ends_with_the_reward_of_the_step_that_sampled(here):
    call(*DATA)
    output = call(*SHORT, "grpo.num_iterations=2")
    first, second = read_lines(here / "runs/r/metrics.jsonl")
    assert "reward" in first and "reward" not in second
    assert f"2 steps, reward {first['reward']:.2f} in the last one" in output


@pytest.mark.slow
def test_a_step_may_have_more_prompts_than_there_are_rows(here):
    rows = [{"problem": f"What is {n} + {n}?", "answer": 2 * n} for n in range(11, 19)]
    (here / "eight.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call(*DATA[:5], "data.source=eight.jsonl", "data.val_size=0", "data.test_size=2")
    settings = ["grpo.per_device_train_batch_size=64", "grpo.max_completion_length=12", "grpo.eval_steps=1"]
    assert "2 steps" in call(*SHORT, *settings)
    first = [row["prompt"] for row in read_lines(here / "runs/r/completions.jsonl") if row["step"] == 1]
    assert len(first) == 64 and len(set(first)) == 6


@pytest.mark.parametrize("command", ["sft", "prefer"])
def test_a_dry_run_says_that_data_is_missing(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    output = " ".join(CliRunner().invoke(app, [command, "-c", "tiny", "--run", "new", "--dry-run"]).output.split())
    assert "(missing: run `grpo-kit data` first)" in output and not (tmp_path / "runs").exists()


def test_only_the_last_stages_adapter_has_to_be_there_to_measure(tmp_path, monkeypatch, capsys):
    run, measured = find_run("r", tmp_path), []
    monkeypatch.setattr(stages, "measure_accuracy", lambda config, run, stage: measured.append(stage))
    run.stage_files("train").adapter.mkdir(parents=True)
    stages.measure_trained(None, run, ["sft", "train", "prefer"])
    assert measured == ["after", "after_prefer"]  # the last one then says what is missing
    said = " ".join(capsys.readouterr().err.split())
    assert "adapter is gone, so stage 'sft' is not measured anew" in said and "'prefer'" not in said
