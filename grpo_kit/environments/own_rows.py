"""Rows of a user's file that name their environment in a column: the kit's environments, or the user's own."""

import json
from collections.abc import Mapping
from typing import Any

from grpo_kit.environments.task import COLUMNS, Task, Unusable

ROLES = ("system", "user", "assistant")
# Columns that the kit itself writes, or passes to rewards under these names.
RESERVED = (
    "environment", "prompt", "id", "source", "pass_rate", "prompts", "completions", "completion_ids", "trainer_state",
    "log_extra", "log_metric", "prompt_opened_think",
)  # fmt: skip


def read_own_row(row: Mapping[str, Any], environment: str) -> Task | Unusable:
    """Read a row of a user's file.

    Args:
        row: has `prompt`, a text or a list of messages with `role` and `content`, and the columns of its environment.
        environment: what the row names. Of one that is not the kit's own, every other column is kept.

    Returns:
        The task, or why there is none.

    Example:
        >>> row = {"environment": "haiku", "prompt": "Write about tea.", "season": "autumn"}
        >>> read_own_row(row, "haiku")
        Task(prompt=[{'role': 'user', 'content': 'Write about tea.'}], columns={'season': 'autumn'})
    """
    prompt = _read_prompt(row.get("prompt"))
    if prompt is None:
        rule = f"a text, or messages with a role ({', '.join(ROLES)}) and a content, the last of the user"
        return Unusable("no problem", f"the column prompt must hold {rule}")
    if environment not in COLUMNS:
        return Task(prompt, {str(key): value for key, value in row.items() if key not in RESERVED})
    columns = {name: row.get(name) for name in COLUMNS[environment]}
    for name in ("documents", "aliases", "supporting", "instruction_id_list"):
        if isinstance(columns.get(name), str):  # a CSV file holds text only
            columns[name] = _parse_list(columns[name])
            if columns[name] is None:
                return Unusable("broken column", f"the column {name} must hold a list, in JSON where it is a text")
    for name in ("schema_str", "expected", "kwargs"):
        if isinstance(columns.get(name), dict | list):
            columns[name] = json.dumps(columns[name], ensure_ascii=False)
    return Task(prompt, columns)


def _read_prompt(value: Any) -> list[dict[str, str]] | None:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return None
    turns = [{"role": turn.get("role"), "content": turn.get("content")} for turn in value]
    if not turns or turns[-1]["role"] != "user" or not str(turns[-1]["content"] or "").strip():
        return None
    return turns if all(t["role"] in ROLES and isinstance(t["content"], str) for t in turns) else None


def _parse_list(text: str) -> list[Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None
