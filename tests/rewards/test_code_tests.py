"""code_tests: programs of each kind, checkers, unusable rows, the fence, refusals; servers in threads and forks."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from grpo_kit.rewards import code_tests
from grpo_kit.rewards.code_tests import (
    CODE_REASONS,
    ISOLATION,
    code_tests_reward,
    code_tests_verdict,
    describe_isolation,
)

SOURCE = Path(code_tests.__file__)


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch):
    """Continuous integration has tokens in its environment, and conftest.py lets programs run there."""
    monkeypatch.delenv("GRPO_KIT_RUN_PROGRAMS")
    for name in [name for name in os.environ if code_tests._CREDENTIAL.match(name.upper())]:
        monkeypatch.delenv(name)
    try:
        describe_isolation()
    except RuntimeError as error:
        pytest.skip(str(error))


def stdin(inputs, outputs, **options):
    return json.dumps({"kind": "stdin", "inputs": inputs, "outputs": outputs, **options})


def function(name, inputs, outputs, **options):
    return json.dumps({"kind": "function", "name": name, "inputs": inputs, "outputs": outputs, **options})


def asserts(*code, setup="", **options):
    return json.dumps({"kind": "asserts", "code": list(code), "setup": setup, **options})


def judge(program, tests):
    return code_tests_verdict(f"```python\n{program}\n```", tests)


SUM = stdin(["3 4\n", "10 -1\n"], ["7\n", "9\n"])
ADD = function("add", [[3, 4], [10, -1]], [7, 9])
HARD = "import sys\nsys.setrecursionlimit(10**6)\ndef f(n):\n    return n and 1 + f(n - 1)\nprint(f(20000) - 19993)"
THREAD = (
    "import sys, threading\nthreading.stack_size(2**27)\ndef main():\n    print(sum(map(int, input().split())))\n"
    "threading.Thread(target=main).start()"
)
BUFFERED = (
    "import atexit, io, sys\nout = sys.stdout\nsys.stdout = io.StringIO()\n"
    "atexit.register(lambda: out.write(sys.stdout.getvalue()))\nprint(sum(map(int, sys.stdin.read().split())))"
)
MORE = "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'\nprint(P(7).x)"
LEETCODE = """
class Solution:
    def add(self, a: int, b: Optional[int]) -> List[int]:
        return deque(accumulate([a, b]))[-1] if inf > a else gcd(a, b)
