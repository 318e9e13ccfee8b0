"""Recipes (`data/recipes/NAME.yaml`): where a published set is, which columns it has, which rows to drop."""

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grpo_kit.environments.public_rows import FORMS
from grpo_kit.environments.task import COLUMNS

RULE_KEYS = {"column", "is", "is_not", "reason", "why"}
GENERATED = {
    "tiny-sums": "sums and differences of two numbers, made by the kit",
    "puzzles": "puzzles of the challenge's six families (bit manipulation, gravity, unit conversion, text encryption, "
    "numeral system, equation transformation), made by the kit",
    "tiny-puzzles": "puzzles of two of the challenge's families (numeral system, unit conversion) in small numbers, "
    "made by the kit",
    "structured": "records to write as JSON, YAML, TOML, XML or CSV by a schema, made by the kit",
    "instructions": "short texts to write under one to four instructions, made by the kit",
    "documents": "questions over several short documents, made by the kit",
    "office": "requests to an office with mail, calendar and tasks, to be done with tools, made by the kit",
    "programs": "small programs and functions to write, with tests, made by the kit",
    "tiny-records": "a line of text to write as a JSON record, made by the kit",
    "tiny-instructions": "a few words to write in capitals, ending in a phrase, made by the kit",
    "tiny-documents": "questions over three documents of one line, made by the kit",
    "tiny-office": "a price to look up and to note with two tools, made by the kit",
}
_PACKAGE = Path(__file__).resolve().parents[1]
# An installed wheel carries the recipes inside the package; in a clone they are in the top-level data folder.
_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parent / "data/recipes")
FOLDER = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])


@dataclass(frozen=True)
class Recipe:
    """The contents of a recipe file; `data/recipes/README.md` explains each key."""

    about: str
    licence: str
    verified: str
    hub: str | None = None
    subset: str | None = None
    split: str = "train"
    rows: int | None = None
    evaluation: bool = False
    streaming: bool = False
    files: list[str] = field(default_factory=list)
    prompt: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    solution: list[str] = field(default_factory=list)
    prefix: str = ""
    suffix: str = ""
    answer_is: str = "text"
    drop: list[dict[str, Any]] = field(default_factory=list)
    environment: str = "math"
    form: str = ""


def list_recipes(evaluation: bool | None = None, environment: str | None = "math") -> list[str]:
    """List the names of the recipes.

    Args:
        evaluation: True: only evaluation sets; False: only training sets; None: all.
        environment: the task that their rows set, such as "math" or "structured"; None: all.

    Returns:
        The names, sorted.

    Example:
        >>> list_recipes(evaluation=True)
        ['aime2024', 'aime2025', 'amc23', 'gsm8k_test', 'math500']
        >>> list_recipes(evaluation=True, environment="instructions")
        ['ifbench_test', 'ifeval']
    """
    recipes = {path.stem: load_recipe(path.stem) for path in sorted(FOLDER.glob("*.yaml"))}
    return [
        name
        for name, recipe in recipes.items()
        if evaluation in (None, recipe.evaluation) and environment in (None, recipe.environment)
    ]


def load_recipe(name: str) -> Recipe:
    """Load the recipe `data/recipes/NAME.yaml`.

    Args:
        name: the file's name without `.yaml`.

    Returns:
        The recipe.

    Raises:
        ValueError: there is no such recipe, or its file has an unknown key or value.

    Example:
        >>> load_recipe("gsm8k").hub
        'openai/gsm8k'
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        names = list_recipes(environment=None)
        similar = difflib.get_close_matches(name, [*names, *GENERATED], n=1)
        remedy = f"Did you mean {similar[0]}?" if similar else "Name one of them, or give the path of a file."
        raise ValueError(
            f"{name!r} is not a recipe, a file or a Hub dataset (owner/name); "
            f"the recipes are {', '.join(names)}. {remedy}"
        )
    keys = OmegaConf.to_container(OmegaConf.load(path))
    if unknown := set(keys) - {key.name for key in fields(Recipe)}:
        raise ValueError(f"{path} has unknown keys: {', '.join(sorted(unknown))}. Remove or correct them.")
    recipe = Recipe(**keys)
    _require_form(recipe, path)
    # In YAML's short form a comma ends the value; the rest of the sentence would silently become a key.
    if unknown := {key for rule in recipe.drop for key in rule} - RULE_KEYS:
        raise ValueError(
            f"{path} has a drop rule with unknown keys: {', '.join(sorted(unknown))}. Quote values that contain commas."
        )
    return recipe


def _require_form(recipe: Recipe, path: Path) -> None:
    """Math rows have columns that the recipe names, the rows of other environments a form that a reader knows."""
    if recipe.environment not in ("math", *COLUMNS):
        raise ValueError(
            f"{path} has the environment {recipe.environment!r}; the environments are math, {', '.join(COLUMNS)}. "
            "Name one of them."
        )
    forms = [form for form, environment in FORMS.items() if environment == recipe.environment]
    forms = [""] if recipe.environment == "math" else ["gym", *forms]
    if recipe.form not in forms:
        names = ", ".join(map(repr, forms))
        raise ValueError(
            f"{path} has the form {recipe.form!r}; rows of {recipe.environment} have {names}. Name one of these."
        )
