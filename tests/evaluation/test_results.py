"""Measures computed from verdicts, against values worked out by hand."""

import pytest

from grpo_kit.display.terminal.accuracies import print_comparison
from grpo_kit.evaluation import results
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.policy.generate import Sample
from grpo_kit.runs.run import Path, Run


def problem(key, paid, votes=None, **row):
    question = Problem(row.pop("set", "test"), [{"role": "user", "content": "?"}], {"id": key, "answer": "4", **row})
    return results.judge_problem(question, [Sample("", 1, True)] * len(paid), paid, votes)


@pytest.mark.parametrize(
    ("paid", "votes", "score", "majority"),
    [
        ([1.0, 0.0, 0.0, 0.0], None, 0.25, "absent"),
        ([1.0, 0.5], None, 0.5, "absent"),  # part of a reward is not right
        ([None, None], ["4", "4"], None, "absent"),  # the gold is unusable
        ([0.0, 1.0, 1.0], ["5", "4", "4"], 2 / 3, 1.0),
        ([1.0, 0.0, 0.0], ["4", "5", "5"], 1 / 3, 0.0),  # wrong together
        ([1.0, 0.0, 0.0], ["4", "5", "6"], 1 / 3, 1.0),  # a tie goes to the first
        ([0.0, 1.0, 0.0], [None, "4", None], 1 / 3, 1.0),  # a completion without an answer does not vote
        ([0.0, 0.0], [None, None], 0.0, 0.0),  # nobody voted
    ],
)
def test_a_judged_problem_has_a_score_and_a_majority_verdict(paid, votes, score, majority):
    record = problem("a", paid, votes)
    assert (record["score"], record.get("majority", "absent")) == (score, majority)


def test_one_sample_per_problem_gives_pass_at_1_only():
    summary = results.summarise_problems([problem("a", [1.0]), problem("b", [0.0]), problem("c", [None])])
    assert (summary["pass@1"], summary["n"], set(summary["measures"]), summary["by"]) == (0.5, 2, {"pass@1"}, {})


def test_pass_at_k_in_powers_of_two_and_all():
    measures = results.summarise_problems([problem("a", [1.0, *[0.0] * 5]), problem("b", [0.0] * 6)])["measures"]
    assert {name: measures[name]["value"] for name in measures} == pytest.approx(
        {"pass@1": 1 / 12, "pass@2": 1 / 6, "pass@4": 1 / 3, "pass@6": 1 / 2, "avg@6": 1 / 12}
    )


def side(*scores, **rows):
    kinds = [{key: values[n] for key, values in rows.items()} for n in range(len(scores))]
    return {str(n): problem(str(n), [score], **row) for n, (score, row) in enumerate(zip(scores, kinds, strict=True))}


def test_a_kind_that_groups_the_problems_as_an_earlier_one_is_left_out():
    kinds = {"environment": ["math", "json"] * 2, "source": ["sums", "records"] * 2, "family": ["a", "b", "b", "b"]}
    old, new = side(0.0, 0.0, 1.0, 1.0, **kinds), side(1.0, 1.0, 1.0, 1.0, **kinds)
    assert set(results.compare_groups(old, new)) == {"environment", "family"}


def test_groups_are_compared_on_their_own_problems(capsys):
    family = {"family": ["plus"] * 8 + ["minus"] * 8, "source": ["a"] * 16}
    old, new = side(*[0.0] * 8, *[1.0] * 8, **family), side(*[1.0] * 8, *[1.0] * 8, **family)
    groups = results.compare_groups(old, new)
    assert set(groups) == {"family"}  # a single source does not make a group
    plus, minus = groups["family"]["plus"], groups["family"]["minus"]
    assert (plus["before"], plus["after"], plus["difference"], plus["real"]) == (0.0, 1.0, 1.0, True)
    assert (minus["difference"], minus["real"], minus["n"]) == (0.0, False, 8)

    sides = {name: results.summarise_problems(list(p.values())) for name, p in (("before", old), ("after", new))}
    comparison = {
        **sides,
        "difference": 0.5,
        "difference_ci95": [0.2, 0.8],
        "n": 16,
        "words": "It is so.",
        "by": groups,
    }
    print_comparison(comparison, Run(Path("runs"), "r"))
    output = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "pass@1 0.500 1.000 +0.500 +0.200 to +0.800 16" in output and "family plus 0.000 1.000 +1.000" in output
    assert output.endswith("It is so.")
    print_comparison(comparison | {"difference": -1e-17, "difference_ci95": [-0.0003, 0.037]}, Run(Path("runs"), "r"))
    assert "+0.000 -0.0003 to +0.037" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_problem_that_one_side_lacks_is_left_out_of_its_group():
    old, new = side(0.0, 0.0, 1.0, set=["a", "b", "b"]), side(1.0, 1.0, 1.0, set=["a", "b", "b"])
    del new["1"]
    groups = results.compare_groups(old, new)["set"]
    assert (groups["a"]["n"], groups["b"]["n"]) == (1, 1)
    del new["0"]
    assert results.compare_groups(old, new) == {}  # what is left is one group


