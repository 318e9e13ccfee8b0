"""Labelled cases of an audit, read from a JSON Lines file or from dicts."""

import json
from pathlib import Path
from typing import Any

from grpo_kit.rewards.tools.audit_report import Case

SAMPLE = Path(__file__).resolve().parents[3] / "data" / "reward_cases.jsonl"
_EXAMPLE = {"gold": "4", "completion": "It is 4.", "reward": 1.0, "kind": "sums"}
CASE_RULE = f"A case is a dict such as {_EXAMPLE} (see data/reward_cases.jsonl)"


def load_cases(path: str | Path = SAMPLE) -> list[Case]:
    """Read the cases of a JSON Lines file.

    Keys of each line: `gold`; `completion` (or `pred`); `reward` 1, 0 or null (or `equal`, a bool); `kind` (or
    `category`); `columns`, an object of further columns, beside which `gold` may be missing. Raises ValueError, naming
    the line, for a line without them; FileNotFoundError for a missing file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} does not exist; an audit needs labelled cases. Give an existing JSONL file with --cases."
        )
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (its byte {error.start + 1} is wrong). Save it as UTF-8.") from None
    cases = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is not JSON ({error}). {CASE_RULE}.") from None
        cases.append(read_case(row, f"Line {number} of {path}"))
    return cases


def read_case(row: Any, place: str) -> Case:
    """The case that a dict describes. Raises ValueError, which starts with `place`, where it describes none."""
    try:
        label = float(row["equal"]) if "equal" in row else row["reward"]
        kind = row.get("kind", row.get("category", "all"))
        completion = row["pred"] if "pred" in row else row["completion"]
        columns = dict(row.get("columns") or {})
        gold = row.get("gold", "") if columns else row["gold"]
        return Case(kind, gold, completion, None if label is None else float(label), columns)
    except KeyError as error:
        raise ValueError(f"{place} is not a case: it has no {error}. {CASE_RULE}.") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{place} is not a case ({error}). {CASE_RULE}.") from None
