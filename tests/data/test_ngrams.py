"""What counts as the same text, and hashes that are the same in every process."""

import subprocess
import sys

import pytest

from grpo_kit.data import ngrams


@pytest.mark.parametrize(
    "other",
    [
        "WHAT IS $2+X$, if x = 3",  # case, dollar signs, punctuation, spaces around operators
        "What  is\n2 + x,\tif x=3?",  # white space
        "7. What is 2 + x, if x = 3?",  # a problem's number in front
        "Problem 12: What is 2 + x, if x = 3?",
        r"What is $\left.2 +\, {x}\right.$, if x = 3?",  # LaTeX that only spaces and groups
        "What is ２ + ｘ, if x = 3?",  # full-width forms
    ],
)
def test_spelling_does_not_change_the_digest_of_a_problem(other):
    assert ngrams.digest_tokens(other) == ngrams.digest_tokens("What is 2 + x, if x = 3?")


@pytest.mark.parametrize(
    "other",
    [
        "What is 2 - x, if x = 3?",  # the operator
        "What is 2 + x, if x = 4?",  # a number
        "What is 2 + y, if x = 3?",
        "What is 2 + x!, if x = 3?",  # a factorial
        "3.5 What is 2 + x, if x = 3?",  # no problem's number
    ],
)
def test_different_problems_have_different_digests(other):
    assert ngrams.digest_tokens(other) != ngrams.digest_tokens("What is 2 + x, if x = 3?")


def test_ngrams_stay_within_a_text_and_short_texts_may_have_one():
    texts = [list("abcd"), [], list("ab"), list("bcd")]
    runs = ngrams.hash_runs(texts, 3, ngrams.Vocabulary(), short=True)
    assert runs.starts.tolist() == [0, 2, 2, 3, 4]  # abc bcd, none, ab, bcd
    assert runs.hashes[1] == runs.hashes[3] and len(set(runs.hashes.tolist())) == 3
    assert ngrams.hash_runs(texts, 3, ngrams.Vocabulary(), short=False).starts.tolist() == [0, 2, 2, 2, 3]
    alone = ngrams.hash_runs([list("ab"), list("cd"), list("ab")], 3, ngrams.Vocabulary(), short=True).hashes
    assert alone[0] == alone[2]  # neighbours of a short text do not matter
    assert ngrams.hash_runs([], 3, ngrams.Vocabulary(), short=True).starts.tolist() == [0]


def test_the_order_of_tokens_matters():
    runs = ngrams.hash_runs([list("abc"), list("acb"), list("cba")], 3, ngrams.Vocabulary(), short=True)
    assert len(set(runs.hashes.tolist())) == 3


@pytest.mark.slow
def test_hashes_are_the_same_in_every_process():
    code = (
        "from grpo_kit.data import ngrams; "
        "print(ngrams.hash_runs([['a', 'b']], 2, ngrams.Vocabulary(), short=True).hashes[0])"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
                       capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1


def test_words_leave_out_drawings_and_signs():
    assert ngrams.split_words("Find $x+1$. [asy] draw((0,0)--(1,1)); [/asy] Now!") == ["find", "x", "1", "now"]