def comparison(gained, lost, real, n=40):
    middle = (gained - lost) / n
    return {
        "before": 0.5, "after": 0.5 + middle, "difference": middle, "difference_ci95": [middle - 0.1, middle + 0.1],
        "gained": gained, "lost": lost, "n": n, "real": real,
    }  # fmt: skip


def test_each_environment_and_all_of_them_have_a_sentence():
    sentences = results.describe_environments(
        {"math": comparison(9, 1, True), "json": comparison(4, 0, False), "docs": comparison(0, 0, False)}
    )
    assert sentences == [
        "math gained: 0.500 before, 0.700 after, +20.0 points (95 % +10.0 to +30.0); 9 tasks gained, 1 lost, of 40.",
        "json shows no change: 0.500 before, 0.600 after, +10.0 points (95 % +0.0 to +20.0); 4 tasks gained, 0 lost, "
        "of 40.",
        "docs shows no change: 0.500 before, 0.500 after, +0.0 points (95 % -10.0 to +10.0); 0 tasks gained, 0 lost, "
        "of 40.",
        "Of 3 environments: 1 gained (math); 2 show no change (json, docs).",
    ]
    assert "; 1 task gained, 0 lost, of 1." in results.describe_environments({"math": comparison(1, 0, False, 1)})[0]
    assert results.describe_environments({}) == []


def test_an_environment_that_lost_while_another_gained_is_a_warning():
    sentences = results.describe_environments({"math": comparison(9, 1, True), "json": comparison(0, 9, True)})
    assert sentences[2] == "Of 2 environments: 1 gained (math); 1 lost (json)."
    assert sentences[3].startswith("Warning: json fell while math rose. Give what fell a larger share (data.mix)")
    both = results.describe_environments({"math": comparison(0, 9, True), "json": comparison(0, 9, True)})
    assert both[-1] == "Of 2 environments: 2 lost (math, json)."


def test_an_environment_gains_only_where_the_comparison_calls_it_real():
    """Four of four changes upwards: McNemar's test gives 0.125, and the interval holds zero as well."""
    sides = []
    for right in ((), range(0, 8, 2)):
        scores = {str(i): float(i in right) for i in range(40)}
        sides.append(
            {key: {"id": key, "environment": "ab"[int(key) % 2], "score": score} for key, score in scores.items()}
        )
    groups = results.compare_groups(*sides)["environment"]
    assert groups["a"]["difference_ci95"][0] < 0 < groups["a"]["difference"] and groups["a"]["p_value"] == 0.125
    assert results.describe_environments(groups)[0].startswith("a shows no change: 0.000 before, 0.200 after")


def test_what_preferences_did_is_said_and_a_loss_is_no_success():
    row = {"measurement": "after_prefer", "difference": 0.02, "difference_ci95": [-0.01, 0.05], "n": 200, "real": False}
    assert results.describe_preferences(row) == [
        "Learning from pairs changed accuracy by +2.0 points (95 % -1.0 to +5.0) on 200 problems."
    ]
    lost = row | {"difference": -0.1, "difference_ci95": [-0.15, -0.05], "real": True}
    assert "It fell, so the pairs taught something else than being right" in results.describe_preferences(lost)[0]
    assert results.describe_preferences(row | {"measurement": "after"}) == []


def test_what_pairs_taught_is_said_of_one_problem_as_of_many():
    change = {"measurement": "after_prefer", "difference": 0.0, "difference_ci95": [-0.5, 0.5], "real": False}
    for n, words in ((1, "on 1 problem."), (20, "on 20 problems.")):
        assert results.describe_preferences(change | {"n": n})[0].endswith(words)
