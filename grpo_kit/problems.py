"""What a policy is measured on: the run's own test split and sets by name, asked in the run's words or a protocol's."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit import prompts, sources, workspace
from grpo_kit.config import RunConfig
from grpo_kit.protocols import PROTOCOLS

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


def load(config: RunConfig, run: workspace.Run) -> list[Problem]:
    """The problems of `evaluation.sets`, at most `num_problems` of each, in order.

    With a protocol the problem alone is followed by the protocol's words. Without one the run's test rows are asked as
    they stand, other sets with `data.system_prompt` and `data.prompt_suffix`. Raises what `rows_of` raises, and
    ValueError for a set named twice or no set at all.
    """
    names = config.evaluation.sets
    if not names or len(set(names)) < len(names):
        raise ValueError(f"evaluation.sets is {names}; it names at least one set, and each once. Correct the list.")
    protocol = PROTOCOLS.get(config.evaluation.protocol or "")
    suffix = run.stages().get("data", {}).get("settings", {}).get("data", {}).get("prompt_suffix", "")
    found = []
    for name in names:
        for row in rows_of(name, run, config)[: config.evaluation.num_problems]:
            prompt = row["prompt"]
            bare = prompt if isinstance(prompt, str) else prompt[-1]["content"].removesuffix(suffix)
            if protocol:
                turns = prompts.messages(bare, protocol.prompt_suffix)
            elif isinstance(prompt, str):
                turns = prompts.messages(bare, config.data.prompt_suffix, config.data.system_prompt)
            else:
                turns = prompt
            found.append(Problem(name, turns, {key: value for key, value in row.items() if key != "prompt"}))
    return found


def rows_of(name: str, run: workspace.Run, config: RunConfig) -> list[dict[str, Any]]:
    """The rows of one set, whole and in order: `test`, the run's own split (messages); a recipe such as `aime2024` or a
    .jsonl file (problem texts).

    Each has `id`, `prompt`, `answer` and `source`, and what other columns there are. The one place that knows what a name
    means. Raises FileNotFoundError for a missing file, ValueError for one without problems or golds.
    """
    if name == "test":
        return workspace.read_lines(run.rows("test"))
    if name in sources.recipe_names():
        taken = sources.read(sources.locate(name, config.data), config.data, config.run.seed)
        kept = [(row.line, row.problem, row.answer) for row in taken if not row.reason]
        return [{"id": f"{name}:{at}", "prompt": asked, "answer": gold, "source": name} for at, asked, gold in kept]
    path = Path(name)
    if path.suffix != ".jsonl":
        known = ", ".join(sources.recipe_names(evaluation=True))
        raise ValueError(
            f"evaluation.sets names {name!r}; a set is `test`, a recipe ({known}) or the path of a .jsonl file. Name one."
        )
    if not path.is_file():
        raise FileNotFoundError(f"evaluation.sets names {name}, and no such file exists. Check the path.")
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
        rows.append({**rest, "id": f"{name}:{number}", "prompt": problem, "answer": answer, "source": source})
    if not rows:
        raise ValueError(f"{name} holds no problem; an accuracy needs one. Name another set.")
    return rows
