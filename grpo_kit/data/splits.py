"""The splits of a run's data: which row goes where, how a row is formatted, its options, and how files are written."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from grpo_kit.config import Data, RunConfig
from grpo_kit.data import gold_answers
from grpo_kit.data.steps.row import Row
from grpo_kit.policy.chat import Messages
from grpo_kit.runs.files import hash_of, to_json, write_lines, write_text

SPLITS = ("train", "val", "test")
AGENT = {"type": "responses_api_agents", "name": "math_with_judge_simple_agent"}  # NeMo-Gym's agent for math


def split_environments(
    ids: Mapping[int, str], ties: Mapping[int, int], environments: Mapping[int, str], data: Data, seed: int
) -> dict[str, list[int]]:
    """`split_rows`, with equal numbers of the rows of each environment in test and in val.

    Args:
        ids, ties, data, seed: as `split_rows` takes them.
        environments: of each row, by number.
    """
    names = list(dict.fromkeys(environments[number] for number in ids))
    if len(names) == 1:
        return split_rows(ids, ties, data, seed)
    if data.test_size < len(names):
        raise ValueError(
            f"data.test_size is {data.test_size}, and there are {len(names)} environments ({', '.join(names)}); before "
            f"and after are measured on rows of each. Set data.test_size to {len(names)} or more."
        )
    parts = []
    for place, name in enumerate(names):
        own = {number: key for number, key in ids.items() if environments[number] == name}
        test, val = (size // len(names) + (place < size % len(names)) for size in (data.test_size, data.val_size))
        source = (
            f"{data.source} (environment {name}, whose part of data.test_size={data.test_size} and "
            f"data.val_size={data.val_size} is named here)"
        )
        parts.append(split_rows(own, ties, replace(data, source=source, test_size=test, val_size=val), seed))
    # In turns, so that the first rows of a split, which a short evaluation takes, are of every environment.
    turns = {split: zip_longest(*(part[split] for part in parts)) for split in SPLITS}
    return {split: [number for turn in turns[split] for number in turn if number is not None] for split in SPLITS}


def check_mix(mix: Mapping[str, float], environments: Iterable[str]) -> None:
    """Raise ValueError unless `data.mix` is empty or names exactly the environments of the rows."""
    names = list(environments)
    if mix and set(mix) != set(names):
        example = ", ".join(f"{name}: 1" for name in names)
        raise ValueError(
            f"data.mix names {', '.join(mix)}, and the rows are of {', '.join(names)}; it must give each environment "
            f"its share. Set 'data.mix={{{example}}}', or leave it out for equal shares."
        )


def split_rows(ids: Mapping[int, str], ties: Mapping[int, int], data: Data, seed: int) -> dict[str, list[int]]:
    """Split rows into train, val and test by a hash of seed and id. Rows that are tied to each other stay together.

    Args:
        ids: id of each row, by number.
        ties: number of a row to the number that it is tied to.
        data: gives `test_size` and `val_size` in rows.
        seed: another seed gives another split.

    Returns:
        Numbers of the rows of each split. A group of tied rows that does not fit into test or val goes to train.

    Raises:
        ValueError: no row is left to train on, or test cannot be filled.
    """
    sizes = {"test": data.test_size, "val": data.val_size}
    if len(ids) <= sum(sizes.values()):
        raise ValueError(
            f"{data.source} has {len(ids)} usable rows; data.test_size {data.test_size} and data.val_size "
            f"{data.val_size} leave none to train on. Set data.test_size and data.val_size lower."
        )
    groups: dict[int, list[int]] = {}
    for number in ids:
        groups.setdefault(ties.get(number, number), []).append(number)

    def hash_group(members: list[int]) -> bytes:
        return hashlib.sha256(f"{seed} {min(ids[number] for number in members)}".encode()).digest()

    splits: dict[str, list[int]] = {name: [] for name in SPLITS}
    for members in sorted(groups.values(), key=hash_group):
        with_room = (name for name, size in sizes.items() if len(splits[name]) + len(members) <= size)
        splits[next(with_room, "train")] += members
    filled = len(splits["test"])
    if filled < data.test_size:
        remedy = f"Set data.test_size to {filled}." if filled else "Add a source with other problems."
        raise ValueError(
            f"data.test_size is {data.test_size}, but {data.source} has only {filled} rows for it that are not "
            f"variants of rows in train (same wording, other numbers). {remedy}"
        )
    return splits


def write_splits(
    folder: Path, splits: Mapping[str, Iterable[dict[str, Any]]], manifest: dict[str, Any]
) -> dict[str, Any]:
    """Write `{train,val,test}/data.jsonl` and `manifest.json` into a folder.

    Args:
        folder: an existing folder.
        splits: the rows of each split; no more than one row is held in memory.
        manifest: what the caller knows, with `source_splits` and `run_hash`.

    Returns:
        The manifest as written: with the keys that NeMo-RL's step reads (`train`, `val`, `test`, `mode`), the number of
        rows of each split and its sha256. Its paths are relative to itself.
    """
    counts = dict.fromkeys(SPLITS, 0)

    def count_rows(name: str) -> Iterator[dict[str, Any]]:
        for row in splits[name]:
            counts[name] += 1
            yield row

    for name in SPLITS:
        write_lines(folder / name / "data.jsonl", count_rows(name))
    manifest = {
        **{name: f"{name}/data.jsonl" for name in SPLITS},
        "mode": "resolve",
        **manifest,
        "rows": counts,
        "sha256": {name: hash_of(folder / name / "data.jsonl") for name in SPLITS},
    }
    write_text(folder / "manifest.json", to_json(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def format_row(row: Row, data: Data, seed: int | None = None) -> dict[str, Any]:
    """Format a row as it is written: our columns, and for math those that NeMo-RL and NeMo-Gym read.

    A task beside math has the columns that its reward reads instead. They are the user's where the environment is, so
    nothing else may take their names, such as `question`.

    Args:
        row: problem and gold.
        data: gives the system prompt, the prompt's suffix and the row options.
        seed: given for training rows only, which can then have an option of `add_row_option`.
    """
    columns = {
        "id": row.id,
        "environment": row.environment,
        "prompt": row.ask(data),
        "answer": row.answer,
        "source": row.source,
        "pass_rate": None,  # until the run is screened
    }
    if row.columns is None:
        bare_gold = gold_answers.strip_delimiters(row.answer)
        columns |= {"input": row.problem, "output": bare_gold, "question": row.problem, "expected_answer": bare_gold}
    if seed is not None:
        columns = add_row_option(columns, data, seed)
    if row.columns is None:
        return columns | {"responses_create_params": {"input": columns["prompt"]}, "agent_ref": AGENT}
    return columns | {name: value for name, value in row.columns.items() if name != "answer" or value is not None}


def add_row_option(row: dict[str, Any], data: Data, seed: int) -> dict[str, Any]:
    """Give a training row its option: an answer without thinking, or a stated budget of thinking tokens.

    A share of training rows with each option keeps a policy able to do both. The seed and the row's id alone decide
    which rows, so a row keeps its option when others are added or removed. Nemotron-3-Nano learned both from supervised
    data (report, 3.1.5: the thinking was removed from a tenth of the samples and cut short in 3 %); here the prompt
    asks for it, and the reward judges the answer.

    Args:
        row: a training row with `id` and `prompt` (messages).
        data: gives the shares `no_thinking` and `budgeted`, and `token_budgets` in tokens.
        seed: another seed chooses other rows.

    Returns:
        The row with `enable_thinking` (False: answer without thinking) and `token_budget` (tokens, or None). A budget
        is stated in a sentence at the end of the prompt. Where both shares are 0, the row is returned as it is.

    Example:
        >>> row = {"id": "a", "prompt": [{"role": "user", "content": "1 + 1?"}]}
        >>> add_row_option(row, Data(budgeted=1.0, token_budgets=[64]), seed=1)["prompt"][0]["content"]
        '1 + 1?\\nThink for at most 64 tokens.'
    """
    if not data.no_thinking and not data.budgeted:
        return row
    digest = hashlib.sha256(f"row option {seed} {row['id']}".encode()).digest()
    position = int.from_bytes(digest[:8]) / 2**64  # in [0, 1): no thinking first, then budgets, then the rest
    thinks, budget, prompt = position >= data.no_thinking, None, row["prompt"]
    if thinks and position < data.no_thinking + data.budgeted:
        budget = data.token_budgets[int.from_bytes(digest[8:16]) % len(data.token_budgets)]
        prompt = state_budget(prompt, budget)
    return row | {"prompt": prompt, "enable_thinking": thinks, "token_budget": budget}


def state_budget(prompt: Messages, budget: int) -> Messages:
    """A conversation whose last turn also says for how many tokens to think."""
    content = f"{prompt[-1]['content']}\nThink for at most {budget} tokens."
    return [*prompt[:-1], prompt[-1] | {"content": content}]


def format_splits(
    splits: Mapping[str, Sequence[int]], rows: Sequence[Row], config: RunConfig
) -> dict[str, Iterator[dict[str, Any]]]:
    """The rows of each split as they are written, made one by one."""
    seeds = {"train": config.run.seed}
    return {
        name: map(functools.partial(format_row, data=config.data, seed=seeds.get(name)), (rows[n] for n in numbers))
        for name, numbers in splits.items()
    }
