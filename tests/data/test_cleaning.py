"""How texts are cleaned, and which rows are dropped for which reason."""

import csv
import json

import pytest

from grpo_kit.data import cleaning, gold_answers, ngrams


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("\ufeff x\u00a0=\u20091\u200b ", "x = 1"),  # byte-order mark, exotic and zero-width spaces
        ("e\u0301", "é"),  # composed
        ("x² ≤ ½", "x² ≤ ½"),  # not NFKC: x² must not become x2
        ("a\x00b\x07", "ab"),
        ("a\ud800b", "a\ufffdb"),  # half a character, which UTF-8 cannot hold
        ("  two  spaces\tstay  ", "two  spaces\tstay"),  # inner white space can be part of a puzzle
    ],
)
def test_text_is_cleaned(text, mended):
    assert cleaning.tidy_text(text) == mended


@pytest.mark.parametrize(
    ("problem", "gold", "reason"),
    [
        ("", "1", "no problem"),
        ("What is 1 + 1?", "", "no answer"),
        ("What is 1 + 1\ufffd?", "2", "broken characters"),
        ("What is shown? ![](http://x/a.png)", "2", "image"),
        ("Count. <img src='x'>", "2", "image"),
        (r"Find it. \includegraphics{a}", "2", "image"),
        ("See https://cdn.mathpix.com/cropped/2024.jpg?height=3 for it. Find x.", "2", "image"),
        ("Find $x.$ [asy] draw((0,0)--(1,1)); label('$x$'); [/asy]", "2", "figure only"),
        ("Find $x.$ [asy] draw((0,0)--(1,1));", "2", "figure only"),  # never closed
        ("In the diagram, $BM$ bisects angle $B$. Find it.", "2", "missing figure"),
        ("Find the area of the shaded part, as shown in the figure.", "2", "missing figure"),
        ("Find the sum (see the figure below).", "2", "missing figure"),
        ("Prove that there are infinitely many primes.", "x", "proof"),
        ("Let $n>1$. Show that $n^2>n$.", "x", "proof"),
        ("(a) Find $x$. (b) Prove that $x>1$.", "1", "several parts"),
        ("Let $f(x)=x^2$.\n(1) Find $f(2)$;\n(2) If $f(a)=9$, find $a$.", "4", "several parts"),
        ("a) What is 2+2?\nb) What is 3+3?", "4", "several parts"),
    ],
)
def test_unfit_rows_are_dropped_with_their_reason(problem, gold, reason):
    assert cleaning.find_unfit_reason(problem, gold) == reason


@pytest.mark.parametrize(
    "problem",
    [
        "Let $M$ be the midpoint, as in the figure. Find $x$ if the two small triangles have equal areas. "
        "[asy] draw((0,0)--(1,1)); [/asy]",
        "The figures of a number are its digits. Find the number.",
        "She drew a picture of a horse and sold it for $5. How much is that?",
        "Show your work. How many apples are there?",
        "What is the least number so that a) when divided by 2 the remainder is 1, b) when divided by 3 it is 2?",
        "Find $n$ with\n(a) $n$ is even,\n(b) $n$ is prime.",  # conditions, one question
        "Which is prime? (A) 4 (B) 5 (C) 6",  # options
        "Define $E(a,b,c)=ab^2+c$. What $a$ solves $E(a,4,5) = E(a,6,7)$?",
        "What value proves the claim? Find it.",
        "Find f(x) = (x - a) (x - b) at 1.",
    ],
)
def test_fit_rows_are_kept(problem):
    assert cleaning.find_unfit_reason(problem, "1") is None


@pytest.mark.slow
def test_the_challenges_puzzles_and_gsm8k_are_left_alone(shared_data):
    with (shared_data / "nemotron_challenge/train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["id"] for r in rows if cleaning.find_unfit_reason(cleaning.tidy_text(r["prompt"]), r["answer"])] == []
    assert all(cleaning.tidy_text(r["answer"]) == r["answer"] for r in rows)
    lines = (shared_data / "gsm8k/train.jsonl").read_text().splitlines()
    assert {cleaning.find_unfit_reason(json.loads(line)["question"], "1") for line in lines} == {None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["[asy]", "\n(a) ", "![", "see the ", ", prove ", "a.", "|\n", ". \n", "in the figure", "\\boxed {", "1. "]
)
def test_repetitive_text_is_cleaned_quickly(text):
    long = text * 100_000  # hours, if any rule looked at the rest of the text from every place in it
    cleaning.find_unfit_reason(cleaning.tidy_text(long), gold_answers.strip_delimiters(gold_answers.extract_gold(long)))
    ngrams.split_words(long)
