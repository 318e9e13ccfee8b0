"""brevity: the published numbers, the clamps, and that shortness alone never pays."""

import pytest
import torch

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.rewards.brevity import cosine, kimi, soft_overlong
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from tests.helpers.settings import SMALL


def correct(completions, **kwargs):
    """1.0 for "right", 0.0 for "wrong", None for anything else."""
    return [{"right": 1.0, "wrong": 0.0}.get(completion) for completion in completions]


def tokens(*lengths):
    return [[0] * length for length in lengths]


def test_soft_overlong_is_trls_and_follows_dapo_equation_13():
    pytest.importorskip("trl")
    reward = soft_overlong(limit=100, cache=20)
    assert reward(completion_ids=tokens(0, 80, 90, 100, 101)) == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert type(reward).__module__.startswith("trl.")


@pytest.mark.parametrize(("limit", "cache"), [(100, 0), (100, 101), (0, 0), (100, -1)])
def test_soft_overlong_refuses_a_cache_outside_the_limit(limit, cache):
    with pytest.raises(ValueError, match=rf"cache is {cache} and limit {limit}.*Set 0 < cache <= limit"):
        soft_overlong(limit, cache)


def test_cosine_pays_short_right_answers_most_and_is_clamped_at_the_limit():
    reward = cosine(limit=100, correct=correct)
    lengths = tokens(0, 50, 100, 200, 0, 50, 100, 200, 50)
    verdicts = ["right"] * 4 + ["wrong"] * 4 + ["?"]
    expected = [1.0, 0.75, 0.5, 0.5, -1.0, -0.75, -0.5, -0.5, None]  # 200 tokens do not pay like 0
    rewards = reward(completions=verdicts, completion_ids=lengths)
    assert [None if r is None else pytest.approx(r) for r in rewards] == expected


def test_cosine_refuses_a_limit_of_no_tokens():
    with pytest.raises(ValueError, match="limit is 0 tokens.*at least 1"):
        cosine(0, correct)


def test_kimi_pays_the_shortest_most_and_never_pays_a_wrong_answer():
    reward = kimi(correct)
    completions = ["right", "right", "wrong", "wrong", "right", "?"]
    lengths = tokens(10, 30, 10, 20, 500, 500)
    prompts = [[{"role": "user", "content": "a"}]] * 4 + ["b", "b"]
    rewards = reward(completions=completions, completion_ids=lengths, prompts=prompts)
    assert rewards == [
        0.5,
        -0.5,
        0.0,
        0.0,
        0.0,
        None,
    ]  # 500 is alone with its equal: no length to judge


class Trainer:
    """What kimi reads of a GRPOTrainer."""

    def __init__(self, training):
        self.model, self.num_generations, self.num_generations_eval = torch.nn.Identity().train(training), 2, 4

    def log_metric(self, name, value):
        """TRL passes this method to rewards."""


GROUPS = [  # prompts, the arguments of kimi and of its reward, the groups, what the row is about
    ("aaaa", {"num_generations": 2}, "1122", "one prompt, drawn twice in a row"),
    ("aabb", {"num_generations": 2}, "1122", "two prompts"),
    ("aaaa", {"num_generations": 4}, "1111", "one group"),
    ("aaaa", {"trainer": True}, "1122", "as the trainer says"),
    ("aaaa", {"trainer": False}, "1111", "as it says while it evaluates"),
    ("aaaa", {}, "1111", "prompts in a row, where nobody says"),
    ("aaba", {}, "1123", "a prompt that comes back later is a new group"),
]


@pytest.mark.parametrize(("prompts", "arguments", "groups", "note"), GROUPS)
def test_kimi_compares_lengths_within_a_group_whatever_the_prompts_say(prompts, arguments, groups, note):
    lengths = [10, 30, 100, 300]
    expected = []
    for length, group in zip(lengths, groups):
        own = [n for n, g in zip(lengths, groups) if g == group]
        expected.append(0.5 - (length - min(own)) / (max(own) - min(own)) if len(own) > 1 else 0.0)
    columns = {"log_metric": Trainer(arguments["trainer"]).log_metric} if "trainer" in arguments else {}
    reward = kimi(correct, arguments.get("num_generations"))
    paid = reward(completions=["right"] * 4, completion_ids=tokens(*lengths), prompts=list(prompts), **columns)
    assert paid == expected, note


@pytest.mark.parametrize(("prompts", "size"), [("aab", 2), ("abab", 2), ("aabb", 4)])
def test_kimi_refuses_completions_that_are_not_whole_groups(prompts, size):
    count = len(prompts)
    with pytest.raises(
        ValueError, match=rf"kimi got {count} completions, .*not groups of {size} .*Set num_generations"
    ):
        kimi(correct, size)(completions=["right"] * count, completion_ids=tokens(*range(count)), prompts=list(prompts))


@pytest.mark.slow
def test_trl_hands_kimi_what_it_needs_to_know_the_groups(tmp_path):
    one_reward = ["grpo.reward_funcs=[math_answer.py]", "grpo.reward_weights=[1.0]"]
    settings = config.load_config(["tiny"], [*SMALL, *one_reward, "data.limit=90", "grpo.max_steps=1"])
    run = find_run("r", tmp_path)
    prepare(settings, run)
    batches, reward = [], kimi(lambda completions, **_: [1.0] * len(completions))

    def watching_reward(**batch):
        same = dict(batch, prompts=["the same"] * len(batch["prompts"]))
        batches.append((reward(**batch), reward(**same), [len(ids) for ids in batch["completion_ids"]]))
        return [float(i % 2) for i in range(len(batch["prompts"]))]

    train.train(settings, run, [watching_reward])
    ((paid, same, lengths), *_) = batches
    size = settings.grpo.num_generations
    assert paid == same and len(paid) > size and any(paid)
    for start in range(0, len(paid), size):
        own, group = lengths[start : start + size], paid[start : start + size]
        assert group[own.index(min(own))] == (0.5 if max(own) > min(own) else 0.0)


def test_missing_token_ids_raise_with_value_rule_and_remedy():
    with pytest.raises(ValueError, match=r"1 completions and 2 completion_ids.*in tokens.*Pass"):
        cosine(10, correct)(completions=["right"], completion_ids=tokens(1, 2))
    with pytest.raises(ValueError, match=r"2 completions and 1 prompts; a group has one prompt. Pass"):
        kimi(correct)(completions=["right"] * 2, completion_ids=tokens(1, 2), prompts=["p"])
