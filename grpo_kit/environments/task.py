"""A task beside math: the messages that the policy is asked, and the columns that the environment's reward reads."""

from collections.abc import Callable
from typing import Any, NamedTuple

# The columns of each environment, in a fixed order. A task has all of them, None where one is unset. Structures are
# JSON texts, since a table of objects would fill every key that another row has with None.
COLUMNS: dict[str, tuple[str, ...]] = {
    "structured": ("schema_str", "schema_type", "expected"),
    "instructions": ("instruction_id_list", "kwargs", "grading_mode"),
    "documents": ("answer", "aliases", "documents", "supporting"),
    "office": ("state", "gold_calls"),
    "code": ("tests",),
    "tiny-office": ("state", "gold_calls"),
}


class Task(NamedTuple):
    """One task.

    Attributes:
        prompt: messages with `role` and `content`: all that the policy is asked.
        columns: those of `COLUMNS`. Texts: `schema_str`, `schema_type`, `expected`, `kwargs`, `grading_mode`, `answer`,
            `state`, `gold_calls`, `tests`; lists of texts: `instruction_id_list`, `documents`, `aliases`; a list of
            numbers from 1: `supporting`.
    """

    prompt: list[dict[str, str]]
    columns: dict[str, Any]


class Unusable(NamedTuple):
    """Why a row gives no task: `reason` is a short name for the funnel, `detail` a sentence."""

    reason: str
    detail: str


def make_task(environment: str, prompt: list[dict[str, str]], **columns: Any) -> Task:
    """A task with all columns of its environment.

    >>> make_task("documents", [{"role": "user", "content": "q"}], answer="a").columns
    {'answer': 'a', 'aliases': None, 'documents': None, 'supporting': None}
    """
    names = COLUMNS[environment]
    assert set(columns) <= set(names), columns
    return Task(prompt, {name: columns.get(name) for name in names})


def count_characters(prompt: list[dict[str, str]]) -> int:
    """Characters of all messages."""
    return sum(len(message["content"]) for message in prompt)


def collect_tasks(draw: Callable[[int], Task], count: int, longest_prompt: int | None) -> list[Task]:
    """Tasks with different prompts, of at most `longest_prompt` characters.

    Args:
        draw: gives the task with a number, from 0; the same number always gives the same task.
        count: number of tasks; a larger count begins with the tasks of a smaller one.
        longest_prompt: largest number of characters of a prompt; None for any.

    Returns:
        So many tasks.

    Raises:
        ValueError: the count is below 1, or the drawn tasks are too few or too long.
    """
    if count < 1:
        raise ValueError(f"Cannot make {count} tasks; the number must be at least 1. Set data.limit to 1 or more.")
    tasks: dict[str, Task] = {}
    draws = 20 * count + 100
    for number in range(draws):
        task = draw(number)
        if longest_prompt is None or count_characters(task.prompt) <= longest_prompt:
            tasks.setdefault("\n".join(message["content"] for message in task.prompt), task)
        if len(tasks) == count:
            return list(tasks.values())
    raise ValueError(
        f"{draws} draws gave {len(tasks)} different tasks with at most {longest_prompt} characters, and {count} were "
        "asked for. Allow longer prompts, or ask for fewer tasks."
    )
