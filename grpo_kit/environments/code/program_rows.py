"""Rows of public sets that ask for a program, by the form of their columns.

    livecodebench      `question_content`, `starter_code`, `public_test_cases`, `private_test_cases` (base64 of zlib of
                       a pickled text, which is read without unpickling), `metadata` with `func_name`
    apps               `question`, `input_output`, `starter_code`: codeparrot/apps, BAAI/TACO
    codeforces         `description`, `official_tests`, `time_limit`, `generated_checker`: open-r1/codeforces
    verification_info  `problem_statement` or `prompt`, `verification_info` {language, test_cases} of open-r1
    mbpp               `text` or `prompt`, `test_list`, `test_setup_code` or `test_imports`
    humaneval          `prompt`, `test`, `entry_point`

The prompt is the statement and how to reply. A checker that comes as a program is not run, so its row is refused.
"""

import ast
import json
import re
from collections.abc import Callable
from typing import Any

from grpo_kit.environments.code.asking import ask_for_function, ask_for_program
from grpo_kit.environments.code.column import (
    LONGEST_CODE,
    find_tested_name,
    load_json,
    parse_python,
    read_name,
    read_tests,
    require_python,
)
from grpo_kit.environments.code.unit_tests import read_calls
from grpo_kit.environments.code.unpacking import read_pickled_text, unpack
from grpo_kit.environments.reading import Refused, is_number, read_messages, read_text
from grpo_kit.environments.task import Task, make_task

LONGEST_LIMIT = 10.0  # seconds that one test may take at most, as NeMo-Gym's server has it
LEAST_MEMORY, MOST_MEMORY = 256, 1024  # MiB; Python itself needs a part of it


def find_form(row: dict[str, Any]) -> str | None:
    """The form of a row by its columns; None where it has none of them.

    >>> find_form({"prompt": "def f():", "test": "def check(f): ...", "entry_point": "f"})
    'humaneval'
    """
    return next((form for form, (columns, _) in _FORMS.items() if all(row.get(name) for name in columns)), None)


def read_program(row: dict[str, Any], form: str) -> Task:
    """Read a row.

    Args:
        row: the row, as JSON or a table of the Hub gives it.
        form: a name in `FORMS`.

    Raises:
        Refused: the row cannot be used.

    Example:
        >>> row = {"question": "Double n.", "input_output": '{"inputs": ["2"], "outputs": ["4"]}', "starter_code": ""}
        >>> read_program(row, "apps").columns
        {'tests': '{"kind": "stdin", "inputs": ["2"], "outputs": ["4"]}'}
    """
    return _FORMS[form][1](row)


def _make(statement: str, tests: dict[str, Any], starter: str = "", limits: dict[str, Any] | None = None) -> Task:
    """The task of a statement and its tests, which ask for a program or a function."""
    column = read_tests(tests | (limits or {}), statement)
    asked = ask_for_function(statement, tests["name"], starter) if "name" in tests else ask_for_program(statement)
    return make_task("code", read_messages(asked, "prompt"), tests=column)


def _read_livecodebench(row: dict[str, Any]) -> Task:
    cases = [case for name in ("public_test_cases", "private_test_cases") for case in _read_cases(row.get(name), name)]
    kind = _read_common(cases, "testtype")
    metadata = row.get("metadata") or {}
    metadata = load_json(metadata, "metadata") if isinstance(metadata, str) else metadata
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    if cases and bool(name) != (kind == "functional"):
        raise Refused("function name", "the tests call a function, and metadata has no func_name, or the reverse")
    tests = read_calls([case.get("input") for case in cases], [case.get("output") for case in cases], name)
    return _make(read_text(row.get("question_content"), "question_content"), tests, _read_starter(row))


def _read_cases(value: Any, column: str) -> list[dict[str, Any]]:
    if isinstance(value, str) and value.strip() and not value.lstrip().startswith("["):
        value = read_pickled_text(unpack(value, column), column)
    cases = load_json(value, column) if isinstance(value, str) and value.strip() else value or []
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise Refused("no tests", f"the column {column} lists no objects with input and output")
    return cases


