"""Figures of a step that the kit adds to TRL's."""

import types

import pytest
import torch

from grpo_kit.runs.reading import read_lines
from grpo_kit.training.metrics_log import CompletionRecorder, MetricsCallback


@pytest.mark.parametrize(("scaler", "row"), [(None, {}), (object(), {"skipped_steps": 2})])
def test_steps_that_the_fp16_scaler_skips_are_counted(tmp_path, scaler, row):
    """accelerate says after each optimiser step whether gradients overflowed; without a scaler there is no figure."""
    accelerator = types.SimpleNamespace(scaler=scaler, optimizer_step_was_skipped=False)
    trainer = types.SimpleNamespace(accelerator=accelerator, model=torch.nn.Linear(1, 1))
    record = MetricsCallback(trainer, tmp_path / "metrics.jsonl", {})
    state = types.SimpleNamespace(global_step=4)
    record.on_train_begin(None, state, None)
    for skipped in (True, False, True, False):
        accelerator.optimizer_step_was_skipped = skipped
        record.on_optimizer_step(None, state, None)
    record.on_log(None, state, None, logs={"loss": 1.0})
    (written,) = read_lines(tmp_path / "metrics.jsonl")
    assert (
        written.pop("seconds") >= 0
        and written.pop("tokens_per_second") >= 0
        and written == {"step": 4, "loss": 1.0, **row}
    )


def test_accelerate_still_reports_whether_a_step_was_skipped():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.optimizer_step_was_skipped is False and accelerator.scaler is None


def test_groups_are_numbered_within_a_step_through_all_its_rounds(tmp_path):
    """Neighbouring groups may ask the same, and a step that replaces groups samples several batches."""

    def pays_all(completions, **columns):
        return [1.0] * len(completions)

    recorder = CompletionRecorder(tmp_path / "completions.jsonl", 2, [pays_all])

    def sample(finished_steps, prompts):
        state = types.SimpleNamespace(global_step=finished_steps)
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        replies = [[{"role": "assistant", "content": "a"}] for _ in prompts]
        recorder.watched[0](prompts=asked, completions=replies, answer=["1"] * len(prompts), trainer_state=state)

    def numbers():
        return [(line["step"], line["group"]) for line in read_lines(recorder.path)]

    recorder.on_train_begin(None, types.SimpleNamespace(global_step=0), None)
    sample(0, "pppp")
    sample(0, "qq")  # a further round of the same step
    sample(1, "pp")
    assert numbers() == [(1, 1), (1, 1), (1, 2), (1, 2), (1, 3), (1, 3), (2, 1), (2, 1)]
    recorder.on_train_begin(None, types.SimpleNamespace(global_step=1), None)  # step 2 is taken again
    sample(1, "pp")
    assert numbers()[6:] == [(2, 1), (2, 1)]
