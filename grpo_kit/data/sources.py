"""Where problems come from: a recipe's set, a file of the user's, a dataset on the Hub, or a generator of the kit's.

A recipe (`data/recipes/NAME.yaml`) says where a set is, which columns hold problem and gold, and which rows it drops. Its
files are looked for where `data.paths.NAME` says, then in the folder that the environment variable `GRPO_KIT_DATA`
names, then in Kaggle's mounts; the Hub is asked last.
"""

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from grpo_kit.config import Data
from grpo_kit.data.cleaning import tidy_text
from grpo_kit.data.files import SUFFIXES, columns_of
from grpo_kit.data.files import read as read_file
from grpo_kit.data.gold_answers import extract_gold, extract_last_box
from grpo_kit.data.recipes import GENERATED, Recipe, load_recipe
from grpo_kit.nemotron import tiny

PROMPT_COLUMNS = ("prompt", "problem", "question", "input")
ANSWER_COLUMNS = ("answer", "expected_answer", "final_answer", "output")


class Taken(NamedTuple):
    """A row as it came: its line in the source, problem and gold mended, and (reason, why) if the recipe drops it."""

    line: int
    problem: str
    answer: str
    reason: str = ""
    why: str = ""


@dataclass(frozen=True)
class Source:
    """One source that was asked for: its name in the rows, how to read it, and the local files if it has any."""

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
    """The source that `item` names: `tiny-sums`, `puzzles`, a recipe, a file's path, or a Hub id. Nothing is read yet.

    Raises ValueError for an unknown name or kind of file, FileNotFoundError for a path where there is nothing.
    """
    if item in GENERATED:
        return Source(item, Recipe(GENERATED[item], "cc0-1.0", "", prompt=["prompt"], answer=["answer"]))
    path = Path(item)
    if path.is_file() or path.suffix.lower() in SUFFIXES:
        if not path.is_file():
            raise FileNotFoundError(f"data.source is {item}, and no such file exists. Check the path.")
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"data.source is {item}, which is none of {', '.join(SUFFIXES)}. Convert it to one of them."
            )
        return Source(path.name, Recipe("a file of the user's", "unstated", ""), (path,))
    if path.exists():
        raise ValueError(f"data.source is {item}, which is a folder. Name the file in it.")
    if "/" in item:
        return Source(
            item, Recipe("a dataset on the Hub", "unstated", "", hub=item, subset=data.subset, split=data.split)
        )
    chosen = load_recipe(item)
    return Source(item, chosen, _files_of(item, chosen, data.paths, environ, filesystem))


def _files_of(
    name: str, chosen: Recipe, paths: Mapping[str, str], environ: Mapping[str, str], filesystem: Path
) -> tuple[Path, ...]:
    """The recipe's local files, sorted; () when there are none."""
    if name in paths:
        given = Path(paths[name])
        found = [given] if given.is_file() else _data_files(given.glob("*") if given.is_dir() else [])
        if not found:
            raise FileNotFoundError(
                f"data.paths.{name} is {given}, where no {', '.join(SUFFIXES)} file lies. Check the path."
            )
        return tuple(found)
    own = [Path(environ["GRPO_KIT_DATA"])] if environ.get("GRPO_KIT_DATA") else []
    for root in (*own, filesystem / "kaggle/input", filesystem / "kaggle/input/datasets"):
        for pattern in chosen.files:
            if found := _data_files(root.glob(pattern)):
                return tuple(found)
    return ()


def _data_files(paths: Any) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and path.suffix.lower() in SUFFIXES)


def read_source(source: Source, data: Data, seed: int) -> Iterator[Taken]:
    """The source's rows, `data.limit` of them at most.

    Raises ValueError for a file that is empty, broken or without the columns, FileNotFoundError where neither a file nor
    the Hub has the set; then the message says how to attach it.
    """
    if source.generated:
        made = (
            tiny.draw_rows(data.limit or 4000, seed)
            if source.name == "tiny-sums"
            else _puzzles(data.limit or 4000, seed)
        )
        parts = [(source.name, ["prompt", "answer"], enumerate(made, start=1))]
    elif source.files:
        parts = [(str(path), columns_of(path), None) for path in source.files]
    else:
        parts = [_hub(source, data.limit)]
    return islice(chain.from_iterable(_taken(source, data, *part) for part in parts), data.limit)


def _puzzles(count: int, seed: int) -> list[dict[str, Any]]:
    from grpo_kit.data import puzzles

    return puzzles.make_rows(count, seed)


def _taken(
    source: Source, data: Data, where: str, columns: list[str], rows: Iterator[tuple[int, dict[str, Any]]] | None
) -> Iterator[Taken]:
    if not columns:
        raise ValueError(f"{where} holds 0 rows; a run needs problems. Give a source that is not empty.")
    chosen = source.recipe
    asked = _column(columns, data.columns.prompt, chosen.prompt, PROMPT_COLUMNS, "prompt", where)
    worked = _first(columns, chosen.solution)
    gold = _first(columns, chosen.answer)
    if not gold and not worked:
        gold = _column(columns, data.columns.answer, chosen.answer, ANSWER_COLUMNS, "answer", where)
    rules = [(_rule_column(columns, rule, where), rule) for rule in chosen.drop]
    if rows is None:
        wanted = {name.split(".")[0] for name in (asked, gold, worked, *(column for column, _ in rules)) if name}
        rows = read_file(Path(where), sorted(wanted))
    number = 0
    for number, row in rows:
        for column, rule in rules:
            value = str(row.get(column, ""))
            if value in rule.get("is", ()) or ("is_not" in rule and value not in rule["is_not"]):
                yield Taken(number, *_texts(row, chosen, asked, gold, worked)[:2], rule["reason"], rule["why"])
                break
        else:
            yield Taken(number, *_texts(row, chosen, asked, gold, worked))
    if not number:
        raise ValueError(f"{where} holds 0 rows; a run needs problems. Give a source that is not empty.")


