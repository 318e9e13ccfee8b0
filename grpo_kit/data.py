"""From any set of problems to clean, split, traceable rows: `data/{train,val,test}/data.jsonl` and `manifest.json`.

A source is the embedded `tiny-sums`, a local JSONL, CSV or Parquet file, or a dataset id on the Hub. All go through
the same door: two columns are picked, the gold is taken from a worked solution where there is one, empty and
repeated problems are dropped and counted, and the split goes by a hash of the normalised problem, so no problem
stands in two splits and the same inputs give the same bytes.
"""

import csv
import hashlib
import io
import json
import re
import time
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from grpo_kit import prompts, row_options, tiny, workspace
from grpo_kit.config import Data, RunConfig, to_yaml

PROMPT_COLUMNS = ("prompt", "problem", "question", "input")
ANSWER_COLUMNS = ("answer", "expected_answer", "final_answer", "output")
SPLITS = ("train", "val", "test")


def prepare(config: RunConfig, run: workspace.Run) -> dict[str, Any]:
    """Write the run's data and return its manifest; a run whose data stands already is left as it is.

    Raises FileNotFoundError for a missing file, ValueError for one without usable columns, rows, or enough of them.
    """
    started = time.monotonic()
    settings = {"data": config.data.identity(), "seed": config.run.seed}
    local = Path(config.data.source)
    reads = [local] if local.is_file() else []
    if run.is_done("data", settings, reads, config.run.force):
        return json.loads(run.manifest.read_text())

    table = read_source(config.data, config.run.seed)
    rows, dropped = clean(table, config.data)
    splits = split(rows, config.data, config.run.seed)
    splits["train"] = [row_options.with_option(row, config.data, config.run.seed) for row in splits["train"]]
    with workspace.new_folder(run.manifest.parent) as folder:
        for name, part in splits.items():
            workspace.write_lines(folder / name / "data.jsonl", part)
        manifest = {
            **{name: f"{name}/data.jsonl" for name in SPLITS},
            "mode": "resolve",
            "source_splits": [config.data.split],
            "run_hash": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16],
            "source": config.data.source,
            "rows": {name: len(part) for name, part in splits.items()},
            "read": len(table),
            "dropped": dropped,
            "sha256": {name: workspace.hash_of(folder / name / "data.jsonl") for name in SPLITS},
        }
        workspace.write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    wrote = [run.manifest, *(run.rows(name) for name in SPLITS)]
    run.note("data", settings, reads, wrote, time.monotonic() - started, to_yaml(config))
    return manifest


def read_source(data: Data, seed: int) -> list[dict[str, Any]]:
    """The source's rows as they are, every value of a CSV a string (`0011` stays `0011`)."""
    if data.source == "tiny-sums":
        return tiny.rows(data.limit or 4000, seed)
    path = Path(data.source)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".csv", ".parquet"):
        if not path.is_file():
            raise FileNotFoundError(f"data.source is {data.source}, and no such file exists. Check the path.")
        rows = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[suffix](path)
        return rows[: data.limit]
    if path.exists():
        raise ValueError(
            f"data.source is {data.source}, which is neither .jsonl, .csv nor .parquet. Convert it to one of them."
        )
    return _read_hub(data)


