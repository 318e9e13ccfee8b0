"""arithmetic_steps: GSM8K's own steps are true, spam earns nothing, the outcome bounds it all."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_kit.rewards.arithmetic_steps import arithmetic_steps_reward, check_steps

SHARED = Path(os.environ.get("GRPO_KIT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
QUESTION = "Natalia sold clips to 48 friends in April, and half as many in May, at 20% off $5. How many?"

STEPS = [  # text, (true, earns) of each step, what the row is about
    ("<<48/2=24>>", [(True, True)], "an annotation"),
    ("48 / 2 = <<48/2=24>>24", [(True, True)], "an annotated line is one step"),
    ("48 / 2 = 24", [(True, True)], "a plain line"),
    (r"48 \div 2 = 24", [(True, True)], "LaTeX's division"),
    ("48 x 2 = 96", [(True, True)], "x for times"),
    ("48 × 2 = 96", [(True, True)], "the sign for times"),
    ("$48 + $5 = $53", [(True, True)], "currency"),
    ("48,000 / 1,000 = 48", [(True, False)], "commas; 48,000 is not in the question"),
    ("<<48/2=25>>", [(False, False)], "false"),
    ("48/2=24. 48/2=24.", [(True, True), (True, False)], "made twice"),
    ("48/2=24. 48+24=72.", [(True, True), (True, True)], "built on an earlier result"),
    ("48+23=71.", [(True, False)], "23 comes from nowhere"),
    ("<<48=48>>", [(True, None)], "computes nothing"),
    ("48/2=25. 48+25=73.", [(False, False), (True, False)], "built on a false result"),
    ("1+1=2", [(True, False)], "factors alone"),
    ("5*.8=4", [(True, True)], "1 - 20%"),
    ("5*20%=1", [(True, True)], "a percent sign"),
    ("5/48=0.10", [(True, True)], "rounded to the digits it shows"),
    ("5/48=0.2", [(False, False)], "not rounded right"),
    ("5/48=0", [(False, False)], "a whole number is not rounded"),
    ("<<(48+48)/2=48>>", [(True, True)], "brackets in an annotation"),
    ("<<48/0=5>>", [], "division by zero is neutral"),
    ("x + 48 + 5 = 53", [], "algebra is neutral"),
    ("2 * x = 48", [], "so is this"),
    ("48 + 5 = 53 + 1", [], "an expression on the right is neutral"),
    ("3 1/2 = 3.5", [], "a mixed number is no division"),
    ("No numbers at all.", [], "prose is neutral"),
    ('<<__import__("os")=1>>', [], "and nothing is run"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected", "note"), STEPS)
def test_steps_are_true_new_and_grounded_or_earn_nothing(text, expected, note):
    assert [(true, earns) for _, true, earns in check_steps(text, QUESTION)] == expected, note


def test_the_reward_is_the_share_of_steps_that_earn_and_the_outcome_gates_it():
    half = "48/2=24. 7+7=14.\n#### 72"
    one = "48/2=<<48/2=24>>24\n48+24=<<48+24=72>>72\n</think>\\boxed{72}"
    wrong = "48/2=24.\n#### 71"
    none = "#### 72"
    replies, n = [half, one, wrong, none], 4
    assert arithmetic_steps_reward(replies, [QUESTION] * n, ["72"] * n) == [0.5, 1.0, 0.0, 0.0]
    ungated = arithmetic_steps_reward(replies, [QUESTION] * n, ["72"] * n, outcome_gated=False)
    assert ungated == [0.5, 1.0, 1.0, 0.0]


def test_spam_lowers_the_reward_and_never_lifts_it_above_one():
    honest = "48/2=24\n"
    for spam in ("1+1=2 " * 50, "<<1+1=2>>" * 50, "48/2=24 " * 50, "2+2=5 " * 50):
        reply = honest + spam + "\n#### 24"
        (reward,) = arithmetic_steps_reward([reply], [QUESTION], ["24"])
        assert reward == pytest.approx(1 / 51)


def test_a_missing_gold_number_earns_none_and_messages_are_read():
    messages = [{"role": "assistant", "content": "48/2=24\n#### 24"}]
    prompt = [{"role": "system", "content": "Think."}, {"role": "user", "content": QUESTION}]
    golds = ["so <<48/2=24>>24\n#### 24", "none"]
    assert arithmetic_steps_reward([messages] * 2, [prompt] * 2, golds) == [1.0, None]


def test_lists_of_different_lengths_raise():
    with pytest.raises(ValueError, match=r"1 completions, 2 prompts and 1 answers.*needs its own.*Pass"):
        arithmetic_steps_reward(["a"], ["p", "q"], ["1"])


def gsm8k() -> list[dict]:
    path = SHARED / "data" / "gsm8k" / "test.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set GRPO_KIT_SHARED to the folder that holds data/")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_4282_annotations_of_the_gsm8k_test_split_are_true():
    annotations = [a for row in gsm8k() for a in re.findall("<<[^>]*>>", row["answer"])]
    steps = [step for a in annotations for step in check_steps(a, "")]
    assert len(annotations) == len(steps) == 4282
    assert [equation for equation, true, _ in steps if not true] == []


@pytest.mark.slow
def test_gsm8k_golds_earn_nine_tenths_on_average():
    rows = gsm8k()
    texts = [row["answer"] for row in rows]
    rewards = arithmetic_steps_reward(texts, [row["question"] for row in rows], texts)
    assert sum(rewards) / len(rewards) > 0.9


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(), st.text(alphabet="0123456789+-*/=<>.,%$() \n", max_size=200)))
def test_any_text_is_checked_without_raising(text):
    (reward,) = arithmetic_steps_reward([text], [text], ["5"], outcome_gated=False)
    assert 0.0 <= reward <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["1", "1+", "1+1=2 ", "1+1=2\n", "<<", "<<1+1=2>>", "(", "1/", " ", "=", "$"])
def test_a_megabyte_of_one_piece_takes_less_than_10_seconds_of_processor_time(piece):
    start = time.process_time()
    arithmetic_steps_reward([piece * (1_000_000 // len(piece))], [piece * 1000], ["5"], outcome_gated=False)
    assert time.process_time() - start < 10.0
