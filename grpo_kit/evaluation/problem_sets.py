"""Problems that a policy is measured on: the run's own test split, and named sets.

Without a protocol a problem is asked with the run's system prompt and suffix. A protocol (`config.protocols`)
replaces both.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config import MATH, RunConfig
from grpo_kit.config.protocols import PROTOCOLS
from grpo_kit.data import sources
from grpo_kit.data.cells import read_problem
from grpo_kit.data.columns import read_answer
from grpo_kit.data.files import read_rows
from grpo_kit.policy.chat import build_messages
from grpo_kit.rewards.tools.routing import environment_of, list_judged
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run

PROBLEM_COLUMNS = ("prompt", "problem", "question")
# Arguments that a reward gets besides the columns of the data; a column with such a name would hide the argument.
REWARD_ARGUMENTS = (
    "prompts",
    "completions",
    "completion_ids",
    "environments",
    "prompt_opened_think",
    "trainer_state",
    "log_extra",
    "log_metric",
)


class Problem(NamedTuple):
    """One problem: the name of its set, the conversation that asks it, and the row that the verifier gets."""

    set: str
    prompt: list[dict[str, str]]
    row: dict[str, Any]


def load_problems(config: RunConfig, run: Run) -> list[Problem]:
    """Load the problems of `evaluation.sets`, at most `evaluation.num_problems` of each set, in order.

    Args:
        config: names the sets, the protocol, and the words around a problem.
        run: gives the set `test`, whose prompts are taken as they are where there is no protocol.

    Returns:
        The problems, each with its conversation.

    Raises:
        ValueError: no set or a set twice is named; or as `load_set`.
        FileNotFoundError: as `load_set`.
    """
    names = config.evaluation.sets
    if not names or len(set(names)) < len(names):
        raise ValueError(f"evaluation.sets is {names}; it must name at least one set, and each once. Correct the list.")
    protocol = PROTOCOLS.get(config.evaluation.protocol or "")
    data_settings = run.stages().get("data", {}).get("settings", {}).get("data", {})
    suffix = data_settings.get("prompt_suffix", "")  # the one that the run's own prompts end in
    problems = []
    for name in names:
        for row in load_set(name, config, run)[: config.evaluation.num_problems]:
            prompt = row["prompt"]
            if protocol and environment_of(row) != MATH:  # a protocol is a scorer of math
                continue
            is_text = isinstance(prompt, str)
            if protocol:
                bare_problem = prompt if is_text else prompt[-1]["content"].removesuffix(suffix)
                prompt = build_messages(bare_problem, protocol.prompt_suffix)
            elif is_text:
                prompt = build_messages(
                    prompt, config.data.prompt_suffix, config.data.system_prompt or row.get("system_turn", "")
                )
            problems.append(Problem(name, prompt, {key: value for key, value in row.items() if key != "prompt"}))
    return problems


def load_set(name: str, config: RunConfig, run: Run) -> list[dict[str, Any]]:
    """Load all rows of one set, in order.

    Args:
        name: `test` for the run's own test split, or a source as in `data.source`.
        config: gives `data` and `run.seed`.
        run: gives the set `test`.

    Returns:
        Rows with `id`, `prompt`, `answer` and `source`. The prompt is a list of messages for `test`, and for tasks
        beside math, which have their `environment` and its columns. For other sets it is the problem's text, with its
        own system turn as `system_turn`. Rows of a `.jsonl` file have its other columns too.

    Raises:
        ValueError: the set is unknown, or has no problems or no golds.
        FileNotFoundError: the set is not available.
    """
    if name == "test":
        return read_lines(run.data_file("test"))
    source = sources.locate_source(name, config.data)
    if source.files == (Path(name),) and Path(name).suffix == ".jsonl":
        return _load_jsonl(Path(name), name)
    return [
        {"id": f"{name}:{row.line}", "prompt": row.problem, "answer": row.gold, "source": source.name}
        | ({"system_turn": row.system} if row.system else {})
        | ({"prompt": list(row.prompt), "environment": row.environment, **row.columns} if row.columns else {})
        for row in sources.read_source(source, replace(config.data, limit=None), config.run.seed)
        if row.problem and (row.gold or row.columns) and not row.reason
    ]


def list_environments(config: RunConfig, run: Run) -> list[str]:
    """The environments of the run's rows and of `evaluation.sets`, each once.

    Raises:
        ValueError, FileNotFoundError: as `sources.locate_source`.
    """
    sets = [
        sources.locate_source(name, config.data).recipe.environment for name in config.evaluation.sets if name != "test"
    ]
    return list(dict.fromkeys([*run.environments(), *sets]))


def is_only_judged(config: RunConfig, run: Run) -> bool:
    """Whether judges stand where the verifiers of all problems would, so that there is no accuracy to measure.

    Raises:
        ValueError, FileNotFoundError: as `sources.locate_source`.
    """
    environments = list_environments(config, run)
    return list_judged(config, environments) == environments


def hash_sets(config: RunConfig) -> dict[str, list[str | None]]:
    """Hash the files of `evaluation.sets`.

    Args:
        config: names the sets.

    Returns:
        The sha256 of each file by the set's name; [] for a set that is read from the Hub. The set `test` is left out.

    Raises:
        ValueError, FileNotFoundError: as `sources.locate_source`.
    """
    names = [name for name in config.evaluation.sets if name != "test"]
    return {name: [hash_of(path) for path in sources.locate_source(name, config.data).files] for name in names}


def hash_problems(problems: list[Problem]) -> str:
    """sha256 of problems that do not come from a named set."""
    return hashlib.sha256(json.dumps(problems, sort_keys=True).encode()).hexdigest()


def _load_jsonl(path: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a user's file with all of its columns, which the verifier may need."""
    rows = []
    for line, row in read_rows(path):
        column = next((column for column in PROBLEM_COLUMNS if row.get(column)), None)
        problem, gold = read_problem(row.get(column)), read_answer(row.get("answer"))
        if broken := next((cell for cell in (problem, gold) if cell.reason), None):
            raise ValueError(f"{name}, line {line} {broken.detail} ({broken.reason}). Correct or remove the line.")
        if not problem.text or "answer" not in row:
            raise ValueError(
                f"{name}, line {line} lacks a problem (in one of {', '.join(PROBLEM_COLUMNS)}) or an answer. "
                "Correct the line."
            )
        others = {key: value for key, value in row.items() if key not in (*REWARD_ARGUMENTS, column)}
        others |= {"system_turn": problem.system} if problem.system else {}
        source = str(row.get("source") or path.stem)
        rows.append({**others, "id": f"{name}:{line}", "prompt": problem.text, "answer": gold.text, "source": source})
    if not rows:
        raise ValueError(f"{name} holds no problem; an accuracy needs at least one. Name another set.")
    return rows
