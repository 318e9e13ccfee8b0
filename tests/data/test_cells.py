"""Cells are read as the text that they hold, or give a reason; no structure becomes text."""

import datetime
import json
import math

import pytest

from grpo_kit.data import cells
from grpo_kit.data.cells import Cell, parse_structure, read_gold, read_problem

QUESTION = [{"role": "user", "content": "q"}]
SYSTEM = {"role": "system", "content": "s"}
BLOCKS = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "at?", "image": None}]


@pytest.mark.parametrize(
    ("value", "text", "system"),
    [
        (None, "", ""),
        ("q", "q", ""),
        ("[1, 2]", "[1, 2]", ""),  # numbers are a problem's own brackets
        ("{x | x > 1}", "{x | x > 1}", ""),
        ("[asy] draw(A--B); [/asy]", "[asy] draw(A--B); [/asy]", ""),
        ([], "", ""),
        (["q"], "q", ""),
        ("['q']", "q", ""),
        (QUESTION, "q", ""),
        (QUESTION[0], "q", ""),
        ([QUESTION], "q", ""),
        ([*QUESTION, {"role": "assistant", "content": "a"}], "q", ""),
        ([SYSTEM, *QUESTION], "q", "s"),
        ([{"role": "developer", "content": "d"}, SYSTEM, *QUESTION], "q", "d\n\ns"),
        ([{"role": "user"}], "", ""),
        ([SYSTEM], "", ""),
        ([{"role": "user", "content": BLOCKS}], "What?", ""),
        ([{"role": "user", "content": str(BLOCKS)}], "What?", ""),
        (BLOCKS, "What?", ""),
        ([{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "q", "s"),
        (json.dumps([SYSTEM, *QUESTION]), "q", "s"),
        (json.dumps([SYSTEM, *QUESTION], indent=2), "q", "s"),
        (repr([SYSTEM, *QUESTION]), "q", "s"),
        (f"[{SYSTEM}\n {QUESTION[0]}]", "q", "s"),  # as pandas writes a NumPy array into a CSV
        (r"[{'role': 'user', 'content': 'What is \pi?'}]", r"What is \pi?", ""),
    ],
)
def test_a_problem_is_read_from_every_usual_form(value, text, system):
    assert read_problem(value) == Cell(text, system=system)


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (math.nan, "not text", "holds nan, and a problem is a text"),
        (7, "not text", "holds 7, and a problem is a text"),
        (["a", "b"], "several values", "holds a list of 2 values; one is needed"),
        ({"question": "q", "id": 1}, "not text", "holds an object with the fields question, id; name a field"),
        ('{"question": "q"}', "not text", "holds an object with the fields question; name a field"),
        ([{"role": "user", "content": {"a": 1}}], "not text", "holds an object with the fields a; name a field"),
        ([{"role": "user", "content": [*BLOCKS, {"type": "image_url", "image_url": {}}]}], "image", "holds an image"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "not text", "holds an object with the fields type"),
        ([{"role": "system", "content": {"a": 1}}, *QUESTION], "not text", "holds an object with the fields a"),
        ({"bytes": b"\x89PNG", "path": None}, "image", "holds an image"),
        (b"\x89PNG", "image", "holds bytes, which may be an image"),
        ({"q"}, "not text", "holds set, which is not text"),
        ("array([{'role': 'user', 'content': 'q'}], dtype=object)", "unreadable messages", "holds messages as text"),
        ("[{'role': 'user', 'content': 'q'}, {'role': 'ass", "unreadable messages", "holds messages as text"),
        ("[{'role': 'user', 'content': len('q')}]", "unreadable messages", "holds messages as text"),
    ],
)
def test_a_problem_that_is_not_text_gives_a_reason(value, reason, detail):
    cell = read_problem(value)
    assert (cell.text, cell.reason) == ("", reason) and cell.detail.startswith(detail)


@pytest.mark.parametrize("earlier", [[QUESTION[0], {"role": "assistant", "content": "a"}], [{"role": "tool"}]])
def test_a_question_after_earlier_turns_is_not_asked_alone(earlier):
    cell = read_problem([SYSTEM, *earlier, {"role": "user", "content": "And why?"}])
    assert (cell.text, cell.reason) == ("And why?", "earlier turns")
    assert cell.detail.startswith(f"asks its question after {len(earlier)} earlier turn")


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        (8, "8"),
        (2.5, "2.5"),
        (True, "True"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        ("0011", "0011"),
        ("{}", "{}"),  # the challenge has it
        ("[5]", "[5]"),
        ("{1: 2}", "{1: 2}"),
        (["42"], "42"),
        ('["42"]', "42"),
        ("['42']", "42"),
        ([[7]], "7"),
        ([*QUESTION, {"role": "assistant", "content": "a"}], "a"),
        (QUESTION, ""),
        ([], ""),
    ],
)
def test_a_gold_is_read_from_every_usual_form(value, gold):
    assert read_gold(value) == Cell(gold)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        ([-math.inf], "not finite"),
        (["1", "2"], "several values"),
        ("['1', '2']", "several values"),
        ({"ground_truth": "8"}, "not text"),
        ("{'ground_truth': '8'}", "not text"),
        ('{"ground_truth": "8"}', "not text"),
    ],
)
def test_a_gold_that_is_not_one_text_gives_a_reason(value, reason):
    cell = read_gold(value)
    assert (cell.text, cell.reason) == ("", reason)


@pytest.mark.parametrize("text", ["[" * 100_000 + "]", "[-" * 50_000 + "1]", "[" + "9" * 50_000 + ", 'a']", "{[]: 1}"])
def test_hostile_text_stays_text(text):
    assert parse_structure(text) == text


def test_python_literals_are_parsed_up_to_a_size_only(monkeypatch):
    text = "[{'role': 'user', 'content': 'q'}]"
    monkeypatch.setattr(cells, "LONGEST_LITERAL", len(text))
    assert read_problem(text).text == "q" and read_problem(f"{text} ").text == "q"
    monkeypatch.setattr(cells, "LONGEST_LITERAL", len(text) - 1)
    assert read_problem(text).reason == "unreadable messages"
