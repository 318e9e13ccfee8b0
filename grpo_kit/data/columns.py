"""Columns of a source: which of them hold the problem and the gold, and how a row is read.

A gold is the reference answer that a reply is compared with.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from grpo_kit.config import MATH, Columns
from grpo_kit.data import cells
from grpo_kit.data.cells import Cell
from grpo_kit.data.cleaning import tidy_text
from grpo_kit.data.gold_answers import extract_gold, extract_last_box, extract_worked_gold
from grpo_kit.data.recipes import Recipe
from grpo_kit.environments.own_rows import CONVERSATIONS
from grpo_kit.environments.task import Task, Unusable

# Names that are tried, in this order, where neither the recipe nor `data.columns` names a column.
PROMPT_COLUMNS = ("prompt", "problem", "question", "input", *CONVERSATIONS)
SOLUTION_COLUMNS = ("solution",)  # worked solutions
ANSWER_COLUMNS = (
    "answer", "expected_answer", "final_answer", "ground_truth", "reward_model.ground_truth", "output",
)  # fmt: skip
IMAGE_COLUMNS = ("image", "images")

ColumnPath = tuple[str, ...]  # a column's name, and the fields inside it


class SourceRow(NamedTuple):
    """A row as it was read: its line in the source, its mended problem and gold.

    `reason` (for the funnel) and `detail` (a sentence) are set where the row cannot be used or the recipe drops it.
    `system` is the text of the row's own system turn. A task beside math has an `environment`, its whole `prompt` as
    messages, and the `columns` that its reward reads.
    """

    line: int
    problem: str
    gold: str
    reason: str = ""
    detail: str = ""
    system: str = ""
    environment: str = MATH
    prompt: Sequence[dict[str, str]] = ()
    columns: dict[str, Any] | None = None


def row_of_task(line: int, environment: str, task: Task | Unusable) -> SourceRow:
    """The row of a task beside math. Its text is taken as it is, because the reward may depend on every character."""
    if isinstance(task, Unusable):
        return SourceRow(line, "", "", *task, environment=environment)
    problem = "\n\n".join(turn["content"] for turn in task.prompt if turn["role"] == "user")
    texts = json.dumps([task.prompt, task.columns], ensure_ascii=False)
    if texts.encode("utf-8", "replace").decode("utf-8") != texts:
        detail = "it holds half of a character (a lone surrogate)"
        return SourceRow(line, "", "", "broken characters", detail, environment=environment)
    golds = (task.columns.get(name) for name in ("answer", "expected", "instruction_id_list", "gold_calls"))
    gold = next(filter(None, golds), "")
    gold = gold if isinstance(gold, str) else ", ".join(map(str, gold)) if isinstance(gold, list) else str(gold)
    return SourceRow(line, problem, gold, environment=environment, prompt=task.prompt, columns=task.columns)


@dataclass(frozen=True)
class RowReader:
    """The columns of one table by what they hold."""

    recipe: Recipe
    problem: ColumnPath
    gold: ColumnPath | None
    solution: ColumnPath | None  # a worked solution, for rows without a gold: the gold is its last box
    drop_rules: list[tuple[str, dict[str, Any]]]  # (column, rule of the recipe)
    images: list[str]  # columns whose images belong to the problem

    def columns(self) -> set[str]:
        """Names of the columns that have to be read."""
        paths = (self.problem, self.gold, self.solution)
        return {path[0] for path in paths if path} | {name for name, _ in self.drop_rules} | set(self.images)

    def read(self, line: int, row: dict[str, Any]) -> SourceRow:
        """Read one row of the table."""
        question = _read_cell(row, self.problem, cells.read_problem, "no problem")
        gold = self._read_gold(row)
        reason, detail = next(((cell.reason, cell.detail) for cell in (question, gold) if cell.reason), ("", ""))
        if shown := next((name for name in self.images if row.get(name)), None):
            reason, detail = "image", f"the column {shown} holds an image, and the policy reads text only"
        for column, rule in self.drop_rules:
            value = str(row.get(column, ""))
            if value in rule.get("is", ()) or ("is_not" in rule and value not in rule["is_not"]):
                reason, detail = rule["reason"], rule["why"]
                break
        problem = tidy_text(question.text.removeprefix(self.recipe.prefix).removesuffix(self.recipe.suffix))
        return SourceRow(line, problem, tidy_text(gold.text), reason, detail, tidy_text(question.system))

    def _read_gold(self, row: dict[str, Any]) -> Cell:
        gold = self._read_answer(row) if self.gold else Cell()
        if self.solution and not gold.text.strip() and gold.reason in ("", "no answer", "not finite"):
            read = _read_worked if is_plain(self.recipe) else _read_last_box
            return _read_cell(row, self.solution, read, "no answer")
        return gold

    def _read_answer(self, row: dict[str, Any]) -> Cell:
        if self.recipe.answer_is == "json":
            return _read_cell(row, self.gold, _read_json_answer, "no answer")
        if not is_plain(self.recipe):  # a published set's answers are taken to the letter
            value = _get_field(row, self.gold)
            cell = Cell(value) if isinstance(value, str) else _read_cell(row, self.gold, cells.read_gold, "no answer")
            return cell._replace(text=extract_gold(cell.text))
        return _read_cell(row, self.gold, read_answer, "no answer")


def read_answer(value: Any) -> Cell:
    r"""Read the gold from a cell of an answer column that no recipe describes.

    Args:
        value: an answer, a worked solution, or a conversation whose last reply has the answer.

    Returns:
        The gold, or why there is none.

    Example:
        >>> read_answer(r"2 + 2 = \boxed{4}").text, read_answer("4 apples").text
        ('4', '4 apples')
    """
    cell = cells.read_gold(value)
    if cells.is_conversation(value):
        return _find_worked_gold(cell)
    return cell._replace(text=extract_last_box(cell.text) or extract_gold(cell.text))


def is_plain(recipe: Recipe) -> bool:
    """Whether the recipe names no column, as that of a user's file or Hub set."""
    return not (recipe.prompt or recipe.answer or recipe.solution)


