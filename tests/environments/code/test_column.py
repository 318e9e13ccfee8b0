"""The column `tests`: what is written, what is kept, and what is refused because it could not tell right from wrong."""

import json

import pytest

from grpo_kit.environments.code.column import CHECKERS, LARGEST_TESTS, MOST_TESTS, allows_several, read_tests
from grpo_kit.environments.reading import Refused
from grpo_kit.rewards import code_tests


def stdin(inputs=("1",), outputs=("2",), **more):
    return {"kind": "stdin", "inputs": list(inputs), "outputs": list(outputs), **more}


def function(inputs=((1,),), outputs=(2,), name="f", **more):
    return {"kind": "function", "name": name, "inputs": list(inputs), "outputs": list(outputs), **more}


def asserts(*code, setup=""):
    return {"kind": "asserts", "code": list(code), "setup": setup}


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


CIRCLE = []
CIRCLE.append(CIRCLE)
WRITTEN = [  # tests, the statement, the column
    (stdin(), "", '{"kind": "stdin", "inputs": ["1"], "outputs": ["2"]}'),
    ('{"outputs": ["2"], "inputs": ["1"], "kind": "stdin", "note": 7}', "",
     '{"kind": "stdin", "inputs": ["1"], "outputs": ["2"]}'),
    (stdin([["1", "2"]], [["3"]]), "", '{"kind": "stdin", "inputs": ["1\\n2"], "outputs": ["3"]}'),
    (stdin(["", "a"], ["", "é"]), "", '{"kind": "stdin", "inputs": ["", "a"], "outputs": ["", "é"]}'),
    (stdin(["1", "1", "1 1..."], ["2", "2 \n", "9"]), "", '{"kind": "stdin", "inputs": ["1"], "outputs": ["2"]}'),
    (stdin(["1", "2"], ["2", "7 7 7 ..."]), "", '{"kind": "stdin", "inputs": ["1"], "outputs": ["2"]}'),
    (stdin(language="Python3", checker=None, several_answers=False), "",
     '{"kind": "stdin", "inputs": ["1"], "outputs": ["2"]}'),
    (stdin(memory_mib=99, checker="lines", time_limit_s=2.5), "Print any of them.",
     '{"kind": "stdin", "inputs": ["1"], "outputs": ["2"], "checker": "lines", "time_limit_s": 2.5, "memory_mib": 99}'),
    (stdin(), "Your answer is right if its absolute or relative error does not exceed $10^{-6}$.",
     '{"kind": "stdin", "inputs": ["1"], "outputs": ["2"], "float_tolerance": 1e-06}'),
    (stdin(), "An error of at most 10 - 4 is allowed.",
     '{"kind": "stdin", "inputs": ["1"], "outputs": ["2"], "float_tolerance": 0.0001}'),
    (stdin(float_tolerance=0.5), "The relative error must not exceed 1e-9.",
     '{"kind": "stdin", "inputs": ["1"], "outputs": ["2"], "float_tolerance": 0.5}'),
    (stdin(checker="exact"), "The error must not exceed 1e-9.",
     '{"kind": "stdin", "inputs": ["1"], "outputs": ["2"], "checker": "exact"}'),
    (function([[1, {"a": [2]}], [[]]], [None, True], "twoSum"), "",
     '{"kind": "function", "name": "twoSum", "inputs": [[1, {"a": [2]}], [[]]], "outputs": [null, true]}'),
    (function([[]], [7]), "", '{"kind": "function", "name": "f", "inputs": [[]], "outputs": [7]}'),
    (asserts("assert f(1) == 2", "x = f(3)\nassert x", setup="import math"), "",
     '{"kind": "asserts", "code": ["assert f(1) == 2", "x = f(3)\\nassert x"], "setup": "import math"}'),
]  # fmt: skip
HOSTILE = [  # tests, the reason
    (None, "no tests"),
    ([], "no tests"),
    ("[]", "no tests"),
    ("", "unreadable"),
    ("{'kind': 'stdin'}", "unreadable"),
    ("__import__('os').system('true')", "unreadable"),
    ('{"kind": "stdin", "inputs": ["1"], "outputs": [NaN]}', "unreadable"),
    ('{"kind": "stdin", "inputs": [Infinity], "outputs": ["1"]}', "unreadable"),
    ('{"kind": "function", "name": "f", "inputs": [[1]], "outputs": [' + "9" * 5000 + "]}", "unreadable"),
    ('{"kind": "function", "name": "f", "inputs": [[1]], "outputs": [1e999]}', "not JSON"),
    ("[" * 100_000, "too deep"),
    ({}, "no tests"),
    ({"kind": ["stdin"]}, "no tests"),
    ({"kind": "shell", "inputs": ["1"], "outputs": ["1"]}, "no tests"),
    (stdin([], []), "no tests"),
    (stdin(["1"], []), "no tests"),
    (stdin(["1", "2"], ["1"]), "no tests"),
    (stdin(["1"], ["1"] * 1_000_000), "no tests"),
    ({"kind": "stdin", "inputs": "1", "outputs": "1"}, "no tests"),
    ({"kind": "stdin", "inputs": {"0": "1"}, "outputs": ["1"]}, "no tests"),
    (stdin(["1..."], ["2"]), "no tests"),
    (stdin([1], ["1"]), "not text"),
    (stdin(["1"], [None]), "not text"),
    (stdin(["\ud800"], ["1"]), "not text"),
    (stdin(["1"], [["1", 2]]), "not text"),
    (stdin(["1", "2"], ["", " \n"]), "nothing expected"),
    (stdin(["1", "1"], ["2", "3"]), "contradiction"),
    (stdin(["x" * LARGEST_TESTS]), "large tests"),
    (stdin(["x" * (LARGEST_TESTS + 1)]), "too long"),
    (stdin(language="C++"), "another language"),
    (stdin(language=["python"]), "another language"),
    (stdin(language="python2"), "another language"),
    (stdin(several_answers=True), "several answers"),
    (stdin(checker="def check(): ..."), "checker"),
    (stdin(checker=["lines"]), "checker"),
    (stdin(float_tolerance=0), "float_tolerance"),
    (stdin(float_tolerance=0.1, checker="unordered_lines"), "checker"),
    (stdin(float_tolerance=float("nan")), "float_tolerance"),
    (stdin(float_tolerance="0.1"), "float_tolerance"),
    (stdin(time_limit_s=-1), "time_limit_s"),
    (stdin(time_limit_s=10**5000), "time_limit_s"),
    (stdin(memory_mib=True), "memory_mib"),
    (stdin(memory_mib=5), "memory_mib"),
    (function(name=None), "function name"),
    (function(name="f; import os"), "function name"),
    (function(name="class"), "function name"),
    (function(name="os.system"), "function name"),
    (function(name="f" * 101), "function name"),
    (function(["1"], [1]), "no tests"),
    (function([{"n": 1}], [1]), "no tests"),
    (function([[1], [2]], [None, None]), "nothing expected"),
    (function([[1], [1]], [1, 2]), "contradiction"),
    (function([[{"1": 2}]], [1]), "number keys"),
    (function([[1]], [{"-7": 2}]), "number keys"),
    (function([['"abc"']], [1]), "quoted text"),
    (function([[float("nan")]], [1]), "not JSON"),
    (function([[1]], [float("inf")]), "not JSON"),
    (function([[{1, 2}]], [1]), "not JSON"),
    (function([[b"x"]], [1]), "not JSON"),
    (function([[1]], [10**5000]), "not JSON"),
    (function([[CIRCLE]], [1]), "too deep"),
    (function([[1]], [deep(100_000)]), "too deep"),
    (function([[1]], [deep(31)]), "too deep"),
    (asserts(), "no tests"),
    (asserts("f(1)"), "no assert"),
    (asserts("assert f(1) ==", "assert f(1)"), "unreadable"),
    (asserts("assert f('\0')"), "unreadable"),
    (asserts("assert " + "(" * 10_000), "unreadable"),
    (asserts("assert " + "-" * 40_000 + "1"), "unreadable"),
    (asserts(7), "not text"),
    (asserts("assert is_close(f(1), 0.5)"), "function name"),  # the program's own is_close
    (asserts("def f(n): return n\nassert f(1) == 1"), "function name"),
    (asserts("assert f(1)", setup="import ("), "unreadable"),
    (asserts("assert f(1)", setup=["import os"]), "not text"),
    (asserts("#" * 50_001), "too long"),
]  # fmt: skip


