"""Read the JSON files that the kit wrote into a run folder. A damaged one is named with its line and the remedy.

Nothing is repaired or left out: a file that was cut short, replaced, or changed by a bad disk has to be put back by
the person whose run it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_kit.runs.texts import name_functions

# A stage that is repeated adds to these, or begins them anew; a kill may leave their last line incomplete.
GROWING = ("metrics.jsonl", "completions.jsonl", "screening.jsonl")
LARGEST = 1 << 30  # bytes of a file without lines, and of a line: both are held in memory
NUMBER, FIGURE, TEXT_OR_NONE = (int, float), (int, float, type(None)), (str, type(None))
FILES = {...: TEXT_OR_NONE}  # sha256 by name
STAGE = {"finished": str, "seconds": NUMBER, "settings": dict, "read": FILES, "wrote": FILES, "steps?": int}
SHARE = (dict, type(None))  # `value` and `ci95`
PROBLEM = {"id": str, "prompt": str, "score": FIGURE, "completions": [str]}
MEASUREMENT = {"pass@1": NUMBER, "ci95": [NUMBER], "n": int, "sampling": {"engine": str}, "problems": [PROBLEM]}
MODE = {"pass@1": NUMBER, "thinking": NUMBER}
EXPERTS = {
    "model": str, "stage": str, "prompts": int, "tokens": int, "top_k": int, "layers": [int], "hits": [[int]],
    "hits_before": [[int]], "changed": [NUMBER], "overlap": [NUMBER], "on_host": [[int]], "lora_pairs": int,
    "lora_pairs_zero": int,
}  # fmt: skip
ROW = {"id": str, "prompt": (str, list), "answer?": (str, int, float, list)}
ROUND = {
    "made_with?": dict, "id?": str, "round?": int, "of?": int, "samples?": int, "right?": int, "tried?": int,
    "pass_rate?": FIGURE, "low?": NUMBER, "high?": NUMBER,
}  # fmt: skip
RECORD = "Put back a copy of it, or move the run's folder away and make the run again."
DATA = name_functions("Put back a copy of it, or prepare the data again with `grpo-kit data --force`.")
LOG = name_functions("Put back a copy of it, or train again with `grpo-kit train --force`.")
ACCURACY = name_functions("Put back a copy of it, or measure again with `grpo-kit evaluate --force`.")
SCREENING = name_functions("Put back a copy of it, or screen again with `grpo-kit screen --force`.")
# {name of a file: (what it holds, what to do when it is damaged)}. A key that ends with `?` may be
# missing, and `...` stands for each other key.
FORMS: dict[str, tuple[Any, str]] = {
    "run.json": ({"stages": {...: STAGE}, "config?": str}, RECORD),
    "manifest.json": ({"rows": {...: int}, "dropped": {...: int}, "read": int, "sha256": {...: str}}, DATA),
    "data.jsonl": (ROW, DATA),
    "dropped.jsonl": ({"source": str, "line": int, "reason": str, "why": str, "problem": str}, DATA),
    "screened.jsonl": (ROW, SCREENING),
    "left_out.jsonl": (ROW, SCREENING),
    "screening.jsonl": (ROUND, "Remove the lines from there on, or move the file away, which loses its samples."),
    "metrics.jsonl": (
        {
            "step": int,
            "seconds": NUMBER,
            "reward?": FIGURE,
            "alarms?": [str],
            "reliefs?": [str],
            "held_out_ci95?": [NUMBER],
        },
        LOG,
    ),
    "completions.jsonl": ({"step": int, "group?": int, "prompt": str, "completion": str, "rewards": dict}, LOG),
    "reference.json": (
        {"made_from": dict, "chosen": [NUMBER], "rejected": [NUMBER]},
        name_functions("Put back a copy of it, or learn from the pairs again with `grpo-kit prefer --force`."),
    ),
    "forecast.json": (dict, "Put back a copy of it, or delete it; only the estimate of the time is lost."),
    "report.json": (
        {"words": str, "before": dict, "after": dict, "modes?": {...: {"before": MODE, "after": MODE}}},
        "Put back a copy of it, or delete it and compare again with `grpo-kit evaluate`.",
    ),
    "before.json": (MEASUREMENT, ACCURACY),
    "after.json": (MEASUREMENT, ACCURACY),
    "judge.json": (
        {
            "judge": {"model": str, "served_model": TEXT_OR_NONE, "file": TEXT_OR_NONE, "policy?": dict},
            "pairs": {"count": int, "source": str, "sha256": str},
            "agreement": SHARE,
            "order_decides": SHARE,
            "first_wins": SHARE,
            "longer_wins": SHARE,
            "longer_is_right": SHARE,
            "no_verdict": NUMBER,
            "judged": int,
            "last_fault?": TEXT_OR_NONE,
            "words": [str],
        },
        name_functions("Put back a copy of it, or measure again with `grpo-kit rewards judge-check`."),
    ),
    "routing.json": ({"model": str, "hits": [list]}, ACCURACY),
    "after_sft_experts.json": (EXPERTS, ACCURACY),
    "after_experts.json": (EXPERTS, ACCURACY),
    "after_prefer_experts.json": (EXPERTS, ACCURACY),
    "score.json": (MEASUREMENT, "Put back a copy of it, or measure again with `grpo-kit score --force`."),
}
NAMES = {dict: "a JSON object", list: "a list", str: "a text", int: "a whole number", float: "a number"}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that the kit wrote.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is damaged. The message names the file, the line and the remedy.
    """
    check_place(path)
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path} is damaged: it has {size} bytes, and at most {LARGEST} are read. {remedy_for(path)}")
    return parse_json(path, path.read_bytes())


