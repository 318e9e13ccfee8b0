"""Each generated task of structured output has a right reply that earns 1, and near replies that earn 0."""

import copy
import json
from collections import Counter

import pytest

from grpo_kit.environments.structured import make_tasks
from grpo_kit.environments.task import COLUMNS, count_characters
from grpo_kit.environments.writing import write_document
from grpo_kit.rewards.structured_output import structured_output_verdict

TASKS = make_tasks(60, seed=7)


def known_contents(task):
    """What `expected` says, and a sentence in the field that nobody knows."""
    contents, schema = json.loads(task.columns["expected"]), json.loads(task.columns["schema_str"])
    inner = contents
    if task.columns["schema_type"] == "xml":  # the root is the only property
        ((root, inner),) = contents.items()
        schema = schema["properties"][root]
    for name in schema.get("properties", {}):
        if name not in inner:
            assert name == "summary"
            inner[name] = "A sentence."
    return contents


def judge(task, document, nvidia_rule=False):
    schema, kind, known = (task.columns[name] for name in COLUMNS["structured"])
    return structured_output_verdict(document, schema, kind, known, nvidia_rule=nvidia_rule)


def write(task, contents):
    return write_document(contents, task.columns["schema_type"])


def leaves(value, path=()):
    """The path of every value that holds no others."""
    if isinstance(value, dict | list):
        places = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, item in places for leaf in leaves(item, (*path, key))]
    return [path]


def change(contents, path, new):
    """A copy with another value at the path."""
    changed = copy.deepcopy(contents)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new(inner[path[-1]])
    return changed


def other(value):
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}x"


def hollow(value):
    if isinstance(value, dict):
        return {key: hollow(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hollow(item) for item in value]
    return type(value)() if value is not None else None


@pytest.mark.slow  # two schemas of each task are built
def test_the_right_reply_of_every_task_is_paid_by_nemo_gyms_rule_too():
    for number, task in enumerate(TASKS):
        document = write(task, known_contents(task))
        assert judge(task, document) == (1.0, "right"), (task, document)
        if number < 10 or task.columns["schema_type"] in ("csv", "xml"):  # that read numbers by the schema
            assert judge(task, document, nvidia_rule=True) == (1.0, "right"), (task, document)


@pytest.mark.slow
def test_another_value_anywhere_is_not_paid():
    for task in TASKS[:20]:
        contents = known_contents(task)
        for path in leaves(contents):
            if path[-1] != "summary":
                assert judge(task, write(task, change(contents, path, other))).reward == 0.0, (path, task)


def with_first(contents, row, kind):
    """The contents with another first row, where they are a list of rows; else with the row for all."""
    if kind == "xml":
        return dict.fromkeys(contents, row)
    return [row, *contents[1:]] if isinstance(contents, list) else row


@pytest.mark.slow
def test_a_missing_an_extra_an_empty_or_a_fenced_document_is_not_paid():
    for task in TASKS:
        contents, kind = known_contents(task), task.columns["schema_type"]
        row = contents[0] if isinstance(contents, list) else contents
        row = next(iter(row.values())) if kind == "xml" else row
        if kind != "csv":  # whose header is for all rows
            for name in row:
                less = {key: value for key, value in row.items() if key != name}
                assert judge(task, write(task, with_first(contents, less, kind))).reward == 0.0, (name, task)
            assert judge(task, write(task, with_first(contents, row | {"note": "x"}, kind))).reason == "schema_violated"
            nothing = with_first(contents, {}, kind) if kind == "xml" else type(contents)()
            assert judge(task, write(task, nothing)).reward == 0.0
        assert judge(task, write(task, hollow(contents))).reward == 0.0
        right = write(task, contents)
        assert judge(task, f"```{kind}\n{right}\n```").reason == "fenced"
        assert judge(task, f"Here it is:\n\n{right}").reward == 0.0
        assert judge(task, "").reason == "empty"


def test_every_known_value_stands_in_the_prompt():
    """Texts as they are; numbers with or without a comma; dates by their day, month and year."""
    for task in TASKS:
        text = "\n".join(message["content"] for message in task.prompt).replace(",", "").casefold()
        contents = json.loads(task.columns["expected"])
        for path in leaves(contents):
            value = contents
            for key in path:
                value = value[key]
            if isinstance(value, str) and path[-1] != "currency":
                words = value.replace(",", "").casefold()
                assert words in text or words[:4] in text, (path, task)
            if isinstance(value, int | float) and not isinstance(value, bool) and path[-1] != "reminder":
                assert f"{value}" in text or f"{value:.2f}" in text, (path, task)


def test_a_seed_decides_the_tasks_and_more_tasks_begin_with_the_same():
    assert make_tasks(20, seed=7) == TASKS[:20]
    assert make_tasks(20, seed=8) != TASKS[:20]
    assert len({json.dumps(task.prompt) for task in TASKS}) == 60


def test_toml_never_has_to_hold_null():
    tasks = [task.columns for task in make_tasks(300, seed=7) if task.columns["schema_type"] == "toml"]
    assert len(tasks) > 15 and not any("null" in columns["expected"] for columns in tasks)


def test_formats_layouts_and_schemas_vary():
    kinds = Counter(task.columns["schema_type"] for task in TASKS)
    assert kinds.most_common(1)[0][0] == "json" and set(kinds) == {"json", "yaml", "toml", "xml", "csv"}
    assert {tuple(message["role"] for message in task.prompt) for task in TASKS} == {("user",), ("system", "user")}
    whole = "\n".join(message["content"] for task in TASKS for message in task.prompt)
    for words in ("Schema:", "Schema (properties):", "The schema in words:", "json_schema", "breaks its schema"):
        assert words in whole
    schemas = [json.loads(task.columns["schema_str"]) for task in TASKS]
    required = [
        set(schema.get("required", ())) < set(schema["properties"]) for schema in schemas if "items" not in schema
    ]
    assert any(required) and not all(required)
    assert any("$defs" in schema for schema in schemas)


def test_columns_are_texts_and_in_their_order():
    for task in TASKS:
        assert tuple(task.columns) == COLUMNS["structured"]
        assert all(isinstance(value, str) for value in task.columns.values())


def test_prompts_can_be_bounded():
    tasks = make_tasks(30, seed=7, longest_prompt=900)
    assert max(count_characters(task.prompt) for task in tasks) <= 900
    assert tasks[:5] == make_tasks(5, seed=7, longest_prompt=900)


@pytest.mark.parametrize("count, longest, words", [(0, None, "at least 1"), (3, 50, "at most 50 characters")])
def test_what_cannot_be_made_is_refused(count, longest, words):
    with pytest.raises(ValueError, match=words):
        make_tasks(count, seed=1, longest_prompt=longest)
