"""The column `tests` of a task that asks for a program: a JSON text of one of three kinds.

    {"kind": "stdin", "inputs": [text, ...], "outputs": [text, ...]}                       what is read, what is printed
    {"kind": "function", "name": "f", "inputs": [[argument, ...], ...], "outputs": [value, ...]}
    {"kind": "asserts", "code": [lines of Python, ...], "setup": lines of Python}

Beside them may stand `checker`, `float_tolerance`, `time_limit_s` (of each test) and `memory_mib`. A row is refused
where its tests could not tell a right program from a wrong one: there are none, they contradict each other, nothing is
expected, several answers are right and no checker decides, or a test of asserts takes more than one name from the
program, which could then judge itself.
"""

import ast
import builtins
import json
import keyword
import re
import warnings
from collections.abc import Iterable
from typing import Any

from grpo_kit.environments.reading import Refused, is_number, read_text, show

MOST_TESTS = 50  # the first ones of a row, as NVIDIA trained Nemotron 3 Nano
LARGEST_TESTS = 2_000_000  # characters of the column
LARGEST_SOURCE = 50_000_000  # characters of the tests in a row, of which the first are kept
LONGEST_CODE = 50_000  # characters of one test that is Python
DEEPEST = 30  # lists and objects within each other, in an argument or a value
CHECKERS = ("tokens", "exact", "lines", "unordered_lines", "case_insensitive")
TO_THE_LETTER = ("exact", "unordered_lines")  # checkers that compare no numbers
LIMITS = {"float_tolerance": (0, 1), "time_limit_s": (0, 60), "memory_mib": (16, 16_384)}  # above, up to
# Sentences that allow several answers. Those behind them choose one of several, and then only one is right.
_SEVERAL = re.compile(
    r"(?<!not )(?<!n't )\b(?:print|output|return|report|display) any\b(?! (?:extra|other|more|additional))"
    r"|\b(?:find|construct|build|give|show) any (?:such|valid|suitable|proper|possible|correct|one|of)\b"
    r"|\b(?:print|output|return|report|find|give|display)\b[^.\n]{0,60}\bany (?:one )?of (?:them|these|those|the \w+)\b"
    r"|\bany (?:one )?of (?:them|these|those|the \w+) (?:is|are|will be|may be|can be) (?:accepted|ok|fine|printed)"
    r"|\bany (?:valid|correct|acceptable|suitable|appropriate|such|possible) (?:answer|solution|output)"
    r"|\bany (?:answer|solution|output)s? (?:is|are|will be) (?:accepted|correct|allowed)"
    r"|\b(?:multiple|several|many|more than one|different) (?:\w+ ){0,3}(?:answer|solution|output)s?\b[^.]{0,60}\bany\b"
    r"|\b(?:print|output|return|list|write)\b[^.\n]{0,80}\bin (?:any|arbitrary) order\b",
    re.IGNORECASE,
)
_ERROR_BOUND = re.compile(
    r"\berrors?\b[^.]{0,120}?(?:10\s*\^?\s*\{?\s*[-\u2212\u2013]\s*(\d{1,2})|1e-(\d{1,2}))", re.IGNORECASE
)


def read_tests(value: Any, statement: str = "") -> str:
    """Check tests and write them as the column `tests`.

    Args:
        value: the column, as JSON text or as the object that it says. Of more than `MOST_TESTS` the first are kept.
        statement: what the policy is asked. Where it allows several answers, and the tests name no checker, the row is
            refused; where it allows an error, that becomes the tests' `float_tolerance`.

    Returns:
        JSON text with the keys in a fixed order.

    Raises:
        Refused: the tests could not tell a right program from a wrong one, or are larger than `LARGEST_TESTS`.

    Example:
        >>> read_tests({"kind": "stdin", "inputs": ["2 3"], "outputs": [5]})
        Traceback (most recent call last):
        ...
        grpo_kit.environments.reading.Refused: ('not text', 'the column outputs holds a int, and a text is needed')
    """
    value = load_json(value, "tests") if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise Refused("no tests", f"the column tests is {show(value)}, and an object with kind and tests is needed")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in _READERS:
        raise Refused("no tests", f"the tests are of kind {show(kind)}; the kinds are {', '.join(_READERS)}")
    require_python(value.get("language"))
    options = _read_options(value, statement)
    tests = {"kind": kind} | _READERS[kind](value) | options
    text = write(tests)
    if len(text) > LARGEST_TESTS:
        raise Refused("large tests", f"the tests have {len(text):,} characters, and {LARGEST_TESTS:,} are read")
    return text