"""
DRAW = "import random\nprint(random.random() == 0.8444218515250481 and 7)"
LONG = "print(len(str(7 ** 7000)) - 5909)"

ERROR = "try:\n    f(1)\nexcept KeyError:\n    pass\nelse:\n    assert False"
CHECK = "def check(candidate):\n    assert candidate(1) == 1\ncheck(f)"
CLOSE = asserts("assert math.isclose(f(1), 0.3333, rel_tol=1e-3)", setup="import math")
KINDS = asserts('assert f(1) == (1, {1}, b"x", 1j, {1: 2})')
GUARDED = "def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    input()"
TENTH = "def f(x):\n    return 0.1 + 0.2"
HALF = function("f", [[1]], [0.5], float_tolerance=1e-6)
BILLION = function("f", [[1]], [10**9], float_tolerance=1e-6)
ORDER = function("f", [[1]], [[1, 2]])
ANY_ORDER = function("f", [[1]], [[1, 2]], checker="unordered_lines")
SAME = "def f(n):\n    return n"
UNCALLED = asserts("assert f(1) == 1 or f(2)", "if 0:\n    assert f(1)")

# Program, its tests, what we pay, our reason, what the row is about.
PROGRAMS = [
    ("print(sum(map(int, input().split())))", SUM, 1, "right", "reads with input()"),
    ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", SUM, 1, "right", "reads sys.stdin"),
    ("import sys\nfor l in sys.stdin: print(sum(map(int, l.split())))", SUM, 1, "right", "reads lines"),
    ("import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))", SUM, 1, "right", "reads bytes"),
    ("import os\nprint(sum(map(int, os.read(0, 99).split())))", SUM, 1, "right", "reads the descriptor"),
    ("print(sum(map(int, open(0).read().split())))", SUM, 1, "right", "opens the descriptor"),
    ("print(sum(map(int, open('/dev/stdin').read().split())))", SUM, 1, "right", "opens /dev/stdin"),
    ("import os\nos.write(1, b'%d' % sum(map(int, input().split())))", SUM, 1, "right", "writes the descriptor"),
    ("import os\nprint(sum(map(int, input().split())), flush=True)\nos._exit(0)", SUM, 1, "right", "leaves fast"),
    ("print(sum(map(int, input().split())))\nexit()", SUM, 1, "right", "exit() is there without site"),
    ("if __name__ == '__main__':\n    print(sum(map(int, input().split())))", SUM, 1, "right", "is the main module"),
    (BUFFERED, SUM, 1, "right", "prints at exit"),
    (THREAD, SUM, 1, "right", "works in a thread with a large stack that nobody joins"),
    (HARD, stdin([""], ["7"]), 1, "right", "recurses deeply"),
    (MORE, stdin([""], ["7"]), 1, "right", "annotations that are looked up in the module"),
    (LONG, stdin([""], ["7"]), 1, "right", "an integer that Python would not print"),
    (DRAW, stdin([""], ["7"]), 1, "right", "draws the same number each time"),
    ("import heapq, numpy", stdin([""], ["7"]), 0, "crashed", "numpy is not there"),
    ("print(7)", SUM, 0, "wrong_output", "knows the first test only"),
    ("print(8)", SUM, 0, "wrong_output", "wrong"),
    ("", SUM, 0, "wrong_output", "an empty program"),
    ("print(sum(map(int, input().split()))", SUM, 0, "crashed", "a bracket is missing"),
    ("print(sum(map(int, input().split())))\n1 / 0", SUM, 0, "crashed", "right, then an error"),
    ("print(sum(map(int, input().split())))\nexit(1)", SUM, 0, "crashed", "right, with another exit status"),
    ("input()\ninput()", SUM, 0, "crashed", "reads more than there is"),
    ("def add(a, b):\n    return a + b", ADD, 1, "right", "a function"),
    ("class Solution:\n    def add(self, a, b):\n        return a + b", ADD, 1, "right", "a method"),
    ("class A:\n    def add(self, a, b):\n        return a + b\nclass Solution(A): pass", ADD, 1, "right", "inherited"),
    ("def f(d):\n    return sum(d.values())", function("f", [[{"!": 3, "a": 1}]], [4]), 1, "right", "a key like ours"),
    ("def f(n):\n    return n and f(n - 1)", function("f", [[9000]], [0]), 1, "right", "recurses, as on LeetCode"),
    ("def add(a, b):\n    print('hm')\n    return a + b", ADD, 1, "right", "prints beside its value"),
    (GUARDED, ADD, 1, "right", "is not the main module"),
    ("def add(a, b):\n    return float(a + b)", ADD, 1, "right", "7.0 is 7"),
    ("def add(a, b):\n    return str(a + b)", ADD, 0, "wrong_output", "a text is no number"),
    ("def add(a, b):\n    return a - b", ADD, 0, "wrong_output", "wrong"),
    ("def sub(a, b):\n    return a + b", ADD, 0, "no_function", "another name"),
    ("def add(a):\n    return a", ADD, 0, "crashed", "other arguments"),
    ("def add(a, b):\n    return {a + b}", ADD, 0, "not_data", "a set is no JSON"),
    (LEETCODE, ADD, 1, "right", "names that LeetCode imports"),
    ("", function("gcd", [[4, 6]], [2]), 0, "no_function", "one of these names is no function of the program"),
    ("", function("sum", [[[4, 6]]], [10]), 0, "no_function", "nor is one of Python's"),
    ("pow = pow", function("pow", [[2, 3]], [8]), 1, "right", "Python's pow, not that of math, as the program's"),
    ("def f(x):\n    return (x, [None])", function("f", [[1]], [[1, [None]]]), 1, "right", "a tuple is a list"),
    ("def f(x):\n    return {1: x}", function("f", [[1]], [{"1": 1}]), 1, "right", "a number is a key"),
    ("def f(x):\n    return 1", function("f", [[1]], [True]), 0, "wrong_output", "1 is not true"),
    ("def f(x):\n    return x == 1", function("f", [[1]], [True]), 1, "right", "true"),
    ("def f(x):\n    return float('nan')", function("f", [[1]], [1.5]), 0, "not_data", "NaN is no JSON"),
    (TENTH, function("f", [[1]], [0.3]), 0, "wrong_output", "exact without a tolerance"),
    (TENTH, function("f", [[1]], [0.3], float_tolerance=1e-9), 1, "right", "a tolerance"),
    ("def f(x):\n    return 10**999", HALF, 0, "not_data", "an integer beyond all floats"),
    ("def f(x):\n    return 10**9999", BILLION, 0, "wrong_output", "one that Python does not read"),
    ("def f(x):\n    return 1e308 * 10", HALF, 0, "not_data", "infinity"),
    ("def f(x):\n    return 10**9 + 1", BILLION, 0, "wrong_output", "counts are exact"),
    ("def f(x):\n    return [2, 1]", ANY_ORDER, 1, "right", "any order"),
    ("def f(x):\n    return [2, 1]", ORDER, 0, "wrong_output", "the order counts"),
    ("def f(x):\n    return [[2]]", function("f", [[1]], [[2]]), 0, "wrong_output", "one level too many"),
    ("def f(s):\n    return s[::-1]", asserts('assert f("ab") == "ba"'), 1, "right", "an assert"),
    (SAME, asserts("assert f(1) == 1", "assert f(1) == 2"), 0, "wrong_output", "the second fails"),
    ("def f(n):\n    return (n, {n}, b'x', 1j, {n: 2})", KINDS, 1, "right", "plain values of all kinds"),
    ("def f(n):\n    return [n]", asserts("assert f(1) == (1,)"), 0, "wrong_output", "a list is no tuple"),
    ("def f(n):\n    return n / 3", CLOSE, 1, "right", "isclose"),
    ("def f(n):\n    return math.pi / 3", CLOSE, 0, "wrong_output", "the program has the setup"),
    ("def f(n):\n    yield from range(n)", asserts("assert list(f(3)) == [0, 1, 2]"), 1, "right", "a generator"),
    ("def f(a, *, b=1):\n    return a * b", asserts("assert f(2, b=3) == 6"), 1, "right", "a named argument"),
    ("def f(n):\n    raise KeyError(n)", asserts(ERROR), 1, "right", "an error that the test wants"),
    ("class E(KeyError): pass\ndef f(n):\n    raise E", asserts(ERROR), 1, "right", "a kind of that error"),
    (SAME, asserts(CHECK), 1, "right", "HumanEval's check"),
    ("def f(n):\n    return 2", asserts(CHECK), 0, "wrong_output", "and it fails"),
    ("def g(n):\n    return n", asserts("assert f(1) == 1"), 0, "crashed", "another name"),
    ("class A: pass\ndef f(n):\n    return A()", asserts("assert f(1)"), 0, "crashed", "an object is no data"),
    (SAME, UNCALLED, 0, "crashed", "a test that calls nothing"),
]  # fmt: skip


def test_programs_of_each_kind_earn_their_due():
    faults = []
    for program, tests, due, reason, note in PROGRAMS:
        verdict = judge(program, tests)
        if verdict[:2] != (due, reason):
            faults.append((note, verdict))
    assert faults == []


# Checker and options, the expected output, a printed one, whether it is right.
OUTPUTS = [
    ({}, "1 2\n3\n", "1 2\n3", 1, "no last newline"),
    ({}, "1 2\n3\n", "1  2 \r\n3\n\n", 1, "blanks"),
    ({}, "1 2\n3\n", "1 2\n", 0, "the first line only, which open-r1 pays"),
    ({}, "1 2\n3\n", "1 2\n3\n4\n", 0, "a line too many"),
    ({}, "YES\n", "yes\n", 0, "another case"),
    ({}, "1.0\n", "1.00\n", 0, "exact"),
    ({"checker": "exact"}, "1 2\n", "1 2", 1, "but for the last newline"),
    ({"checker": "exact"}, "1 2\n", "1  2\n", 0, "a blank too many"),
    ({"checker": "lines"}, "1 2\n3 4\n", "1 2\n3 4", 1, "lines"),
    ({"checker": "lines"}, "1 2\n3 4\n", "1\n2 3 4", 0, "other lines"),
    ({"checker": "unordered_lines"}, "1 2\n3 4\n", "3 4\n1 2\n", 1, "lines in any order"),
    ({"checker": "unordered_lines"}, "1 2\n3 4\n", "1 2\n1 2\n", 0, "a line twice"),
    ({"checker": "case_insensitive"}, "YES\nno\n", "Yes\nNO\n", 1, "any case"),
    ({"checker": "case_insensitive"}, "YES\n", "NO\n", 0, "another word"),
    ({"float_tolerance": 1e-6}, "0.3333333\n", "0.33333331\n", 1, "close"),
    ({"float_tolerance": 1e-6}, "0.3333333\n", "0.3334\n", 0, "not close"),
    ({"float_tolerance": 1e-6}, "2e6\n", "2000000.5\n", 1, "relative to large numbers"),
    ({"float_tolerance": 1e-6}, "1000000\n", "1000001\n", 0, "counts stay exact"),
    ({"float_tolerance": 1e-6}, "1e999\n", "7\n", 0, "infinity is close to nothing"),
    ({"float_tolerance": 1e-6}, "1.5\n", "1e999\n", 0, "nor is anything to it"),
    ({"float_tolerance": 1e-6}, "1.5\n", "nan\n", 0, "NaN is close to nothing"),
    ({"float_tolerance": 1e-6}, "1e999\n", "7.0\n", 0, "all is close to infinity"),
    ({"float_tolerance": 1e-6}, "1.5\n", "1_5e-1\n", 0, "Python's underscore"),
    ({"float_tolerance": 1e-6}, "a 1.5\n", "a 1.50000001\n", 1, "words beside numbers"),
    ({"float_tolerance": 1e-6}, "1.5\n", "1.5 1.5\n", 0, "a number too many"),
]  # fmt: skip


def test_outputs_are_compared_as_the_row_says():
    for options, expected, printed, due, note in OUTPUTS:
        assert judge(f"print({printed!r}, end='')", stdin([""], [expected], **options)).reward == due, note


# The rules of others, each run on every row of TRAPS that names it.


def run_open_r1(printed, expected):
    """open-r1 (1416fa0), rewards.py: lines are compared as far as both outputs go."""
    return all(a.strip() == b.strip() for a, b in zip(printed.strip().split("\n"), expected.split("\n")))


def run_nvidia(printed, expected):
    """NeMo-Gym's code_gen (07d6b0d): all tests of the row, also where there are none."""
    return all(a.split() == b.split() for a, b in zip(printed, expected, strict=True))


