"""Training within a budget of thinking: what the loss sees of a cut thought, resumption, figures by mode."""

import pytest
import torch

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.policy.thinking_budget import find_forced, read_closing
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from grpo_kit.training.callbacks import find_callback
from grpo_kit.training.grpo.worst_step import WorstStepCallback
from tests.helpers.settings import SMALL
from tests.training.test_stage import figures, length_reward

OPEN, CLOSE = 12, 13


def small(tmp_path, *overrides):
    chosen = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=2", "run.report_to=[]", *overrides])
    run = find_run("r", tmp_path / "runs")
    prepare(chosen, run)
    return chosen, run


def answer_reward(completions, **kwargs):
    """Differs within a group after a cut, too: the digits of the answer."""
    return [float(sum(map(ord, c[0]["content"].partition("</think>")[2]))) for c in completions]


def watch(trainer):
    """The batches that the loss gets, the probe's left out."""
    batches, inner = [], trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, **k: batches.append(inputs) or inner(model, inputs, **k)
    find_callback(trainer, WorstStepCallback).done = True
    return batches


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """(trainer, the batch of its one step, the metrics row); thoughts are cut after 10 tokens."""
    chosen, run = small(tmp_path_factory.mktemp("step"), "grpo.max_steps=1", "policy.thinking_budget=10")
    trainer = train.make_trainer(chosen, run, [answer_reward] * 2)
    batches = watch(trainer)
    trainer.train()
    (row,) = read_lines(run.metrics)
    return trainer, batches[0], row


