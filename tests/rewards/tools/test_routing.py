"""Each row is judged by the rewards of its own environment, and by no other."""

import functools

import pytest

from grpo_kit.config import load_config
from grpo_kit.rewards.tools import routing
from grpo_kit.rewards.tools.loading import answer_reader, fingerprint, load_reward

MIXED = {
    "completions": ["1", "2", "3", "4"],
    "environment": ["math", "short", None, "unknown"],
    "answer": ["1", None, "4", "4"],
    "limit": [None, 1, None, None],
}


def equals(completions, answer, **_):
    assert None not in answer  # a reward sees its own rows only
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def short(completions, limit, **_):
    assert None not in limit
    return [float(len(c) <= n) for c, n in zip(completions, limit, strict=True)]


def test_one_verifier_judges_rows_of_several_environments():
    verify = routing.Verifier({"math": equals, "short": short})
    assert verify(**MIXED) == [1.0, 1.0, 0.0, None]


def test_a_column_is_cut_to_the_rows_and_other_arguments_are_passed_on():
    seen = {}

    def reward(completions, **batch):
        seen.update(batch)
        return [1.0] * len(completions)

    verify = routing.Verifier({"short": reward})
    verify(**MIXED, trainer_state="state", log_metric=print, weights=[1, 2])
    assert seen == {
        "environment": ["short"], "answer": [None], "limit": [1], "trainer_state": "state", "log_metric": print,
        "weights": [1, 2],
    }  # fmt: skip


def test_a_reward_of_another_environment_does_not_see_the_columns_of_math():
    def own(completions, word, question="default", output=None, **others):
        assert not {"input", "agent_ref", "expected_answer"} & set(others), others
        return [float(question == "default" and output == ["x"])]

    def wants(completions, question, **others):
        return [float(question == [None])]

    columns = {"question": ["q", None], "input": ["q", None], "output": ["4", "x"], "agent_ref": [{"a": 1}, None]}
    batch = {"completions": ["4", "mat"], "environment": ["math", "rhyme"], "word": [None, "cat"], **columns}
    batch |= {"expected_answer": ["4", None], "answer": ["4", ""]}
    assert routing.Verifier({"math": equals, "rhyme": own})(**batch) == [1.0, 1.0]
    assert routing.Verifier({"math": equals, "rhyme": wants})(**batch) == [1.0, 1.0]


def test_a_reward_without_rows_is_not_called():
    def never(**_):
        raise AssertionError

    verify = routing.Verifier({"math": equals, "never": never})
    assert verify(completions=["1"], answer=["1"]) == [1.0]
    assert verify(completions=[]) == []


def test_a_run_of_math_alone_has_its_verifier_and_rewards_as_they_are():
    config = load_config("tiny")
    assert routing.make_verifier(config, ["math"], equals) is equals
    rewards = routing.combine_rewards(config, ["math"], [equals, short])
    assert rewards == routing.Rewards([equals, short], [1.0, 0.1], {"math": 0})


def test_each_environment_has_its_own_columns_of_rewards():
    weights = ["environments.short.reward_funcs=[arithmetic_steps.py]", "environments.short.reward_weights=[2.0]"]
    config = load_config("tiny", weights)
    rewards = routing.combine_rewards(config, ["math", "documents", "short"], [equals, equals])
    assert rewards.weights == [1.0, 0.1, 1.0, 2.0] and rewards.verifiers == {"math": 0, "documents": 2, "short": 3}
    names = [reward.__name__ for reward in rewards.functions]
    assert names == ["equals", "equals", "documents_qa_reward", "arithmetic_steps_reward"]
    assert rewards.functions[0](**MIXED) == [1.0, None, 0.0, None]
    assert fingerprint(rewards.functions[2]) == fingerprint(load_reward("documents_qa.py"))


def test_what_a_run_records_changes_with_the_reward_of_any_environment():
    first = routing.describe_verifier(routing.Verifier({"math": equals, "short": short}))
    partial = functools.partial(short, more=1)
    second = routing.describe_verifier(routing.Verifier({"math": equals, "short": partial}))
    assert first["math"] == second["math"] and first["short"] != second["short"]
    assert routing.describe_verifier(equals) == fingerprint(equals)


def test_there_is_no_majority_vote_over_different_environments():
    assert answer_reader(routing.Verifier({"math": load_reward("math_answer.py")})) is None


def test_an_environment_without_rewards_is_refused_with_the_setting():
    with pytest.raises(ValueError, match=r"environment 'poem'.*Set environments\.poem\.reward_funcs"):
        routing.make_verifier(load_config("tiny"), ["math", "poem"])


def test_without_division_by_the_spread_weights_of_other_sums_are_refused():
    config = load_config("tiny", "grpo.normalize_rewards=false")
    with pytest.raises(ValueError, match=r"different sums \(math 1\.1, documents 1\).*normalize_rewards=true"):
        routing.combine_rewards(config, ["math", "documents"], [equals, short])
    equal = load_config("tiny", ["grpo.normalize_rewards=false", "grpo.reward_weights=[0.9,0.1]"])
    assert routing.combine_rewards(equal, ["math", "documents"], [equals, short]).weights == [0.9, 0.1, 1.0]


def test_a_judge_is_found_inside_wrappers_and_has_no_place_among_the_verifiers():
    judge = load_reward("judge.py:judge_reward")
    assert routing.find_judge(functools.partial(functools.partial(judge, a=1), b=2)) is judge
    assert routing.find_judge(routing._only_for("chat", judge)) is judge
    assert routing.find_judge(equals) is None and routing.find_judges([equals, judge]) == [judge]
    settings = ["environments.chat.reward_funcs=[judge.py,math_answer.py]", "environments.chat.reward_weights=[1,0.1]"]
    config = load_config(["tiny"], settings)
    rewards = routing.combine_rewards(config, ["math", "chat"], [equals, short])
    assert rewards.verifiers == {"math": 0, "chat": None} and len(rewards.functions) == 4
    with pytest.raises(ValueError, match="grpo.reward_funcs names a judge"):
        routing.combine_rewards(config, ["math"], [judge, short])