def run_one_process(program, test):
    """The program and its asserts in one process, whose exit status is the verdict, as HumanEval's harness does."""
    command = [sys.executable, "-I", "-S", "-c", f"{program}\n{test}"]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


RULES = {"open-r1": run_open_r1, "NVIDIA": run_nvidia, "one process": run_one_process}
LIAR = "class L:\n    def __eq__(self, other): return True\ndef f(n): return L()"
LESS = "class L:\n    def __lt__(self, other): return True\ndef f(n): return L()"
EMPTY = "class L(list):\n    def __eq__(self, other): return True\ndef f(n): return L()"

# The rule, what is printed (or the program), what is expected (or the test), its pay, ours, the trap.
TRAPS = [
    ("open-r1", "1\n2\n", "1\n2\n", 1, 1, "nothing is wrong"),
    ("open-r1", "1\n", "1\n2\n3\n", 1, 0, "the first line only"),
    ("open-r1", "1\n2\n3\n", "1\n2", 1, 0, "lines behind the last one"),
    ("open-r1", "1  2\n", "1 2\n", 0, 1, "a blank more between two numbers"),
    ("NVIDIA", [], [], 1, None, "a row without tests"),
    ("NVIDIA", [""], [" \n"], 1, None, "a row that expects nothing, so silence passes"),
    ("one process", "def f(n): return n", "assert f(1) == 1", 1, 1, "nothing is wrong"),
    ("one process", "import os\nos._exit(0)", "assert f(1) == 2", 1, 0, "it leaves before the assert"),
    ("one process", "def f(n): exit()\nfrom sys import exit", "assert f(1) == 2", 1, 0, "it leaves within the call"),
    ("one process", LIAR, "assert f(1) == 2", 1, 0, "an object that equals everything"),
    ("one process", EMPTY, "assert f(1) == [2]", 1, 0, "a list that does"),
    ("one process", LESS, "assert f(1) < 2", 1, 0, "an object that is less than everything"),
    ("one process", "def abs(x): return 0\ndef f(n): return 1", "assert abs(f(1) - 2) < 1e-6", 1, 0, "its own abs"),
    ("one process", "def f(n): return 1", "f(1)", 1, None, "a test without an assert"),
]  # fmt: skip


