"""Prompts are drawn by the chance that their group has mixed results; seed and pass rates fix the draw."""

import json
from collections import Counter

import pytest

from grpo_kit.training.grpo.prompt_sampler import PromptSampler


def drawn(book, rounds, count=2):
    return Counter(i for _ in range(rounds) for i in book.draw(count))


def test_solved_and_hopeless_prompts_are_drawn_rarely_but_not_never():
    counts = drawn(PromptSampler([1.0, 0.0, 0.5, 0.5, 0.4, 0.6], num_generations=8, seed=1), rounds=2000)
    assert all(counts[i] > 3 * max(counts[0], counts[1]) for i in (2, 3, 4, 5)) and min(counts.values()) > 50


def test_observed_rewards_change_how_often_a_prompt_is_drawn():
    book = PromptSampler([None] * 4, num_generations=8, seed=1)
    even = drawn(book, 500)
    for _ in range(3):
        book.learn(0, 8, 8)
        book.learn(1, 4, 8)
    after = drawn(book, 500)
    assert max(even.values()) < 1.3 * min(even.values()) and after[1] > 3 * after[0]


def test_a_later_visit_counts_more_than_an_earlier_one():
    book = PromptSampler([None], num_generations=8, seed=1)
    for right in (0, 0, 8, 8):
        book.learn(0, right, 8)
    assert book.rates()[0] > 0.6


def test_unseen_prompts_are_estimated_from_the_first_visits_of_others():
    book = PromptSampler([None] * 10, num_generations=8, seed=1)
    for prompt in range(5):
        book.learn(prompt, 8, 8)
    assert book.rates()[9] > 0.9


def test_a_screened_pass_rate_is_used_until_the_run_observes_another():
    book = PromptSampler([0.9, None], num_generations=8, seed=1)
    assert 0.8 < book.rates()[0] < 0.9 and book.rates()[1] == 0.5
    book.learn(0, 0, 8)
    book.learn(0, 0, 8)
    assert book.rates()[0] < 0.3


@pytest.mark.parametrize("kind", ["useful", "shuffled", "in_order"])
def test_a_step_repeats_a_prompt_only_when_there_are_no_others(kind):
    book = PromptSampler([None] * 12, num_generations=4, seed=1, kind=kind)
    assert all(len(set(book.draw(4))) == 4 for _ in range(30))


@pytest.mark.parametrize("kind", ["useful", "shuffled", "in_order"])
def test_asking_for_more_prompts_than_exist_repeats_them(kind):
    assert Counter(PromptSampler([None] * 3, 4, 1, kind).draw(6)) == {0: 2, 1: 2, 2: 2}


def test_shuffled_order_draws_each_prompt_once_a_round_and_fixed_order_follows_the_rows():
    book = PromptSampler([None] * 10, 4, 1, "shuffled")
    rounds = [[i for _ in range(5) for i in book.draw(2)] for _ in range(2)]
    assert [sorted(r) for r in rounds] == [list(range(10))] * 2 and rounds[0] != rounds[1]
    book = PromptSampler([None] * 5, 4, 1, "in_order")
    assert [book.draw(2) for _ in range(3)] == [[0, 1], [2, 3], [4, 0]]


@pytest.mark.parametrize("kind", ["useful", "shuffled", "in_order"])
def test_a_restored_sampler_continues_the_same_draws(kind):
    def fresh():
        return PromptSampler([None, 0.5, 0.2, None, 0.9, 0.1], num_generations=4, seed=3, kind=kind)

    uninterrupted, first = fresh(), fresh()
    for book in (uninterrupted, first):
        for step in range(5):
            for i in book.draw(2):
                book.learn(i, step % 5, 4)
    second = fresh()
    second.restore(json.loads(json.dumps(first.state())))
    for step in range(5):
        a, b = uninterrupted.draw(2), second.draw(2)
        assert a == b
        for i in a:
            uninterrupted.learn(i, step, 4)
            second.learn(i, step, 4)


def test_the_sampler_tracks_the_share_of_groups_with_a_gradient():
    book = PromptSampler([None] * 4, num_generations=8, seed=1)
    assert book.mixed_share() == 1
    for _ in range(200):
        book.learn(0, 8, 8)
    assert book.mixed_share() < 0.05
    for i in range(200):
        book.learn(1, 4 * (i % 2), 8)
    assert 0.45 < book.mixed_share() < 0.55


def test_replacements_are_drawn_from_prompts_with_mixed_results():
    book = PromptSampler([0.5] * 5 + [0.95] * 95, num_generations=8, seed=1)
    first, more = (Counter(i for _ in range(300) for i in draw(1)) for draw in (book.draw, book.draw_more))
    share = [sum(counts[i] for i in range(5)) / 300 for counts in (first, more)]
    assert share[1] > 2 * share[0]


def test_another_seed_draws_other_prompts():
    draws = [[PromptSampler([None] * 50, 4, seed).draw(8) for seed in (1, 1, 2)]]
    assert draws[0][0] == draws[0][1] != draws[0][2]


def test_the_state_of_a_sampler_of_other_rows_is_refused():
    with pytest.raises(ValueError, match="knows 4 prompts and the run has 3, so it was made with other data"):
        PromptSampler([None] * 3, 4, 1).restore(PromptSampler([None] * 4, 4, 1).state())


def test_rows_that_were_added_at_the_end_are_drawn_after_the_earlier_ones():
    first, second = (PromptSampler([None] * size, 4, 1, "in_order") for size in (3, 5))
    first.draw(3)
    first.learn(2, 3, 4)
    second.restore(first.state())
    assert second.draw(2) == [3, 4] and second.tried.tolist() == [0, 0, 4, 0, 0]