def _read_common(cases: list[dict[str, Any]], key: str) -> Any:
    """What all tests have under a key; refused where they differ."""
    values = [case.get(key) or None for case in cases]
    if any(value != values[0] for value in values):
        raise Refused("no tests", f"the tests differ in {key}: they call several functions, or only some call one")
    return values[0] if values else None


def _read_apps(row: dict[str, Any]) -> Task:
    if _read_number(row.get("picture_num")):
        raise Refused("image", "the statement had pictures, which are not in the text")
    tests = row.get("input_output")
    tests = load_json(tests, "input_output") if isinstance(tests, str) and tests.strip() else tests
    if not isinstance(tests, dict):
        raise Refused("no tests", "the column input_output has no inputs and outputs")
    starter, name = _read_starter(row), tests.get("fn_name")
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    outputs = _unwrap(outputs, starter) if name else outputs
    read = {"kind": "function", "name": name} if name else {"kind": "stdin"}
    limits = _read_limits(row.get("time_limit"), row.get("memory_limit"))
    return _make(
        read_text(row.get("question"), "question"), read | {"inputs": inputs, "outputs": outputs}, starter, limits
    )


def _unwrap(outputs: Any, starter: str) -> Any:
    """The values of Codewars' functions, each of which stands in a list; not those of a function that returns lists."""
    if not isinstance(outputs, list) or re.search(r"->\s*(?:typing\.)?[Ll]ist\b", starter):
        return outputs
    is_wrapped = all(isinstance(wanted, list) and len(wanted) == 1 for wanted in outputs)
    return [wanted[0] for wanted in outputs] if is_wrapped else outputs


def _read_codeforces(row: dict[str, Any]) -> Task:
    if row.get("input_mode") not in (None, "", "stdio"):
        raise Refused("file", "the program is to read a file, and standard input is given")
    if row.get("interaction_format"):
        raise Refused("interactive", "the program is to talk with another one")
    if row.get("generated_checker"):
        raise Refused("several answers", "several answers are right, and the checker is a program, which is not run")
    if row.get("official_tests_complete") is False:
        raise Refused("incomplete tests", "the long tests are missing, and slow programs pass the short ones")
    parts = [read_text(row.get("description"), "description").strip()]
    for title, column in (("Input", "input_format"), ("Output", "output_format"), ("Note", "note")):
        if row.get(column):
            parts.append(f"## {title}\n{read_text(row[column], column).strip()}")
    for case in _read_cases(row.get("examples"), "examples")[:5]:
        parts.append(
            "\n".join(f"{key.title()}:\n{read_text(case.get(key), 'examples').strip()}" for key in ("input", "output"))
        )
    cases = _read_cases(row.get("official_tests"), "official_tests")
    tests = {"kind": "stdin", "inputs": [case.get("input") for case in cases]}
    tests |= {"outputs": [case.get("output") for case in cases]}
    limits = _read_limits(row.get("time_limit"), row.get("memory_limit"))
    return _make("\n\n".join(parts), tests, limits=limits)


def _read_verification_info(row: dict[str, Any]) -> Task:
    info = row.get("verification_info")
    info = load_json(info, "verification_info") if isinstance(info, str) else info
    if not isinstance(info, dict):
        raise Refused("no tests", "verification_info is no object")
    require_python(info.get("language"))
    cases = _read_cases(info.get("test_cases"), "test_cases")
    inputs, outputs = ([case.get(key) for case in cases] for key in ("input", "output"))
    if name := _read_common(cases, "fn_name"):
        inputs, outputs = ([load_json(v, key) if isinstance(v, str) else v for v in values]
                           for key, values in (("input", inputs), ("output", outputs)))  # fmt: skip
    tests = ({"kind": "function", "name": name} if name else {"kind": "stdin"}) | {"inputs": inputs, "outputs": outputs}
    column = "problem_statement" if row.get("problem_statement") else "prompt"
    return _make(read_text(row.get(column), column), tests)


