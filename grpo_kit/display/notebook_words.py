"""Rewords messages for notebooks: a cell or a form field instead of a command or an option of the command line."""

import re
import traceback
from pathlib import Path
from typing import Any

from grpo_kit.runs.texts import drop_functions

PACKAGE = Path(__file__).parents[1]
# What does the work of a command in a notebook. For the others the command itself runs in a cell.
CELLS = {
    "env": "the cell *This machine* of notebook 01_setup",
    "plan": "the cell *Will it fit?* of notebook 01_setup",
    "data": "notebook 02_data",
    "screen": "`screen(config, run)` in a cell",
    "sft": "the cell *Learn from traces* of notebook 08_stages",
    "train": "notebook 03_training",
    "prefer": "the cell *Learn from pairs* of notebook 08_stages",
    "evaluate": "the cells *Measure before* of notebook 03_training and *Measure after* of notebook 04_submit",
    "package": "the cell *Pack* of notebook 04_submit",
    "check": "the cell *Check the zip* of notebook 04_submit",
    "submit": "the cell *Submit to Kaggle* of notebook 04_submit",
    "tune": "notebook 05_tuning",
}
OVERRIDES = "in the field `overrides`"
FIELDS = {
    "force": f"`run.force=true` {OVERRIDES}",
    "run": "the field `run_name`",
    "config": "the field `preset`",
    "trials": "the field `trials`",
    "steps": "the field `steps`",
}
RULES = (
    (r"`grpo-kit train --dry-run`", lambda _: "`notebook.show_settings(config)`"),
    (r"`grpo-kit ([a-z]+)([^`]*)`", lambda match: _name_cell(match[1], match[2])),
    (r"`pip ([^`]*)`", lambda match: f"`!pip {match[1]}` in a cell"),
    (r"(?<![\w/`!-])grpo-kit ([a-z]+)\b", lambda match: _name_cell(match[1], "") if match[1] in CELLS else match[0]),
    # An option, with the key that follows in brackets; but not within the backticks of another command.
    (
        r"(`[^`]*`)|(?<![\w-])(?:--([a-z][a-z-]*)|-(c)(?= ))(?: \([a-z]+\.[a-z_]+(?:=\w+)?\))?",
        lambda match: match[1] or _name_field(match[2] or "config"),
    ),
    (r"\b([Rr])un the same command\b", lambda match: f"{match[1]}un this cell"),
    (r"\bthe same command\b", lambda _: "the same cell"),
    (r"\b([Cc])all again\b", lambda match: "Run this cell again" if match[1] == "C" else "run this cell again"),
)


def reword(sentence: str) -> str:
    """A message with the cell or the field in place of each command and option.

    >>> reword("Run `grpo-kit data` first, or use --force (run.force=true).")
    'Run notebook 02_data first, or use `run.force=true` in the field `overrides`.'
    """
    sentence = drop_functions(sentence)
    for pattern, replace in RULES:
        sentence = re.sub(pattern, replace, sentence)
    return re.sub(r"(^|\. )the (?=cell|field|argument)", r"\1The ", sentence)


def _name_cell(command: str, arguments: str) -> str:
    if command not in CELLS:
        return f"`!grpo-kit {command}{arguments}` in a cell"
    settings = [word for word in arguments.split() if "=" in word and not word.startswith("-")]
    settings += ["run.force=true"] * ("--force" in arguments)
    return CELLS[command] + (f" with `{' '.join(settings)}` {OVERRIDES}" if settings else "")


def _name_field(option: str) -> str:
    return FIELDS.get(option, f"the argument `{option.replace('-', '_')}`")


def reword_errors(shell: Any) -> None:
    """Let an IPython shell reword what the kit raises in a cell; without a shell nothing happens."""

    def show(shell: Any, kind: type, error: Exception, trace: Any, tb_offset: int | None = None) -> None:
        frames = traceback.extract_tb(trace)
        if (
            error.args
            and isinstance(error.args[0], str)
            and any(Path(f.filename).is_relative_to(PACKAGE) for f in frames)
        ):
            error.args = (reword(error.args[0]), *error.args[1:])
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)

    if shell is not None:
        shell.set_custom_exc((ValueError, RuntimeError, OSError, TypeError), show)
