"""Sources of problems: a recipe's set, a user's file, a dataset on the Hub, or a generator of the kit.

A source is first located, which reads nothing, and then read. The files of a recipe's set (`data/recipes/NAME.yaml`)
are looked for where `data.paths.NAME` points, then in the folder that the environment variable `GRPO_KIT_DATA` names,
then in Kaggle's mounts. Only without such files is the set read from the Hub.
"""

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from grpo_kit.config import MATH, Data
from grpo_kit.config.environments import check_environment_name
from grpo_kit.data.columns import SourceRow, choose_columns, is_plain, row_of_task
from grpo_kit.data.files import SUFFIX_WORDS, SUFFIXES, Table, get_suffix, open_table
from grpo_kit.data.hub import open_hub_set
from grpo_kit.data.recipes import GENERATED, Recipe, load_recipe
from grpo_kit.environments import tiny_tasks
from grpo_kit.environments.gym_rows import AGENTS, read_gym_row
from grpo_kit.environments.office.workplace import WORKPLACE_AGENT
from grpo_kit.environments.own_rows import read_own_row
from grpo_kit.environments.public_rows import read_public_row
from grpo_kit.environments.task import Task, Unusable
from grpo_kit.nemotron import tiny
from grpo_kit.rewards.tools.routing import environment_of

GENERATED_ROWS = 4000  # problems that are made without `data.limit`
FEWER_ROWS = {"tiny-puzzles": 800}  # there are hardly more different ones
# Generators of tasks beside math: the module in `environments/`, and the environment.
GENERATORS = {
    "structured": ("structured", "structured"),
    "instructions": ("instructions", "instructions"),
    "documents": ("documents", "documents"),
    "office": ("office", "office"),
    "programs": ("code.programs", "code"),
}
CHARACTERS = (
    3  # of English in a token, at least; the longest prompt that a generator makes is this many times the limit
)


@dataclass(frozen=True)
class Source:
    """A located source: its name in the rows, its recipe, its local files. Without files it is read from the Hub."""

    name: str
    recipe: Recipe
    files: tuple[Path, ...] = ()

    @property
    def generated(self) -> bool:
        """Whether the kit makes the problems itself."""
        return self.name in GENERATED


def locate_source(
    item: str, data: Data, environ: Mapping[str, str] = os.environ, filesystem: Path = Path("/")
) -> Source:
    """Find out what an item of `data.source` names and where its files are. Nothing is read.

    Args:
        item: a name of `recipes.GENERATED`, the name of a recipe, the path of a file, or a Hub id (`owner/name`).
        data: gives `paths`, `subset` and `split`.
        environ: where `GRPO_KIT_DATA` is looked up.
        filesystem: the root under which Kaggle mounts its inputs.

    Returns:
        The located source.

    Raises:
        ValueError: the name or the kind of file is unknown.
        FileNotFoundError: a path points to nothing.

    Example:
        >>> locate_source("puzzles", Data()).generated
        True
    """
    if item in GENERATED:
        return Source(item, Recipe(GENERATED[item], "cc0-1.0", "", prompt=["prompt"], answer=["answer"]))
    path = Path(item)
    if path.is_file() or get_suffix(path):
        if not path.is_file():
            raise FileNotFoundError(f"The source {item} is not an existing file. Check the path.")
        if not get_suffix(path):
            raise ValueError(f"The source {item} is not one of {SUFFIX_WORDS}. Convert it to one of them.")
        return Source(path.name, Recipe("the user's own file", "unstated", ""), (path,))
    if path.exists():
        kind = "a folder. Name the file in it" if path.is_dir() else "a device or a pipe. Name a file"
        raise ValueError(f"The source {item} is {kind}.")
    if "/" in item:
        recipe = Recipe("a dataset on the Hub", "unstated", "", hub=item, subset=data.subset, split=data.split)
        return Source(item, recipe)
    recipe = load_recipe(item)
    return Source(item, recipe, _find_files(item, recipe, data.paths, environ, filesystem))


def read_source(
    source: Source, data: Data, seed: int, on_note: Callable[[str], None] = lambda note: None
) -> Iterator[SourceRow]:
    """Read the rows of a source. Each file or Hub set is opened once, when its first row is requested.

    Args:
        source: what `locate_source` returned.
        data: gives `limit`, the largest number of rows to read, and `columns`.
        seed: of generated problems.
        on_note: called with a sentence where the way a file was read had to be guessed.

    Returns:
        The rows in the order of the source, those that cannot be used included.

    Raises:
        ValueError: a file is empty, broken, or lacks a column.
        FileNotFoundError: neither a local file nor the Hub has the set; the message says how to attach it.
        ConnectionError: the connection to the Hub broke.
    """
    return islice(_read_tables(source, data, seed, on_note), data.limit)


def _read_tables(source: Source, data: Data, seed: int, on_note: Callable[[str], None]) -> Iterator[SourceRow]:
    if source.generated and source.name in (*GENERATORS, *tiny_tasks.SOURCES):
        environment, tasks = _make_tasks(source.name, data, seed)
        for line, task in enumerate(tasks, start=1):
            yield row_of_task(line, environment, task)
        return
    for place, table in _open_tables(source, data.limit, seed):
        row = None
        if table.note:
            on_note(table.note)
        for row in _read_table(table, source.recipe, data, place) if table.columns else ():
            yield row
        if row is None:
            raise ValueError(f"{place} holds 0 rows; training needs problems. Give a source that is not empty.")