def choose_columns(columns: Sequence[str], recipe: Recipe, named: Columns, place: str) -> RowReader:
    """Decide which columns of a table hold the problem and the gold.

    Args:
        columns: names of the table's columns.
        recipe: says which columns a published set has; that of a user's file names none.
        named: `data.columns` of the configuration, for tables without a recipe; `column.field` names a field of a
            nested column.
        place: the file or Hub set, for messages.

    Returns:
        What reads the table's rows.

    Raises:
        ValueError: the table has no column for the problem, for the gold, or for a rule by which the recipe drops rows.
    """
    problem = _require_column(columns, named.prompt, recipe.prompt, PROMPT_COLUMNS, "prompt", place)
    plain = is_plain(recipe)
    gold = solution = None
    if not (plain and named.answer):
        gold = _first_present(columns, ANSWER_COLUMNS if plain else recipe.answer)
        solution = _first_present(columns, SOLUTION_COLUMNS if plain else recipe.solution)
    if not gold and not solution:
        if plain and not named.answer and problem[0] in CONVERSATIONS:
            gold = problem  # the reply has it
        else:
            usual = ANSWER_COLUMNS + SOLUTION_COLUMNS
            gold = _require_column(columns, named.answer, recipe.answer, usual, "answer", place)
    drop_rules = [(_require_rule_column(columns, rule, place), rule) for rule in recipe.drop]
    images = [name for name in IMAGE_COLUMNS if plain and name in columns]
    return RowReader(recipe, problem, gold, solution, drop_rules, images)


