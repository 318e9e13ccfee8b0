"""The unit tests of NeMo-Gym's rows for code_gen: `verifier_metadata.unit_tests`, read and written.

Their form is LiveCodeBench's: `inputs` and `outputs` are texts, and `fn_name` is there where a function is called, with
one argument in JSON on each line of its input. Since version 0.7.0 the lists may be packed: base64 of zlib of JSON.
What our reward reads beside them (`checker`, `float_tolerance`, limits) is written as `options`, which the server does
not read.
"""

import json
from typing import Any

from grpo_kit.environments.code.column import MOST_TESTS, load_json, pair_up, read_tests, write
from grpo_kit.environments.code.unpacking import pack, unpack
from grpo_kit.environments.reading import Refused


def read_unit_tests(metadata: Any, statement: str) -> str:
    """The column `tests` from the field `verifier_metadata` of a row.

    Args:
        metadata: the field, as an object or as JSON text.
        statement: what the policy is asked; `column.read_tests` looks for several answers in it.

    Raises:
        Refused: the tests cannot be used.

    Example:
        >>> read_unit_tests({"unit_tests": {"inputs": ["2\\n[3]"], "outputs": ["5"], "fn_name": "f"}}, "")
        '{"kind": "function", "name": "f", "inputs": [[2, [3]]], "outputs": [5]}'
    """
    metadata = load_json(metadata, "verifier_metadata") if isinstance(metadata, str) else metadata
    unit_tests = metadata.get("unit_tests") if isinstance(metadata, dict) else None
    unit_tests = load_json(unit_tests, "unit_tests") if isinstance(unit_tests, str) else unit_tests
    if not isinstance(unit_tests, dict):
        raise Refused("no tests", "the row has no verifier_metadata with unit_tests")
    options, name = metadata.get("options") or {}, unit_tests.get("fn_name")
    if isinstance(unit_tests.get("packed"), str):
        unit_tests = load_json(_decode(unpack(unit_tests["packed"], "packed")), "packed")
    if not isinstance(unit_tests, dict) or not isinstance(options, dict):
        raise Refused("no tests", "unit_tests and options are no objects")
    return read_tests(options | read_calls(unit_tests.get("inputs"), unit_tests.get("outputs"), name), statement)


def read_calls(inputs: Any, outputs: Any, name: Any) -> dict[str, Any]:
    """Tests in LiveCodeBench's form: texts, and the name of the function that is called, or nothing."""
    if not name:
        return {"kind": "stdin", "inputs": inputs, "outputs": outputs}
    pairs = pair_up(inputs, outputs)[:MOST_TESTS]
    arguments = [[load_json(line, "inputs") for line in _read_text(given).split("\n") if given] for given, _ in pairs]
    values = [load_json(_read_text(wanted), "outputs") for _, wanted in pairs]
    return {"kind": "function", "name": name, "inputs": arguments, "outputs": values}


def write_unit_tests(tests: str, packed: bool = False) -> dict[str, Any]:
    """The field `verifier_metadata` for a column `tests`.

    Args:
        tests: the column, as `column.read_tests` writes it.
        packed: write the lists as version 0.7.0 and later of NeMo-Gym read them, in a fifth of the bytes.

    Returns:
        `unit_tests`, and `options` where there are any.

    Raises:
        ValueError: the tests are asserts, for which the server has no form.

    Example:
        >>> tests = '{"kind": "function", "name": "f", "inputs": [[2, "a"]], "outputs": [5], "time_limit_s": 2}'
        >>> write_unit_tests(tests)
        {'unit_tests': {'inputs': ['2\\n"a"'], 'outputs': ['5'], 'fn_name': 'f'}, 'options': {'time_limit_s': 2}}
    """
    options = json.loads(tests)
    if options.pop("kind") == "asserts":
        raise ValueError(
            "The row tests its program by asserts, and NeMo-Gym's server code_gen compares outputs only. Leave its "
            "source out of data.source."
        )
    inputs, outputs, name = options.pop("inputs"), options.pop("outputs"), options.pop("name", None)
    if name:
        inputs = ["\n".join(map(write, arguments)) for arguments in inputs]
        outputs = [write(value) for value in outputs]
    lists = {"inputs": inputs, "outputs": outputs}
    unit_tests = ({"packed": pack(write(lists))} if packed else lists) | ({"fn_name": name} if name else {})
    return {"unit_tests": unit_tests} | ({"options": options} if options else {})


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused("not text", "an input or output of a function is no text in JSON")
    return value


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Refused("unreadable", "the packed tests are no UTF-8") from None
