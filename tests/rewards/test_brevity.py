"""brevity: the published numbers, the clamps, and that shortness alone never pays."""

import pytest

from grpo_kit.rewards.brevity import cosine, kimi, soft_overlong


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


def test_kimi_compares_lengths_within_each_prompt_and_never_pays_a_wrong_answer():
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


def test_missing_token_ids_raise_with_value_rule_and_remedy():
    with pytest.raises(ValueError, match=r"1 completions and 2 completion_ids.*in tokens.*Pass"):
        cosine(10, correct)(completions=["right"], completion_ids=tokens(1, 2))
    with pytest.raises(ValueError, match=r"2 completions and 1 prompts.*by prompt.*Pass"):
        kimi(correct)(completions=["right"] * 2, completion_ids=tokens(1, 2), prompts=["p"])
