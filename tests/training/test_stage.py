"""A training that was stopped, killed or ran out of time resumes and ends like an undisturbed one."""

import os
import random
import shutil
import signal
import time
from dataclasses import replace

import pytest

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import metrics_log, stage, train
from tests.helpers.processes import start as start_python
from tests.helpers.settings import SMALL


def length_reward(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]


def small(tmp_path, *overrides):
    chosen = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=2", *overrides])
    run = find_run("r", tmp_path / "runs")
    prepare(chosen, run)
    return chosen, run


@pytest.mark.slow
def test_a_stopped_run_keeps_its_adapter_and_resumes_when_called_again(tmp_path):
    chosen, run = small(tmp_path, "grpo.max_steps=4")
    settings, other = small(tmp_path / "whole", "grpo.max_steps=4")
    train.train(settings, other, [length_reward] * 2)
    rows = []
    last = train.train(chosen, run, [length_reward] * 2, on_step=rows.append, should_stop=lambda: len(rows) == 2)
    assert (
        last["step"] == 2
        and run.stages()["train"]["steps"] == 2
        and (run.adapter / "adapter_model.safetensors").is_file()
    )
    last = train.train(chosen, run, [length_reward] * 2)
    assert last["step"] == 4 and hash_of(run.adapter) == hash_of(other.adapter)
    assert all(row["grad_norm"] > 0 for row in read_lines(run.metrics))  # or equal adapters would say nothing
    assert train.train(chosen, run, [length_reward] * 2) == last  # a finished training is not changed


LEARNS = ["grpo.mask_truncated_completions=false", "grpo.num_iterations=2"]  # so that every step has a gradient


@pytest.mark.slow
def test_a_finished_run_goes_on_to_a_higher_number_of_steps_like_one_long_training(tmp_path):
    chosen, run = small(tmp_path, "grpo.max_steps=2", *LEARNS)
    longer, other = small(tmp_path / "whole", "grpo.max_steps=4", *LEARNS)
    train.train(longer, other, [length_reward] * 2)
    train.train(chosen, run, [length_reward] * 2)
    short = run.stages()["train"]
    train.train(longer, run, [length_reward] * 2)
    assert figures(run) == figures(other) and all(row["grad_norm"] > 0 for row in figures(run))
    assert run.completions.read_bytes() == other.completions.read_bytes()
    assert hash_of(run.adapter) == hash_of(other.adapter) != short["wrote"]["adapter"]
    stages = run.stages()
    assert list(stages) == ["data", "train to step 2", "train"] and stages["train to step 2"] == short
    assert stages["train"]["steps"] == 4 and stages["train"]["settings"]["grpo"]["max_steps"] == 4
    with pytest.raises(ValueError, match="grpo.max_steps was 4, now 2"):
        train.train(chosen, run, [length_reward] * 2)
    shutil.rmtree(run.path / "checkpoints")
    longest = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=5", *LEARNS])
    with pytest.raises(ValueError, match="'r' is trained to step 4 and .*checkpoints holds no checkpoint to go on"):
        train.train(longest, run, [length_reward] * 2)
    assert hash_of(run.adapter) == hash_of(other.adapter)
    forced = replace(chosen, run=replace(chosen.run, force=True))
    assert train.train(forced, run, [length_reward] * 2)["step"] == 2
    assert list(run.stages()) == ["data", "train"]


@pytest.mark.slow
def test_a_schedule_over_fewer_steps_is_named_and_continues_as_one_over_all_steps(tmp_path):
    chosen, run = small(tmp_path, "grpo.max_steps=1", "grpo.lr_scheduler_type=linear", LEARNS[0])
    train.train(chosen, run, [length_reward] * 2)
    longer = replace(chosen, grpo=replace(chosen.grpo, max_steps=3))
    with pytest.warns(UserWarning, match="from step 1 to step 3. Its result differs .*lr_scheduler_type=linear"):
        train.train(longer, run, [length_reward] * 2)
    rates = [row["learning_rate"] / chosen.grpo.learning_rate for row in read_lines(run.metrics)]
    assert rates == pytest.approx([1, 2 / 3, 1 / 3])  # at the end of the short schedule the rate was 0


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_trains_no_further_step(tmp_path, monkeypatch):
    chosen, run = small(tmp_path, "grpo.max_steps=2", "grpo.save_steps=1")

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "save_adapter", killed)
        train.train(chosen, run, [length_reward] * 2)
    assert "train" not in run.stages() and len(read_lines(run.metrics)) == 2
    rows = read_lines(run.metrics)
    assert train.train(chosen, run, [length_reward] * 2) == rows[-1] and read_lines(run.metrics) == rows
    settings, other = small(tmp_path / "whole", "grpo.max_steps=2", "grpo.save_steps=1")
    train.train(settings, other, [length_reward] * 2)
    assert hash_of(run.adapter) == hash_of(other.adapter)


