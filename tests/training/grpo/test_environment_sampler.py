"""Every step has each environment's share of the groups, also where groups are replaced and after an interruption."""

from collections import Counter

import numpy as np
import pytest

from grpo_kit.training.grpo.environment_sampler import EnvironmentSampler, find_shares

NAMES = ["math"] * 50 + ["json"] * 5 + ["docs"] * 20


def make(mix=None, kind="useful", names=NAMES, rates=None):
    return EnvironmentSampler(names, mix or {}, rates or [None] * len(names), 8, seed=1, kind=kind)


def counts(sampler, prompts):
    return Counter(sampler.environments[prompt] for prompt in prompts)


@pytest.mark.parametrize("kind", ["useful", "shuffled", "in_order"])
def test_each_draw_has_the_shares_however_many_rows_an_environment_has(kind):
    sampler = make({"math": 2, "json": 1, "docs": 1}, kind)
    for _ in range(20):
        assert counts(sampler, sampler.draw(8)) == {"math": 4, "json": 2, "docs": 2}


def test_what_rounding_takes_away_is_given_back_later():
    sampler, total = make(), Counter()
    for draw in range(1, 31):
        found = counts(sampler, sampler.draw(4))
        assert all(found[name] in (1, 2) for name in ("math", "json", "docs"))
        total += found
        assert all(abs(total[name] - draw * 4 / 3) < 1 for name in total)
    assert set(total.values()) == {40}


def test_a_share_below_one_group_a_step_comes_in_some_steps():
    sampler = make({"math": 9, "json": 0.5, "docs": 0.5})
    found = [counts(sampler, sampler.draw(2)) for _ in range(10)]
    assert sum(found, Counter()) == {"math": 18, "json": 1, "docs": 1}


def test_an_environment_with_share_0_is_never_asked_also_where_groups_are_replaced():
    sampler = make({"math": 1, "json": 0, "docs": 2})
    for _ in range(10):
        prompts = [*sampler.draw(7), *sampler.draw_more(5)]
        assert counts(sampler, prompts)["json"] == 0 and len(prompts) == 12
        kept = sampler.choose(prompts, [True] * 4 + [False] * 8, 7)
        assert len(kept) == 7
        for prompt in prompts:
            sampler.learn(prompt, 4, 8)
    assert 0 < sampler.mixed_share() <= 1


@pytest.mark.slow
def test_random_shares_stay_within_one_group_of_what_is_owed():
    rng = np.random.default_rng(0)
    for _ in range(200):
        mix = dict(zip(("math", "json", "docs"), rng.uniform(0.01, 1, 3)))
        sampler, total, drawn = make(mix, "shuffled"), Counter(), 0
        for count in rng.integers(1, 9, 12).tolist():
            prompts = sampler.draw(count)
            assert len(prompts) == count
            total, drawn = total + counts(sampler, prompts), drawn + count
            owed = {name: drawn * share for name, share in sampler.shares.items()}
            assert all(abs(total[name] - owed[name]) < 2 for name in owed), (mix, total, owed)


def test_groups_are_replaced_by_groups_of_the_same_environment():
    sampler = make(names=["math", "math", "math", "json", "json", "json"])
    prompts = [0, 1, 3, 4, 2, 5]  # two of each were drawn, and one more of each
    flat = [True, False, True, True, False, False]
    chosen = sampler.choose(prompts, flat, 4)
    assert sorted(prompts[place] for place in chosen) == [1, 2, 3, 5]
    nothing_of_json = sampler.choose(prompts, [False, False, True, True, False, True], 4)
    assert counts(sampler, [prompts[place] for place in nothing_of_json]) == {"math": 2, "json": 2}


def test_more_is_drawn_where_more_groups_are_flat():
    sampler = make()
    for prompt in range(50):
        sampler.learn(prompt, 4, 8)  # math: every group is mixed
    for prompt in range(50, 75):
        sampler.learn(prompt, 0, 8)
    found = counts(sampler, sampler.draw_more(12, [0, 50, 60]))
    assert found["math"] < found["json"] == found["docs"]


def test_groups_are_drawn_only_for_environments_that_have_one_to_replace():
    sampler = make({"math": 1, "json": 0, "docs": 1})
    assert counts(sampler, sampler.draw_more(5, [60, 61])) == {"docs": 5}
    assert counts(sampler, sampler.draw_more(4, [0, 60])) == {"math": 2, "docs": 2}
    assert set(counts(sampler, sampler.draw_more(4))) == {"math", "docs"}  # to fill up the processes


def test_learning_reaches_the_prompt_itself():
    sampler = make()
    sampler.learn(52, 8, 8)
    assert sampler.samplers["json"].tried.tolist() == [0, 0, 8, 0, 0]
    assert not sampler.samplers["math"].tried.any()


def test_an_interrupted_draw_goes_on_as_an_undisturbed_one():
    def steps(sampler, count):
        drawn = []
        for _ in range(count):
            prompts = sampler.draw(5) + sampler.draw_more(3)
            for prompt in prompts:
                sampler.learn(prompt, prompt % 9, 8)
            drawn.append(prompts)
        return drawn

    whole = make()
    expected = steps(whole, 8)
    first, second = make(), make()
    assert steps(first, 3) == expected[:3]
    second.restore(first.state())
    assert steps(second, 5) == expected[3:] and second.state() == whole.state()


def test_a_checkpoint_of_other_environments_is_refused():
    with pytest.raises(ValueError, match="environments math, json, and the run has math, docs"):
        make(names=["math", "docs"]).restore(make(names=["math", "json"]).state())
    with pytest.raises(ValueError, match="of the environments math, and the run has"):
        make().restore(make().samplers["math"].state())


def test_shares_add_up_to_one():
    assert find_shares(["a", "b"], {}) == {"a": 0.5, "b": 0.5}
    assert find_shares(["a"], {"a": 3, "b": 1}) == {"a": 1.0}  # b has no row left
