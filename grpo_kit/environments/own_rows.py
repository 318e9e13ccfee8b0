"""Rows of a user's file that name their environment in a column: the kit's environments, or the user's own."""

from typing import Any

from grpo_kit.environments.code import program_rows
from grpo_kit.environments.code.column import read_tests
from grpo_kit.environments.office import WORLDS
from grpo_kit.environments.office.world import read_row
from grpo_kit.environments.reading import ROLES, Refused, give_unusable, read_messages, read_structure, write_json
from grpo_kit.environments.task import COLUMNS, Task

LISTS = ("documents", "aliases", "supporting", "instruction_id_list")  # as JSON where a file holds text only
TEXTS = ("schema_str", "expected", "kwargs", "state", "gold_calls")  # JSON; a structure is written as such
CONVERSATIONS = ("messages", "conversations", "conversation")  # a row without `prompt` asks what one of these asks
# Columns that the kit itself writes, or passes to rewards under these names.
RESERVED = (
    "environment", "prompt", "id", "source", "pass_rate", "prompts", "completions", "completion_ids", "trainer_state",
    "environments", "log_extra", "log_metric", "prompt_opened_think",
)  # fmt: skip


@give_unusable
def read_own_row(row: dict[str, Any], environment: str, asks: str | None = None) -> Task:
    """Read a row of a user's file.

    Args:
        row: has a prompt, a text or a list of messages, in the column `prompt`, else in `asks` or one of CONVERSATIONS,
            and the columns of its environment. A reply at the end of a conversation, which the policy is to write, is
            left out; not in `prompt`, which is asked to its end.
        environment: what the row names. Of one that is not the kit's own, every other column is kept.
            A row of `code` without `tests` may have the columns of a public set (`code/program_rows.py`).
        asks: a column of prompts that the user named.

    Returns:
        The task; an `Unusable` where the row gives none.

    Example:
        >>> row = {"environment": "haiku", "prompt": "Write about tea.", "season": "autumn"}
        >>> read_own_row(row, "haiku")
        Task(prompt=[{'role': 'user', 'content': 'Write about tea.'}], columns={'season': 'autumn'})
    """
    if environment == "code" and row.get("tests") is None and (form := program_rows.find_form(row)):
        return program_rows.read_program(row, form)
    place = next((name for name in ("prompt", asks, *CONVERSATIONS) if name and row.get(name)), "prompt")
    asked = read_structure(row[place], place) if _is_list(row.get(place)) else row.get(place)
    prompt = read_messages(asked if place == "prompt" else _leave_out_reply(asked), place)
    if environment not in COLUMNS:
        columns = {str(name): value for name, value in row.items() if name not in RESERVED}
        write_json(columns, "of the row")
        return Task(prompt, columns)
    if environment == "code":
        statement = "\n\n".join(message["content"] for message in prompt)
        return Task(prompt, {"tests": read_tests(row.get("tests"), statement)})
    columns = {name: row.get(name) for name in COLUMNS[environment]}
    for name in LISTS:
        if columns.get(name) is not None:
            columns[name] = read_structure(columns[name], name)
            if not isinstance(columns[name], list):
                raise Refused("no list", f"the column {name} must hold a list, in JSON where it is a text")
    for name in TEXTS:
        if isinstance(columns.get(name), dict | list):
            columns[name] = write_json(columns[name], name)
    write_json(columns, "of the row")
    if environment in WORLDS:
        read_row(WORLDS[environment], **columns)
    return Task(prompt, columns)


def _is_list(value: Any) -> bool:
    """Whether a cell is a list of messages that a file holds as text."""
    return isinstance(value, str) and value.lstrip().startswith("[{") and value.rstrip().endswith("}]")


def _leave_out_reply(turns: Any) -> Any:
    last = turns[-1] if isinstance(turns, list | tuple) and turns else None
    role = (last.get("role") or last.get("from")) if isinstance(last, dict) else None
    return turns[:-1] if isinstance(role, str) and ROLES.get(role.lower()) == "assistant" else turns
