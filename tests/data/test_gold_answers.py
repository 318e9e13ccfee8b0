"""Golds taken out of worked solutions, written bare, and judged by the verifier of the run."""

import pytest

from grpo_kit.data import gold_answers
from grpo_kit.rewards.tools.loading import load_reward


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("so <<1+1=2>>2\n#### 2", "2"), ("#### 1\n#### 3", "3"), ("####", "####"), (" 5 ", "5"), ("a #### b", "a #### b")],
)
def test_golds_are_extracted_from_worked_solutions(answer, gold):
    assert gold_answers.extract_gold(answer) == gold


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (r"so \boxed{1} then \boxed{\frac{1}{2}} at last", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),  # escaped braces do not count
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{7} and \boxed{8", "7"),  # one never closed
        (r"no box", ""),
        (r"\boxed{}", ""),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{" * 200_000, ""),  # in time that grows with the length
    ],
)
def test_the_last_box_of_a_solution_is_extracted(solution, gold):
    assert gold_answers.extract_last_box(solution) == gold


def test_golds_that_the_verifier_cannot_read_are_recognised():
    verifier = load_reward("math_answer.py:math_reward")
    golds = ["72", r"\frac{1}{2}", "", "}", "72", r"\approx 8.24 \text{ mph}", "%%\\"]  # the last breaks its own box
    assert gold_answers.find_unusable_golds(golds, verifier) == {"", "}", r"\approx 8.24 \text{ mph}", "%%\\"}
    challenge = load_reward("challenge.py:challenge_reward")
    assert gold_answers.find_unusable_golds(["00110100", "17/"], challenge) == set()


def test_the_verifier_decides_whether_two_golds_are_equal():
    verifier = load_reward("math_answer.py:math_reward")
    same = gold_answers.make_gold_comparison(verifier)
    assert same("097", "97") and same(r"7-2\pi", r"7 - 2 \pi") and same("1/2", "0.5")
    assert not same("5", "6") and not same("", "6")
    by_spelling = gold_answers.make_gold_comparison(lambda completions, **columns: [0.0] * len(completions))
    assert not by_spelling("1/2", "0.5") and by_spelling(" A b", "ab ")


@pytest.mark.parametrize(
    ("gold", "bare"),
    [("$x$", "x"), (r"\(x\)", "x"), ("$$x$$", "x"), ("$5", "$5"), ("$a$ or $b$", "$a$ or $b$"), ("$$", "$$")],
)
def test_dollar_signs_around_a_gold_are_removed(gold, bare):
    assert gold_answers.strip_delimiters(gold) == bare
