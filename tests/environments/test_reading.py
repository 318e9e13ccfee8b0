"""Any value in any place of a row gives a task or a reason, never an exception, and a task that JSON can hold."""

import copy
import decimal
import json
from datetime import date

import pytest

from grpo_kit.environments import documents, instructions, structured
from grpo_kit.environments.gym_rows import read_gym_row, write_gym_row
from grpo_kit.environments.public_rows import read_public_row
from grpo_kit.environments.reading import Refused, read_messages, read_structure
from grpo_kit.environments.task import COLUMNS, Task, Unusable
from tests.environments.test_public_rows import HOTPOT, IFEVAL, MULTI

DEEP = json.loads("[" * 900 + "]" * 900)
VALUES = (
    None, True, False, 0, -1, 10**400, 10**5000, 1.5, float("nan"), float("-inf"), decimal.Decimal("1"),
    date(2026, 1, 1), b"x", "", " ", "x", "\x00", "\ud800", "[" * 5000, "{'a': 1}", '{"a": 1', "__import__('os')",
    "9" * 5000, [], [[]], [None], ["x"], [1], {}, {"x": None}, {1: 2}, {"role": "user"},
    [{"role": "user", "content": "x"}], (), ("x",), {1, 2}, DEEP, object(),
)  # fmt: skip
ROWS = [
    *(
        (read_gym_row, write_gym_row(module.make_tasks(1, seed=3)[0], environment, "x"), environment)
        for environment, module in (
            ("structured", structured),
            ("instructions", instructions),
            ("documents", documents),
        )
    ),
    (read_public_row, IFEVAL, "ifeval"),
    (
        read_public_row,
        MULTI | {"ground_truth": [{"instruction_id": ["startend:quotation"], "kwargs": [{}]}]},
        "if_multi",
    ),
    (read_public_row, HOTPOT, "hotpot"),
]


def list_places(value, path=()):
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in list_places(item, (*path, key)))]


def replace(row, path, value):
    row = copy.deepcopy(row)
    place = row
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return row


@pytest.mark.parametrize("read, row, kind", ROWS, ids=[kind for _, _, kind in ROWS])
def test_any_value_in_any_place_gives_a_task_or_a_reason(read, row, kind):
    assert isinstance(read(row, kind), Task)
    for path in list_places(row)[1:]:
        for value in VALUES:
            result = read(replace(row, path, value), kind)
            assert isinstance(result, Task | Unusable), (path, value)
            if isinstance(result, Task):
                assert tuple(result.columns) in COLUMNS.values()
                json.dumps(result, allow_nan=False).encode()
            else:
                assert result.reason and len(result.reason) < 25 and len(result.detail) < 400, (path, result)


@pytest.mark.parametrize("row", VALUES, ids=range(len(VALUES)))
def test_what_is_no_row_gives_a_reason(row):
    for read, _, kind in ROWS:
        assert isinstance(read(row, kind), Unusable)


def test_a_text_that_says_a_structure_is_read_and_nothing_else():
    assert read_structure('[{"a": null}]', "c") == read_structure("[{'a': None}]", "c") == [{"a": None}]
    assert read_structure(["as it is"], "c") == ["as it is"]
    for text in ("open('x')", "[x for x in 'ab']", "1 +", "f'{1}'", "", "(lambda: 1)"):
        with pytest.raises(Refused, match="unreadable"):
            read_structure(text, "c")


def test_a_message_that_calls_a_tool_is_refused():
    turn = {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}
    with pytest.raises(Refused, match="tool call"):
        read_messages([turn, {"role": "user", "content": "q"}], "messages")
