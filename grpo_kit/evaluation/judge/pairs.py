"""Pairs with a known winner, on which a judge is measured: a run's own judged completions, or a file of the user's."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config import MATH, RunConfig
from grpo_kit.environments.reading import ROLES, Refused, read_content, read_messages, read_text
from grpo_kit.policy.chat import Messages, completion_text, split_thinking, template_opens_thinking
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.rewards.tools.calling import reward_name
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.rewards.tools.routing import find_judge
from grpo_kit.rewards.tools.verdicts import is_right
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


def read_pairs(path: Path, limit: int) -> tuple[list[Pair], int]:
    """Read the different pairs of a JSON Lines file, and count the rows that repeat one.

    Args:
        path: each line has `prompt` (a text or messages), `chosen` and `rejected` (texts, or lists of messages whose
            last one is the reply). Thinking before a </think> is left out.
        limit: read at most so many pairs, from the first line on.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ValueError: a line has another form, a reply has no final answer, the two are the same, or another line prefers
            the other one. The message names the line.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Give a JSONL file with prompt, chosen and rejected.")
    if not path.is_file():
        state = "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {state}. Give a JSONL file with prompt, chosen and rejected.")
    if (size := path.stat().st_size) > LONGEST_FILE:
        raise ValueError(f"{path} has {size} bytes; at most {LONGEST_FILE} are read. Give fewer pairs.")
    pairs: dict[str, Pair] = {}
    lines: dict[str, int] = {}
    equal = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            if len(pairs) == limit:
                break
            if line.strip():
                try:
                    pair = _read_pair(line)
                except Refused as refused:
                    raise ValueError(
                        f"Line {number} of {path} is no pair ({refused.args[-1]}). Write an object with prompt, chosen "
                        "and rejected on each line."
                    ) from None
                if opposite := lines.get(_identify(Pair(pair.prompt, pair.rejected, pair.chosen))):
                    raise ValueError(
                        f"Line {number} of {path} prefers the reply that line {opposite} rejects, to the same prompt, "
                        "so neither winner is known. Remove one of the two lines, or both."
                    )
                equal += (key := _identify(pair)) in pairs
                pairs.setdefault(key, pair)
                lines.setdefault(key, number)
    if not pairs:
        raise ValueError(f"{path} holds no pair. Write an object with prompt, chosen and rejected on each line.")
    return list(pairs.values()), equal


def _identify(pair: Pair) -> str:
    """Equal for pairs that a judge sees as the same: blanks around texts, and a text for one message, do not count."""
    turns = [(turn["role"], turn["content"].strip()) for turn in read_messages(pair.prompt, "prompt")]
    return json.dumps([turns, pair.chosen, pair.rejected])


def _read_pair(line: bytes) -> Pair:
    row = _parse(line)
    if not isinstance(row, dict):
        raise Refused("not a row", "it is no object")
    prompt = row.get("prompt")
    read = read_text if isinstance(prompt, str) else read_messages
    replies = [_read_reply(row.get(name), name) for name in ("chosen", "rejected")]
    if replies[0] == replies[1]:
        raise Refused("equal", "chosen and rejected are the same")
    return Pair(read(prompt, "prompt"), *replies)


def _parse(line: bytes) -> Any:
    """The value of a line; refused with the reason where it has none."""
    if len(line.rstrip(b"\r\n")) > LONGEST_LINE:
        raise Refused("too long", f"it has more than {LONGEST_LINE:,} bytes")
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Refused("not UTF-8", "it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise Refused("not JSON", f"it is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise Refused("too deep", "it is nested too deeply") from None
    except ValueError:
        raise Refused("too long", "a number in it is too long") from None


def _read_reply(value: Any, column: str) -> str:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        turn = value[-1]
        role = turn.get("role", turn.get("from", "assistant"))
        if not isinstance(role, str) or ROLES.get(role.lower()) != "assistant":
            raise Refused("no reply", f"the last message of {column} is not the assistant's")
        text = read_content(turn.get("content", turn.get("value")), column)
    else:
        text = read_text(value, column)
    if not (answer := _final_answer(text, opened=False)):
        raise Refused("no answer", f"{column} has no answer: its thinking is not closed, or nothing follows")
    return answer


def make_pairs(config: RunConfig, run: Run, limit: int) -> list[Pair]:
    """Pairs of the run's own completions: a right one and a wrong one of the same group, as its verifier judged them.

    Args:
        config: names the verifiers.
        run: has completions of a training, or several of each problem of an evaluation.
        limit: make at most so many, one of each group, chosen by `run.seed`.

    Returns:
        The pairs; completions without a final answer, equal answers, and pairs that another one contradicts are left
        out.

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
    known = [pair for pair in pairs if Pair(pair.prompt, pair.rejected, pair.chosen) not in pairs]
    if not known:
        raise ValueError(
            f"Run {run.name!r} has no group with a right and a wrong completion, so a judge cannot be measured on it. "
            "Sample several completions of each problem with `grpo-kit evaluate evaluation.num_generations=4`, name a "
            "trained run, or give pairs of your own with --pairs FILE.jsonl."
        )
    return known


def _final_answer(text: str, opened: bool) -> str:
    """What a judge is shown of a completion; "" where the thinking is not closed, as the reward reads it."""
    if text.rfind("<think>") > text.rfind("</think>"):
        return ""
    return split_thinking(text)[1] if opened or "</think>" in text else text.strip()


def _read_groups(config: RunConfig, run: Run) -> Iterator[tuple[str, list[str], list[str]]]:
    """(prompt, right completions, wrong completions) of each group, of the training first."""
    if run.completions.exists():
        grown: dict[tuple[int, int | None, str], tuple[list[str], list[str]]] = {}
        verifiers = {name: _verifier_name(config, name) for name in run.environments()}
        for line in read_lines(run.completions, interrupted=True):
            paid = _find_paid(line["rewards"], verifiers.get(line.get("environment") or MATH))
            if paid is not None and not line.get("turns"):
                group = line["step"], line.get("group"), line["prompt"]
                grown.setdefault(group, ([], []))[not is_right(paid)].append(line["completion"])
        for (*_, prompt), (right, wrong) in grown.items():
            yield prompt, right, wrong
    measured = run.evaluation / "before.json"
    for problem in read_json(measured)["problems"] if measured.exists() else ():
        sides: tuple[list[str], list[str]] = ([], [])
        for completion, paid in zip(problem["completions"], problem.get("paid") or (), strict=False):
            if isinstance(paid, int | float) and not problem.get("turns"):
                sides[not is_right(paid)].append(completion)
        yield completion_text(problem["prompt"]), *sides


def _verifier_name(config: RunConfig, environment: str) -> str | None:
    reward = load_reward(config.rewards_of(environment).reward_funcs[0])
    return None if find_judge(reward) else reward_name(reward)


def _find_paid(rewards: dict[str, Any], verifier: str | None) -> float | None:
    """What the verifier paid. Where several environments have the same one, its name in the record ends in a number."""
    paid = (value for name, value in rewards.items() if verifier and re.sub(r"_\d+$", "", name) == verifier)
    return next((value for value in paid if isinstance(value, int | float)), None)