@pytest.mark.slow
def test_a_run_stops_before_its_deadline(tmp_path):
    chosen, run = small(tmp_path, "grpo.max_steps=50", "run.time_limit=1s")
    assert train.train(chosen, run, [length_reward] * 2)["step"] == 1


@pytest.mark.slow
def test_an_alarm_stops_the_run_when_configured(tmp_path, monkeypatch):
    monkeypatch.setattr(
        metrics_log.alarms, "find_alarms", lambda rows, grpo: [("cut", "too short")] if len(rows) == 2 else []
    )
    chosen, run = small(tmp_path, "grpo.max_steps=5", "grpo.on_alarm=stop")
    with pytest.warns(UserWarning, match="Stopped at step 2 of 5: too short"):
        assert train.train(chosen, run, [length_reward] * 2)["step"] == 2


@pytest.mark.slow
def test_a_training_with_different_settings_is_not_resumed(tmp_path):
    chosen, run = small(tmp_path, "grpo.max_steps=4", "grpo.save_steps=1")
    with pytest.raises(KeyboardInterrupt):
        train.train(
            chosen,
            run,
            [length_reward] * 2,
            on_step=lambda row: (_ for _ in ()).throw(KeyboardInterrupt) if row["step"] == 3 else None,
        )
    other = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=4", "grpo.learning_rate=0.5"])
    with pytest.raises(ValueError, match="learning_rate was 0.001, now 0.5.*--force"):
        train.train(other, run, [length_reward] * 2)


KILLED = """
from grpo_kit import config
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from tests.helpers.settings import SMALL
from tests.training.test_stage import length_reward
settings = config.load_config(["tiny"], [*SMALL, *{overrides}])
train.train(settings, find_run("r", {root!r}), [length_reward] * 2)
"""


KILLS = int(os.environ.get("GRPO_KIT_KILLS", "2"))  # twenty take some minutes


def figures(run):
    """Metrics rows without the columns of time."""
    clock = ("second", "time")
    return [{k: v for k, v in row.items() if not any(c in k for c in clock)} for row in read_lines(run.metrics)]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_and_rerun_equals_an_undisturbed_one(tmp_path):
    overrides = ["grpo.max_steps=12", "grpo.save_steps=1", "grpo.resample_budget=1"]
    chosen, alone = small(tmp_path / "alone", *overrides)
    train.train(chosen, alone, [length_reward] * 2)
    chosen, run = small(tmp_path / "killed", *overrides)
    command = ["-W", "ignore", "-c", KILLED.format(overrides=overrides, root=str(run.root))]
    pick, kills = random.Random(1), 0
    for _ in range(KILLS):
        stamp = run.metrics.stat().st_mtime_ns if run.metrics.is_file() else 0
        child = start_python(command)
        while child.poll() is None and (not run.metrics.is_file() or run.metrics.stat().st_mtime_ns == stamp):
            time.sleep(0.02)  # until it trains
        time.sleep(pick.uniform(0, 1.5))
        child.kill()
        output, _ = child.communicate(timeout=300)
        if child.returncode == 0:  # it was through before
            break
        assert child.returncode == -signal.SIGKILL, output
        kills += 1
    else:
        train.train(chosen, run, [length_reward] * 2)
    assert kills > 1
    assert figures(run) == figures(alone) and [row["step"] for row in figures(run)] == list(range(1, 13))
    assert sum(row["grad_norm"] > 0 for row in figures(run)) > 6  # or equal adapters would say nothing
    assert hash_of(run.adapter) == hash_of(alone.adapter)
    steps = [line["step"] for line in read_lines(run.completions)]
    assert steps == [line["step"] for line in read_lines(alone.completions)]
