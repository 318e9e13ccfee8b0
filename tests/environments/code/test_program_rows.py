"""Rows of public sets that ask for a program: every form is read, none is run, and hostile rows are refused."""

import base64
import json
import pickle
import zlib

import pytest

from grpo_kit.environments.code.asking import STDIN
from grpo_kit.environments.code.program_rows import FORMS, find_form
from grpo_kit.environments.public_rows import read_public_row
from grpo_kit.environments.task import Unusable
from grpo_kit.rewards.code_tests import code_tests_reward


def case(given="2 3\n", wanted="5\n", kind="stdin"):
    return {"input": given, "output": wanted, "testtype": kind}


def pickled(cases, protocol=4):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases), protocol))).decode()


LIVE = {
    "question_title": "Sum", "question_content": "Add two numbers.", "platform": "atcoder", "question_id": "abc1_a",
    "starter_code": "", "difficulty": "easy", "public_test_cases": json.dumps([case()]),
    "private_test_cases": pickled([case("4 4\n", "8\n"), case("0 0\n", "0\n")]), "metadata": "{}",
}  # fmt: skip
STARTER = "class Solution:\n    def add(self, a: int, b: List[int]) -> int:\n        "
LIVE_FUNCTION = LIVE | {
    "starter_code": STARTER,
    "public_test_cases": json.dumps([case("2\n[3, 4]", "9", "functional")]),
    "private_test_cases": pickled([case("0\n[]", "0", "functional")]),
    "metadata": json.dumps({"func_name": "add"}),
}
APPS = {
    "problem_id": 1, "question": "Add two numbers.", "solutions": "[]", "difficulty": "interview", "url": "u",
    "input_output": json.dumps({"inputs": ["2 3\n", "1 1\n"], "outputs": ["5\n", "2\n"]}), "starter_code": "",
}  # fmt: skip
TACO = APPS | {
    "picture_num": "0", "time_limit": "2.0 seconds", "memory_limit": "64.0 megabytes",
    "input_output": json.dumps({"fn_name": "is_even", "inputs": [[2], [3]], "outputs": [[True], [False]]}),
    "starter_code": "def is_even(n):\n\t",
}  # fmt: skip
CODEFORCES = {
    "id": "1/A", "description": "Add two numbers.", "input_format": "Two numbers.", "output_format": "Their sum.",
    "note": None, "interaction_format": None, "examples": [{"input": "2 3\n", "output": "5\n"}],
    "official_tests": [{"input": "2 3\n", "output": "5\n"}, {"input": "9 9", "output": "18"}],
    "official_tests_complete": True, "input_mode": "stdio", "generated_checker": None, "time_limit": 1.0,
    "memory_limit": 2048.0,
}  # fmt: skip
INFO = {
    "problem_statement": "Add two numbers.", "gold_standard_solution": "print(1)",
    "verification_info": {"language": "python", "test_cases": [
        {"fn_name": None, "input": "2 3\n", "output": "5\n", "type": "stdin_stdout"}]},
}  # fmt: skip
MBPP = {
    "task_id": 1, "text": "Write a function to add two numbers.", "code": "def add(a, b): ...", "test_setup_code": "",
    "test_list": ["assert add(2, 3) == 5", "assert set(add([1], [2])) == {1, 2}"], "challenge_test_list": [],
}  # fmt: skip
HUMANEVAL = {
    "task_id": "HumanEval/0", "entry_point": "add", "canonical_solution": "    return a + b\n",
    "prompt": 'def add(a, b):\n    """The sum.\n    >>> add(2, 3)\n    5\n    """\n',
    "test": "\n\nMETADATA = {'author': 'x'}\n\n\ndef check(candidate):\n    assert candidate(2, 3) == 5, 'sum'\n"
            "    assert True\n    assert abs(candidate(0.5, 0.5) - 1) < 1e-6\n",
}  # fmt: skip
READ = [  # form, row, the column
    ("livecodebench", LIVE,
     '{"kind": "stdin", "inputs": ["2 3\\n", "4 4\\n", "0 0\\n"], "outputs": ["5\\n", "8\\n", "0\\n"]}'),
    ("livecodebench", LIVE_FUNCTION,
     '{"kind": "function", "name": "add", "inputs": [[2, [3, 4]], [0, []]], "outputs": [9, 0]}'),
    ("livecodebench", LIVE | {"private_test_cases": json.dumps([case("1 1", "2")]), "metadata": {}},
     '{"kind": "stdin", "inputs": ["2 3\\n", "1 1"], "outputs": ["5\\n", "2"]}'),
    ("livecodebench", LIVE | {"private_test_cases": ""},
     '{"kind": "stdin", "inputs": ["2 3\\n"], "outputs": ["5\\n"]}'),
    ("apps", APPS, '{"kind": "stdin", "inputs": ["2 3\\n", "1 1\\n"], "outputs": ["5\\n", "2\\n"]}'),
    ("apps", TACO,
     '{"kind": "function", "name": "is_even", "inputs": [[2], [3]], "outputs": [true, false], "time_limit_s": 2.0, '
     '"memory_mib": 256}'),
    ("apps", APPS | {"input_output": json.dumps({"inputs": [["2", "3"]], "outputs": [["5"]]})},
     '{"kind": "stdin", "inputs": ["2\\n3"], "outputs": ["5"]}'),
    ("apps", APPS | {"input_output": json.dumps({"fn_name": "f", "inputs": [[3]], "outputs": [[3]]}),
                     "starter_code": "def f(n: int) -> List[int]:"},
     '{"kind": "function", "name": "f", "inputs": [[3]], "outputs": [[3]]}'),
    ("apps", APPS | {"input_output": json.dumps({"fn_name": "f", "inputs": [[3], [4]], "outputs": [[3], [4, 4]]})},
     '{"kind": "function", "name": "f", "inputs": [[3], [4]], "outputs": [[3], [4, 4]]}'),
    ("codeforces", CODEFORCES,
     '{"kind": "stdin", "inputs": ["2 3\\n", "9 9"], "outputs": ["5\\n", "18"], "time_limit_s": 1.0, '
     '"memory_mib": 1024}'),
    ("codeforces", CODEFORCES | {"time_limit": 60, "memory_limit": None},
     '{"kind": "stdin", "inputs": ["2 3\\n", "9 9"], "outputs": ["5\\n", "18"], "time_limit_s": 10.0}'),
    ("verification_info", INFO, '{"kind": "stdin", "inputs": ["2 3\\n"], "outputs": ["5\\n"]}'),
    ("verification_info",
     {"prompt": "Add.", "verification_info": json.dumps({"language": "python", "test_cases": [
         {"fn_name": "add", "input": "[2, 3]", "output": "5", "type": "function_call"}]})},
     '{"kind": "function", "name": "add", "inputs": [[2, 3]], "outputs": [5]}'),
    ("mbpp", MBPP,
     '{"kind": "asserts", "code": ["assert add(2, 3) == 5", "assert set(add([1], [2])) == {1, 2}"], "setup": ""}'),
    ("mbpp",
     {"prompt": "Add.", "test_imports": ["import math", "import re"], "test_list": ["assert add(math.pi) == 1"]},
     '{"kind": "asserts", "code": ["assert add(math.pi) == 1"], "setup": "import math\\nimport re"}'),
    ("humaneval", HUMANEVAL,
     '{"kind": "asserts", "code": ["assert add(2, 3) == 5, \'sum\'", "assert abs(add(0.5, 0.5) - 1) < 1e-06"], '
     '"setup": ""}'),
    ("humaneval", HUMANEVAL | {"test": "def check(f):\n    for i in range(9):\n        assert f(i, i) == 2 * i"},
     '{"kind": "asserts", "code": ["def check(f):\\n    for i in range(9):\\n        assert f(i, i) == 2 * i\\n\\n'
     'check(add)"], "setup": ""}'),
    ("humaneval", HUMANEVAL | {"prompt": 'import math\ndef one():\n    return 1\n' + HUMANEVAL["prompt"],
                               "test": "def check(f):\n    assert f(0, one()) == 1"},
     '{"kind": "asserts", "code": ["assert add(0, one()) == 1"], '
     '"setup": "import math\\ndef one():\\n    return 1"}'),
]  # fmt: skip


