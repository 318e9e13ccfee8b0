"""token_budget: how thinking is counted, what a budget pays, and that a wrong reply gains nothing by it."""

import types

import pytest

from grpo_kit.config import Policy
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.rewards.combine import Part, combine
from grpo_kit.rewards.token_budget import thinking_tokens, token_budget_reward

OPEN, CLOSE, LINE, END, RESULT = 12, 13, 214, 11, 50


def thought(length):
    """A reply that thinks `length` tokens, closes its thought as the template does, and answers."""
    return [7] * length + [LINE, CLOSE, LINE, 8, END]


def pay(ids, budget, opened=True):
    return token_budget_reward(["?"], [ids], [budget], [opened], (OPEN, CLOSE))[0]


def test_tokens_of_thinking():
    cases = [
        ([], True, None, "no reply"),
        ([7, 7], True, None, "cut while it thinks"),
        ([7, END], True, None, "ends without closing its thought"),
        ([CLOSE, 8, END], True, 0, "closed at once"),
        ([LINE, CLOSE, LINE, 8], True, 0, "an empty line is no thought"),
        (thought(1), True, 1, "one token"),
        (thought(200), True, 200, "the answer does not count"),
        ([*thought(5)[:-1], 7, 7, LINE, CLOSE, 8], True, 11, "closed twice: what stands before the last one"),
        ([8, END], False, 0, "no thinking was asked for, and there is none"),
        ([7, 7, LINE, CLOSE, 8], False, 2, "thinks although the prompt has closed its thought"),
        ([8, OPEN, 7, 7, 7, LINE, CLOSE, 8], False, 3, "opens a thought itself"),
        ([8, OPEN, 7, 7], False, None, "and never closes it"),
        ([*thought(4), OPEN, 7], True, None, "opens another one behind the answer"),
        ([*thought(4), RESULT, OPEN, *thought(6)], True, 10, "two turns with a tool's result between them"),
        ([OPEN, OPEN, LINE, CLOSE], True, 2, "opens what is open"),
        ([*thought(4), OPEN, CLOSE], True, 4, "a second thought without a token"),
    ]
    wrong = [note for ids, opened, due, note in cases if thinking_tokens(ids, OPEN, CLOSE, opened) != due]
    assert not wrong


def test_up_to_the_budget_all_is_paid_and_nothing_from_twice_of_it():
    assert [pay(thought(n), 128) for n in (0, 1, 127, 128)] == [1.0] * 4
    assert [pay(thought(n), 128) for n in (160, 192, 256, 257, 10_000)] == [0.75, 0.5, 0.0, 0.0, 0.0]
    assert [pay(thought(n), 1) for n in (1, 2)] == [1.0, 0.0]
    assert pay([7] * 4, 128) == 0.0  # a thought that was cut keeps to no budget, however short it is
    assert pay([8, END], 128, opened=False) == 1.0


def test_a_row_without_a_budget_gets_none_and_needs_no_tokenizer():
    assert token_budget_reward(["a", "b"], [[7], [7]]) == [None, None]
    assert token_budget_reward(["a", "b"], [[7], [7]], [None, None]) == [None, None]
    mixed = token_budget_reward(["a"] * 3, [thought(9)] * 3, [None, 9, 6], True, (OPEN, CLOSE))
    assert mixed == [None, 1.0, 0.5]


@pytest.mark.parametrize("budget", [0, -1, 0.5, float("nan"), float("inf"), True, "128", [128]])
def test_a_budget_that_is_no_number_of_tokens_is_the_callers_mistake(budget):
    with pytest.raises(ValueError, match="it is a whole number of tokens from 1. Correct the row"):
        pay(thought(3), budget)


def test_whole_numbers_that_a_table_made_floats_are_taken():
    assert pay(thought(12), 8.0) == 0.5


@pytest.mark.parametrize(
    ("name", "value"), [("completion_ids", [[7]]), ("token_budget", [8]), ("prompt_opened_think", [1])]
)
def test_columns_of_another_length_are_refused(name, value):
    columns = {"completion_ids": [[7], [7]], "token_budget": [8, 8], "prompt_opened_think": [True, True]}
    with pytest.raises(ValueError, match="got 2 completions.*Pass TRL's own"):
        token_budget_reward(["a", "b"], **columns | {name: value}, think_ids=(OPEN, CLOSE))


class FakeTrainer:
    def __init__(self, tokenizer):
        self.processing_class = tokenizer

    def log_metric(self, name, value):
        raise AssertionError("nothing is logged")


def test_the_ids_of_the_tags_come_from_the_trainers_tokenizer():
    tokenizer = load_tokenizer(Policy())
    ids = tokenizer.encode("7+8=15\n</think>\n\\boxed{15}", add_special_tokens=False)
    for processing in (tokenizer, types.SimpleNamespace(tokenizer=tokenizer)):  # a processor has a tokenizer
        trainer = FakeTrainer(processing)
        assert token_budget_reward(["?"], [ids], 6, log_metric=trainer.log_metric) == [1.0]  # 7 + 8 = 1 5
        assert token_budget_reward(["?"], [ids], 4, log_metric=trainer.log_metric) == [0.5]


@pytest.mark.parametrize("vocabulary", [None, {}, {"<think>": 12}])
def test_without_the_ids_a_call_outside_a_trainer_names_the_remedy(vocabulary):
    trainer = FakeTrainer(vocabulary if vocabulary is None else types.SimpleNamespace(get_vocab=lambda: vocabulary))
    with pytest.raises(ValueError, match=r"Pass think_ids=\(12, 13\)"):
        token_budget_reward(["?"], [[7]], 8, log_metric=trainer.log_metric if vocabulary is not None else print)


def test_in_combine_no_wrong_reply_scores_as_much_as_a_right_one():
    ids = {"right and long": thought(99), "right and short": thought(4), "wrong and short": thought(1)}
    rewards = {
        gated: combine(
            lambda completions, **_: [float("right" in text) for text in completions],
            budget=Part(token_budget_reward, weight=0.3, gated=gated),
        )(completions=list(ids), completion_ids=list(ids.values()), token_budget=8, think_ids=(OPEN, CLOSE))
        for gated in (False, True)
    }
    assert rewards == {False: [1.0, 1.3, 0.3], True: [1.0, 1.3, 0.0]}
    with pytest.raises(ValueError, match="a wrong reply could score 1"):
        combine(lambda completions, **_: [1.0], budget=Part(token_budget_reward, weight=1.0))
