"""Tasks are collected without repetitions, and have all columns of their environment."""

import pytest

from grpo_kit.environments.task import COLUMNS, Task, collect_tasks, count_characters, make_task


def draw(number):
    """Tasks 0, 1 and 2 over and over, of which the last is long."""
    text = ("a", "b", "c" * 50)[number % 3]
    return Task([{"role": "system", "content": "s"}, {"role": "user", "content": text}], {"number": number})


def test_a_prompt_is_taken_once_and_the_first_time():
    assert [task.columns["number"] for task in collect_tasks(draw, 3, None)] == [0, 1, 2]
    assert [task.columns["number"] for task in collect_tasks(draw, 2, 10)] == [0, 1]


def test_too_few_tasks_are_refused():
    with pytest.raises(ValueError, match="180 draws gave 3 different tasks with at most None characters, and 4"):
        collect_tasks(draw, 4, None)
    with pytest.raises(ValueError, match="160 draws gave 2 different tasks with at most 10 characters, and 3"):
        collect_tasks(draw, 3, 10)
    with pytest.raises(ValueError, match="Cannot make -1 tasks"):
        collect_tasks(draw, -1, None)


def test_a_task_has_the_columns_of_its_environment_in_their_order():
    for environment, names in COLUMNS.items():
        last = {names[-1]: "x"}
        assert list(make_task(environment, [], **last).columns.items())[-1] == (names[-1], "x")
        assert tuple(make_task(environment, [], **last).columns) == names


def test_the_characters_of_all_messages_count():
    assert count_characters(draw(0).prompt) == 2
