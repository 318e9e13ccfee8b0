"""One door for what a reward returns: every usual form is read alike, everything else ends in one sentence."""

import asyncio
import functools
import itertools
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from grpo_kit.data.gold_answers import find_unusable_golds
from grpo_kit.evaluation.scores import call_verifier
from grpo_kit.policy.generate import Sample
from grpo_kit.rewards.tools.audit import audit_reward
from grpo_kit.rewards.tools.calling import call_reward, call_rewards, read_rewards, reward_names

RETURNED = {
    "list": [1.0, 0.0],
    "tuple": (1, 0),
    "generator": (number for number in (1, 0)),
    "bools": [True, False],
    "Decimal and Fraction": [Decimal(1), Fraction(0)],
    "NumPy scalars": [np.float32(1), np.int8(0)],
    "NumPy bools": [np.bool_(True), np.bool_(False)],
    "0-d arrays": [np.array(1.0), torch.tensor(0.0)],
    "tensors that require a gradient": [torch.tensor(1.0, requires_grad=True), torch.tensor([0.0])],
    "float16 array": np.array([1, 0], dtype=np.float16),
    "object array": np.array([1, 0], dtype=object),
    "bfloat16 tensor": torch.tensor([1, 0], dtype=torch.bfloat16),
    "bool tensor": torch.tensor([True, False]),
    "tensor with a gradient": torch.tensor([1.0, 0.0], requires_grad=True) * 1,
}


@pytest.mark.parametrize("form", RETURNED)
def test_every_usual_form_of_rewards_is_read(form):
    rewards = read_rewards("f", RETURNED[form], 2)
    assert rewards == [1.0, 0.0] and all(type(reward) is float for reward in rewards)


@pytest.mark.parametrize(
    "returned", [[None, 1], [float("nan"), 1], np.array([np.nan, 1]), torch.tensor([torch.nan, 1])]
)
def test_none_and_nan_mean_not_judged(returned):
    assert read_rewards("f", returned, 2) == [None, 1.0]


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e300, 10**400, np.float32("inf"), torch.tensor(1e39)])
def test_what_is_infinite_in_training_is_not_judged_and_said_once(value):
    with pytest.warns(UserWarning, match="The reward f returned .*must be finite") as warned:
        assert read_rewards("f", [value, value, 1.0], 3) == [None, None, 1.0]
    assert len(warned) == 1


@pytest.mark.parametrize(
    "returned, message",
    [
        (None, r"The reward f returned nothing \(None\)\. Return a list with one number, or None, for each of the 2"),
        (1.0, "returned 1.0, which is not a list"),
        (np.float32(1), "returned .*1.0.*, which is not a list"),
        (torch.tensor(1.0), "which is not a list"),
        ("11", "returned '11', which is not a list"),
        ({"a": 1.0, "b": 0.0}, "which is not a list"),
        ({1.0, 0.0}, "which is not a list"),
        ([1.0], "returned 1 values for 2 completions"),
        ([], "returned 0 values for 2 completions"),
        (itertools.repeat(1.0), "returned more than 2 values for 2 completions"),
        (["1.0", "0"], "returned '1.0' for completion 1, which is not a number"),
        ([1.0, "none"], "returned 'none' for completion 2, which is not a number"),
        ([1.0, [0.0]], r"returned \[0.0\] for completion 2"),
        (np.array(["1", "0"]), "returned '1' for completion 1"),
        (np.ones((2, 2)), r"returned \[1.0, 1.0\] for completion 1"),
        ([torch.ones(2), 1.0], "for completion 1, which is not a number"),
        ([1j, 1.0], "returned 1j for completion 1"),
    ],
)
def test_anything_else_ends_in_one_sentence(returned, message):
    with pytest.raises(ValueError, match=message) as error:
        read_rewards("f", returned, 2)
    assert "\n" not in str(error.value)


def plain(completions, bonus=0.0, **kwargs):
    return [len(text) + bonus for text in completions]


async def late(completions, bonus=0.0, **kwargs):
    await asyncio.sleep(0)
    return [len(text) + bonus for text in completions]


class Judge:
    def __init__(self, bonus=0.0):
        self.bonus = bonus

    def __call__(self, completions, **kwargs):
        return plain(completions, self.bonus)

    def method(self, completions, **kwargs):
        return plain(completions, self.bonus)

    async def late_method(self, completions, **kwargs):
        return plain(completions, self.bonus)


class LateJudge(Judge):
    async def __call__(self, completions, **kwargs):
        return plain(completions, self.bonus)


CALLABLES = {
    "function": (functools.partial(plain), "plain"),
    "nested partial": (functools.partial(functools.partial(plain, bonus=9), bonus=0.0), "plain"),
    "async function": (late, "late"),
    "partial of an async function": (functools.partial(late, bonus=0.0), "late"),
    "lambda": (lambda completions, **kwargs: late(completions), "<lambda>"),
    "object": (Judge(), "Judge"),
    "object with an async call": (LateJudge(), "LateJudge"),
    "partial of an object": (functools.partial(LateJudge(), answer=None), "LateJudge"),
    "method": (Judge().method, "method"),
    "async method": (Judge().late_method, "late_method"),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_every_callable_is_called_and_named(kind):
    reward, name = CALLABLES[kind]
    assert call_reward(reward, completions=["a", "bc"], answer=["", ""]) == [1.0, 2.0]
    assert reward_names([reward, reward]) == [name, f"{name}_2"]


def test_async_rewards_run_side_by_side_in_a_loop_that_lives_on():
    meeting = asyncio.Barrier(2)  # belongs to the loop that it is first used in, as a client does

    async def meet(completions, **kwargs):
        await asyncio.wait_for(meeting.wait(), 30)
        return [1.0]

    for _ in range(2):
        assert call_rewards([meet, meet], completions=["a"]) == [[1.0], [1.0]]


def test_a_reward_that_is_called_where_a_loop_runs_already():
    async def cell():
        return call_reward(late, completions=["abc"])

    assert asyncio.run(cell()) == [3.0]


def test_a_reward_without_room_for_the_columns_is_told_so():
    def narrow(completions):
        return [1.0]

    with pytest.raises(ValueError, match=r"narrow cannot be called as TRL calls it: .*'answer'.*Let it take"):
        call_reward(narrow, completions=["a"], answer=["4"])

    def broken(completions, **kwargs):
        return len(None)

    with pytest.raises(TypeError, match="has no len"):
        call_reward(broken, completions=["a"])


def test_a_reward_that_ends_the_program_is_named():
    def leaving_reward(completions, **kwargs):
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match=r"The reward leaving_reward ended the program \(3\)"):
        call_reward(leaving_reward, completions=["a"])


async def array_reward(completions, answer, **kwargs):
    replies = [reply if isinstance(reply, str) else reply[0]["content"] for reply in completions]
    return np.array([f"{{{gold}}}" in reply for reply, gold in zip(replies, answer)])


@pytest.mark.slow
def test_evaluation_golds_and_the_audit_use_the_same_door(tiny_policy):
    rows = [{"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}]
    assert call_verifier(array_reward, tiny_policy[1], rows, [Sample(r"\boxed{4}", 5, True)], False) == [1.0]
    assert find_unusable_golds(["4", "5"], array_reward) == set()
    case = {"kind": "sums", "gold": "4", "completion": r"\boxed{4}", "reward": 1.0}
    assert audit_reward(array_reward, case).row().accuracy == 1.0
    with pytest.raises(ValueError, match="cannot be audited.*which is not a list"):
        audit_reward(lambda **batch: 1.0, case)
