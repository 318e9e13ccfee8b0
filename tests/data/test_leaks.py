"""Planted leaks are caught, and problems that only sound like a contest are kept."""

import pytest

from grpo_kit.data import leaks

HELD = {
    "contest": [
        "Every morning Aya goes for a nine kilometer long walk and stops at a coffee shop afterwards. When she "
        "walks at a constant speed of s kilometers per hour, the walk takes her four hours, including t minutes spent "
        "in the coffee shop. Find the number of minutes that she walks.",
        "Alice and Bob play a game with a stack of tokens. Find the number of positive integers n less than 2024 for "
        "which Bob wins, written in the form m/n, where m and n are relatively prime positive integers. Find m + n.",
        r"Let $x$ be a number so that $\frac{x}{3} = 12$. Compute $x$.",
    ],
    "short": ["Compute 17 + 25.", "What is the remainder when 5462 is divided by 9?"],
}
WALK = HELD["contest"][0]


def caught(problem, others=()):
    result = leaks.find_leaks([problem, *others], HELD)
    return result.dropped.get(0, ("kept", ""))


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (WALK, "leaked, equal"),  # exact
        (WALK.replace(" ", "\n  "), "leaked, equal"),  # other white space
        ("12. " + WALK.replace(". ", ".\u00a0 "), "leaked, equal"),  # numbered, exotic spaces
        (WALK.upper(), "leaked, equal"),  # casing
        (WALK.replace("Aya", "Ben").replace("nine", "ten").upper(), "leaked, overlap"),  # casing and a few words
        ("Tom does as follows. " + WALK + " Then double it.", "leaked, overlap"),  # the whole within another
        ("Ben likes tea. When she walks at a constant speed of s kilometers per hour, the walk takes her four hours, "
         "including t minutes spent in the coffee shop. What is s?", "leaked, overlap"),  # a long sentence of it
        ("compute  17+25", "leaked, equal"),  # too short for runs of eight words
        ("Quickly: what is the remainder when 5462 is divided by 9? Explain.", "leaked, overlap"),  # a short one, whole
        (r"Let x be a number so that $\dfrac{x}{3}=12$. Compute x.", "leaked, equal"),  # LaTeX spelled otherwise
    ],
)  # fmt: skip
def test_planted_leaks_are_caught(problem, reason):
    assert caught(problem)[0] == reason


@pytest.mark.parametrize(
    "problem",
    [
        "A bag holds red and blue balls. The probability can be written in the form m/n, where m and n are relatively "
        "prime positive integers. Find m + n.",  # twelve words and more, every contest has them
        "Carl counts. Find the number of positive integers n less than 2024 that are even.",  # nine words in a row
        "What is the remainder when 5463 is divided by 9?",  # the same question about another number
        "Compute 17 + 26.",
        "Every morning Aya goes for a nine kilometer long run.",  # nine words in a row of a long problem
        "",
    ],
)
def test_near_misses_are_kept(problem):
    assert caught(problem)[0] == "kept"


def test_a_phrase_of_five_problems_is_a_stock_phrase_but_five_copies_of_one_are_not():
    phrase = "in the coffee shop. Find the number of minutes that she walks"  # not in the table of set phrases
    sentence = (
        "When she walks at a constant speed of s kilometers per hour, the walk takes her four hours, "
        "including t minutes spent "
    )
    problem = f"Here {sentence}{phrase}."
    assert caught(problem)[0] == "leaked, overlap"
    others = [f"{name} says: {sentence}{phrase} backwards {name}" for name in ("Ann", "Ben", "Cem", "Dan", "Eve")]
    assert caught(problem, others)[0] == "kept"
    assert caught(problem, [problem] * 9)[0] == "leaked, overlap"


def test_the_report_counts_both_hits_and_what_was_kept():
    problems = [
        WALK,
        WALK.lower(),
        "Then " + WALK,
        "Every morning Aya goes for a nine kilometer long run.",
        "Compute 17 + 25.",
    ]
    result = leaks.find_leaks(problems, HELD)
    assert result.report["contest"] == {"problems": 3, "leaked": 1, "equal": 2, "overlap": 3, "kept": 1}
    assert result.report["short"] == {"problems": 2, "leaked": 1, "equal": 1, "overlap": 0, "kept": 0}
    assert result.dropped[2] == ("leaked, overlap", f"contest: {WALK[:80]}")


def test_without_evaluation_problems_there_are_no_leaks():
    assert leaks.find_leaks([], HELD).dropped == {}
    assert leaks.find_leaks(["What?"], {}) == ({}, {})
    assert leaks.find_leaks(["What?"], {"short": ["Why?"]}).dropped == {}


def test_a_template_of_evaluation_problems_leaks_by_equality_only():
    frame = (
        "In a secret land a hidden rule turns every number into another one, as the examples below will show you. "
        "What becomes of {}?"
    )
    held = {"puzzles": [frame.format(n) for n in range(100, 200)]}
    result = leaks.find_leaks([frame.format(n) for n in range(190, 300)], held)
    assert result.report["puzzles"]["equal"] == 10 and set(result.dropped) == set(range(10))
    assert result.report["puzzles"]["kept"] == 0  # the frame itself is not even looked at


def test_a_problem_is_contained_token_by_token():
    problems = ["What is 80 + 95?", "2 + 2?"]
    texts = ["Problem: what is 80+95", "What is 80 + 9?", "What is 180 + 95?", "2 + 2?", "", "what is"]
    assert leaks.find_contained(texts, problems) == {0}
