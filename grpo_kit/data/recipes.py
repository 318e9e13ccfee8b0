"""Recipes: where a published set of problems is, which columns it has, and which rows to drop (`data/recipes/NAME.yaml`)."""

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

GENERATED = {
    "tiny-sums": "sums and differences of two numbers, made by the kit",
    "puzzles": "the challenge's six families of puzzles, made by the kit",
}
_HERE = Path(__file__).resolve().parents[1]
# An installed wheel carries the recipes inside the package; in a clone they lie in the top-level data folder.
FOLDER = next((p for p in (_HERE / "recipes", _HERE.parent / "data/recipes") if p.is_dir()), _HERE / "recipes")


@dataclass(frozen=True)
class Recipe:
    """A recipe as its file has it; `data/recipes/README.md` says what each key means."""

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


def list_recipes(evaluation: bool | None = None) -> list[str]:
    """Names of the recipes: of all, or of those that are (or are not) sets to be judged by."""
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    return [name for name in names if evaluation is None or load_recipe(name).evaluation == evaluation]


def load_recipe(name: str) -> Recipe:
    """The recipe `name`. Raises ValueError for an unknown one, or for a file with unknown keys."""
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, [*list_recipes(), *GENERATED], n=1)
        raise ValueError(
            f"{name!r} is no recipe, file or Hub dataset (owner/name); recipes are {', '.join(list_recipes())}."
            + (f" Did you mean {near[0]}?" if near else " Name one of them, or give a path.")
        )
    keys = OmegaConf.to_container(OmegaConf.load(path))
    if unknown := set(keys) - {f.name for f in fields(Recipe)}:
        raise ValueError(f"{path} has unknown keys {', '.join(sorted(unknown))}. Remove or correct them.")
    return Recipe(**keys)