def test_what_other_rules_pay_by_mistake_earns_nothing_here():
    for rule, program, test, theirs, ours, note in TRAPS:
        assert RULES[rule](program, test) == theirs, note
        if rule == "one process":
            verdict = judge(program, asserts(test))
        else:
            outputs = test if rule == "NVIDIA" else [test]
            printed = "".join(program)
            verdict = judge(f"print({printed!r}, end='')", stdin([""] * len(outputs), outputs))
        assert verdict.reward == ours, (note, verdict)


# A row's tests, and why they cannot be judged. The program would pass any of them.
UNUSABLE = [
    (None, "another environment's row"),
    ("", "nothing"),
    ("[]", "no object"),
    ('{"kind": "stdin"', "cut"),
    ('{"kind": "stdin", "inputs": [], "outputs": []}', "no tests, which NVIDIA pays"),
    ('{"kind": "function", "name": "f", "inputs": [], "outputs": []}', "no tests"),
    ('{"kind": "asserts", "code": [], "setup": ""}', "no tests"),
    ('{"kind": "stdin", "inputs": ["", ""], "outputs": [""]}', "lists of different lengths"),
    ('{"kind": "stdin", "inputs": "ab", "outputs": "ab"}', "texts for lists"),
    ('{"kind": "stdin", "inputs": [1], "outputs": ["1"]}', "a number for a text"),
    ('{"kind": "stdin", "inputs": ["x", "y"], "outputs": ["", " \\n"]}', "outputs that are blank"),
    ('{"kind": "stdin", "inputs": ["\\ud800"], "outputs": ["1"]}', "half a surrogate pair"),
    ('{"kind": "function", "name": "f", "inputs": [1], "outputs": [1]}', "arguments that are no list"),
    ('{"kind": "function", "name": "f g", "inputs": [[1]], "outputs": [1]}', "a name that is none"),
    ('{"kind": "function", "inputs": [[1]], "outputs": [1]}', "no name"),
    ('{"kind": "function", "name": "f", "inputs": [[1]], "outputs": [null]}', "nothing is expected"),
    ('{"kind": "function", "name": "f", "inputs": [[1]], "outputs": [NaN]}', "NaN"),
    ('{"kind": "function", "name": "f", "inputs": [[1]], "outputs": [Infinity]}', "infinity"),
    ('{"kind": "shell", "inputs": ["1"], "outputs": ["1"]}', "another kind"),
    (asserts("f(1)"), "no assert"),
    (asserts("assert True"), "an assert that tests nothing"),
    (asserts("def f(n): return n\nassert f(1) == 1"), "a test that brings its own function"),
    (asserts("assert f(1) == 1", setup="def f(n): return n"), "a setup that does"),
    (asserts("assert is_close(f(1), 1)"), "a judge that the program brings"),
    (asserts("assert f(1 =="), "no Python"),
    (asserts("assert f(1)" + ".real" * 20_000), "a test on which Python 3.10 crashes"),
    (stdin(["1"] * 1001, ["1"] * 1001), "more tests than anybody waits for"),
    (asserts("assert f(1) == 1\x00"), "a NUL"),
    (asserts("assert " + "(" * 5000 + "f(1)" + ")" * 5000), "nested too deeply"),
    (stdin(["1"], ["1"], several_answers=True), "several answers and no checker"),
    (stdin(["1"], ["1"], checker="oracle"), "a checker that nobody has"),
    (stdin(["1"], ["1"], checker=["tokens"]), "a checker that is no name"),
    (stdin(["1"], ["1"], language="cpp"), "another language"),
    (stdin(["1"], ["1"], time_limit_s=-1), "a time limit below zero"),
    (stdin(["1"], ["1"], time_limit_s=1e9), "a time limit of years"),
    (stdin(["1"], ["1"], time_limit_s="1"), "a time limit that is a text"),
    (stdin(["1"], ["1"], memory_mib=True), "a memory limit that is a bool"),
    (stdin(["1"], ["1"], float_tolerance=-1), "a tolerance below zero"),
    (stdin(["1"], ["1"], float_tolerance=9e99), "a tolerance of everything"),
    (stdin(["1"], ["1"], float_tolerance=10**999), "a tolerance beyond all floats"),
    (stdin(["1"], ["1"], time_limit_s=10**999), "a time limit beyond all floats"),
    (stdin(["1"], ["1"], memory_mib=10**999), "a memory limit beyond all floats"),
    (function("f", [[1]], [1]).replace("[1]]", "[" + "9" * 9999 + "]]"), "an argument that Python does not read"),
    (stdin(["1"], ["1"], float_tolerance=0.1, checker="exact"), "a tolerance beside exact"),
    ("[" * 100_000, "brackets"),
    ('{"kind": "function", "name": "f", "inputs": [[1]], "outputs": [' + "[" * 100_000, "brackets within"),
]  # fmt: skip


