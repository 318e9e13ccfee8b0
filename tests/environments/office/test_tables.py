"""States are read strictly, texts are compared by written rules, and only what has changed counts."""

import json

import pytest

from grpo_kit.environments.office import tables
from grpo_kit.environments.office.office import TABLES
from grpo_kit.environments.office.tables import BadArgument, fold_text, list_changes, read_state, write_state
from grpo_kit.environments.reading import Refused

TASK = {"id": 4, "title": "Write", "person": "ada@x.example", "due": "2026-03-04", "list": "to do"}
EQUAL = [  # texts, whether they are equal, and why
    ("Thanks!", "thanks", True, "case and the sign at the end"),
    ("  Thanks \n for  it ", "thanks for it", True, "white space"),
    ("“Thanks”", "'Thanks.'", True, "quotes around it"),
    ("Re: Plan", "plan", True, "a reply"),
    ("FW: re:Plan", "Plan", True, "a mail that was passed on twice"),
    ("Ｐｌａｎ", "plan", True, "wide letters"),
    ("Beyonce\u0301", "Beyoncé", True, "an accent in two characters"),
    ("Plan, B", "Plan B", False, "a comma within"),
    ("Plan (B)", "Plan B", False, "brackets"),
    ("Plan", "The plan", False, "an article"),
    ("Report", "port", False, "Re without a colon"),
    ("re: ", "fw:", False, "prefixes alone are compared as they are"),
    ("?", "!", False, "signs alone are compared as they are"),
    ("\u202etxet", "text", False, "letters in the other direction"),
    ("te\u200bxt", "text", False, "a character that cannot be seen"),
    ("7.5", "75", False, "a point within"),
    ("Oslo", "Оslo", False, "a Cyrillic O"),
]


def test_texts_are_compared_by_the_written_rules():
    wrong = [why for one, other, equal, why in EQUAL if (fold_text(one) == fold_text(other)) is not equal]
    assert wrong == []


GOOD = [
    (tables.date, "2026-3-4", "2026-03-04"),
    (tables.date, " 2024-02-29 ", "2024-02-29"),
    (tables.moment, "2026-03-04 9:30", "2026-03-04 09:30"),
    (tables.moment, "2026-03-04T09:30:00", "2026-03-04 09:30"),
    (tables.address, "Ada.Berg@X.example", "ada.berg@x.example"),
    (tables.whole, 30, 30),
]
BAD = [
    (tables.date, ["2026-02-30", "2026-13-01", "0000-01-01", "04.03.2026", "soon", "２０２６-03-04", "", None, 2026]),
    (tables.moment, ["2026-03-04", "2026-03-04 24:00", "2026-03-04 9", "2026-03-04 9:30:30", "2026-03-04 9:30Z"]),
    (tables.address, ["Ada", "ada@", "@x", "a b@x", "<a@x>", "a@b@c", 3, "a@" + "x" * 3000]),
    (tables.whole, [True, 1.0, float("nan"), "7", None, 10**12, [1]]),
    (tables.text, ["", " \n", None, 3, ["a"], "a" * 2001, "a\ud800"]),
]  # fmt: skip


def test_values_are_written_in_one_way():
    assert [kind("it", given) for kind, given, _ in GOOD] == [wanted for *_, wanted in GOOD]


@pytest.mark.parametrize(("kind", "values"), BAD)
def test_values_of_another_kind_are_refused_in_a_short_sentence(kind, values):
    for value in values:
        with pytest.raises(BadArgument, match="^it ") as refused:
            kind("it", value)
        assert len(str(refused.value)) < 200


def test_a_state_is_written_as_it_is_read():
    text = json.dumps({"tasks": [TASK]})
    state = read_state(text, TABLES)
    assert state["tasks"] == {4: {key: value for key, value in TASK.items() if key != "id"}} and state["mail"] == {}
    assert write_state(state) == text


REFUSED = [
    None, 3, "", "[", "[]", "3", '{"cars": []}', '{"tasks": {}}', '{"tasks": [3]}', '{"tasks": [{}]}',
    '{"tasks": [{"id": -1}]}', '{"tasks": [{"id": true}]}', '{"tasks": [{"id": "4"}]}', '{"tasks": [{"id": NaN}]}',
    '{"tasks": [{"id": 1e3}]}', '{"tasks": [{"id": 1, "colour": "red"}]}', '{"tasks": [{"id": 1, "due": "soon"}]}',
    '{"tasks": [{"id": 1, "title": ["a"]}]}', '{"tasks": [{"id": 1}, {"id": 1}]}', "[" * 100_000,
    '{"tasks": [{"id": ' + "9" * 5000 + "}]}", " " * 2_000_001, '{"tasks": [{"id": 1, "title": "\\ud800"}]}',
]  # fmt: skip


def test_a_text_that_is_no_state_is_refused():
    for text in REFUSED:
        with pytest.raises(Refused) as refused:
            read_state(text, TABLES)
        assert refused.value.args[0] in ("bad state", "no JSON")


def test_only_what_differs_from_the_beginning_is_a_change():
    begin = {"tasks": {1: {"title": "a", "list": "to do"}, 2: {"title": "b", "list": "to do"}}}
    new = {3: {"title": "New", "list": "to do"}, 9: {"title": "new!", "list": "to do"}}
    end = {"tasks": {1: {"title": "A.", "list": "done"}, **new}}
    assert list_changes(begin, begin) == {}
    assert list_changes(begin, end) == {
        ("tasks", 1, "list", "done"): 1,
        ("tasks", 2, "gone"): 1,
        ("tasks", "new", (("list", "to do"), ("title", "new"))): 2,
    }