def refusal(tests):
    try:
        return read_tests(tests), ""
    except Refused as refused:
        return refused.args
    except RecursionError:  # `reading.give_unusable` gives it this name
        return "too deep", "levels"


def test_tests_are_written_in_one_form():
    wrong = [
        (tests, read_tests(tests, words)) for tests, words, column in WRITTEN if read_tests(tests, words) != column
    ]
    assert wrong == []
    assert [column for *_, column in WRITTEN if read_tests(column) != column] == []


def test_the_reward_judges_by_every_column_that_is_written():
    assert CHECKERS == code_tests.CHECKERS
    paid = code_tests.code_tests_reward(["no program"] * len(WRITTEN), [column for *_, column in WRITTEN])
    assert paid == [0.0] * len(WRITTEN)


def test_tests_that_tell_nothing_are_refused_with_a_short_reason():
    found = [(place, refusal(tests), reason) for place, (tests, reason) in enumerate(HOSTILE)]
    assert [case for case in found if case[1][0] != case[2]] == []
    assert all(0 < len(detail) < 200 for _, (_, detail), _ in found)


def test_the_first_fifty_different_tests_are_kept():
    numbers = [str(number // 2) for number in range(100_000)]
    column = json.loads(read_tests(stdin(numbers, numbers)))
    assert column["inputs"] == column["outputs"] == [str(number) for number in range(MOST_TESTS)]
    calls = json.loads(read_tests(function([[number] for number in range(60)], list(range(60)))))
    assert calls["outputs"] == list(range(MOST_TESTS))
    assert len(json.loads(read_tests(asserts(*["assert f(1)"] * 60)))["code"]) == MOST_TESTS


def test_nothing_of_the_tests_is_run(tmp_path):
    touch = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    read_tests(asserts(f"assert f({touch})", setup=touch))
    read_tests(stdin([touch], [touch]))
    assert not (tmp_path / "ran").exists()


SEVERAL = (
    "If there are multiple answers, print any of them.",
    "If there are many answers you can print any of them.",
    "If there are several solutions, output any.",
    "You don't need to minimize anything, you need to find any proper sequence.",
    "Print any valid answer.",
    "You may return any such array.",
    "If there are multiple valid answers, return any one of them.",
    "Any of them will be accepted.",
    "Any correct answer is fine.",
    "You can return the answer in any order.",
    "Print the numbers in arbitrary order.",
    "IF THERE EXIST MORE THAN ONE SOLUTION, PRINT ANY OF THE SOLUTIONS.",
)
ONE = (
    "If there are multiple answers, print the lexicographically smallest one.",
    "In one move you can choose any index i and add 1 to it.",
    "Polycarp may begin in any of them. Print the least number of moves.",
    "Do not print any extra spaces.",
    "Don't print any trailing spaces.",
    "Do not output any debug lines.",
    "The edges are given in any order. Print the number of components.",
    "If there are several ways, print how many there are.",
    "It is possible to reach any city from any other one. Print the length.",
    "",
)


def test_a_statement_that_accepts_several_answers_is_known_by_its_words():
    assert [words for words in SEVERAL if not allows_several(words)] == []
    assert [words for words in ONE if allows_several(words)] == []
    with pytest.raises(Refused, match="several answers"):
        read_tests(stdin(), f"Sort them. {SEVERAL[0]}")


def test_words_made_to_be_slow_are_searched_at_once():
    for words in ("multiple " * 9_999, "print" + " a" * 20_000, "any " * 20_000, "error " * 9_999 + "10", "1e-" * 9):
        assert allows_several(words) is False and read_tests(stdin(), words)