def _read_mbpp(row: dict[str, Any]) -> Task:
    column = "text" if row.get("text") else "prompt"
    statement, code = read_text(row.get(column), column), row.get("test_list")
    if isinstance(code, str):
        code = load_json(code, "test_list")
    setup = row.get("test_setup_code") or row.get("test_imports") or ""
    setup = "\n".join(setup) if isinstance(setup, list) and all(isinstance(line, str) for line in setup) else setup
    column = read_tests({"kind": "asserts", "code": code, "setup": setup}, statement)
    code = json.loads(column)["code"]
    names = {find_tested_name(setup, lines) for lines in code}
    if len(names) != 1:
        raise Refused("function name", f"the tests call {len(names)} functions, and one is to be written")
    name = names.pop()
    # Only one test is shown: whoever knows all of them can return their values without a thought.
    asked = ask_for_function(f"{statement.strip()}\n\nOne of its tests:\n{code[0].strip()}", name)
    return make_task("code", read_messages(asked, "prompt"), tests=column)


def _read_humaneval(row: dict[str, Any]) -> Task:
    name = read_name(row.get("entry_point"))
    prompt = read_text(row.get("prompt"), "prompt", LONGEST_CODE)
    code = _split_check(read_text(row.get("test"), "test", LONGEST_CODE), name)
    column = read_tests({"kind": "asserts", "code": code, "setup": _find_given(prompt, name)}, prompt)
    asked = ask_for_function("Complete the function by what its docstring says.", name, prompt)
    return make_task("code", read_messages(asked, "prompt"), tests=column)


def _find_given(prompt: str, name: str) -> str:
    """What a prompt that is Python gives beside the function to complete. The tests must not take it from the reply."""
    try:
        body = parse_python(prompt).body
    except Refused:
        return ""
    return "\n".join(_write_python(node) for node in body if getattr(node, "name", None) != name)


def _split_check(test: str, name: str) -> list[str]:
    """Each assert of HumanEval's function `check` as a test of its own; the whole where it does more than assert."""
    module = parse_python(test)
    checks = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if len(checks) != 1 or len(checks[0].args.args) != 1:
        raise Refused("no tests", "the column test has no function check(candidate)")
    candidate, body = checks[0].args.args[0].arg, checks[0].body
    helpers = [node for node in module.body if not isinstance(node, ast.Assign) and node not in checks]
    if helpers or not all(isinstance(node, ast.Assert) for node in body):
        return [f"{test.strip()}\n\ncheck({name})"]
    for node in (node for statement in body for node in ast.walk(statement) if isinstance(node, ast.Name)):
        node.id = name if node.id == candidate else node.id
    return [_write_python(statement) for statement in body if not isinstance(statement.test, ast.Constant)]


def _write_python(node: ast.stmt) -> str:
    try:
        return ast.unparse(node)
    except ValueError:  # a number of thousands of digits, a backslash where a text cannot have one
        raise Refused("unreadable", "a test holds a number or a text that Python reads and does not write") from None


def _read_starter(row: dict[str, Any]) -> str:
    starter = row.get("starter_code")
    return read_text(starter, "starter_code", LONGEST_CODE) if isinstance(starter, str) and starter.strip() else ""


def _read_limits(seconds: Any, mebibytes: Any) -> dict[str, Any]:
    """The limits of a contest, which its sets give as numbers or as "2.0 seconds" and "256.0 megabytes"."""
    limits = {}
    if found := _read_number(seconds):
        limits["time_limit_s"] = min(found, LONGEST_LIMIT)
    if found := _read_number(mebibytes):
        limits["memory_mib"] = int(min(max(found, LEAST_MEMORY), MOST_MEMORY))
    return limits


def _read_number(value: Any) -> float | None:
    if isinstance(value, str) and (
        match := re.match(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*(?:s|seconds?|mb|megabytes?)?\s*$", value)
    ):
        value = float(match[1])
    return float(value) if is_number(value) and value > 0 else None


_FORMS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], Task]]] = {  # its columns, its reader
    "livecodebench": (("question_content", "public_test_cases"), _read_livecodebench),
    "apps": (("question", "input_output"), _read_apps),
    "codeforces": (("description", "official_tests"), _read_codeforces),
    "verification_info": (("verification_info",), _read_verification_info),
    "mbpp": (("test_list",), _read_mbpp),
    "humaneval": (("prompt", "test", "entry_point"), _read_humaneval),
}
FORMS = tuple(_FORMS)