def test_the_loss_counts_what_the_policy_drew_and_not_what_was_forced(step):
    trainer, batch, row = step
    closing, forced = read_closing(trainer.processing_class), 0
    for ids, mask, own in zip(batch["completion_ids"], batch["completion_mask"], batch["tool_mask"], strict=True):
        reply = ids[mask.bool()].tolist()
        expected = find_forced(closing, [OPEN], reply, 10)
        assert own[mask.bool()].tolist() == [int(not each) for each in expected]
        forced += sum(expected)
    assert forced == 3 * len(batch["completion_ids"])  # every thought was cut
    own = batch["completion_mask"] * batch["tool_mask"]
    assert batch["num_items_in_batch"] == own.sum() == batch["completion_mask"].sum() - forced
    assert row["grad_norm"] > 0 and row["sampling/logp_gap"] < 1e-4
    assert (row["modes/on/thinking"], row["modes/on/cut"]) == (10, 1) and "modes/on/within" not in row
    assert row["completions/mean_length"] > own.sum().item() / len(own)  # a reply is as long as it stands
    assert row["completions/clipped_ratio"] == 0


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "bnpo", "gspo", "cispo"])
def test_a_forced_token_has_no_gradient_however_unlikely_it_is(step, monkeypatch, loss):
    """Their log-probs are changed as a gradient step would change them: loss and gradient stay as they are."""
    trainer, batch, _ = step
    monkeypatch.setattr(trainer, "loss_type", "grpo" if loss == "gspo" else loss)
    monkeypatch.setattr(trainer, "importance_sampling_level", "sequence" if loss == "gspo" else "token")
    forced = batch["completion_mask"].bool() & ~batch["tool_mask"].bool()
    worth = torch.tensor([1.0, -1.0]).repeat(len(forced) // 2)  # no row is left out
    plain, drawn = type(trainer)._get_per_token_logps_and_entropies, []

    def losses(shift):
        def shifted(self, *args, **kwargs):
            logps, *others = plain(self, *args, **kwargs)
            drawn.append(logps)
            logps.retain_grad()
            return logps + shift * forced[:, : logps.shape[1]] if shift else logps, *others

        monkeypatch.setattr(type(trainer), "_get_per_token_logps_and_entropies", shifted)
        inputs = batch | {"old_per_token_logps": torch.full(forced.shape, -1.0), "advantages": worth}
        trainer.model.zero_grad(set_to_none=True)
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        return loss.item(), drawn[-1].grad

    (value, gradient), (shifted, other) = losses(0.0), losses(-3.0)
    assert value == shifted and torch.equal(gradient, other)
    assert (gradient[forced] == 0).all() and (gradient[batch["tool_mask"].bool() & ~forced] != 0).any()


def test_without_a_budget_nothing_is_masked(tmp_path):
    chosen, run = small(tmp_path, "grpo.max_steps=1")
    trainer = train.make_trainer(chosen, run, [answer_reward] * 2)
    (batch, *_), row = (watch(trainer), trainer.train())
    assert row
    assert "tool_mask" not in batch and not any("modes/" in key for key in read_lines(run.metrics)[0])


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_is_the_run_that_was_not(tmp_path):
    settings = ["grpo.max_steps=3", "grpo.save_steps=1", "grpo.resample_budget=1", "policy.thinking_budget=12"]
    chosen, whole = small(tmp_path / "whole", *settings)
    train.train(chosen, whole, [answer_reward] * 2)
    rows = figures(whole)
    assert all(row["grad_norm"] > 0 and row["modes/on/cut"] > 0 for row in rows)
    _, run = small(tmp_path / "stopped", *settings)

    class Killed(BaseException):
        pass

    def kill(row):
        if row["step"] < 3:
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            train.train(chosen, run, [answer_reward] * 2, on_step=kill)
    train.train(chosen, run, [answer_reward] * 2)
    assert figures(run) == rows and hash_of(run.adapter) == hash_of(whole.adapter)
    assert run.completions.read_text() == whole.completions.read_text()


@pytest.mark.slow
def test_rows_in_several_modes_have_figures_of_their_own(tmp_path):
    options = ["data.no_thinking=0.2", "data.budgeted=0.6", "data.token_budgets=[6,20]", "grpo.resample_budget=1"]
    rewards = ["grpo.reward_weights=[1.0,0.2]"]
    chosen, run = small(tmp_path, *options, *rewards, "grpo.max_steps=3", "policy.thinking_budget=row")
    train.train(chosen, run, [length_reward, "token_budget.py"])
    rows, seen = read_lines(run.metrics), set()
    for row in rows:
        by_mode = {}
        for key in row:
            if key.startswith("modes/"):
                _, mode, figure = key.split("/")
                by_mode.setdefault(mode, {})[figure] = row[key]
        seen |= set(by_mode)
        for mode, own in by_mode.items():
            assert list(own) == ["right", "thinking", *(["within"] if mode.isdigit() else []), "cut"]
            if mode.isdigit():  # what the row states is kept by force
                assert own["thinking"] <= int(mode) and own["within"] == 1
            else:
                assert own["cut"] == 0 and (own["thinking"] == 0 if mode == "off" else own["thinking"] > 6)
        if (paid := row["rewards/token_budget_reward/mean"]) is not None:
            assert paid == 1
    assert seen == {"on", "off", "6", "20"}


@pytest.mark.slow
def test_in_a_world_each_turn_has_the_budget(tmp_path):
    """The embedded policy cannot call tools; the office's can, and thinks before each turn."""
    chosen = config.load_config(
        ["tiny-office"],
        ["grpo.max_steps=1", "data.limit=60", "data.test_size=8", "data.val_size=4", "policy.thinking_budget=3",
         "grpo.resample_budget=0", "grpo.mask_truncated_completions=false", "run.report_to=[]"],
    )  # fmt: skip
    run = find_run("r", tmp_path / "runs")
    prepare(chosen, run)
    rewards = [lambda completions, completion_ids, **_: [float(i % 2) for i, _ in enumerate(completions)]]
    rewards *= len(chosen.grpo.reward_weights)
    trainer = train.make_trainer(chosen, run, rewards)
    batches = watch(trainer)
    trainer.train()
    closing, (row,), turns = read_closing(trainer.processing_class), read_lines(run.metrics), 0
    for ids, mask, own in zip(batches[0]["completion_ids"], batches[0]["completion_mask"], batches[0]["tool_mask"]):
        reply, own = ids[mask.bool()].tolist(), own[mask.bool()].tolist()
        pieces = trainer.processing_class.decode(reply).split("<|im_start|>assistant\n<think>\n")
        assert all(len(piece.partition("</think>")[0].removesuffix("\n")) == 3 for piece in pieces)
        told = trainer.processing_class.decode([token for token, drawn in zip(reply, own) if drawn])
        assert "<tool_response>" not in told
        between = [token for token, drawn in zip(reply, own) if not drawn]
        assert between.count(closing.end_tag) == len(pieces)
        turns += len(pieces)
    assert turns > len(batches[0]["completion_ids"])  # some called a tool
    assert row["modes/on/cut"] == 1 and row["sampling/logp_gap"] < 1e-4 and row["grad_norm"] > 0