def _texts(row: dict[str, Any], chosen: Recipe, asked: str, gold: str | None, worked: str | None) -> tuple[str, ...]:
    """(problem, gold), or with (reason, why) where the row has several golds."""
    problem = tidy_text(_text(_dig(row, asked)).removeprefix(chosen.prefix).removesuffix(chosen.suffix))
    answer = _text(_dig(row, gold)) if gold else ""
    if chosen.answer_is == "json" and answer:
        try:
            golds = json.loads(answer)
        except (ValueError, RecursionError):
            golds = answer
        if isinstance(golds, list) and len(golds) > 1:
            return problem, tidy_text(answer), "several answers", "the set gives several golds, the verifier takes one"
        answer = str(golds[0] if isinstance(golds, list) and golds else golds)
    if not answer.strip() and worked:
        return problem, tidy_text(extract_last_box(_text(row.get(worked))))
    return problem, tidy_text(extract_gold(answer))


def _first(columns: list[str], names: list[str]) -> str | None:
    return next((name for name in names if name.split(".")[0] in columns), None)


def _column(
    columns: list[str], named: str | None, own: list[str], usual: tuple[str, ...], what: str, where: str
) -> str:
    if named is not None and not own:
        if named in columns:
            return named
        raise ValueError(
            f"data.columns.{what} is {named!r}, and {where} has columns {', '.join(columns)}. Name one of them."
        )
    if found := _first(columns, own or list(usual)):
        return found
    raise ValueError(
        f"{where} has columns {', '.join(columns)} and none of {', '.join(own or usual)}; the {what} must stand in one. "
        + ("Check that this is the recipe's set." if own else f"Name it with data.columns.{what}=...")
    )


def _rule_column(columns: list[str], rule: dict[str, Any], where: str) -> str:
    names = rule["column"] if isinstance(rule["column"], list) else [rule["column"]]
    if found := _first(columns, names):
        return found
    raise ValueError(
        f"{where} has no column {' or '.join(names)}, by which its recipe drops rows ({rule['reason']}). Attach the set as it is on the Hub."
    )


def _dig(row: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return row


def _text(value: Any) -> str:
    """A cell as text; TRL's and the Hub's message lists give their last user turn."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        turns = [turn for turn in value if isinstance(turn, dict) and turn.get("role") == "user"]
        return str(turns[-1].get("content", "")) if turns else ""
    return str(value)


def _hub(source: Source, limit: int | None) -> tuple[str, list[str], Iterator[tuple[int, dict[str, Any]]]]:
    """(name, columns, numbered rows) of a dataset on the Hub; streamed when it is large or only its beginning is wanted."""
    chosen = source.recipe
    try:
        if chosen.hub is None:
            raise FileNotFoundError("it is not on the Hub")
        if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
            raise FileNotFoundError("HF_HUB_OFFLINE is set")
        _knock()
        import datasets

        table = datasets.load_dataset(
            chosen.hub, chosen.subset, split=chosen.split, streaming=chosen.streaming or limit is not None
        )
        rows = _numbered(table, chosen.hub)
        first = next(rows, None)  # a dataset that is streamed is first asked for here
    except (OSError, ValueError) as error:  # offline, unknown name, unknown split
        said = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"{source.name!r} is no file here, and the Hub did not give it ({said}). {explain_attaching(source)}"
        ) from None
    return chosen.hub, list(first[1]) if first else [], chain([first] if first else [], rows)


def _numbered(table: Iterable[dict[str, Any]], hub: str) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        for number, row in enumerate(table, start=1):
            yield number, row
    except OSError as error:
        raise ConnectionError(
            f"{hub} broke off after row {number} ({' '.join(str(error).split())[:200]}). Repeat the command; sets that were read whole are kept."
        ) from None


def _knock() -> None:
    """Raise OSError at once where the Hub is out of reach; its own client tries for half a minute. A proxy is believed."""
    if not any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        at = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
        with socket.create_connection((at.hostname, at.port or 443), timeout=5):
            pass


def explain_attaching(source: Source) -> str:
    """How to attach a set that is neither here nor to be had."""
    if source.recipe.hub is None:
        return f"On Kaggle add the competition as input; elsewhere set data.paths.{source.name}=/path/to/its/file."
    fetch = f"`hf download {source.recipe.hub} --repo-type dataset --local-dir FOLDER` where there is a network"
    if "/" in source.name:
        return f"Check name and network, or fetch it with {fetch} and give the path of its file as data.source."
    return f"Attach it (on Kaggle: Add Input), or fetch it with {fetch}, and set data.paths.{source.name}=/path/to/its/file."