def require_python(language: Any) -> None:
    """Raise Refused where a row wants a program in another language; nothing means Python."""
    if language is not None and (
        not isinstance(language, str) or not re.fullmatch(r"(?i)\s*(python ?3?|py3?)\s*", language)
    ):
        raise Refused("another language", f"the program is to be in {show(language)}, and Python is run")


def load_json(text: str, column: str) -> Any:
    """What a JSON text says; refused where it is none, too long, or holds NaN or an infinite number."""
    if len(text) > LARGEST_SOURCE:
        raise Refused(
            "large tests", f"the column {column} has {len(text):,} characters, and {LARGEST_SOURCE:,} are read"
        )
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise Refused("unreadable", f"the column {column} is no JSON ({str(error)[:100]})") from None


def write(value: Any) -> str:
    """A value as JSON text; refused where JSON cannot hold it."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError):
        raise Refused("not JSON", "the tests hold what JSON cannot hold") from None


def allows_several(statement: str) -> bool:
    """Whether a statement accepts any of several answers.

    >>> allows_several("If there are several solutions, print any of them."), allows_several("Print the smallest.")
    (True, False)
    """
    return bool(_SEVERAL.search(statement))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _read_options(value: dict[str, Any], statement: str) -> dict[str, Any]:
    options = {name: value[name] for name in ("checker", *LIMITS) if value.get(name) is not None}
    checker = options.get("checker", "tokens")
    if checker not in CHECKERS:
        raise Refused("checker", f"the checker is {show(checker)}, and there are {', '.join(CHECKERS)}")
    if value.get("several_answers") or ("checker" not in options and allows_several(statement)):
        raise Refused("several answers", "several answers are right, and no checker tells which")
    for name, (above, most) in LIMITS.items():
        if name in options and not (is_number(options[name]) and above < options[name] <= most):
            raise Refused(name, f"{name} is {show(options[name])}; it must be above {above} and at most {most}")
    if checker in TO_THE_LETTER and "float_tolerance" in options:
        raise Refused("checker", f"the checker {checker} compares no numbers, and float_tolerance is set")
    bound = _ERROR_BOUND.search(statement)
    if bound and checker not in TO_THE_LETTER and "float_tolerance" not in options:
        options["float_tolerance"] = 10.0 ** -int(bound[1] or bound[2])
    return options


def _read_stdin(value: dict[str, Any]) -> dict[str, Any]:
    pairs = (
        (_read_lines(given, "inputs"), _read_lines(wanted, "outputs"))
        for given, wanted in pair_up(value.get("inputs"), value.get("outputs"))
    )
    # Codeforces shows long texts cut short, and so have them the sets that were made of its pages.
    whole = (pair for pair in pairs if not any(text.rstrip().endswith("...") for text in pair))
    kept = _keep((given, given, wanted) for given, wanted in whole)
    if not any(wanted.strip() for _, wanted in kept):
        raise Refused("nothing expected", "every expected output is empty")
    return {"inputs": [given for given, _ in kept], "outputs": [wanted for _, wanted in kept]}


def _read_lines(value: Any, column: str) -> str:
    """A text, which may be empty; some sets give a list of its lines."""
    if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if isinstance(value, str) and not value.strip():
        return value
    return read_text(value, column, LARGEST_TESTS)


def _read_function(value: dict[str, Any]) -> dict[str, Any]:
    name = read_name(value.get("name"))
    kept = _keep(
        (_read_arguments(name, given), given, _check_value(wanted))
        for given, wanted in pair_up(value.get("inputs"), value.get("outputs"))
    )
    if all(wanted is None for _, wanted in kept):
        raise Refused("nothing expected", f"{name} is to return nothing, so the tests cannot tell what it did")
    return {"name": name, "inputs": [list(given) for given, _ in kept], "outputs": [wanted for _, wanted in kept]}


def _read_arguments(name: str, given: Any) -> str:
    """The arguments of one call as JSON text."""
    if not isinstance(given, list | tuple):
        raise Refused("no tests", f"the arguments of {name} are {show(given)}, and a list of them is needed")
    return write(_check_value(given))


def read_name(name: Any) -> str:
    """The name of a function; refused where Python could not have it."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or len(name) > 100:
        raise Refused("function name", f"the function is called {show(name)}, which is no name in Python")
    return name