def test_a_row_that_cannot_be_judged_is_paid_nothing_and_fined_nothing():
    program = "import sys\nsys.stdout.write(sys.stdin.read())\ndef f(n):\n    return n"
    assert [note for tests, note in UNUSABLE if judge(program, tests) != (None, "unusable", 0.0)] == []


def test_several_answers_are_judged_by_a_checker():
    tests = stdin([""], ["1\n2"], several_answers=True, checker="unordered_lines")
    assert judge("print(2)\nprint(1)", tests).reward == 1.0


ECHO = stdin(["7"], ["7"])
PRINT = "print(input())"
REPLIES = [
    (f"Here:\n```python\n{PRINT}\n```\nDone.", 1, "right", "a fence"),
    (f"```Python3\r\n{PRINT}\r\n```", 1, "right", "another name, line ends of Windows"),
    (f"```py\n{PRINT}\n```<|im_end|>", 1, "right", "the end of the turn in the same line"),
    (f"1. So:\n   ```python\n   {PRINT}\n   ```", 1, "right", "an indented fence"),
    (f"````python\n{PRINT}\ns = '''\n```\n'''\n````", 1, "right", "a longer fence around a fence"),
    (f"```python\nprint(8)\n```\nNo:\n```python\n{PRINT}\n```", 1, "right", "the last of two"),
    (f"```python\n{PRINT}\n```\nNo:\n```python\nprint(8)\n```", 0, "wrong_output", "the last of two is wrong"),
    (f"```python\n{PRINT}\n```\nFor example:\n```\n8\n```", 1, "right", "an output behind the program"),
    (f"```python\n{PRINT}\n```\nor\n```python\nprint(", 0, "no_program", "the last one is cut"),
    (f"```\n{PRINT}\n```", 0, "no_program", "a fence without a name"),
    (f"```cpp\n{PRINT}\n```", 0, "no_program", "another language"),
    (PRINT, 0, "no_program", "no fence"),
    ("", 0, "no_program", "nothing"),
    (f"```python\n{PRINT}\n```</think>I am done.", 0, "no_program", "a program in the thinking"),
    (f"```python\nprint(8)\n```</think>```python\n{PRINT}\n```", 1, "right", "one behind it"),
    (f"<think>```python\n{PRINT}\n```", 0, "unclosed_think", "a thought that is open"),
    (f"```python\n{PRINT}\n{'#' * 200_000}\n```", 0, "too_long", "a long program"),
    ("```python\n" * 50_000, 0, "no_program", "many fences that open"),
    (f"```python\n{PRINT}\n\ud800\n```", 0, "crashed", "half a surrogate pair"),
    (f"```python\n{PRINT}\n\x00\n```", 0, "crashed", "a NUL"),
]  # fmt: skip


