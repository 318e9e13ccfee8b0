"""Columns of a source: which of them hold the problem and the gold, and how a row is read.

A gold is the reference answer that a reply is compared with.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from grpo_kit.config import Columns
from grpo_kit.data.cleaning import tidy_text
from grpo_kit.data.gold_answers import extract_gold, extract_last_box
from grpo_kit.data.recipes import Recipe

# Names that are tried, in this order, where neither the recipe nor `data.columns` names a column.
PROMPT_COLUMNS = ("prompt", "problem", "question", "input")
ANSWER_COLUMNS = ("answer", "expected_answer", "final_answer", "output")


class SourceRow(NamedTuple):
    """A row as it was read: its line in the source, its mended problem and gold.

    `reason` (for the funnel) and `detail` (a sentence) are set where the recipe drops the row.
    """

    line: int
    problem: str
    gold: str
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class RowReader:
    """The columns of one table by what they hold; `column.field` names a field of a nested column."""

    recipe: Recipe
    problem: str
    gold: str | None
    solution: str | None  # a worked solution; its last box is the gold where the gold's column is missing or empty
    drop_rules: list[tuple[str, dict[str, Any]]]  # (column, rule of the recipe)

    def columns(self) -> set[str]:
        """Names of the columns that have to be read."""
        names = (self.problem, self.gold, self.solution, *(column for column, _ in self.drop_rules))
        return {name.split(".")[0] for name in names if name}

    def read(self, line: int, row: dict[str, Any]) -> SourceRow:
        """Read one row of the table."""
        problem = get_text(_get_field(row, self.problem))
        problem = tidy_text(problem.removeprefix(self.recipe.prefix).removesuffix(self.recipe.suffix))
        gold, *dropped = self._read_gold(row)
        for column, rule in self.drop_rules:
            value = str(row.get(column, ""))
            if value in rule.get("is", ()) or ("is_not" in rule and value not in rule["is_not"]):
                dropped = [rule["reason"], rule["why"]]
                break
        return SourceRow(line, problem, gold, *dropped)

    def _read_gold(self, row: dict[str, Any]) -> tuple[str, ...]:
        """(gold,), or (gold, reason, detail) for a row with several golds."""
        text = get_text(_get_field(row, self.gold)) if self.gold else ""
        if self.recipe.answer_is == "json" and text:
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = text
            if isinstance(value, list) and len(value) > 1:
                return tidy_text(text), "several answers", "the set gives several golds, the verifier takes one"
            text = str(value[0] if isinstance(value, list) and value else value)
        if not text.strip() and self.solution:
            return (tidy_text(extract_last_box(get_text(row.get(self.solution)))),)
        return (tidy_text(extract_gold(text)),)


def choose_columns(columns: Sequence[str], recipe: Recipe, named: Columns, place: str) -> RowReader:
    """Decide which columns of a table hold the problem and the gold.

    Args:
        columns: names of the table's columns.
        recipe: says which columns a published set has; that of a user's file names none.
        named: `data.columns` of the configuration, for tables without a recipe.
        place: the file or Hub set, for messages.

    Returns:
        What reads the table's rows.

    Raises:
        ValueError: the table has no column for the problem, for the gold, or for a rule by which the recipe drops rows.
    """
    solution = _first_present(columns, recipe.solution)
    gold = _first_present(columns, recipe.answer)
    problem = _require_column(columns, named.prompt, recipe.prompt, PROMPT_COLUMNS, "prompt", place)
    if not gold and not solution:
        gold = _require_column(columns, named.answer, recipe.answer, ANSWER_COLUMNS, "answer", place)
    drop_rules = [(_require_rule_column(columns, rule, place), rule) for rule in recipe.drop]
    return RowReader(recipe, problem, gold, solution, drop_rules)


def get_text(value: Any) -> str:
    """The text of a cell; of a list of chat messages, the last user turn.

    >>> get_text([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}])
    'q'
    """
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        turns = [turn for turn in value if isinstance(turn, dict) and turn.get("role") == "user"]
        return str(turns[-1].get("content", "")) if turns else ""
    return str(value)


def _first_present(columns: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name.split(".")[0] in columns), None)


def _require_column(
    columns: Sequence[str], named: str | None, in_recipe: list[str], usual: tuple[str, ...], content: str, place: str
) -> str:
    if named is not None and not in_recipe:
        if named in columns:
            return named
        raise ValueError(
            f"data.columns.{content} is {named!r}, and {place} has the columns {', '.join(columns)}. Name one of them."
        )
    if column := _first_present(columns, in_recipe or usual):
        return column
    remedy = "Check that this is the recipe's set." if in_recipe else f"Name it with data.columns.{content}=..."
    raise ValueError(
        f"{place} has the columns {', '.join(columns)}, but none of {', '.join(in_recipe or usual)}, "
        f"so the {content} cannot be read. {remedy}"
    )


def _require_rule_column(columns: Sequence[str], rule: dict[str, Any], place: str) -> str:
    names = rule["column"] if isinstance(rule["column"], list) else [rule["column"]]
    if column := _first_present(columns, names):
        return column
    raise ValueError(
        f"{place} has no column {' or '.join(names)}, which its recipe needs to drop rows ({rule['reason']}). "
        "Attach the set as it is on the Hub."
    )


def _get_field(row: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return row
