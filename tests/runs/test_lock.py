"""One writer for a run: the second is refused by name, a dead one is replaced, and nobody is blocked for ever."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time

import pytest

from grpo_kit.config import load_config
from grpo_kit.data.preparation import prepare
from grpo_kit.runs import lock as locking
from grpo_kit.runs.lock import LOCK, hold_lock, is_locked, read_lock
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from tests.helpers.processes import start as start_python
from tests.helpers.settings import ROOT, SMALL

HOLDER = """
import sys, time
from pathlib import Path
from grpo_kit.runs.lock import hold_lock
with hold_lock(Path(sys.argv[1]), "Run 'x'", "train"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path/x`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(locking, "SETTLE", 0.0)


def write_lock(folder, **changes):
    """A lock as another process would have written it now, apart from `changes`."""
    now = int(time.time())
    lock = {"stage": "train", "host": "kaggle-7", "machine": "another", "pid": 7, "start": now, "beat": now}
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps(lock | {"token": "theirs"} | changes) + "\n")


def hold(folder):
    with hold_lock(folder, "Run 'x'", "evaluate"):
        return read_lock(folder / LOCK)["pid"]


def test_the_second_writer_is_refused_in_a_sentence_that_names_the_first(tmp_path, holder):
    path = tmp_path / "x" / LOCK
    says = (
        rf"^Run 'x' is being written by 'train' in process {holder.pid} on {re.escape(platform.node())}, "
        r"since 20[^.;]+; its last sign of life was \d+ s ago\. Wait until it ends or use another run; if it is "
        rf"dead, delete {re.escape(str(path))} or call again in \d+ s\.$"
    )
    with pytest.raises(RuntimeError, match=says):
        hold(tmp_path / "x")
    assert hold(tmp_path / "y") == os.getpid()  # another run is free
    assert is_locked(tmp_path / "x") and read_lock(path)["pid"] == holder.pid


def test_a_killed_writer_is_replaced_at_once_and_leaves_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert not is_locked(tmp_path / "x")
    (tmp_path / "x" / f".metrics.jsonl.{holder.pid}.partial").write_text("half")
    with hold_lock(tmp_path / "x", "Run 'x'", "train"):
        assert [p.name for p in (tmp_path / "x").iterdir()] == [LOCK]
    assert not (tmp_path / "x").exists()  # a folder that is empty again goes too


def test_a_writer_that_is_told_to_end_gives_the_lock_back(tmp_path, holder):
    holder.send_signal(signal.SIGTERM)
    assert holder.wait() == 128 + signal.SIGTERM and not (tmp_path / "x").exists()


def test_a_writer_on_another_machine_is_dead_when_its_heartbeat_has_stopped(tmp_path):
    write_lock(tmp_path, beat=int(time.time()) - 200)
    with pytest.raises(RuntimeError, match=r"process 7 on kaggle-7, .* 20\d s ago.*call again in (100|99) s"):
        hold(tmp_path)
    write_lock(tmp_path, beat=int(time.time()) - 301)
    assert hold(tmp_path) == os.getpid()


def test_a_dead_process_with_this_ones_number_does_not_block(tmp_path):
    """A container gives its processes the same numbers at each start."""
    write_lock(tmp_path, machine=locking._machine(), pid=os.getpid())
    assert hold(tmp_path) == os.getpid()
    with hold_lock(tmp_path, "Run 'x'", "train"), pytest.raises(RuntimeError, match=f"process {os.getpid()} on"):
        hold(tmp_path)  # but a lock that this process does hold is one


def test_a_later_process_with_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path, holder):
    path = tmp_path / "x" / LOCK
    before = read_lock(path)["start"] - 1000
    path.write_text(json.dumps(read_lock(path) | {"start": before, "beat": before + 900, "token": "theirs"}))
    assert hold(tmp_path / "x") == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"stage": 1, "pid": "x", "beat": null}'])
def test_a_lock_that_cannot_be_read_does_not_block(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    assert hold(tmp_path) == os.getpid()


@pytest.mark.parametrize("cause", ["was deleted", "by 'train' in process 7 on kaggle-7"])
def test_a_writer_whose_lock_was_taken_ends_before_it_writes_more(tmp_path, monkeypatch, cause):
    monkeypatch.setattr(locking, "BEAT", 0.05)
    with pytest.raises(RuntimeError, match=f"Run 'x' was taken over.*{cause}"), hold_lock(tmp_path, "Run 'x'", "train"):
        write_lock(tmp_path) if "process 7" in cause else (tmp_path / LOCK).unlink()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.01)
    assert (tmp_path / LOCK).exists() == ("process 7" in cause)  # the other's lock stays


def test_the_heartbeat_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "BEAT", 0.05)
    with hold_lock(tmp_path, "Run 'x'", "train"):
        first = (tmp_path / LOCK).stat().st_mtime_ns
        while (tmp_path / LOCK).stat().st_mtime_ns == first:
            time.sleep(0.01)
        assert read_lock(tmp_path / LOCK)["pid"] == os.getpid()


def test_the_other_processes_of_a_training_share_the_lock(tmp_path, monkeypatch):
    run = find_run("x", tmp_path)
    with run.lock("train"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        with find_run("x", tmp_path).lock("train"):
            assert read_lock(run.path / LOCK)["pid"] == os.getpid()
        monkeypatch.undo()
    assert not run.path.exists()


def test_a_stage_that_another_process_has_just_finished_is_not_made_over(tmp_path):
    run, other = find_run("x", tmp_path), find_run("x", tmp_path)
    assert not run.is_done("data", {}, [])
    other.record_stage("data", {"other": 1}, [], [], 1.0, "")
    with pytest.raises(RuntimeError, match="just finished stage 'data'"), run.lock("data"):
        pytest.fail("it began")


def test_finding_a_run_cleans_it_unless_somebody_writes_it(tmp_path):
    old = tmp_path / "x" / ".adapter.999999.old"
    old.mkdir(parents=True)
    write_lock(tmp_path / "x")
    find_run("x", tmp_path)
    assert old.is_dir()
    (tmp_path / "x" / LOCK).unlink()
    assert find_run("x", tmp_path).adapter.is_dir() and not old.exists()


WAITING = """
import time
from pathlib import Path
def waiting_reward(completions, trainer_state, **columns):
    while trainer_state.global_step == 2 and not Path({flag!r}).exists():
        time.sleep(0.05)
    return [float(len(c[0]["content"])) for c in completions]
"""


@pytest.mark.slow
def test_of_two_trainings_of_one_run_the_second_is_refused(tmp_path):
    """The two-writers trial, with processes as a user starts them; reading stays free meanwhile."""
    flag, reward = tmp_path / "go", tmp_path / "waiting.py"
    reward.write_text(WAITING.format(flag=str(flag)))
    train = ["train", "--run", "r", f"grpo.reward_funcs=[{reward}:waiting_reward]", "grpo.reward_weights=[1.0]"]
    for name in ("r", "other"):
        prepare(load_config(["tiny"], [*SMALL, "grpo.max_steps=6", "grpo.eval_steps=0"]), find_run(name, tmp_path))

    def start(*words):
        words = ["-W", "ignore", "-m", "grpo_kit", *words]
        return start_python(words, os.environ | {"GRPO_KIT_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)})

    run = find_run("r", tmp_path)
    first = start(*train)
    while first.poll() is None and not (run.metrics.is_file() and run.metrics.read_text().count("\n") == 2):
        time.sleep(0.05)
    second, measured, shown = start(*train), start("evaluate", "--run", "other"), start("report", "--run", "r")
    refusal, _ = second.communicate(timeout=300)
    assert second.returncode == 1 and refusal.count("error:") == 1 and "Traceback" not in refusal
    assert f"Run 'r' is being written by 'train' in process {first.pid} on" in " ".join(refusal.split())
    for reader in (measured, shown):
        output, _ = reader.communicate(timeout=300)
        assert reader.returncode == 0, output
    flag.touch()
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output
    assert [row["step"] for row in read_lines(run.metrics)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in read_lines(run.completions)] == [step for step in range(1, 7) for _ in range(16)]
    assert not (run.path / LOCK).exists()