def test_the_program_is_the_last_fence_of_the_answer():
    for reply, due, reason, note in REPLIES:
        assert code_tests_verdict(reply, ECHO)[:2] == (due, reason), note


def test_messages_are_read_in_every_form():
    good = f"```python\n{PRINT}\n```"
    split = [{"role": "assistant", "content": good, "reasoning_content": "I echo."}]
    hidden = [{"role": "assistant", "content": "", "reasoning_content": good}]
    open_thought = [{"role": "assistant", "content": good}]
    turns = [*split, {"role": "user", "content": "No."}, {"role": "assistant", "content": "Then not."}]
    replies = [good, split, hidden, open_thought, turns, None, []]
    rewards = code_tests_reward(replies, [ECHO] * 7, prompt_opened_think=[False, True, True, True, False, False, False])
    assert rewards == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_the_share_of_passed_tests_and_each_reason_are_logged():
    logged = {}
    replies = ["```python\nprint(7)\n```", "no", "```python\nprint(sum(map(int, input().split())))\n```", "no"]
    rewards = code_tests_reward(replies, [SUM, SUM, SUM, None], log_metric=logged.__setitem__)
    assert rewards == [0.0, 0.0, 1.0, None]
    assert logged["code_tests/passed"] == 0.5
    assert {name for name, share in logged.items() if share} == {
        "code_tests/passed", "code_tests/right", "code_tests/wrong_output", "code_tests/no_program",
        "code_tests/unusable",
    }  # fmt: skip
    assert {f"code_tests/{reason}" for reason in CODE_REASONS} < set(logged)


