"""Duplicates are dropped, near ones confirmed, variants kept and grouped, and contradicting golds dropped."""

import random

import numpy as np
import pytest

from grpo_kit.data import duplicates

LONG = (
    "A farmer has {} chickens and twice as many ducks, and every week he sells half of the eggs that they lay at the "
    "market in town for three dollars a dozen. How many dollars does he earn in a month of four weeks?"
)


def equal(one, other):
    return one == other


def test_equal_problems_are_dropped_but_the_first():
    result = duplicates.find_duplicates(["What is 2 + 2?", "Other", " what is 2+2 ? "], ["4", "1", "4"], equal)
    assert result.dropped == {2: ("repeated problem", "equals 0")} and result.ties == {}


def test_equal_problems_whose_golds_contradict_are_all_dropped():
    result = duplicates.find_duplicates(["What is 2 + 2?", "what is 2 + 2?", "WHAT IS 2 + 2?"], ["4", "4", "5"], equal)
    assert set(result.dropped) == {0, 1, 2}
    assert result.dropped[0] == ("contradicting golds", "equal problems say 4 and 5")


def test_golds_that_the_verifier_calls_equal_do_not_contradict():
    result = duplicates.find_duplicates(
        ["What is 2 + 2?", "what is 2 + 2?"], ["4", "4.0"], lambda one, other: float(one) == float(other)
    )
    assert result.dropped[1][0] == "repeated problem" and 0 not in result.dropped


def test_a_near_duplicate_with_the_same_gold_is_dropped_and_named():
    reworded = LONG.replace("in town ", "")
    result = duplicates.find_duplicates(
        ["x", LONG.format(7), reworded.format(7)], ["1", "42", "42"], equal, label="row {}".format
    )
    reason, detail = result.dropped[2]
    assert reason == "near duplicate" and detail.startswith("overlaps row 1 by 0.8")


def test_the_same_wording_with_other_numbers_is_kept_and_grouped():
    problems = [LONG.format(7), "Something else entirely is asked here.", LONG.format(8), LONG.format(9)]
    result = duplicates.find_duplicates(problems, ["42", "1", "48", "54"], equal)
    assert result.dropped == {}
    assert len({result.ties[0], result.ties[2], result.ties[3]}) == 1 and 1 not in result.ties


def test_short_problems_that_differ_in_one_number_are_neither_dropped_nor_grouped():
    problems = [f"What is {a} + {b}?" for a in range(10, 40) for b in range(10, 40)]
    assert duplicates.find_duplicates(problems, [str(i) for i in range(len(problems))], equal) == ({}, {})


def test_empty_and_tiny_problems_are_handled():
    assert duplicates.find_duplicates([], [], equal) == ({}, {})
    result = duplicates.find_duplicates(["", "x", "", "y"], ["1", "1", "1", "1"], equal)
    assert set(result.dropped) == {2}


def overlap(one, other):
    sets = [{tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (one.split(), other.split())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.slow
def test_near_pairs_equal_those_of_an_exhaustive_search():
    rng = random.Random(0)
    vocabulary = ["w" + "abcdefghij"[i // 100] + "abcdefghij"[i // 10 % 10] + "abcdefghij"[i % 10] for i in range(1000)]
    problems = []
    for _ in range(150):
        words = rng.choices(vocabulary, k=60)
        problems.append(" ".join(words))
        for _ in range(rng.randint(0, 2)):
            copy = list(words)
            for _ in range(rng.randint(1, 5)):
                copy[rng.randrange(60)] = rng.choice(vocabulary)
            problems.append(" ".join(copy))
    expected = {
        (a, b)
        for b in range(len(problems))
        for a in range(b)
        if overlap(problems[a], problems[b]) >= duplicates.THRESHOLD
    }
    result = {(a, b) for a, b, _ in duplicates.find_near_pairs(problems)}
    assert result <= expected and len(expected) > 40
    assert len(result) >= 0.98 * len(expected)  # MinHash misses one in 500 at the threshold itself


def test_minhash_estimates_the_overlap():
    one, other = LONG.format(7), LONG.format(7).replace("in town ", "")
    signatures = duplicates.compute_minhash([one, other, "nothing in common with them at all"])
    words = [duplicates.ngrams.split_tokens(text) for text in (one, other)]
    exact = overlap(*(" ".join(part) for part in words))
    assert abs((signatures[0] == signatures[1]).mean() - exact) < 0.12
    assert (signatures[0] == signatures[2]).mean() < 0.05
    assert np.array_equal(signatures, duplicates.compute_minhash([one, other, "nothing in common with them at all"]))


@pytest.mark.slow
def test_a_thousand_problems_of_one_template_are_not_compared_with_each_other(monkeypatch):
    compared = []
    real = duplicates._candidates

    def counted(signatures):
        for a, b in real(signatures):
            compared.append(len(a))
            yield a, b

    monkeypatch.setattr(duplicates, "_candidates", counted)
    duplicates.find_duplicates([LONG.format(i) for i in range(2000)], [str(i) for i in range(2000)], equal)
    assert sum(compared) <= duplicates.BANDS * duplicates.WINDOW * 2000  # not 2000 * 1999 / 2 a band
