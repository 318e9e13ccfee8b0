"""arithmetic_steps: the gold's steps or those that lead to the answer earn, spam does not, the outcome bounds it."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_kit.rewards.arithmetic_steps import arithmetic_steps_reward, check_steps
from grpo_kit.rewards.math_answer import math_reward

SHARED = Path(os.environ.get("GRPO_KIT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
QUESTION = "Natalia sold clips to 48 friends in April, and half as many in May, at 20% off $5. How many?"

STEPS = [  # text, (true, earns) of each step, what the row is about
    ("<<48/2=24>>", [(True, True)], "an annotation"),
    ("48 / 2 = <<48/2=24>>24", [(True, True)], "an annotated line is one step"),
    ("48 / 2 = 24", [(True, True)], "a plain line"),
    (r"48 \div 2 = 24", [(True, True)], "LaTeX's division"),
    ("48 x 2 = 96", [(True, True)], "x for times"),
    ("48 × 2 = 96", [(True, True)], "the sign for times"),
    (r"\frac{48}{2} = 24", [(True, True)], "a fraction of LaTeX"),
    (r"48+\dfrac{48}{2}=72", [(True, True)], "in a sum"),
    (r"\frac{48}{2} = 25", [(False, False)], "and a false one"),
    (r"2\frac{1}{2} = 2.5", [], "a mixed number is no product"),
    (r"48 / \frac{48}{2} = 2", [], "a fraction of a fraction is not read, because 48/48/2 differs"),
    ("$48 + $5 = $53", [(True, True)], "currency"),
    ("48,000 / 1,000 = 48", [(True, False)], "commas; 48,000 is not in the question"),
    ("<<48/2=25>>", [(False, False)], "false"),
    ("48/2=24. 48/2=24.", [(True, True), (True, False)], "made twice"),
    ("48+5=53. 5+48=53. 48 + 5 = 53.0", [(True, True), (True, False), (True, False)], "made anew in another spelling"),
    ("48/2=24. 48*0.5=24. 48*1/2=24", [(True, True), (True, False), (True, False)], "half is one number"),
    ("5*1=5. 48+0=48. 48+5-5=48", [(True, False)] * 3, "a number that comes back unchanged"),
    ("48*5=240. 240/5=48.", [(True, True), (True, False)], "a number that is multiplied and divided again"),
    ("48+5=53. 53+5=58. 58-10=48.", [(True, True), (True, True), (True, False)], "added and taken off again"),
    ("5*5=25. 25-20=5.", [(True, True), (True, True)], "the same number in another meaning"),
    ("48/2=24. 48+24=72.", [(True, True), (True, True)], "built on an earlier result"),
    ("48+23=71.", [(True, False)], "23 comes from nowhere"),
    ("<<48=48>>", [(True, None)], "computes nothing"),
    ("48/2=25. 48+25=73.", [(False, False), (True, False)], "built on a false result"),
    ("1+1=2", [(True, False)], "factors alone"),
    ("1/5=0.2", [(True, True)], "a reciprocal"),
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


# Two steps of the gold: 48/2=24 and 48+24=72. The replies end in #### 72 unless they say something else.
GOLD = "He sold 48/2 = <<48/2=24>>24 in May.\nTogether 48+24 = <<48+24=72>>72.\n#### 72"
PAID = [  # reply, paid where the gold is annotated, paid where it is the number alone, what the row is about
    ("48/2=24. 48+24=72.", 1, 1, "both steps"),
    ("<<48/2=24>> <<48+24=72>>", 1, 1, "both as annotations"),
    ("48*0.5=24. 24+48=72.", 1, 1, "spelled with other signs and in another order"),
    ("48 + 48/2 = 72", 1, 1, "both in one line"),
    ("48/2=24.", 1 / 2, 0, "one of two; alone it does not lead to the answer"),
    ("48+24=72.", 1 / 2, 1, "24, which might be hours, passes for a factor"),
    ("", 0, 0, "none"),
    ("5*1=5.", 0, 0, "one irrelevant true step"),
    ("72*1=72. 72+0=72", 0, 0, "the answer comes back unchanged"),
    ("48/2=24. 48+24=72. 48+5=53.", 1, 2 / 3, "an irrelevant step beside them"),
    ("48/2=24. 48+24=72. 24+48=72. 48 + 24 = 72.0", 1, 1 / 2, "a step spelled anew, twice"),
    ("48/2=24. 24*1=24. 24 = 48/2. 48*1/2=24", 1 / 2, 0, "one step in four spellings"),
    ("48/2=24. 48+24=72. 2+2=5.", 2 / 3, 2 / 3, "a false step"),
    ("48+24+48+24=144. 1+2+3+5+20+24+48=103. 48*2=96", 0, 0, "sums that hold the parts of the gold's"),
    ("48+5=53. 53+19=72.", 0, 0, "19 comes from nowhere, and no step is the gold's"),
    ("24*3=72", 0, 0, "another product to the same result"),
    ("48/2=24. 48+25=72", 1 / 3, 0, "a false last step"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "annotated", "bare", "note"), PAID)
def test_steps_pay_that_are_the_golds_own_or_lead_to_the_answer(reply, annotated, bare, note):
    golds = [GOLD, "72"]
    paid = arithmetic_steps_reward([f"{reply}\n#### 72"] * 2, [QUESTION] * 2, golds)
    assert paid == [pytest.approx(annotated), pytest.approx(bare)], note


OUTCOMES = [  # the end of a reply whose steps are right, is it the gold 72
    ("#### 72", 1), ("####72\nDone.", 1), (r"\boxed{72}", 1), (r"so</think>\boxed{\$72}<|im_end|>", 1),
    (r"\boxed{72.0}", 1), (r"\boxed{144/2}", 0), (r"\boxed{72} #### 71", 1), (r"\boxed{72}, again \fbox{72}", 1),
    ("#### 71", 0), ("72", 0), ("#### 72 or 73", 0), ("#### not 72", 0), (r"\boxed{71} #### 72", 0),
    (r"\boxed{x = 71 or 72}", 0), (r"\boxed{100/72}", 0), (r"\boxed{7, 72}", 0), (r"\boxed{\text{not }72}", 0),
    (r"Either \boxed{71} or \boxed{72}", 0), (r"It is not \boxed{72}", 0), (r"\boxed{72} is wrong", 0),
    (r"\boxed{72", 0), (r"\boxed{}", 0), (r"\boxed{72} \boxed{", 0), (r"\boxed{72}</think>", 0),
    ("The answer is 72.", 1), ("<answer>72</answer>", 1), ("#### 72.", 1), ("#### **72**", 1),
    (r"\boxed{72\text{ clips}}", 1), (r"\boxed{x=72}", 1), (r"\boxed{72\,}", 1), (r"\boxed{{72}}", 1),
    ("So the final answer is $72$.", 1), ("Answer: **72**", 1), ("#### 72 clips", 1),
    ("The answer is 72 friends.", 1),
    (r"\boxed{72\text{ dollars}}", 1), (r"\boxed{$72$}", 1), ("<answer>\n72\n</answer>", 1), (r"#### $72", 1),
    ("The answer is 72 or 73.", 0), ("The answer is not 72.", 0), ("The wrong answer is 72.", 0),
    ("If the answer is 72", 0),
    ("The answer is 72. No, it is 73.", 0), ("I doubt the answer is 72.", 0), ("The answer is 73.", 0),
    ("<answer>72</answer> <answer>73</answer>", 0), ("<answer>72 or 73</answer>", 0), ("<answer>not 72</answer>", 0),
    (r"<answer>72</answer> is wrong", 0), ("#### -72", 0), ("The answer is 7 2.", 0), ("The answer is 72%.", 0),
    (r"\boxed{72\text{ percent}}", 0), (r"\boxed{72\text{ half}}", 0), (r"\boxed{72\text{ million}}", 0),
    (r"\boxed{72\text{ fails}}", 0), (r"\boxed{72\text{ not}}", 0), (r"\boxed{2x=72}", 0), (r"\boxed{x>72}", 0),
    (r"\boxed{7\,2}", 0), (r"\boxed{72x}", 0), (r"\boxed{\sqrt{72}}", 0), (r"\boxed{{7}2}", 0), ("#### 72!", 0),
    (r"<think>\boxed{72}", 0), (r"\boxed{72\%}", 0), (r"\boxed{5.72}", 0), (r"\boxed{-72}", 0), (r"\boxed{1 72}", 0),
]  # fmt: skip


@pytest.mark.parametrize(("end", "right"), OUTCOMES)
def test_steps_pay_nothing_unless_the_answer_is_the_gold_number_alone(end, right):
    reply = f"48/2=24. 48+24=72. {end}"
    assert arithmetic_steps_reward([reply], [QUESTION], [GOLD]) == [right]
    assert arithmetic_steps_reward([reply], [QUESTION], [GOLD], outcome_gated=False) == [1.0]
    assert not right or math_reward([reply], ["72"]) == [1.0]


def labelled_pairs() -> list[dict]:
    paths = [SHARED / "data" / "answer_checking" / name for name in ("more_pairs.jsonl", "more_hostile.jsonl")]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"{paths[0]} is absent; set GRPO_KIT_SHARED to the folder that holds data/")
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_the_gate_lets_no_reply_through_that_is_labelled_wrong():
    rows = labelled_pairs()
    wrong = [row for row in rows if not (row["equal"] if "equal" in row else row["reward"])]
    replies = [row.get("pred", row.get("completion")) + "\n48/2=24" for row in wrong]
    rewards = arithmetic_steps_reward(replies, [QUESTION] * len(wrong), [row["gold"] for row in wrong])
    steps = ["<<48/2=24>>\n" + row["gold"] for row in wrong]
    gated = arithmetic_steps_reward(replies, [QUESTION] * len(wrong), steps)
    assert len(wrong) > 50 and not any(rewards) and not any(gated)


def test_an_open_thought_is_unfinished_where_the_prompt_opened_it():
    reply, closed = "48/2=24. 48+24=72. #### 72", "48/2=24. 48+24=72.</think> #### 72"
    paid = arithmetic_steps_reward([reply, closed, reply], [QUESTION] * 3, [GOLD] * 3, True, [True, True, False])
    assert paid == [0.0, 1.0, 1.0]


def test_golds_that_are_no_plain_number_are_not_judged():
    golds = ["1/2", r"\frac{1}{2}", r"\boxed{1/2}", "72 or 73", "x", "", None]
    reply = r"1/2=0.5 \boxed{0.5}"
    paid = arithmetic_steps_reward([reply] * 7, ["1 of 2"] * 7, golds)
    assert paid == [1.0, 1.0, 1.0, None, None, None, None]


def test_spam_lowers_the_reward_and_never_lifts_it_above_one():
    honest = "48/2=24\n"
    for spam in ("1+1=2 " * 50, "<<1+1=2>>" * 50, "48/2=24 " * 50, "2+2=5 " * 50):
        reply = honest + spam + "\n#### 24"
        (reward,) = arithmetic_steps_reward([reply], [QUESTION], ["24"])
        assert reward == pytest.approx(1 / 51)
    reply = honest + "2+2=5 " * 50 + "\n#### 72"
    assert arithmetic_steps_reward([reply], [QUESTION], [GOLD]) == [pytest.approx(1 / 52)]


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


@pytest.mark.slow
def test_all_4282_annotations_of_the_gsm8k_test_split_are_true():
    annotations = [a for row in gsm8k() for a in re.findall("<<[^>]*>>", row["answer"])]
    steps = [step for a in annotations for step in check_steps(a, "")]
    assert len(annotations) == len(steps) == 4282
    assert [equation for equation, true, _ in steps if not true] == []


@pytest.mark.slow
def test_of_1319_gsm8k_golds_1288_earn_1_against_themselves_and_969_without_their_annotations():
    rows = gsm8k()
    texts, questions = [row["answer"] for row in rows], [row["question"] for row in rows]
    rewards = arithmetic_steps_reward(texts, questions, texts)
    assert (sum(reward == 1.0 for reward in rewards), len(rewards)) == (1288, 1319)
    numbers = [text.rpartition("####")[2] for text in texts]
    rewards = arithmetic_steps_reward(texts, questions, numbers)
    assert sum(reward == 1.0 for reward in rewards) == 969


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