def test_lengths_that_differ_are_a_callers_mistake():
    with pytest.raises(ValueError, match="2 completions and 1 values of tests"):
        code_tests_reward(["a", "b"], [SUM])
    assert code_tests_reward(["a", "b"]) == [None, None]


@pytest.mark.slow
def test_tests_after_one_that_took_too_long_are_not_run():
    program = "n = int(input())\nwhile n == 2: pass\nprint(n)"
    verdict = judge(program, stdin(["1", "2", "2", "2"], ["1", "2", "2", "2"], time_limit_s=0.1))
    assert verdict == (0.0, "too_slow", 0.25)


LAYERS = {"limits", "no new privileges", "system calls", "network", "files", "user"}


def test_describe_names_each_layer_and_whether_it_holds():
    layers = code_tests_reward.describe()
    assert set(layers) == LAYERS
    assert layers["limits"] == "holds"
    assert all(isinstance(text, str) and text for text in layers.values())


def test_a_filter_that_also_refuses_sockets_is_one_layer(monkeypatch):
    if code_tests_reward.describe()["system calls"] != "holds":
        pytest.skip("the filter of system calls does not hold on this machine")
    head = "def leave_network():\n"
    without_namespaces = code_tests._PROGRAM_SERVER.replace(head, head + "    raise OSError(1, 'not permitted')\n")
    monkeypatch.setattr(code_tests, "_PROGRAM_SERVER", without_namespaces)
    server = code_tests._ProgramServer()
    server.end()
    assert server.layers["system calls"] == "holds"
    assert server.layers["network"] == "by the filter of system calls"


@pytest.mark.parametrize(("held", "refused"), [([], True), (["files"], True), (["files", "user"], False)])
def test_fewer_than_two_layers_are_refused_unless_told(held, refused, monkeypatch):
    layers = {name: "holds" if name in held or name not in ISOLATION else "no such call" for name in LAYERS}
    monkeypatch.setattr(code_tests, "_probed_layers", layers)
    if refused:
        with pytest.raises(
            RuntimeError, match=r"(?s)of the layers.*network: no such call.*GRPO_KIT_RUN_PROGRAMS=anyway"
        ):
            code_tests_reward([f"```python\n{PRINT}\n```"], [ECHO])
        monkeypatch.setenv("GRPO_KIT_RUN_PROGRAMS", "anyway")
    assert code_tests_reward.describe() == layers


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("HF_TOKEN", True), ("KAGGLE_KEY", True), ("AWS_SECRET_ACCESS_KEY", True), ("OPENAI_API_KEY", True),
        ("kaggle_user_secrets_token", True), ("WANDB_API_KEY", True), ("GOOGLE_APPLICATION_CREDENTIALS", True),
        ("PGPASSWORD", True), ("GPG_KEY", False), ("AWS_CA_BUNDLE", False), ("HF_HUB_OFFLINE", False),
        ("TOKENIZERS_PARALLELISM", False), ("KEYBOARD", False),
    ],
)  # fmt: skip
def test_credentials_in_the_environment_are_refused_by_name_and_never_by_value(name, refused, monkeypatch):
    monkeypatch.setenv(name, "hunter2")
    if not refused:
        assert describe_isolation()
        return
    with pytest.raises(RuntimeError, match=name) as error:
        code_tests_reward([f"```python\n{PRINT}\n```"], [ECHO])
    assert "hunter2" not in str(error.value)
    assert code_tests_reward(["no program"], [ECHO]) == [0.0]  # what runs nothing needs no protection
    monkeypatch.setenv("GRPO_KIT_RUN_PROGRAMS", "anyway")
    assert code_tests_reward([f"```python\n{PRINT}\n```"], [ECHO]) == [1.0]


