"""TRL's GRPOTrainer as the kit opens it: what it leaves to TRL, and what it does not print."""

import logging

import trl

from grpo_kit.training.trl_internals.grpo import OpenGRPOTrainer


def test_vllm_samples_turns_as_trl_lets_it(monkeypatch):
    """With vLLM a trainer of TRL has no `generation_config`."""
    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", lambda self, ids, *more: (ids, more))
    trainer = object.__new__(OpenGRPOTrainer)
    trainer.use_vllm = True
    assert trainer._generate_single_turn([[1, 2]], None, {}, 4) == ([[1, 2]], (None, {}, 4))


def test_trl_does_not_print_a_whole_row_where_nothing_is_judged():
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    for text, is_shown in (
        ("[RANK 0] All reward functions returned None for the following kwargs:", False),
        ("x", True),
    ):
        assert bool(logger.filter(logging.makeLogRecord({"msg": text}))) is is_shown
