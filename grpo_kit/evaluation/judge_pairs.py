"""Pairs with a known winner, on which a judge is measured: a run's own judged completions, or a file of the user's."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config import MATH, RunConfig
from grpo_kit.environments.reading import Refused, read_messages, read_text
from grpo_kit.policy.chat import Messages, completion_text, split_thinking, template_opens_thinking
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.rewards.tools.calling import reward_name
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.rewards.tools.routing import find_judge
from grpo_kit.runs.reading import read_json, read_lines
from grpo_kit.runs.run import Run

LONGEST_FILE = 1 << 28  # bytes
LONGEST_LINE = 1 << 22


class Pair(NamedTuple):
    """A request and two final answers to it, of which `chosen` is known to be better."""

    prompt: str | Messages
    chosen: str
    rejected: str


def hash_pairs(pairs: Iterable[Pair]) -> str:
    """The sha256 of pairs, in their order."""
    return hashlib.sha256(json.dumps(list(pairs)).encode()).hexdigest()


def read_pairs(path: Path, limit: int) -> list[Pair]:
    """Read the pairs of a JSON Lines file.

    Args:
        path: each line has `prompt` (a text or messages), `chosen` and `rejected` (texts, or lists of messages whose
            last one is the reply). Thinking before a </think> is left out.
        limit: read at most so many.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another form, or its two replies are the same. The message names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Give a JSONL file with prompt, chosen and rejected.")
    if (size := path.stat().st_size) > LONGEST_FILE:
        raise ValueError(f"{path} has {size} bytes; at most {LONGEST_FILE} are read. Give fewer pairs.")
    pairs = []
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            if len(pairs) == limit:
                break
            if line.strip():
                try:
                    pairs.append(_read_pair(line))
                except (ValueError, RecursionError, Refused) as error:
                    reason = error.args[-1] if isinstance(error, Refused) else type(error).__name__
                    raise ValueError(
                        f"Line {number} of {path} is no pair ({reason}). Write an object with prompt, chosen and "
                        "rejected on each line."
                    ) from None
    if not pairs:
        raise ValueError(f"{path} holds no pair. Write an object with prompt, chosen and rejected on each line.")
    return pairs


def _read_pair(line: bytes) -> Pair:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise Refused("not a row", "it is no object")
    prompt = row.get("prompt")
    read = read_text if isinstance(prompt, str) else read_messages
    replies = [_read_reply(row.get(name), name) for name in ("chosen", "rejected")]
    if replies[0] == replies[1]:
        raise Refused("equal", "chosen and rejected are the same")
    return Pair(read(prompt, "prompt"), *replies)


def _read_reply(value: Any, column: str) -> str:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    text = read_text(value, column)
    return read_text(_final_answer(text, opened=False), column)


def make_pairs(config: RunConfig, run: Run, limit: int) -> list[Pair]:
    """Pairs of the run's own completions: a right one and a wrong one of the same group, as its verifier judged them.

    Args:
        config: names the verifiers.
        run: has completions of a training, or several of each problem of an evaluation.
        limit: make at most so many, one of each group, chosen by `run.seed`.

    Returns:
        The pairs; completions without a final answer, and equal answers, are left out.

    Raises:
        ValueError: there are none.
    """
    rng, pairs = random.Random(config.run.seed), {}
    opened = template_opens_thinking(load_tokenizer(config.policy), config.policy.enable_thinking)
    groups = list(_read_groups(config, run))
    rng.shuffle(groups)
    for prompt, right, wrong in groups:
        sides = [[answer for text in side if (answer := _final_answer(text, opened))] for side in (right, wrong)]
        if all(sides) and len(pairs) < limit:
            pair = Pair(prompt, *map(rng.choice, sides))
            if pair.chosen != pair.rejected:
                pairs[pair] = None
    if not pairs:
        raise ValueError(
            f"Run {run.name!r} has no group with a right and a wrong completion, so a judge cannot be measured on it. "
            "Sample several completions of each problem with `grpo-kit evaluate evaluation.num_generations=4`, name a "
            "trained run, or give pairs of your own with --pairs FILE.jsonl."
        )
    return list(pairs)


def _final_answer(text: str, opened: bool) -> str:
    return split_thinking(text)[1] if opened or "</think>" in text else text.strip()


def _read_groups(config: RunConfig, run: Run) -> Iterator[tuple[str, list[str], list[str]]]:
    """(prompt, right completions, wrong completions) of each group, of the training first."""
    if run.completions.exists():
        grown: dict[tuple[int, str], tuple[list[str], list[str]]] = {}
        verifiers = {name: _verifier_name(config, name) for name in run.environments()}
        for line in read_lines(run.completions, interrupted=True):
            paid = _find_paid(line["rewards"], verifiers.get(line.get("environment") or MATH))
            if paid is not None and not line.get("turns"):
                grown.setdefault((line["step"], line["prompt"]), ([], []))[paid <= 0.5].append(line["completion"])
        for (_, prompt), (right, wrong) in grown.items():
            yield prompt, right, wrong
    measured = run.evaluation / "before.json"
    for problem in read_json(measured)["problems"] if measured.exists() else ():
        sides: tuple[list[str], list[str]] = ([], [])
        for completion, paid in zip(problem["completions"], problem.get("paid") or (), strict=False):
            if isinstance(paid, int | float) and not problem.get("turns"):
                sides[paid <= 0.5].append(completion)
        yield completion_text(problem["prompt"]), *sides


def _verifier_name(config: RunConfig, environment: str) -> str | None:
    reward = load_reward(config.rewards_of(environment).reward_funcs[0])
    return None if find_judge(reward) else reward_name(reward)


def _find_paid(rewards: dict[str, Any], verifier: str | None) -> float | None:
    """What the verifier paid. Where several environments have the same one, its name in the record ends in a number."""
    paid = (value for name, value in rewards.items() if verifier and re.sub(r"_\d+$", "", name) == verifier)
    return next((value for value in paid if isinstance(value, int | float)), None)