def test_a_row_of_each_form_becomes_a_task():
    read = [(form, read_public_row(row, form), column) for form, row, column in READ]
    assert [(form, task) for form, task, column in read if isinstance(task, Unusable)] == []
    assert [(form, task.columns["tests"]) for form, task, column in read if task.columns["tests"] != column] == []
    assert code_tests_reward(["no program"] * len(READ), [column for *_, column in READ]) == [0.0] * len(READ)
    assert {form for form, *_ in READ} == set(FORMS)
    assert [(form, find_form(row)) for form, row, _ in READ if find_form(row) != form] == []


def ask(form, row):
    (message,) = read_public_row(row, form).prompt
    return message["content"]


def test_the_prompt_is_the_statement_and_how_to_reply():
    assert ask("apps", APPS) == f"Add two numbers.\n\n{STDIN}"
    asked = ask("livecodebench", LIVE_FUNCTION)
    assert asked.startswith("Add two numbers.\n\nWrite the method `add` of the class below")
    assert f"```python\n{STARTER}\n```" in asked
    assert "the function `is_even`" in ask("apps", TACO) and "```python\ndef is_even(n):\n\t\n```" in ask("apps", TACO)
    assert ask("codeforces", CODEFORCES).startswith(
        "Add two numbers.\n\n## Input\nTwo numbers.\n\n## Output\nTheir sum.\n\nInput:\n2 3\nOutput:\n5\n\nWrite a "
    )
    assert HUMANEVAL["prompt"].strip() in ask("humaneval", HUMANEVAL)


