"""The longest step is tried before the first one: its forecast, that it changes nothing, and its error."""

import json

import pytest
import torch

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.policy import generation_loop
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from grpo_kit.training.callbacks import find_callback
from grpo_kit.training.grpo import worst_step
from tests.helpers.memory import raise_at
from tests.helpers.settings import SMALL


def length_reward(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]


def prepared(tmp_path, *overrides):
    chosen = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=2", *overrides])
    run = find_run("r", tmp_path / "runs")
    prepare(chosen, run)
    return chosen, run


@pytest.mark.slow
def test_the_probe_step_uses_the_longest_inputs_and_forecasts_the_run(tmp_path):
    chosen, run = prepared(tmp_path)
    forecasts, shapes = [], []
    trainer = train.make_trainer(chosen, run, [length_reward] * 2, on_forecast=forecasts.append)
    forward = trainer.model.forward
    trainer.model.forward = lambda *a, **k: shapes.append(tuple(k["input_ids"].shape)) or forward(*a, **k)
    trainer.train()
    (forecast,) = forecasts
    longest = find_callback(trainer, worst_step.WorstStepCallback).longest[0]
    assert forecast["prompt_tokens"] == len(longest) and forecast["steps"] == 2
    assert shapes[0] == (16, len(longest) + 40)  # a whole micro-batch at full length, before any real one
    assert all(forecast[key] > 0 for key in ("sampling_seconds", "training_seconds"))
    assert forecast["seconds"] == pytest.approx(2 * (forecast["sampling_seconds"] + forecast["training_seconds"]))
    assert forecast["peak_bytes"] is None and json.loads(run.forecast.read_text()) == forecast


@pytest.mark.slow
def test_the_run_is_the_same_with_and_without_the_probe_step(tmp_path, monkeypatch):
    def adapter_of(name):
        chosen, run = prepared(tmp_path / name, "policy.load_in_4bit=true", "policy.experts_on_host=0.5")
        train.train(chosen, run, [length_reward] * 2)
        rows = [
            {k: v for k, v in row.items() if "second" not in k and "time" not in k} for row in read_lines(run.metrics)
        ]
        return hash_of(run.adapter), rows

    with_probe = adapter_of("with")
    monkeypatch.setattr(worst_step.WorstStepCallback, "on_step_begin", lambda *args, **kwargs: None)
    assert adapter_of("without") == with_probe


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "says"),
    [
        (generation_loop, "draw_tokens", r"CUDA is out of memory while sampling .*grpo.per_device_train_batch_size"),
        (torch.Tensor, "backward", r"CUDA is out of memory while training .*grpo-kit plan"),
    ],
)
def test_a_step_that_does_not_fit_raises_before_training(tmp_path, monkeypatch, owner, name, says):
    chosen, run = prepared(tmp_path)
    raise_at(monkeypatch, owner, name)
    sizes = r"16 x \(\d+ \+ 40\) tokens in training\)"
    with pytest.raises(RuntimeError, match=rf"{sizes} does not fit the GPU; nothing was trained\. {says}") as error:
        train.train(chosen, run, [length_reward] * 2)
    assert "\n" not in str(error.value) and read_lines(run.metrics) == [] and not run.adapter.exists()
