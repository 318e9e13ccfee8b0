"""Calls are counted per problem, apart by whether its prompt declares tools, and compared on the same problems."""

import pytest

from grpo_kit.evaluation.calls import compare_calls, describe_calls, mark_calls, summarise_calls
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.policy.generate import Sample
from tests.helpers.counter_world import call

ADD = call("add", n=7)
TOOL = {"type": "function", "function": {"name": "add"}}
ASKED = [{"role": "user", "content": "q"}]


def record(name, *calls, tools=False):
    return {"id": str(name), "calls": list(calls), "tools": tools}


def test_each_sample_is_marked_and_the_prompt_says_whether_tools_are_declared():
    samples = [Sample("a</think>4", 3, True), Sample(f"{ADD} cut in its thought", 9, False), Sample("x", 1, True, [
        {"role": "assistant", "content": "", "tool_calls": [TOOL]},
    ])]  # fmt: skip
    assert mark_calls(Problem("test", ASKED, {}), samples, None) == {"calls": [False, True, True], "tools": False}
    assert mark_calls(Problem("test", ASKED, {}), samples[:1], [TOOL]) == {"calls": [False], "tools": True}
    listed = [{"role": "system", "content": "<tools>[]</tools>"}, *ASKED]
    assert mark_calls(Problem("test", listed, {}), samples[:1], None)["tools"]


def test_the_share_is_a_mean_over_problems_with_its_interval():
    problems = [record(1, True, False), record(2, False, False), record(3, True, True, tools=True), {"id": "old"}]
    summary = summarise_calls(problems)
    assert {kind: (part["value"], part["n"]) for kind, part in summary.items()} == {
        "undeclared": (0.25, 2), "declared": (1.0, 1),
    }  # fmt: skip
    none = summarise_calls([record(i, False) for i in range(100)])["undeclared"]
    assert none["value"] == 0.0 and none["ci95"] == pytest.approx([0.0, 0.037], abs=1e-3)  # Wilson, and not zero
    assert summarise_calls([{"id": "old"}]) == {}


def test_two_measurements_are_compared_problem_by_problem():
    before = [record(i, i < 30) for i in range(100)] + [record("only before", True), record("t", True, tools=True)]
    after = [record(i, i < 3) for i in range(100)] + [record("only after", True), record("t", True, tools=True)]
    comparison = compare_calls(before, after)
    assert comparison["undeclared"]["n"] == 100 and comparison["undeclared"]["real"]
    assert (comparison["undeclared"]["before"], comparison["undeclared"]["after"]) == (0.3, 0.03)
    assert comparison["declared"] == {
        "before": 1.0, "after": 1.0, "difference": 0.0, "difference_ci95": [-0.975, 0.975], "real": False, "n": 1,
    }  # fmt: skip
    (sentence,) = describe_calls(comparison, "after_prefer")
    assert sentence.startswith(
        "Calls that nobody offered, by prefer: 30.0 % of replies before, 3.0 % after, -27.0 points"
    )
    assert describe_calls(comparison, "after")[0].startswith("Calls that nobody offered, by train: 30.0 %")


def test_no_word_is_said_where_nobody_calls():
    quiet = [record(i, False) for i in range(5)]
    assert describe_calls(compare_calls(quiet, quiet), "after") == []
    assert compare_calls([{"id": "1"}], quiet) == {} and describe_calls({}, "after") == []