def read_lines(path: Path, interrupted: bool = False) -> list[Any]:
    """Read the rows of a JSON Lines file that the kit wrote.

    Args:
        path: the file.
        interrupted: whether to leave out a last line that has no end.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is damaged. The message names the file, the line and the remedy.
    """
    check_place(path)
    rows = []
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LARGEST):
            number += 1
            if line != b"\n" and not (interrupted and not line.endswith(b"\n")):
                rows.append(parse_json(path, line, number))
    return rows


def parse_json(path: Path, data: bytes, line: int | None = None) -> Any:
    """The value of a file, or of one line of it.

    Args:
        path: the file; its name decides what has to be in it.
        data: its bytes, or those of the line.
        line: the line's number, from 1; None for the whole file.

    Raises:
        ValueError: it is damaged. The message names the file, the line and the remedy.
    """
    place = f", line {line}," if line else ""
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        number = line or 1 + data.count(b"\n", 0, error.start)
        raise ValueError(f"{path}, line {number}, is damaged: it is not UTF-8. {remedy_for(path)}") from None
    except json.JSONDecodeError as error:
        if not data.strip(b" \t\r\n\0"):
            what = "it has no text" if data else "it is empty"
            raise ValueError(f"{path}{place} is damaged: {what}. {remedy_for(path)}") from None
        number, reason = line or error.lineno, f"{error.msg} at column {error.colno}"
        raise ValueError(f"{path}, line {number}, is damaged: it is not JSON ({reason}). {remedy_for(path)}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else "a number in it is too long"
        raise ValueError(f"{path}{place} is damaged: {reason}. {remedy_for(path)}") from None
    if misfit := _find_misfit(value, FORMS.get(path.name, (object,))[0]):
        raise ValueError(f"{path}{place} is damaged: {misfit}. {remedy_for(path)}")
    return value


def check_file(path: Path) -> None:
    """Raise ValueError if one of the run's JSON files is damaged; a file of another kind passes."""
    if path.suffix == ".jsonl":
        read_lines(path, path.name in GROWING)
    elif path.suffix == ".json" or (path.is_dir() and path.suffix):
        read_json(path)


def remedy_for(path: Path, again: str = "run the same command again, which makes it anew.") -> str:
    """What to do when this file is damaged."""
    return FORMS[path.name][1] if path.name in FORMS else f"Put back a copy of it, or move it away and {again}"


def check_place(path: Path) -> None:
    """Raise an error that ends with the remedy where one of the run's files is missing, or where it is a folder.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a folder is there.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. {remedy_for(path)}")
    if path.is_dir():
        remedy = remedy_for(path)
        remedy = f"Move it away, then {remedy[0].lower()}{remedy[1:]}"
        raise ValueError(f"{path} is a folder, and a file has to be there. {remedy}")


def _find_misfit(value: Any, form: Any, name: str = "") -> str | None:
    """In what a value differs from its form, in words; None if it fits."""
    kinds = form if isinstance(form, tuple) else (form if isinstance(form, type) else type(form),)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        allowed = [words for kind, words in NAMES.items() if kind in kinds and not (kind is int and float in kinds)]
        return f"{name or 'it'} is {NAMES.get(type(value)) or repr(value)}, not {' or '.join(allowed)}"
    if isinstance(form, Mapping):
        required = [key for key in form if key is not ... and not key.endswith("?")]
        if missing := [key for key in required if key not in value]:
            return f"{name or 'it'} lacks {missing[0]!r}"
        items = [(key, item, form.get(key, form.get(f"{key}?", form.get(...)))) for key, item in value.items()]
    else:
        items = [(number, item, form[0]) for number, item in enumerate(value)] if isinstance(form, list) else []
    misfits = (
        _find_misfit(item, part, f"{name}.{key}" if name else str(key)) for key, item, part in items if part is not None
    )
    return next(filter(None, misfits), None)