def test_the_prompt_shows_one_test_and_hides_the_others():
    assert "One of its tests:\nassert add(2, 3) == 5\n" in ask("mbpp", MBPP) and "set(add" not in ask("mbpp", MBPP)
    assert "4 4" not in ask("livecodebench", LIVE) and "9 9" not in ask("codeforces", CODEFORCES)


def info(*cases, **more):
    return INFO | {"verification_info": {"language": "python", "test_cases": list(cases), **more}}


def apps(**tests):
    return APPS | {"input_output": json.dumps(tests)}


HOSTILE = [  # form, row, the reason
    *((form, row, "not a row") for form in FORMS for row in (None, [], "x")),
    *((form, {}, reason) for form, reason in zip(
        FORMS, ("not text", "no tests", "not text", "no tests", "not text", "function name"), strict=True)),
    ("livecodebench", LIVE | {"question_content": " "}, "empty"),
    ("livecodebench", LIVE | {"public_test_cases": "[]", "private_test_cases": ""}, "no tests"),
    ("livecodebench", LIVE | {"public_test_cases": "[7]"}, "no tests"),
    ("livecodebench", LIVE | {"public_test_cases": "{}"}, "unreadable"),
    ("livecodebench", LIVE | {"public_test_cases": "[" * 100_000}, "too deep"),
    ("livecodebench", LIVE | {"private_test_cases": "no base64"}, "unreadable"),
    ("livecodebench",
     LIVE | {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps([case()]))).decode()}, "pickle"),
    ("livecodebench", LIVE | {"private_test_cases": base64.b64encode(zlib.compress(b"0" * 50_000_001)).decode()},
     "large tests"),
    ("livecodebench", LIVE | {"private_test_cases": pickled([case(kind="functional")])}, "no tests"),
    ("livecodebench", LIVE | {"public_test_cases": [case(kind={1, 2}), case()]}, "no tests"),
    ("livecodebench", LIVE | {"metadata": '{"func_name": "add"}'}, "function name"),
    ("livecodebench", LIVE_FUNCTION | {"metadata": "{}"}, "function name"),
    ("livecodebench", LIVE_FUNCTION | {"metadata": "no JSON"}, "unreadable"),
    ("livecodebench", LIVE_FUNCTION | {"public_test_cases": json.dumps([case("2\nx", "9", "functional")])},
     "unreadable"),
    ("livecodebench", LIVE_FUNCTION | {"public_test_cases": json.dumps([case(7, "9", "functional")])}, "not text"),
    ("livecodebench", LIVE | {"question_content": "If there are several answers, print any."}, "several answers"),
    ("apps", APPS | {"input_output": ""}, "no tests"),
    ("apps", APPS | {"input_output": "{"}, "unreadable"),
    ("apps", APPS | {"input_output": "[]"}, "no tests"),
    ("apps", APPS | {"picture_num": "2"}, "image"),
    ("apps", APPS | {"picture_num": 10**5000, "input_output": ""}, "no tests"),
    ("apps", apps(inputs=[], outputs=[]), "no tests"),
    ("apps", apps(inputs=["1", "2"], outputs=["1"]), "no tests"),
    ("apps", apps(inputs=["1"] * 1_000_000, outputs=["1"]), "no tests"),
    ("apps", apps(inputs=["1"], outputs=[1]), "not text"),
    ("apps", apps(fn_name="__import__('os')", inputs=[[1]], outputs=[[1]]), "function name"),
    ("apps", apps(fn_name="f", inputs=[["\"aba\""]], outputs=[True]), "quoted text"),
    ("apps", apps(fn_name="f", inputs=[[{"1": "a"}]], outputs=[1]), "number keys"),
    ("apps", apps(fn_name="f", inputs=[1], outputs=[1]), "no tests"),
    ("apps", apps(fn_name="f", inputs=[[1]], outputs=[[None]]), "nothing expected"),
    ("apps", apps(fn_name="f", inputs=[[1]], outputs=[float("nan")]), "unreadable"),
    ("apps", APPS | {"starter_code": "x" * 50_001}, "too long"),
    ("codeforces", CODEFORCES | {"generated_checker": "import sys"}, "several answers"),
    ("codeforces", CODEFORCES | {"input_mode": "file"}, "file"),
    ("codeforces", CODEFORCES | {"interaction_format": "Ask."}, "interactive"),
    ("codeforces", CODEFORCES | {"official_tests_complete": False}, "incomplete tests"),
    ("codeforces", CODEFORCES | {"official_tests": []}, "no tests"),
    ("codeforces", CODEFORCES | {"official_tests": [{"input": "1"}]}, "not text"),
    ("codeforces", CODEFORCES | {"examples": [{"input": "1"}]}, "not text"),
    ("codeforces", CODEFORCES | {"output_format": "Print any of them."}, "several answers"),
    ("codeforces", CODEFORCES | {"description": "x" * 1_000_001}, "too long"),
    ("verification_info", info(), "no tests"),
    ("verification_info", info({"input": "1", "output": "1"}, language="cpp"), "another language"),
    ("verification_info", info({"input": "1", "output": "1"}, {"input": "[1]", "output": "1", "fn_name": "f"}),
     "no tests"),
    ("verification_info", info({"input": "[1", "output": "1", "fn_name": "f"}), "unreadable"),
    ("verification_info", info({"input": "7", "output": "1", "fn_name": "f"}), "no tests"),
    ("verification_info", INFO | {"verification_info": "import os"}, "unreadable"),
    ("verification_info", INFO | {"verification_info": 7}, "no tests"),
    ("mbpp", MBPP | {"test_list": []}, "no tests"),
    ("mbpp", MBPP | {"test_list": "assert add(1)"}, "unreadable"),
    ("mbpp", MBPP | {"test_list": ["add(1)"]}, "no assert"),
    ("mbpp", MBPP | {"test_list": ["assert add(1", "assert add(2)"]}, "unreadable"),
    ("mbpp", MBPP | {"test_list": ["assert add(1) == 1", "assert sub(1) == 1"]}, "function name"),
    ("mbpp", MBPP | {"test_list": ["assert len([1]) == 1"]}, "function name"),
    ("humaneval", HUMANEVAL | {"test": f"def check(f):\n    assert f(1) == 0x{'f' * 5000}"}, "unreadable"),
    ("humaneval", HUMANEVAL | {"prompt": f"x = 0x{'f' * 5000}"}, "unreadable"),
    ("humaneval", HUMANEVAL | {"test": "def check(f):\n    assert same(f(1), 1)"}, "function name"),
    ("mbpp", MBPP | {"test_setup_code": "import ("}, "unreadable"),
    ("mbpp", MBPP | {"test_setup_code": {"a": 1}}, "not text"),
    ("humaneval", HUMANEVAL | {"entry_point": "os.system"}, "function name"),
    ("humaneval", HUMANEVAL | {"test": "assert add(1) == 1"}, "no tests"),
    ("humaneval", HUMANEVAL | {"test": "def check(candidate):\n    pass"}, "no assert"),
    ("humaneval", HUMANEVAL | {"test": "def check(candidate):\n    assert True"}, "no tests"),
    ("humaneval", HUMANEVAL | {"test": "def check(candidate:"}, "unreadable"),
    ("humaneval", HUMANEVAL | {"test": "x" * 50_001}, "too long"),
]  # fmt: skip