def _read_table(table: Table, recipe: Recipe, data: Data, place: str) -> Iterator[SourceRow]:
    if recipe.environment != MATH:
        for line, row in table.read_rows(None):
            is_gym = recipe.form == "gym"
            task = read_gym_row(row, recipe.environment) if is_gym else read_public_row(row, recipe.form)
            yield row_of_task(line, recipe.environment, task)
        return
    names_environment = is_plain(recipe) and bool({"environment", "agent_ref"} & set(table.columns))
    reader = None if names_environment else choose_columns(table.columns, recipe, data.columns, place)
    for line, row in table.read_rows(reader.columns() if reader else None):
        if names_environment and (task := _read_task(row, data.columns.prompt, f"{place}, line {line}")):
            yield row_of_task(line, *task)
            continue
        reader = reader or choose_columns(table.columns, recipe, data.columns, place)
        yield reader.read(line, row)


def _read_task(row: dict[str, Any], prompt: str | None, place: str) -> tuple[str, Task | Unusable] | None:
    """The environment and the task of a row in a user's file, which may be NeMo-Gym's; None for a row of math.

    Raises ValueError where the environment is not a plain name.
    """
    name = environment_of(row)
    name = name.strip() if isinstance(name, str) else name
    if name != MATH:
        check_environment_name(name, f"{place}: environment")
        return name, read_own_row(row, name, prompt)
    agent = row.get("agent_ref")
    agents = {agent: environment for environment, agent in AGENTS.items()} | {WORKPLACE_AGENT: "office"}
    if isinstance(agent, dict) and (name := agents.get(str(agent.get("name")))):
        return name, read_gym_row(row, name)
    return None


def _open_tables(source: Source, limit: int | None, seed: int) -> Iterator[tuple[str, Table]]:
    if source.generated:
        rows = enumerate(_generate_rows(source.name, limit or rows_made(source.name), seed), start=1)
        yield source.name, Table(["prompt", "answer"], lambda _: rows)
    elif source.files:
        yield from ((str(path), open_table(path)) for path in source.files)
    else:
        try:
            table = open_hub_set(source.recipe, limit)
        except OSError as error:  # no network, unknown name, no access
            reason = " ".join(str(error).split())[:200]
            raise FileNotFoundError(
                f"The set {source.name!r} has no file on this machine, and the Hub did not give it ({reason}). "
                f"{explain_attaching(source)}"
            ) from None
        yield source.recipe.hub, table


def _make_tasks(name: str, data: Data, seed: int) -> tuple[str, list[Task]]:
    """The environment that a generator's tasks belong to, and the tasks."""
    longest = data.max_prompt_tokens and CHARACTERS * data.max_prompt_tokens
    if name in tiny_tasks.SOURCES:
        tasks = tiny_tasks.make_tasks(name, data.limit or tiny_tasks.ROWS, seed, longest)
        return tiny_tasks.SOURCES[name].environment, tasks
    module, environment = GENERATORS[name]
    make_tasks = importlib.import_module(f"grpo_kit.environments.{module}").make_tasks
    return environment, make_tasks(data.limit or GENERATED_ROWS, seed, longest)


def rows_made(name: str) -> int:
    """How many problems a generator makes without `data.limit`."""
    return FEWER_ROWS.get(name, GENERATED_ROWS)


def _generate_rows(name: str, count: int, seed: int) -> list[dict[str, str]]:
    if name == "tiny-sums":
        return tiny.draw_rows(count, seed)
    from grpo_kit.data import puzzles

    if name == "tiny-puzzles":
        return puzzles.make_rows(count, seed, tuple(puzzles.TINY), puzzles.TINY)
    return puzzles.make_rows(count, seed)


def explain_attaching(source: Source) -> str:
    """The remedy for a set that is neither on this machine nor available from the Hub: how to attach it."""
    if source.recipe.hub is None:
        return f"On Kaggle, add the competition as input; elsewhere, set data.paths.{source.name}=/path/to/its/file."
    download = f"`hf download {source.recipe.hub} --repo-type dataset --local-dir FOLDER` on a machine with a network"
    if "/" in source.name:
        return (
            f"Check the name, the network and, for a private or gated set, HF_TOKEN; or download it with {download} "
            "and give its file as data.source."
        )
    return (
        f"Attach it (on Kaggle: Add Input), or download it with {download}, "
        f"and set data.paths.{source.name}=/path/to/its/file."
    )


def _find_files(
    name: str, recipe: Recipe, paths: Mapping[str, str], environ: Mapping[str, str], filesystem: Path
) -> tuple[Path, ...]:
    """The recipe's local files, sorted; () when there are none."""
    if name in paths:
        given = Path(paths[name])
        files = [given] if given.is_file() else _keep_data_files(given.glob("*") if given.is_dir() else [])
        if not files:
            raise FileNotFoundError(
                f"data.paths.{name} is {given}, and there is no {', '.join(SUFFIXES)} file. Check the path."
            )
        return tuple(files)
    roots = [Path(environ["GRPO_KIT_DATA"])] if environ.get("GRPO_KIT_DATA") else []
    for root in (*roots, filesystem / "kaggle/input", filesystem / "kaggle/input/datasets"):
        for pattern in recipe.files:
            if files := _keep_data_files(root.glob(pattern)):
                return tuple(files)
    return ()


def _keep_data_files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and get_suffix(path))
