"""challenge: the scorer's answers on its published traps, and on the challenge's own golds."""

import csv
import os
from pathlib import Path

import pytest

from grpo_kit.rewards.challenge import challenge_reward, challenge_score, extract_answer

SHARED = Path(os.environ.get("GRPO_KIT_SHARED", Path(__file__).resolve().parents[3] / "shared"))

EXTRACTION = [  # completion, under v15, under v14 and launch; facts/challenge.md 2.5
    (None, "NOT_FOUND", "NOT_FOUND"),  # no completion
    ("", "NOT_FOUND", "NOT_FOUND"),  # an empty one
    (" \n\t\n", "NOT_FOUND", "NOT_FOUND"),  # blank lines alone
    (r"\boxed{7} then \boxed{}", "7", "7"),  # the last non-empty box
    (r"\boxed{}", "", ""),  # an empty box is found, and empty
    (r"\boxed{ } and so 9", "", ""),  # no fallback once there is a box
    (r"\boxed{1} and \boxed{2}", "2", "2"),  # the last box
    (r"\boxed{+}}", "+}", "+"),  # a gold that ends in a brace
    (r"\boxed{}52}", "}52", ""),  # a gold that begins with one
    (r"\boxed{42}}", "42}", "42"),  # one brace too many
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", r"\frac{1"),  # LaTeX
    (r"\boxed{\text{42}}", r"\text{42}", r"\text{42"),  # text
    (r"\boxed{3}. \begin{a}x\end{a} ok", r"3}. \begin{a}x\end{a", "3"),  # a brace after the box
    (r"\boxed{10010111", "10010111", "10010111"),  # cut off
    (r"\boxed {5}", "5", "5"),  # no box; the last number
    (r"\boxed{$>>\}", "$>>\\", "$>>\\"),  # a gold that ends in a backslash
    (r"\boxed{\boxed{8}}", "8}", r"\boxed{8"),  # a box in a box
    ("<think>\\boxed{1}</think>2", "1", "1"),  # the thinking is scanned
    ("The final answer is: 3.14", "3.14", "3.14"),  # the phrase
    (
        "final answer is: 1\nThe final answer is: 2\nfinal answer is: 3",
        "2",
        "2",
    ),  # longer phrase first
    ("FINAL ANSWER：XL", "XL", "XL"),  # a full-width colon
    ("Final answer  :\n  XL \nso", "XL", "XL"),  # on the next line
    ("The final answer is 17", "17", "17"),  # no colon: the last number
    ("1,234", "234", "234"),  # the comma splits it
    ("answer 5.", "5", "5"),  # the full stop is none of it
    ("minus -5.25 m", "-5.25", "-5.25"),  # a sign and a point
    ("no digits here\nlast line ", "last line", "last line"),  # the last line
]
COMPARISON = [  # gold, answer, verdict
    ("11011", "00011011", 0),  # binary golds are strings: no padding
    ("01", "1", 0),  # no leading zeros
    ("10", "10.0", 0),  # no decimals
    ("10", "9.95", 0),  # no tolerance
    ("0", "0.0", 0),  # zero is binary too
    ("100", "101", 0),  # and so is 100
    ("100", "99", 0),  # either way
    ("00000001", "1", 0),  # eight digits
    ("01", "01", 1),  # the same string
    ("1", " 1 ", 1),  # outer blanks do not count
    ("24.64", "24.6401", 1),  # a number close by
    ("154.62", "156.1", 1),  # within 1 % of the larger
    ("154.62", "156.2", 0),  # just beyond
    ("0234", "234", 1),  # a leading zero of a number
    ("03", "3", 1),  # the same
    ("+92", "92", 1),  # an explicit sign
    ("1e2", "100", 1),  # 1e2 is not 0/1-only
    ("0.000001", "0", 1),  # within 1e-5 of zero
    ("12", "1_2", 1),  # float() reads underscores
    ("inf", "Infinity", 1),  # and infinities
    ("nan", "nan", 0),  # nan is not itself
    ("42", "４２", 1),  # and full-width digits
    ("XLVII", "xlvii", 1),  # text in any case
    ("cat  book", "cat book", 0),  # inner blanks count
    ("queen rules", "Queen rules ", 1),  # outer ones do not
    ("5", "5 m", 0),  # a unit
    ("16.65", "$16.65", 0),  # currency
    ("@&", "@&", 1),  # symbols
    ("17/", "17", 0),  # a symbol too few
]


@pytest.mark.parametrize(("completion", "v15", "v14"), EXTRACTION)
def test_the_answer_is_found_where_the_scorer_finds_it(completion, v15, v14):
    assert extract_answer(completion) == v15
    assert extract_answer(completion, "v14") == extract_answer(completion, "launch") == v14


@pytest.mark.parametrize(("gold", "answer", "verdict"), COMPARISON)
def test_answers_are_compared_as_the_scorer_compares_them(gold, answer, verdict):
    assert challenge_score(gold, rf"\boxed{{{answer}}}") == verdict


def test_before_version_14_binary_golds_were_compared_as_numbers():
    assert challenge_score("01", r"\boxed{1}", "launch") == 1.0
    assert challenge_score("11111011", r"\boxed{11111000}", "launch") == 1.0
    assert challenge_score("01", r"\boxed{1}", "v14") == 0.0


def challenge_golds() -> list[str]:
    path = SHARED / "data" / "nemotron_challenge" / "train.csv"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set GRPO_KIT_SHARED to the folder that holds data/")
    with path.open(newline="", encoding="utf-8") as file:
        return [row["answer"] for row in csv.DictReader(file)]


def test_every_training_gold_in_a_box_scores_under_v15_and_the_94_with_a_brace_fail_under_v14():
    golds = challenge_golds()
    replies = [rf"I see.</think>\boxed{{{gold}}}" for gold in golds]
    assert challenge_reward(replies, golds) == [1.0] * 9500
    failed = [g for g, r in zip(golds, challenge_reward(replies, golds, version="v14")) if r == 0.0]
    assert len(failed) == 94 and all("}" in gold for gold in failed)
    assert sum("}" in gold for gold in golds) == 94


def test_braces_after_the_box_fail_every_gold_and_lost_zeros_fail_910():
    golds = challenge_golds()
    assert not any(challenge_reward([rf"\boxed{{{g}}} as {{x}} shows" for g in golds], golds))
    stripped = [rf"\boxed{{{g.lstrip('0') or '0'}}}" for g in golds]
    lost = [g for g, r in zip(golds, challenge_reward(stripped, golds)) if r == 0.0]
    assert len([g for g in lost if len(g) == 8]) == 902  # of the bit puzzles


def test_messages_empty_golds_and_mistakes_of_the_caller():
    messages = [{"role": "assistant", "content": r"\boxed{7}"}]
    assert challenge_reward([messages, "8", "8"], ["7", "", None]) == [1.0, None, None]
    with pytest.raises(ValueError, match=r"1 completions and 2 answers.*each completion needs.*Pass"):
        challenge_reward(["a"], ["1", "2"])
    with pytest.raises(ValueError, match=r"'v16'.*launch, v14, v15.*Take"):
        challenge_score("1", "1", "v16")
