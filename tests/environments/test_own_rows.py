"""Rows of a user's file that name their environment are read by name, and broken ones say what is wrong."""

import pytest

from grpo_kit.environments.code.asking import STDIN
from grpo_kit.environments.own_rows import read_own_row
from grpo_kit.environments.task import Task, Unusable

ASK = [{"role": "user", "content": "q"}]


def test_a_row_of_the_users_own_environment_keeps_every_column_but_those_with_a_meaning():
    row = {"environment": "haiku", "prompt": "q", "season": "autumn", "id": 3, "completions": "x", "log_metric": "y"}
    assert read_own_row(row, "haiku") == Task(ASK, {"season": "autumn"})


def test_a_row_of_the_kits_environments_has_exactly_their_columns():
    row = {"prompt": ASK, "documents": ["d"], "answer": "a", "more": 1}
    assert read_own_row(row, "documents") == Task(
        ASK, {"answer": "a", "aliases": None, "documents": ["d"], "supporting": None}
    )


def test_lists_in_json_and_structures_are_turned_into_what_the_rewards_read():
    row = {"prompt": "q", "instruction_id_list": '["punctuation:no_comma"]', "kwargs": [{"a": "ä"}]}
    assert read_own_row(row, "instructions").columns == {
        "instruction_id_list": ["punctuation:no_comma"], "kwargs": '[{"a": "\\u00e4"}]', "grading_mode": None,
    }  # fmt: skip
    assert read_own_row({"prompt": "q", "schema_str": {"type": "object"}}, "structured").columns["schema_str"] == (
        '{"type": "object"}'
    )


@pytest.mark.parametrize(
    "prompt",
    [
        None, "", "  ", 3, [], [3], [{}], [{"role": "user"}], [{"role": "user", "content": 3}], {"role": "user"},
        [{"role": "tool", "content": "x"}, *ASK], [*ASK, {"role": "assistant", "content": "a"}],
        [{"role": ["user"], "content": "q"}],
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be_asked_is_unusable(prompt):
    task = read_own_row({"prompt": prompt}, "haiku")
    assert isinstance(task, Unusable) and "prompt" in task.detail


@pytest.mark.parametrize("value", ["a, b", "{}", "[1", "3", "[" * 100_000, "[" * 200_000, "", 3, {}])
def test_a_list_that_is_no_list_is_unusable(value):
    task = read_own_row({"prompt": "q", "documents": value}, "documents")
    assert isinstance(task, Unusable) and "column documents" in task.detail


def test_messages_that_a_table_holds_as_text_are_read():
    assert read_own_row({"prompt": '[{"role": "user", "content": "q"}]'}, "haiku").prompt == ASK
    assert read_own_row({"prompt": "[{x}] is what?"}, "haiku").prompt[0]["content"] == "[{x}] is what?"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", object(), {1, 2}])
def test_a_value_that_json_cannot_hold_makes_the_row_unusable(value):
    assert read_own_row({"prompt": "q", "season": value}, "haiku").reason == "not JSON"
    assert isinstance(read_own_row({"prompt": "q", "answer": value}, "documents"), Unusable)


TESTS = '{"kind": "stdin", "inputs": ["2 3"], "outputs": ["5"]}'


@pytest.mark.parametrize("tests", [TESTS, {"kind": "stdin", "inputs": ["2 3"], "outputs": ["5"], "note": 1}])
def test_the_tests_of_a_program_are_checked_and_written_in_one_form(tests):
    assert read_own_row({"prompt": ASK, "tests": tests, "more": 1}, "code") == Task(ASK, {"tests": TESTS})


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "q"}, "no tests"),
        ({"prompt": "q", "tests": ""}, "unreadable"),
        ({"prompt": "q", "tests": "{'kind': 'stdin'}"}, "unreadable"),
        ({"prompt": "q", "tests": {"kind": "stdin", "inputs": ["1"], "outputs": []}}, "no tests"),
        ({"prompt": "Print any of them.", "tests": TESTS}, "several answers"),
        ({"prompt": "", "tests": TESTS}, "empty"),
        ({"prompt": "q", "tests": "", "test_list": ["assert f(1)"]}, "unreadable"),
    ],
)
def test_tests_of_a_program_without_use_are_refused(row, reason):
    assert read_own_row(row, "code").reason == reason


def test_a_program_may_have_the_columns_of_a_public_set():
    row = {"question": "Add.", "input_output": '{"inputs": ["2 3"], "outputs": ["5"]}', "environment": "code"}
    assert read_own_row(row, "code") == Task([{"role": "user", "content": f"Add.\n\n{STDIN}"}], {"tests": TESTS})
    assert read_own_row(row | {"prompt": "q", "tests": TESTS}, "code").prompt == ASK


SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "r"}]
SHAREGPT_ASKED = [*ASK, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"conversations": SHAREGPT}, SHAREGPT_ASKED),
        ({"prompt": SHAREGPT}, SHAREGPT_ASKED),
        ({"conversations": [*SHAREGPT, {"from": "gpt", "value": "b"}]}, SHAREGPT_ASKED),
        ({"messages": [*ASK, {"role": "assistant", "content": "b"}]}, ASK),
        ({"prompt": "", "conversation": '[{"from": "Human", "value": "q"}, {"from": "Bot", "value": "b"}]'}, ASK),
        ({"prompt": "q", "conversations": SHAREGPT}, ASK),
        ({"question": "q", "conversations": SHAREGPT}, ASK),  # the user named it
    ],
)
def test_a_row_without_a_prompt_asks_what_its_conversation_asks(row, asked):
    task = read_own_row(row, "haiku", "question")
    assert task.prompt == asked and task.columns == {key: row[key] for key in row if key != "prompt"}


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([{"from": "gpt", "value": "b"}], "the column conversations holds a list, and messages are needed"),
        ([{"from": "tool", "value": "b"}], "no message with a known role"),
        ([{"from": ["human"], "value": "q"}], "no message with a known role"),
        ([{"from": "human", "value": 3}], "a text is needed"),
        ([*SHAREGPT, *[{"from": "gpt", "value": "b"}] * 2], "the last message of conversations is not the user's"),
        ("[{not json}]", "neither JSON"),
    ],
)
def test_a_conversation_that_asks_nothing_says_what_is_wrong(turns, words):
    task = read_own_row({"conversations": turns}, "haiku")
    assert isinstance(task, Unusable) and words in task.detail
