"""Pairs are balanced in length, take the latest groups first, and use no reply twice."""

import random

import pytest

from grpo_kit.training.preferences.groups import Group, Reply
from grpo_kit.training.preferences.pairs import Pair, describe_pairs, make_pairs, summarise_pairs


def group(name, *replies, step=1, **columns):
    """A group of the row `name`; replies are (verdict, tokens)."""
    row = {"id": name, "prompt": [{"role": "user", "content": name}]} | columns
    texts = [f"{name} {step} {number}" for number in range(len(replies))]
    return Group(row, step, [Reply(text, *reply) for text, reply in zip(texts, replies, strict=True)])


R, W, C = ("right", 10), ("wrong", 10), ("call", 10)


def lengths(pairs):
    return [(pair.chosen_tokens, pair.rejected_tokens) for pair in pairs]


def test_groups_that_are_all_right_or_all_wrong_give_no_pair():
    assert make_pairs([group("a", R, R), group("b", W, W, C), group("c")], 2) == ([], 0)


def test_a_reply_is_used_once_and_a_prompt_gives_at_most_k_pairs():
    (pair,), left_out = make_pairs([group("a", R, W, W, W)], 3)
    assert (pair.id, pair.kind, pair.chosen, pair.rejected, left_out) == ("a", "wrong", "a 1 0", "a 1 1", 0)
    many = group("a", R, R, R, R, W, W, W)
    for most, made in ((1, 1), (2, 2), (3, 3), (9, 3)):
        pairs, _ = make_pairs([many], most)
        assert (
            len(pairs) == made and len({pair.chosen for pair in pairs} | {pair.rejected for pair in pairs}) == 2 * made
        )


def test_a_call_is_rejected_before_a_wrong_reply_even_if_its_length_fits_less():
    pairs, _ = make_pairs([group("a", ("right", 30), ("right", 12), W, ("call", 30), W)], 2)
    assert [pair.kind for pair in pairs] == ["call", "wrong"]
    assert lengths(pairs) == [(30, 30), (12, 10)]


def test_the_latest_group_of_a_prompt_comes_first():
    groups = [group("a", R, W, step=1), group("b", R, W, step=1), group("a", R, W, step=5), group("a", R, step=6)]
    pairs, _ = make_pairs(groups, 1)
    assert [(pair.id, pair.chosen, pair.step) for pair in pairs] == [("a", "a 5 0", 5), ("b", "b 1 0", 1)]
    summary = summarise_pairs(pairs)
    assert summary["steps"] == [1, 5] and ", written at steps 1 to 5 of GRPO. Chosen" in describe_pairs(summary)
    pairs, _ = make_pairs(groups, 2)
    assert [pair.chosen for pair in pairs if pair.id == "a"] == ["a 5 0", "a 1 0"]


def test_lengths_are_balanced_over_prompts():
    # Three prompts whose right reply is 6 shorter; one offers right replies from 10 shorter to 30 longer.
    stiff = [group(name, ("right", 10), ("wrong", 16)) for name in "abc"]
    free = group("z", *[("right", length) for length in (10, 25, 38, 50)], ("wrong", 20))
    pairs, left_out = make_pairs([free, *stiff], 1)
    assert sum(pair.difference for pair in pairs) == 0 and left_out == 0
    assert lengths(pairs)[0] == (38, 20)


def test_pairs_with_a_shorter_choice_are_left_out_until_the_lengths_are_balanced():
    differences = [-9, -4, 2, 3, 2, 3]
    groups = [group(str(number), ("right", 30 + more), ("wrong", 30)) for number, more in enumerate(differences)]
    pairs, left_out = make_pairs(groups, 1)
    assert [pair.id for pair in pairs] == ["1", "2", "3", "4", "5"] and left_out == 1


def test_all_pairs_stay_where_more_than_half_would_have_to_go():
    groups = [group(str(number), ("right", 10), ("wrong", 11 + number)) for number in range(7)]
    pairs, left_out = make_pairs(groups, 1)
    assert len(pairs) == 7 and left_out == 0
    assert "teach brevity" in describe_pairs(summarise_pairs(pairs))


def test_random_groups_end_balanced():
    rng = random.Random(0)
    groups = []
    for number in range(60):  # right replies are shorter by 5 tokens on average, as they often are
        replies = [("right", rng.randint(10, 40)) for _ in range(3)] + [
            ("wrong", rng.randint(15, 45)) for _ in range(3)
        ]
        groups.append(group(str(number), *replies))
    pairs, left_out = make_pairs(groups, 2)
    summary = summarise_pairs(pairs)
    assert len(pairs) + left_out == 120 and left_out <= 1 and summary["prompts"] == 60
    assert 0 <= summary["difference"] < 0.5 and summary["difference_ci95"][0] < 0 < summary["difference_ci95"][1]
    assert make_pairs(groups, 2) == make_pairs(groups, 2)


def test_the_row_s_own_setting_travels_with_the_pair():
    pairs, _ = make_pairs([group("a", R, W, enable_thinking=False), group("b", R, W)], 1)
    assert [pair.enable_thinking for pair in pairs] == [False, None]
    assert pairs[0].prompt == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([4, 5, 6, 5], "The chosen are longer, so DPO will also teach length."),
        ([-4, -5, -6, -5], "The chosen are shorter"),
        ([-5, 5, -4, 4], "30.0: +0.0 (95 %"),
    ],
)
def test_the_summary_says_what_the_lengths_would_teach(differences, words):
    pairs = [Pair(str(i), "wrong", [], "a", "b", 30 + each, 30) for i, each in enumerate(differences)]
    assert words in describe_pairs(summarise_pairs(pairs))


def test_lengths_that_differ_by_little_are_not_said_to_differ_by_nothing():
    pairs = [Pair(str(i), "wrong", [], "a", "b", 30 + (i < 5), 30) for i in range(1000)]
    summary = summarise_pairs(pairs)
    assert summary["difference_ci95"] == pytest.approx([0.0006, 0.0094], abs=1e-4)
    text = describe_pairs(summary)
    assert "30.0: +0.005 (95 % +0.001 to +0.01). The chosen are longer" in text


def test_the_summary_counts_kinds_and_prompts():
    pairs = [
        Pair("1", "wrong", [], "a", "b", 3, 5),
        Pair("1", "call", [], "a", "c", 3, 1),
        Pair("2", "wrong", [{"role": "user", "content": "q"}], "d", "e", 3, 3),
    ]
    summary = summarise_pairs(pairs)
    assert summary["kinds"] == {"call": 1, "wrong": 2} and summary["prompts"] == 2
    assert (summary["chosen_tokens"], summary["rejected_tokens"], summary["difference"]) == (3.0, 3.0, 0.0)
    assert describe_pairs(summary).startswith(
        "3 pairs of 2 prompts (1 over a call that nobody offered, 2 over a wrong reply). Chosen replies have 3.0 tokens"
    )
