"""A stage that SIGTERM or SIGINT ends keeps what it has, also in the middle of sampling, and continues from there."""

import contextlib
import os
import signal
import threading
import time

import pytest

from grpo_kit.config import load_config
from grpo_kit.data.preparation import prepare
from grpo_kit.nemotron.decoding import one_token
from grpo_kit.runs import interrupts
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.interrupts import Terminated
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import callbacks, train
from tests.helpers.processes import start as start_python
from tests.helpers.settings import ROOT, SMALL
from tests.training.test_stage import figures, length_reward

SETTINGS = ["grpo.max_steps=4", "grpo.save_steps=100", "grpo.resample_budget=1", "grpo.eval_steps=2"]
# As the command line, but from the first token on that is drawn after STEPS steps, a token takes an hour.
SLOW = """
import sys, time
from pathlib import Path
from grpo_kit.nemotron.decoding import one_token
from grpo_kit.cli.main import app
step, rows, flag = one_token.Decoder.step, Path(sys.argv.pop(1)), Path(sys.argv.pop(1))
def slow(*args):
    if rows.is_file() and len(rows.read_text().splitlines()) >= 2:
        flag.touch()
        time.sleep(3600)
    return step(*args)
one_token.Decoder.step = slow
app()
"""


def prepared(folder, *more):
    chosen = load_config(["tiny"], [*SMALL, *SETTINGS, *more])
    run = find_run("r", folder / "runs")
    prepare(chosen, run)
    return chosen, run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    chosen, run = prepared(tmp_path_factory.mktemp("undisturbed"))
    train.train(chosen, run, [length_reward] * 2)
    assert all(row["grad_norm"] > 0 for row in figures(run))  # or equal adapters would say nothing
    return run


def assert_equal(run, other):
    assert figures(run) == figures(other) and hash_of(run.adapter) == hash_of(other.adapter)
    assert run.completions.read_text() == other.completions.read_text()


def interrupt_at(monkeypatch, at, number):
    """Send the signal at the decoding step `at`."""
    real, calls = one_token.Decoder.step, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
            time.sleep(0 if threading.current_thread() is threading.main_thread() else 0.1)
        return real(*args)

    monkeypatch.setattr(one_token.Decoder, "step", interrupted)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("number, kind", [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_in_the_middle_of_sampling_keeps_the_steps_taken(undisturbed, tmp_path, monkeypatch, number, kind):
    chosen, run = prepared(tmp_path)

    def send(row):
        if row["step"] == 1:
            interrupt_at(monkeypatch, 20, number)

    with pytest.raises(kind), pytest.warns(UserWarning, match=r"Interrupted after step 1 of 4, of which a checkpoint"):
        train.train(chosen, run, [length_reward] * 2, on_step=send)
    monkeypatch.undo()
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step_1"]
    assert not run.adapter.exists() and not (run.path / ".lock").exists()
    train.train(chosen, run, [length_reward] * 2)
    assert_equal(run, undisturbed)


@pytest.mark.slow
def test_a_signal_in_a_measurement_is_obeyed_and_the_row_completed_later(undisturbed, tmp_path, monkeypatch):
    chosen, run = prepared(tmp_path)
    measured = callbacks.HeldOutCallback.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        if state.global_step == 2:
            interrupt_at(monkeypatch, 3, signal.SIGTERM)
        measured(self, args, state, control, **kwargs)

    monkeypatch.setattr(callbacks.HeldOutCallback, "on_step_end", interrupted)
    with pytest.raises(Terminated), pytest.warns(UserWarning, match="after step 2 of 4"):
        train.train(chosen, run, [length_reward] * 2)
    monkeypatch.undo()
    assert "held_out" not in read_lines(run.metrics)[-1]
    train.train(chosen, run, [length_reward] * 2)
    assert_equal(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "event, at, kept",
    [("on_pre_optimizer_step", 1, 2), ("on_optimizer_step", 1, 2), ("on_log", 2, 2), ("on_save", 4, 4)],
)
def test_a_signal_in_an_optimisers_step_waits_for_its_row(undisturbed, tmp_path, monkeypatch, event, at, kept):
    chosen, run = prepared(tmp_path)

    def send(self, args, state, control, **kwargs):
        if state.global_step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(callbacks.StageCallback, event, send)
    with pytest.raises(Terminated), pytest.warns(UserWarning, match=f"after step {kept} of 4"):
        train.train(chosen, run, [length_reward] * 2)
    monkeypatch.undo()
    train.train(chosen, run, [length_reward] * 2)
    assert_equal(run, undisturbed)


@pytest.mark.slow
def test_a_training_in_a_notebooks_thread_saves_too(undisturbed, tmp_path, monkeypatch):
    chosen, run = prepared(tmp_path)
    ended = []

    def send(row):
        if row["step"] == 1:
            interrupt_at(monkeypatch, 20, signal.SIGTERM)

    def work():
        with contextlib.suppress(Terminated):
            train.train(chosen, run, [length_reward] * 2, on_step=send)
            ended.append("finished")

    with interrupts.listen(), pytest.warns(UserWarning, match="Interrupted after step 1 of 4"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(300)
    monkeypatch.undo()
    assert ended == [] and [p.name for p in (run.path / "checkpoints").iterdir()] == ["step_1"]
    train.train(chosen, run, [length_reward] * 2)
    assert_equal(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, file, kept", [("train", "metrics.jsonl", 2), ("evaluate", "evaluation/before.partial.jsonl", 2),
                          ("screen", "screening.jsonl", 2)]
)  # fmt: skip
def test_a_command_ends_while_a_token_takes_an_hour_and_keeps_what_it_has(tmp_path, stage, file, kept):
    chosen, run = prepared(tmp_path)
    flag = tmp_path / "slow"
    command = ["-W", "ignore", "-c", SLOW, str(run.path / file), str(flag), stage, "--run", "r"]
    command += [*SETTINGS, "grpo.eval_steps=0", "evaluation.batch_size=4", "screening.samples_per_round=4"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "GRPO_KIT_ROOT": str(run.root)}
    child = start_python(command, env)
    while child.poll() is None and not flag.exists():
        time.sleep(0.05)
    assert child.poll() is None, child.communicate()[0]
    child.send_signal(signal.SIGTERM)
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 143 and "Interrupted." in output and "Traceback" not in output
    assert len((run.path / file).read_text().splitlines()) >= kept
    assert not [p for p in run.path.rglob(".*") if p.name != ".data"]
    assert (run.path / "checkpoints/step_2").is_dir() == (stage == "train")
