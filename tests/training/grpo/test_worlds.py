"""GRPO with tools over several turns: sums and a world in one run, real passes and gradients, scripted replies."""

import random
import re
import signal
import time

import pytest
import torch

from grpo_kit.policy import generation_loop
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.rewards.math_answer import math_reward
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.training import train
from grpo_kit.training.callbacks import find_callback
from grpo_kit.training.grpo.worst_step import WorstStepCallback
from tests.helpers.acting import follow_script, prepared, reply_to, settings_of, short_reply_to
from tests.helpers.counter_world import call, results_in, turn
from tests.helpers.processes import start as start_python
from tests.training.test_stage import figures


def trained(chosen, run):
    """Train; returns (the metrics, what the loss got of the counter's completions)."""
    trainer, batches = train.make_trainer(chosen, run, [math_reward]), []
    inner = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, **k: batches.append(inputs) or inner(model, inputs, **k)
    find_callback(trainer, WorstStepCallback).done = True  # only real batches are looked at
    trainer.train()
    return read_lines(run.metrics), batches


@pytest.mark.slow
def test_sums_and_a_world_train_in_one_run(tmp_path, monkeypatch):
    chosen, run = prepared(tmp_path, "grpo.max_steps=1")
    prompts = follow_script(monkeypatch)
    (row,), (batch,) = trained(chosen, run)
    assert [len(texts) for texts in prompts] == [16, 8, 8]  # only those that called a tool go on
    assert all(("add(n)" in text) == ("Add up" in text) for text in prompts[0])  # a sum has no tools
    assert all(results_in(text)[0] == "0" for text in prompts[1])
    # half of each group is right, by the sum or by the number at the end
    for name in ("math", "counter"):
        assert row[f"environments/{name}/right"] == 0.5 and row[f"environments/{name}/with_gradient"] == 1
        assert row[f"environments/{name}/clipped"] == 0
    assert row["rewards/end_reward/mean"] == 0.5 and "environments/math/calls" not in row
    figures = {key.rpartition("/")[2]: row[key] for key in row if re.match("environments/counter/.*(calls|turns)", key)}
    assert figures == {
        "calls": 3, "failed_calls": 0, "unknown_calls": 0, "malformed_calls": 0, "too_many_turns": 0, "turns": 3,
    }  # fmt: skip
    # what the policy did not draw is not trained on; what was sampled is what is trained on
    tokenizer = load_tokenizer(chosen.policy)
    own, shown = batch["tool_mask"] * batch["completion_mask"], 0
    for ids, mask, whole in zip(batch["completion_ids"], own.bool(), batch["completion_mask"].bool()):
        told = tokenizer.decode(ids[whole & ~mask])
        assert told.count("<tool_response>") == told.count("</tool_response>")
        assert "<tool_response>" not in tokenizer.decode(ids[mask])
        shown += told.count("<tool_response>")
    assert shown == 8 * 3 and batch["num_items_in_batch"] == own.sum() < batch["completion_mask"].sum()
    assert row["sampling/logp_gap"] < 1e-4  # over all turns: the log-probs of each were joined
    assert row["completions/mean_length"] == own.sum().item() / 16
    assert row["environments/counter/length"] > row["completions/max_length"]  # with the results
    assert row["grad_norm"] > 0
    recorded = {
        line["environment"]: [turn["role"] for turn in line.get("turns", ())] for line in read_lines(run.completions)
    }
    acted = ["assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert recorded == {"math": [], "counter": acted}


@pytest.mark.slow
def test_flat_groups_with_tools_are_replaced_and_worlds_begin_again(tmp_path, monkeypatch):
    """In the first round no number is reached; a pool of worlds is used again in the second."""
    chosen, run = prepared(tmp_path, "grpo.max_steps=1", "grpo.resample_budget=2", sources="")
    rounds = []

    def script(text, number):
        if not results_in(text):
            rounds.append(number)
        return turn(said="no") if len(rounds) <= 16 else reply_to(text, number)

    follow_script(monkeypatch, script)
    (row,), (batch,) = trained(chosen, run)
    assert row["groups/replaced"] == 1 and row["groups/all_wrong"] == 1 and row["groups/with_gradient"] == 1
    assert (batch["advantages"] != 0).all() and batch["tool_mask"].shape == batch["completion_ids"].shape
    lines = read_lines(run.completions)
    assert [sum(line["rewards"]["end_reward"] for line in part) for part in (lines[:16], lines[16:])] == [
        0, (len(lines) - 16) / 2,
    ]  # fmt: skip
    assert row["environments/counter/turns"] == 1  # TRL's figures, and these, are of the first round
    assert row["environments/counter/right"] == 0  # also where the world's is the only environment


ADD = call("add", n=1)
HOSTILE = {  # what the policy says first: (calls, failed, unknown, malformed, turns)
    turn(ADD[:-20]): (0, 0, 0, 1, 1),  # cut off
    "t\n</think>\n<tool_call>\n<function=add>\n<parameter=n>\n1": (0, 0, 0, 1, 1),  # and no end at all
    f"thinking {ADD}<|im_end|>": (0, 0, 0, 1, 1),  # a thought that never ends
    turn(ADD, ADD[:-20]): (0, 0, 0, 2, 1),
    turn('<tool_call>{"name": "add", "arguments": {"n": 1}}</tool_call>'): (0, 0, 0, 1, 1),
    turn(call("fly", n=1)): (0, 0, 1, 0, 2),
    turn(call("reset", goal=0)): (0, 0, 1, 0, 2),
    turn(call("get_reward")): (0, 0, 1, 0, 2),
    turn(call("add", n="one")): (1, 1, 0, 0, 2),
    turn(call("add", n=99)): (1, 1, 0, 0, 2),
    turn(call("add", m=1)): (1, 1, 0, 0, 2),
    turn(call("add", n=-5), call("add", n=5)): (2, 0, 0, 0, 2),
}


@pytest.mark.slow
def test_hostile_calls_change_nothing_and_are_counted(tmp_path, monkeypatch):
    chosen, run = prepared(tmp_path, "grpo.mask_truncated_completions=false", sources="")
    follow_script(monkeypatch, lambda text, number: turn(said="ok") if results_in(text) else replies[number])
    trainer = train.make_trainer(chosen, run, [math_reward])
    for first in range(0, len(HOSTILE), 4):
        replies = list(HOSTILE)[first : first + 4]
        trainer.sample_batch(trainer.rows[:1] * len(replies))
        keys = ("calls", "failed_calls", "unknown_calls", "malformed_calls", "turns")
        for reply, counted, world in zip(replies, trainer.calls, trainer.environments, strict=True):
            assert tuple(counted[key] for key in keys) == HOSTILE[reply], reply
            assert world.value == 0 and world.goal > 0, reply
            assert len(world.told) == counted["unknown_calls"] + counted["malformed_calls"]


@pytest.mark.slow
def test_a_completion_ends_where_its_turns_or_its_room_end(tmp_path, monkeypatch):
    """One calls again and again; one's result finds no room, so it is cut, and the loss does not count it."""
    chosen, run = prepared(tmp_path, "grpo.max_tool_calling_iterations=2", "grpo.max_completion_length=480", sources="")
    long_thought = "x" * 100

    def script(text, number):
        return turn(call("add", n=1), thought=long_thought if number % 2 else "t")

    prompts = follow_script(monkeypatch, script)
    trainer = train.make_trainer(chosen, run, [math_reward])
    limits, model, plain = [], trainer.model.get_base_model(), type(trainer.model.get_base_model()).generate

    def generate(self, *args, **kwargs):
        limits.append((kwargs["generation_config"].max_new_tokens, model.row_limits))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", generate)
    batch = trainer.sample_batch(trainer.rows[:1] * 4)
    assert [len(texts) for texts in prompts] == [4, 4, 2]
    assert [figures["too_many_turns"] for figures in trainer.calls] == [1, 0, 1, 0]
    assert [world.value for world in trainer.environments] == [2, 2, 2, 2]  # a call without room was carried out
    ends = trainer.eos_token_ids
    assert [ids[-1] in ends for ids in trainer.scored_ids] == [True, False, True, False]
    assert batch["completion_mask"].any(1).tolist() == [True, False, True, False]
    assert max(map(len, trainer.scored_ids)) <= 480
    (first, none), (second, rooms), (third, _) = limits  # what the turns before left, of the longest and of each
    assert (first, none) == (480, None) and second == max(rooms) == rooms[0] == rooms[2] > rooms[1] == rooms[3]
    assert 0 < third < second < 480 - 80 and trainer.generation_config.max_new_tokens == 480


@pytest.mark.slow
def test_a_row_ends_where_its_room_ends_while_others_go_on(tiny_policy):
    model, tokenizer = tiny_policy
    ids = tokenizer("What is 1 + 2?", return_tensors="pt")["input_ids"].expand(3, -1)
    drawn = []
    for limits in ([12, 12, 12], [12, 5, 1]):
        with generation_loop.row_limits(model, limits):
            torch.manual_seed(1)
            drawn.append(model.generate(ids, max_new_tokens=12, do_sample=True, pad_token_id=0)[:, ids.shape[1] :])
        assert model.row_limits is None
    whole, cut = drawn
    assert cut[0].equal(whole[0]) and cut[1, :5].equal(whole[1, :5]) and cut[2, :1].equal(whole[2, :1])
    assert not cut[1, 5:].any() and not cut[2, 1:].any() and model.last_sampling.tokens == 12 + 5 + 1


SHORT = ["grpo.max_steps=6", "grpo.save_steps=1", "grpo.num_generations=2", "grpo.per_device_train_batch_size=4"]
KILLED = """
import pytest
from grpo_kit.config import load_config
from grpo_kit.rewards.math_answer import math_reward
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from tests.helpers import acting
acting.follow_script(pytest.MonkeyPatch(), acting.short_reply_to)
settings = load_config(["tiny"], {settings})
train.train(settings, find_run("r", {root!r}), [math_reward])
"""


@pytest.mark.slow
def test_a_run_with_tools_that_is_killed_five_times_ends_with_the_same_bytes(tmp_path, monkeypatch):
    follow_script(monkeypatch, short_reply_to)
    (tmp_path / "alone").mkdir(), (tmp_path / "killed").mkdir()
    chosen, alone = prepared(tmp_path / "alone", *SHORT)
    train.train(chosen, alone, [math_reward])
    chosen, run = prepared(tmp_path / "killed", *SHORT)
    command = KILLED.format(settings=settings_of(tmp_path / "killed", *SHORT), root=str(run.root))
    pick = random.Random(1)
    for _ in range(5):
        stamp = run.metrics.stat().st_mtime_ns if run.metrics.is_file() else 0
        child = start_python(["-W", "ignore", "-c", command])
        while child.poll() is None and (not run.metrics.is_file() or run.metrics.stat().st_mtime_ns == stamp):
            time.sleep(0.02)  # until it trains
        time.sleep(pick.uniform(0, 0.5))
        child.kill()
        output, _ = child.communicate(timeout=300)
        assert child.returncode == -signal.SIGKILL, output
    train.train(chosen, run, [math_reward])
    assert figures(run) == figures(alone) and [row["step"] for row in figures(run)] == list(range(1, 7))
    assert all(row["grad_norm"] > 0 and row["environments/counter/calls"] > 0 for row in figures(run))
    assert hash_of(run.adapter) == hash_of(alone.adapter)
    assert run.completions.read_bytes() == alone.completions.read_bytes()


@pytest.mark.slow
def test_a_run_with_tools_stops_before_its_deadline(tmp_path, monkeypatch):
    follow_script(monkeypatch, short_reply_to)
    chosen, run = prepared(tmp_path, "grpo.max_steps=50", "run.time_limit=1s")
    assert train.train(chosen, run, [math_reward])["step"] == 1 and run.adapter.is_dir()
