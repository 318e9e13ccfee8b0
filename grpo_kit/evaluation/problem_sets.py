"""What a policy is measured on: the run's own test split and sets by name, asked in the run's words or a protocol's."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config import RunConfig
from grpo_kit.config.protocols import PROTOCOLS
from grpo_kit.data import sources
from grpo_kit.data.gold_answers import extract_gold
from grpo_kit.policy.chat import build_messages
from grpo_kit.runs.files import hash_of as hash_of_file
from grpo_kit.runs.files import read_lines
from grpo_kit.runs.run import Run

PROBLEM_COLUMNS = ("prompt", "problem", "question")
# What a reward is called with besides the dataset's columns; a column of that name would hide it.
RESERVED = (
    "prompts",
    "completions",
    "completion_ids",
    "prompt_opened_think",
    "trainer_state",
    "log_extra",
    "log_metric",
)


class Problem(NamedTuple):
    """One problem: the set it is of, the conversation that asks it, and the row that the verifier gets."""

    set: str
    prompt: list[dict[str, str]]
    row: dict[str, Any]


def load_problems(config: RunConfig, run: Run) -> list[Problem]:
    """The problems of `evaluation.sets`, at most `num_problems` of each, in order.

    With a protocol the problem alone is followed by the protocol's words. Without one the run's test rows are asked as
    they stand, other sets with `data.system_prompt` and `data.prompt_suffix`. Raises what `load_set` raises, and
    ValueError for a set named twice or no set at all.
    """
    names = config.evaluation.sets
    if not names or len(set(names)) < len(names):
        raise ValueError(f"evaluation.sets is {names}; it names at least one set, and each once. Correct the list.")
    protocol = PROTOCOLS.get(config.evaluation.protocol or "")
    suffix = run.stages().get("data", {}).get("settings", {}).get("data", {}).get("prompt_suffix", "")
    found = []
    for name in names:
        for row in load_set(name, config, run)[: config.evaluation.num_problems]:
            prompt = row["prompt"]
            bare = prompt if isinstance(prompt, str) else prompt[-1]["content"].removesuffix(suffix)
            if protocol:
                turns = build_messages(bare, protocol.prompt_suffix)
            elif isinstance(prompt, str):
                turns = build_messages(bare, config.data.prompt_suffix, config.data.system_prompt)
            else:
                turns = prompt
            found.append(Problem(name, turns, {key: value for key, value in row.items() if key != "prompt"}))
    return found


def hash_sets(config: RunConfig) -> dict[str, list[str | None]]:
    """{set: sha256 of each file it is read from}; the run's own split is not among them, a set on the Hub has no files.

    Raises what `sources.locate_source` raises.
    """
    named = [name for name in config.evaluation.sets if name != "test"]
    return {name: [hash_of_file(path) for path in sources.locate_source(name, config.data).files] for name in named}


def hash_problems(asked: list[Problem]) -> str:
    """sha256 of problems that come from no set with a name."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def load_set(name: str, config: RunConfig, run: Run) -> list[dict[str, Any]]:
    """The rows of one set, whole and in order: `test`, the run's own split (messages), or what `sources` finds by name.

    Each has `id`, `prompt`, `answer` and `source`; those of a .jsonl file have its other columns too. Raises
    FileNotFoundError for a missing set, ValueError for an unknown one or one without problems or golds.
    """
    if name == "test":
        return read_lines(run.data_file("test"))
    source = sources.locate_source(name, config.data)
    if source.files != (Path(name),) or Path(name).suffix != ".jsonl":
        taken = sources.read_source(source, replace(config.data, limit=None), config.run.seed)
        return [
            {"id": f"{name}:{row.line}", "prompt": row.problem, "answer": row.answer, "source": source.name}
            for row in taken
            if row.problem and row.answer and not row.reason
        ]
    return _rows_of_jsonl(name)


def _rows_of_jsonl(name: str) -> list[dict[str, Any]]:
    path = Path(name)
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            column = next(c for c in PROBLEM_COLUMNS if row.get(c))
            problem = row[column] if isinstance(row[column], str) else row[column][-1]["content"]  # TRL's messages
            answer = str(row["answer"])
        except (ValueError, AttributeError, KeyError, IndexError, TypeError, StopIteration):
            raise ValueError(
                f"{name}, line {number} is no object with a problem (one of {', '.join(PROBLEM_COLUMNS)}) and an answer. Correct it."
            ) from None
        rest = {key: value for key, value in row.items() if key not in (*RESERVED, column)}
        source = str(row.get("source") or path.stem)
        rows.append(
            {**rest, "id": f"{name}:{number}", "prompt": problem, "answer": extract_gold(answer), "source": source}
        )
    if not rows:
        raise ValueError(f"{name} holds no problem; an accuracy needs one. Name another set.")
    return rows
