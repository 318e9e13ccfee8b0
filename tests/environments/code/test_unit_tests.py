"""NeMo-Gym's unit tests are read and written, plain and packed."""

import base64
import json
import zlib

import pytest

from grpo_kit.environments.code.unit_tests import read_unit_tests, write_unit_tests
from grpo_kit.environments.gym_rows import read_gym_row
from grpo_kit.environments.reading import Refused
from grpo_kit.environments.task import Task, Unusable

USER = [{"role": "user", "content": "Add."}]
STDIN = '{"kind": "stdin", "inputs": ["2 3\\n", "é"], "outputs": ["5\\n", ""]}'
FUNCTION = (
    '{"kind": "function", "name": "f", "inputs": [[2, "a\\nb"], []], "outputs": [{"x": [null]}, 0.5], '
    '"float_tolerance": 1e-06, "memory_mib": 256}'
)
ASSERTS = '{"kind": "asserts", "code": ["assert f(1)"], "setup": ""}'


def test_unit_tests_have_nvidias_form():
    assert write_unit_tests(STDIN) == {"unit_tests": {"inputs": ["2 3\n", "é"], "outputs": ["5\n", ""]}}
    assert write_unit_tests(FUNCTION) == {
        "unit_tests": {"inputs": ['2\n"a\\nb"', ""], "outputs": ['{"x": [null]}', "0.5"], "fn_name": "f"},
        "options": {"float_tolerance": 1e-06, "memory_mib": 256},
    }


def test_packed_lists_are_what_nvidias_server_unpacks():
    packed = write_unit_tests(FUNCTION, packed=True)["unit_tests"]
    assert json.loads(zlib.decompress(base64.b64decode(packed["packed"]))) == {
        "inputs": ['2\n"a\\nb"', ""],
        "outputs": ['{"x": [null]}', "0.5"],
    }
    assert packed["fn_name"] == "f" and set(packed) == {"packed", "fn_name"}


@pytest.mark.parametrize("packed", [False, True])
def test_what_was_written_is_read_back(packed):
    for tests in (STDIN, FUNCTION):
        metadata = write_unit_tests(tests, packed)
        assert read_unit_tests(json.loads(json.dumps(metadata)), "Add.") == tests
        assert read_unit_tests(json.dumps(metadata), "Add.") == tests


def test_a_row_of_the_published_set_is_read():
    row = {
        "responses_create_params": {"input": USER},
        "verifier_metadata": {"unit_tests": {"inputs": ["2 3"] * 60, "outputs": ["5"] * 60, "fn_name": None}},
        "hash_id": "h", "dataset": "taco", "source": "codeforces",
    }  # fmt: skip
    assert read_gym_row(row, "code") == Task(USER, {"tests": '{"kind": "stdin", "inputs": ["2 3"], "outputs": ["5"]}'})
    several = row | {"responses_create_params": {"input": "If there are several solutions, you can print any."}}
    assert read_gym_row(several, "code").reason == "several answers"


def test_asserts_have_no_form_there():
    with pytest.raises(ValueError, match="tests its program by asserts.*Leave its source out of data.source"):
        write_unit_tests(ASSERTS)


def pack(content):
    return {"packed": base64.b64encode(zlib.compress(content)).decode()}


HOSTILE = [  # verifier_metadata, the reason
    (None, "no tests"),
    ("no JSON", "unreadable"),
    ([], "no tests"),
    ({}, "no tests"),
    ({"unit_tests": []}, "no tests"),
    ({"unit_tests": {"inputs": [], "outputs": []}}, "no tests"),
    ({"unit_tests": {"inputs": ["1"], "outputs": []}}, "no tests"),
    ({"unit_tests": {"inputs": ["1"] * 10**6, "outputs": ["1"], "fn_name": "f"}}, "no tests"),
    ({"unit_tests": {"inputs": [["1"]], "outputs": ["1"], "fn_name": "f"}}, "not text"),
    ({"unit_tests": {"inputs": ["1\n[2"], "outputs": ["1"], "fn_name": "f"}}, "unreadable"),
    ({"unit_tests": {"inputs": ["NaN"], "outputs": ["1"], "fn_name": "f"}}, "unreadable"),
    ({"unit_tests": {"inputs": ["1"], "outputs": ["1"], "fn_name": ["f"]}}, "function name"),
    ({"unit_tests": {"inputs": ["1"], "outputs": ["1"]}, "options": ["exact"]}, "no tests"),
    ({"unit_tests": {"inputs": ["1"], "outputs": ["1"]}, "options": {"checker": "mine"}}, "checker"),
    ({"unit_tests": {"inputs": ["1"], "outputs": ["1"]}, "options": {"kind": "asserts", "code": ["assert 0"]}},
     None),  # an option does not change the kind
    ({"unit_tests": {"packed": 7}}, "no tests"),
    ({"unit_tests": {"packed": "no base64"}}, "unreadable"),
    ({"unit_tests": pack(b"\xff")}, "unreadable"),
    ({"unit_tests": pack(b"[]")}, "no tests"),
    ({"unit_tests": pack(b"[" * 100_000)}, "too deep"),
    ({"unit_tests": pack(b"0" * 50_000_001)}, "large tests"),
]  # fmt: skip


def test_unit_tests_without_a_use_are_refused():
    for metadata, reason in HOSTILE:
        row = {"responses_create_params": {"input": USER}, "verifier_metadata": metadata}
        read = read_gym_row(row, "code")
        assert (read.reason if isinstance(read, Unusable) else None) == reason, metadata
    with pytest.raises(Refused):
        read_unit_tests(None, "")