def clean(table: list[dict[str, Any]], data: Data) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(rows with `id`, `prompt` (messages), `answer`, `source`; how many were dropped for which reason)."""
    if not table:
        raise ValueError(f"{data.source} holds 0 rows; a run needs problems. Give a source that is not empty.")
    columns = list(dict.fromkeys(key for row in table for key in row))
    asked = _column(columns, data.columns.prompt, PROMPT_COLUMNS, "prompt", data.source)
    gold = _column(columns, data.columns.answer, ANSWER_COLUMNS, "answer", data.source)
    rows, seen, dropped = [], set(), Counter()
    for row in table:
        problem, answer = _text(row.get(asked)).strip(), gold_of(_text(row.get(gold)))
        key = normalise(problem)
        reason = "no problem" if not key else "no answer" if not answer else "repeated problem" if key in seen else None
        if reason:
            dropped[reason] += 1
            continue
        seen.add(key)
        rows.append(
            {
                "id": hashlib.sha256(key.encode()).hexdigest()[:16],
                "prompt": prompts.messages(problem, data.prompt_suffix, data.system_prompt),
                "answer": answer,
                "source": data.source if data.source == "tiny-sums" else Path(data.source).name,
            }
        )
    if not rows:
        why = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
        raise ValueError(
            f"{data.source} has no usable row in columns {asked!r} and {gold!r} ({why}). Name others with data.columns.prompt and data.columns.answer."
        )
    return rows, dict(dropped)


def split(rows: list[dict[str, Any]], data: Data, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows shuffled by a hash of seed and problem, cut into test, val and (all that is left) train."""
    held_out = data.test_size + data.val_size
    if len(rows) <= held_out:
        raise ValueError(
            f"{data.source} has {len(rows)} usable rows, and data.test_size {data.test_size} with data.val_size "
            f"{data.val_size} leaves none to train on. Set data.test_size and data.val_size lower."
        )
    ordered = sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row['id']}".encode()).digest())
    return {
        "train": ordered[held_out:],
        "val": ordered[data.test_size : held_out],
        "test": ordered[: data.test_size],
    }


def normalise(problem: str) -> str:
    """What makes two problems the same: compatibility forms, case and white space do not count.

    >>> normalise("  What is\\n2 + 2? ") == normalise("what is 2 + 2?")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", problem).casefold().split())


def gold_of(answer: str) -> str:
    """The final answer in a gold column: what follows the last line-opening `#### ` (GSM8K's mark), else all of it.

    >>> gold_of("48/2 = <<48/2=24>>24\\n#### 1,072")
    '1,072'
    """
    marked = re.findall(r"^#### (.+)$", answer, flags=re.MULTILINE)
    return (marked[-1] if marked else answer).strip()


def _column(columns: list[str], named: str | None, usual: tuple[str, ...], what: str, source: str) -> str:
    if named is not None:
        if named in columns:
            return named
        raise ValueError(
            f"data.columns.{what} is {named!r}, and {source} has columns {', '.join(columns)}. Name one of them."
        )
    for name in usual:
        if name in columns:
            return name
    raise ValueError(
        f"{source} has columns {', '.join(columns)} and none of {', '.join(usual)}; the {what} must stand in one. "
        f"Name it with data.columns.{what}=..."
    )


def _text(value: Any) -> str:
    """A cell as text; TRL's and the Hub's message lists give their last user turn."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
        turns = [turn for turn in list(value) if isinstance(turn, dict) and turn.get("role") == "user"]
        return str(turns[-1].get("content", "")) if turns else ""
    return str(value)


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON ({error}); each line holds one object. Correct or remove the line."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} holds no object but {line[:40]!r}; each line is an object with columns. Correct or remove it."
            )
        rows.append(row)
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    csv.field_size_limit(2**24)  # the default of 128 KiB refuses long solutions
    reader = csv.DictReader(io.StringIO(_decoded(path), newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num} has another number of fields than the header ({len(reader.fieldnames)}). Correct the row."
                )
            rows.append(row)
    except csv.Error as error:
        raise ValueError(
            f"{path}, the row after line {reader.line_num} is not CSV ({error}). Correct the row."
        ) from None
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is not readable Parquet ({str(error).splitlines()[0]}). Fetch the file again."
        ) from None


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None


def _read_hub(data: Data) -> list[dict[str, Any]]:
    import datasets

    try:
        table = datasets.load_dataset(data.source, data.subset, split=data.split, streaming=data.limit is not None)
    except (OSError, ValueError) as error:  # offline, unknown name, unknown split
        raise FileNotFoundError(
            f"data.source is {data.source!r}; it is no file here, and the Hub did not give it ({' '.join(str(error).split())[:200]}). "
            "Check name and network, or give the path of an attached copy."
        ) from None
    return list(table.take(data.limit) if data.limit is not None else table)