def _find_path(columns: Sequence[str], name: str) -> ColumnPath | None:
    """The path that a name stands for in a table: a column, or `column.field`."""
    if name in columns:
        return (name,)
    alike = [column for column in columns if column.casefold() == name.casefold()]
    if len(alike) == 1:  # Problem, ANSWER
        return (alike[0],)
    path = tuple(name.split("."))
    return path if path[0] in columns and all(path) else None


def _first_present(columns: Sequence[str], names: Sequence[str]) -> ColumnPath | None:
    return next((path for name in names if (path := _find_path(columns, name))), None)


def _require_column(
    columns: Sequence[str], named: str | None, in_recipe: list[str], usual: tuple[str, ...], content: str, place: str
) -> ColumnPath:
    if named is not None and not in_recipe:
        if path := _find_path(columns, named):
            return path
        raise ValueError(
            f"data.columns.{content} is {named!r}, and {place} has the columns {', '.join(columns)}. Name one of them."
        )
    if path := _first_present(columns, in_recipe or usual):
        return path
    remedy = "Check that this is the recipe's set." if in_recipe else f"Name it with data.columns.{content}=..."
    raise ValueError(
        f"{place} has the columns {', '.join(columns)}, but none of {', '.join(in_recipe or usual)}, "
        f"so the {content} cannot be read. {remedy}"
    )


def _require_rule_column(columns: Sequence[str], rule: dict[str, Any], place: str) -> str:
    names = rule["column"] if isinstance(rule["column"], list) else [rule["column"]]
    if path := _first_present(columns, names):
        return path[0]
    raise ValueError(
        f"{place} has no column {' or '.join(names)}, which its recipe needs to drop rows ({rule['reason']}). "
        "Attach the set as it is on the Hub."
    )


def _get_field(row: dict[str, Any], path: ColumnPath) -> Any:
    """The value at a path; a column that a CSV holds as JSON or as Python's repr is parsed on the way."""
    value = row.get(path[0])
    for name in path[1:]:
        value = cells.parse_structure(value) if isinstance(value, str) else value
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _read_cell(row: dict[str, Any], path: ColumnPath, read: Callable[[Any], Cell], empty: str) -> Cell:
    """Read a cell, and complete the detail of its reason with the column's name.

    A field that the column does not have gives the reason `empty`; other empty cells are left to `cleaning.FILTERS`.
    """
    cell, column = read(_get_field(row, path)), ".".join(path)
    if cell.reason:
        reason = "several answers" if cell.reason == "several values" and empty == "no answer" else cell.reason
        return cell._replace(reason=reason, detail=f"the column {column} {cell.detail}")
    if not cell.text and len(path) > 1:
        parent = _get_field(row, path[:-1])
        parent = cells.parse_structure(parent) if isinstance(parent, str) else parent
        if isinstance(parent, dict) and path[-1] not in parent:
            fields = ", ".join(map(str, parent))[:100]
            detail = f"{'.'.join(path[:-1])} has the fields {fields}, and not {path[-1]}"
            return Cell("", empty, detail)
    return cell


def _read_last_box(value: Any) -> Cell:
    cell = cells.read_gold(value)
    return cell._replace(text=extract_last_box(cell.text))


def _read_worked(value: Any) -> Cell:
    return _find_worked_gold(cells.read_gold(value))


def _find_worked_gold(cell: Cell) -> Cell:
    gold = extract_worked_gold(cell.text)
    if gold or cell.reason or not cell.text.strip():
        return cell._replace(text=gold)
    return Cell("", "no answer", "holds a text with neither a box nor a line '#### answer'")


def _read_json_answer(value: Any) -> Cell:
    """The answer of a set that gives a JSON list of answers, as text or as a list."""
    text = value if isinstance(value, str) else ""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
    if isinstance(value, list) and len(value) > 1:
        return Cell(text, "several answers", "holds several golds, and the verifier takes one")
    cell = cells.read_gold(value)
    return cell._replace(text=extract_gold(cell.text))