def _check_value(value: Any, depth: int = 0) -> Any:
    """The value; refused where its way through JSON may have changed it: keys that were numbers, texts in quotes."""
    if depth > DEEPEST:
        raise Refused("too deep", f"lists and objects lie more than {DEEPEST} deep within each other")
    if isinstance(value, dict):
        if any(not isinstance(key, str) or re.fullmatch(r"-?\d+", key) for key in value):
            raise Refused("number keys", "an object has keys that may have been numbers before they became JSON")
    elif isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        raise Refused("quoted text", f"a text is {show(value)}; whether its quotes belong to it cannot be known")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _check_value(part, depth + 1)
    return value


def _read_asserts(value: dict[str, Any]) -> dict[str, Any]:
    code = value.get("code")
    if not isinstance(code, list | tuple) or not code:
        raise Refused("no tests", "the column code lists no lines of Python that test the program")
    code = [read_text(lines, "code", LONGEST_CODE) for lines in code[:MOST_TESTS]]
    setup = value.get("setup") or ""
    setup = read_text(setup, "setup", LONGEST_CODE) if setup else ""
    for lines in code:
        if not any(isinstance(node, ast.Assert) for node in ast.walk(parse_python(lines))):
            raise Refused("no assert", f"a test asserts nothing: {show(lines)}")
    for lines in code:
        find_tested_name(setup, lines)
    return {"code": code, "setup": setup}


def find_tested_name(setup: str, code: str) -> str:
    """The name that a test takes from the program: it is defined neither by the test, its setup nor Python.

    Refused where there are several, since the program could then answer what its own answer is compared with.

    >>> find_tested_name("import math", "assert math.isclose(f(1), 0.5)")
    'f'
    """
    used, bound = set(), set(dir(builtins))
    for node in [*ast.walk(parse_python(setup)), *ast.walk(parse_python(code))]:
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    names = sorted(used - bound)
    if len(names) != 1:
        what = ", ".join(names[:5]) or "no name"
        raise Refused("function name", f"a test takes {what} from the program, and it may take one name: {show(code)}")
    return names[0]


def parse_python(text: str) -> ast.Module:
    """The syntax tree of Python code, which is not run; refused where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes
            return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Refused("unreadable", f"a test is no Python: {show(text)}") from None


def pair_up(inputs: Any, outputs: Any) -> list[tuple[Any, Any]]:
    """Each input with its output; refused where the lists are none, empty, or of different lengths."""
    if not isinstance(inputs, list | tuple) or not isinstance(outputs, list | tuple) or not inputs:
        raise Refused("no tests", "the tests have no lists of inputs and outputs")
    if len(inputs) != len(outputs):
        raise Refused("no tests", f"the tests have {len(inputs)} inputs and {len(outputs)} outputs")
    return list(zip(inputs, outputs, strict=True))


def _keep(tests: Iterable[tuple[str, Any, Any]]) -> list[tuple[Any, Any]]:
    """The input and output of the first `MOST_TESTS` different tests; refused where one input has two outputs.

    Args:
        tests: what tells an input from others, the input, the output.
    """
    kept: dict[str, tuple[Any, Any]] = {}
    for name, given, wanted in tests:
        _, first = kept.setdefault(name, (given, wanted))
        if _squeeze(first) != _squeeze(wanted):
            raise Refused("contradiction", f"the same input is to give {show(first)} and {show(wanted)}")
        if len(kept) == MOST_TESTS:
            break
    if not kept:
        raise Refused("no tests", "every test is cut short")
    return list(kept.values())


def _squeeze(wanted: Any) -> Any:
    return wanted.split() if isinstance(wanted, str) else wanted


_READERS = {"stdin": _read_stdin, "function": _read_function, "asserts": _read_asserts}
