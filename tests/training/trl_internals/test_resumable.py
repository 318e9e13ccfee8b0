"""What every trainer writes for resuming, and the figures that TRL keeps for its log."""

import math
import types

from transformers import TrainerState

from grpo_kit.training.trl_internals import resumable
from grpo_kit.training.trl_internals.resumable import ResumableTrainer


def test_trl_still_keeps_its_log_under_the_name_that_we_clear(build_trainer):
    trainer = build_trainer()
    trainer.figures["ours"].append(0.5)
    trainer.log({"loss": 1.0})
    assert trainer.figures == {} and trainer.state.log_history[-1]["ours"] == 0.5


def test_the_state_of_a_checkpoint_is_json_also_after_a_step_without_a_finite_gradient(tmp_path, monkeypatch):
    trainer = types.SimpleNamespace(
        state=TrainerState(global_step=2, log_history=[{"step": 2, "grad_norm": math.nan, "loss": math.inf}]),
        accelerator=types.SimpleNamespace(unwrap_model=lambda model: model), model=None, save_extra=lambda folder: None,
        **{f"_save_{name}": lambda folder: None for name in ("optimizer_and_scheduler", "scaler", "rng_state")},
    )  # fmt: skip
    monkeypatch.setattr(resumable.lora, "save_adapter", lambda *_: None)
    ResumableTrainer.write_checkpoint(trainer, tmp_path, "base")
    text = (tmp_path / "trainer_state.json").read_text()
    assert '"loss": null' in text and "NaN" not in text and "Infinity" not in text
    assert TrainerState.load_from_json(tmp_path / "trainer_state.json").global_step == 2