HEADERS = [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h")]


@pytest.mark.skipif(not all(map(Path.exists, HEADERS)), reason="the kernel's headers are not installed")
def test_the_numbers_of_system_calls_are_those_of_the_kernels_headers():
    words = code_tests._PROGRAM_SERVER.split('REFUSED = """')[1].split('"""')[0].split()
    known = [
        {name: number for _, name, number in re.findall(r"#\s*define __NR(3264)?_(\w+)\s+(\d+)", path.read_text())}
        for path in HEADERS
    ]
    for name, *numbers in zip(words[::3], words[1::3], words[2::3]):
        assert numbers == [table.get(name, "-") for table in known], name
    named = ["open", "openat", "clone", "prlimit64", "fcntl", "socketpair", "ioctl"]
    written = code_tests._PROGRAM_SERVER.split("ARGUMENTS = (")[1].split("\n)\n")[0]
    pairs = [[word.replace("None", "-") for word in pair] for pair in re.findall(r"\(\((\d+), (\w+)\)", written)]
    assert pairs == [[table.get(name, "-") for table in known] for name in named]


# Servers.


def list_servers():
    return {server.process.pid for server in code_tests._program_servers}


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_many_threads_share_a_few_servers():
    rewards = []
    replies = [f"```python\nprint(input() + '{n % 2 or ''}')\n```" for n in range(8)]
    threads = [
        threading.Thread(target=lambda: rewards.append(code_tests_reward(replies, [ECHO] * 8))) for _ in range(4)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert rewards == [[1.0, 0.0] * 4] * 4
    assert len(list_servers()) <= code_tests.PROGRAMS_AT_ONCE


def test_a_fork_of_this_process_starts_its_own_servers_and_leaves_these_alone():
    assert judge(PRINT, ECHO).reward == 1.0
    before = list_servers()
    child = os.fork()
    if not child:
        try:
            own = judge(PRINT, ECHO).reward == 1.0 and not list_servers() & before
            code_tests._end_program_servers()
        finally:
            os._exit(0 if own else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert judge(PRINT, ECHO).reward == 1.0
    assert all(map(is_alive, before))


def test_a_server_that_was_killed_is_replaced():
    assert judge(PRINT, ECHO).reward == 1.0
    for pid in list_servers():
        os.kill(pid, signal.SIGKILL)
    assert judge(PRINT, ECHO).reward == 1.0


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_and_its_program_end_when_their_parent_dies(signal_number):
    sleeper = "```python\nimport time\ntime.sleep(50)\n```"
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); import code_tests, threading, time\n"
        f"run = lambda: code_tests.code_tests_verdict({sleeper!r}, {ECHO!r})\n"
        "threading.Thread(target=run, daemon=True).start()\n"
        "while not code_tests._program_servers or not hasattr(list(code_tests._program_servers)[0], 'folder'): pass\n"
        "server = list(code_tests._program_servers)[0]\n"
        "print(server.process.pid, server.folder, flush=True)\ntime.sleep(50)"
    )
    parent = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, text=True)
    server, folder = parent.stdout.readline().split()
    wait_for(lambda: len(list_family(int(server))) >= 2 or parent.poll() is not None)
    family = [int(server), *list_family(int(server))]
    parent.send_signal(signal_number)
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not any(map(is_alive, family)) and not Path(folder).exists())


def list_family(pid):
    """The processes that descend from one, which runs one program at a time."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def test_servers_end_with_their_process(tmp_path):
    code = (
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"  # which they inherit
        f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); import code_tests\n"
        f"print(code_tests.code_tests_reward(['```python\\n{PRINT}\\n```'], [{ECHO!r}]))\n"
        "server = list(code_tests._program_servers)[0]\nprint(server.process.pid, server.folder)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60)
    paid, place = done.stdout.splitlines()
    server, folder = place.split()
    assert (paid, done.stderr, is_alive(server), Path(folder).exists()) == ("[1.0]", "", False, False)


def test_layers_that_do_not_work_together_are_said_once_and_not_paid_as_failures(monkeypatch):
    confined = "        layers.confine(0, [null, null, null], 5, 2**28)"
    assert confined in code_tests._PROGRAM_SERVER
    monkeypatch.setattr(code_tests, "_PROGRAM_SERVER", code_tests._PROGRAM_SERVER.replace(confined, "        1 / 0"))
    before = list_servers()
    with pytest.raises(RuntimeError, match="layers do not work together"):
        code_tests._ProgramServer()
    monkeypatch.setattr(code_tests, "_PROGRAM_SERVER", "1 / 0")
    with pytest.raises(RuntimeError, match="did not start"):
        code_tests._ProgramServer()
    assert list_servers() == before


def test_a_server_whose_parent_died_while_it_started_leaves_no_folder(tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code_tests._PROGRAM_SERVER, "[]"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    server.stdin.close()
    server.stdout.close()
    assert server.wait(60) != 0
    assert list(tmp_path.iterdir()) == []