def test_a_row_without_a_task_is_refused_with_its_reason():
    read = [(place, read_public_row(row, form), reason) for place, (form, row, reason) in enumerate(HOSTILE)]
    assert [case for case in read if not isinstance(case[1], Unusable) or case[1].reason != case[2]] == []
    assert all(0 < len(unusable.detail) < 300 for _, unusable, _ in read)


def test_nothing_of_a_row_is_run(tmp_path):
    touch = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    rows = [
        ("mbpp", MBPP | {"test_list": [f"assert add({touch}) == 1"], "test_setup_code": touch}),
        ("humaneval", HUMANEVAL | {"test": f"def check(c):\n    assert c({touch}) == 1", "prompt": touch}),
        ("apps", APPS | {"starter_code": touch, "solutions": touch}),
        ("verification_info", INFO | {"gold_standard_solution": touch}),
    ]
    assert not any(isinstance(read_public_row(row, form), Unusable) for form, row in rows)
    assert isinstance(read_public_row(CODEFORCES | {"generated_checker": touch}, "codeforces"), Unusable)
    assert not (tmp_path / "ran").exists()


def test_a_form_that_is_none_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="'leetcode' is not a form of public rows. Name one of ifeval, .*humaneval"):
        read_public_row({}, "leetcode")
    assert find_form({"question": "q"}) is None and find_form({}) is None
