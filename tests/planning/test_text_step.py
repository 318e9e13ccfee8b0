"""The plan of the stage sft: rows of texts, the longest that fits, and the seconds of a step."""

import pytest

from grpo_kit.config import load_config
from grpo_kit.planning.plan import plan
from grpo_kit.planning.text_step import TextStep, describe_pairs, describe_texts, plan_pairs, plan_texts


def planned(preset, device, *overrides):
    return plan_texts(plan(load_config(preset, overrides), device, search=False), search=False)


def test_a_row_is_as_long_as_grpos_unless_it_is_set():
    step = planned("tiny", "t4")
    assert (step.tokens, step.rows, step.at_once, step.fits) == (256 + 40, 8, 8, True)
    step = planned("tiny", "t4", "sft.max_length=100", "sft.per_device_train_batch_size=4")
    assert (step.tokens, step.rows, step.at_once) == (100, 4, 4)
    step = planned("tiny", "t4", "grpo.stages=[{max_completion_length: 90}]", "sft.max_length=2")
    assert (step.tokens, step.fits, step.largest) == (2, True, 0)  # a prompt of one token


def test_seconds_grow_with_the_micro_batches_and_not_with_completions_that_grpo_samples():
    once, twice = (planned("tiny", "t4", f"sft.gradient_accumulation_steps={n}").seconds for n in (1, 2))
    assert twice == pytest.approx([2 * seconds for seconds in once]) and 0 < once[0] <= once[1]
    assert planned("tiny", "t4", "grpo.num_generations=64").seconds == once


@pytest.mark.slow
def test_traces_of_the_challenges_length_do_not_fit_a_t4_and_fit_24_gib():
    small = plan_texts(plan(load_config("t4", ["sft.max_length=7680"]), "t4", search=False))
    assert not small.fits and 768 <= small.largest < 7680
    assert planned("24gb", "24gb", "sft.max_length=7680").fits


def test_a_step_is_one_sentence():
    words = "sft: 8 texts a step, 1 x 9,000 tokens at once, do not fit; up to 6,016 tokens would"
    assert describe_texts(TextStep(9000, 8, 1, False, 6016, None)) == words
    words = "sft: 8 texts a step, 1 x 9 tokens at once, do not fit"
    assert describe_texts(TextStep(9, 8, 1, False, 0, None)) == words


def test_a_pair_is_two_rows_of_grpos_length_unless_it_is_set():
    def pairs(*overrides):
        settings = ["dpo.per_device_train_batch_size=2", "dpo.gradient_accumulation_steps=3", *overrides]
        return plan_pairs(plan(load_config("tiny", settings), "t4", search=False), search=False)

    step = pairs()
    assert (step.tokens, step.rows, step.at_once, step.fits) == (256 + 40, 12, 4, True)
    assert pairs("dpo.max_length=100").tokens == 100
    as_texts = planned("tiny", "t4", "sft.per_device_train_batch_size=4", "sft.gradient_accumulation_steps=3")
    assert step == as_texts  # the same rows; the reference takes nothing beside them
    assert describe_pairs(step).startswith("prefer: 6 pairs a step, 4 x 296 tokens at once, fit; a step takes ")
