"""Pairs that a user brings: a file with `prompt`, `chosen` and `rejected`, texts or messages.

The file is hostile until it is read: its lines are bounded, and every text goes through the readers of the stage `sft`,
which check it on the policy's chat template. A pair that cannot be used is left out and counted by its reason; it never
ends the reading.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from grpo_kit.config import RunConfig
from grpo_kit.data import leaks
from grpo_kit.data.files import TOO_DEEP, open_table
from grpo_kit.environments.reading import Refused
from grpo_kit.evaluation.problem_sets import load_set
from grpo_kit.policy.chat import Messages, completion_text
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run
from grpo_kit.training.preferences.pairs import Pair
from grpo_kit.training.sft.conversations import Example, read_examples
from grpo_kit.training.sft.rows import NO_PREFIX, encode_examples

NEEDED = ("prompt", "chosen", "rejected")
READ = (*NEEDED, "tools", "chat_template_kwargs")
MOST_PAIRS = 100_000  # of a file; NVIDIA made 50,000 and found 10,000 enough
UNLIMITED = 1 << 30  # tokens; `rows.encode_pairs` leaves out what is too long
LeftOutCounts = dict[str, int]
_ONE_THOUGHT = (
    "chosen and rejected answer one prompt, which opens a thought or does not, and only one of them has a thought; "
    "give both a thought or neither, and begin a rejected text that was cut within its thought with <think>"
)


def read_own_pairs(path: Path, config: RunConfig, run: Run, tokenizer: Any) -> tuple[list[Pair], LeftOutCounts]:
    """Read a file of pairs.

    Args:
        path: a file that `data.files.open_table` takes.
        config: gives what is appended to prompts that are texts.
        run: whose validation rows, test rows and evaluation sets must not come in.
        tokenizer: the policy's.

    Returns:
        The pairs, and how many rows were left out, by reason with the line of the first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, lacks a column, has too many rows, or none that can be used.
    """
    pairs: list[Pair] = []
    first: dict[str, list[Any]] = {}  # [count, line, detail] by reason

    def leave_out(reason: str, place: str, detail: str) -> None:
        first.setdefault(reason, [0, place, detail])[0] += 1

    table = open_table(path, lambda line: leave_out("too deep", f"line {line}", f"it {TOO_DEEP}"))
    if missing := [name for name in NEEDED if name not in table.columns]:
        raise ValueError(
            f"{path} lacks the column {missing[0]!r} (it has {', '.join(table.columns)[:200] or 'none'}); a pair has "
            "prompt, chosen and rejected. Rename the columns."
        )
    for line, row in islice(table.read_rows([name for name in READ if name in table.columns]), MOST_PAIRS + 1):
        if len(pairs) + sum(count for count, *_ in first.values()) == MOST_PAIRS:
            raise ValueError(f"{path} has more than {MOST_PAIRS:,} pairs; so many are read. Write fewer.")
        place = f"line {line}"
        try:
            pairs.append(_read_pair(row, place, config, tokenizer))
        except Refused as refused:
            leave_out(refused.args[0], place, refused.args[1])
    held_out = _find_held_out(pairs, config, run)
    for number in sorted(held_out):
        leave_out("a held-out problem", pairs[number].id, "")
    pairs = [pair for number, pair in enumerate(pairs) if number not in held_out]
    pairs = _leave_out_repeated(pairs, leave_out)
    if not pairs:
        reasons = "; ".join(f"{count} {reason} ({place}: {detail})" for reason, (count, place, detail) in first.items())
        raise ValueError(f"{path} holds no pair that can be used: {reasons or 'it is empty'}. Correct the file.")
    return pairs, {f"{reason} (first: {place})": count for reason, (count, place, _) in first.items()}


def _read_pair(row: dict[str, Any], place: str, config: RunConfig, tokenizer: Any) -> Pair:
    for name in NEEDED:
        if row.get(name) in (None, "", []):
            raise Refused("empty", f"its column {name} is empty")
    if _find_cut_thought(row["chosen"]):
        raise Refused("unclosed thought", "its chosen reply never ends its thought with </think>; a rejected one may")
    if cut := _find_cut_thought(row["rejected"]):  # read with an answer, which is taken off again
        row = row | {"rejected": {"role": "assistant", "reasoning_content": cut, "content": "."}}
    replies = [_read_reply(row, name, place, config) for name in ("chosen", "rejected")]
    thinks = ["reasoning_content" in example.reply for example in replies]
    setting = replies[0].enable_thinking
    if setting is None:  # the prompt opens a thought where one of the replies has one
        setting = any(thinks)
    texts = []
    for example in replies:
        rows, left_out = encode_examples(tokenizer, [example._replace(enable_thinking=setting)], UNLIMITED)
        if left_out and left_out[0].reason == NO_PREFIX and thinks[0] != thinks[1]:
            raise Refused("a thought on one side", _ONE_THOUGHT)
        if left_out:
            raise Refused(left_out[0].reason, left_out[0].detail)
        ids = rows[0].input_ids[rows[0].prompt_length :]
        texts.append(tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)]))
    if cut:
        texts[1] = texts[1].partition("</think>")[0].rstrip()
    if texts[0] == texts[1]:
        raise Refused("equal", "chosen and rejected are the same reply")
    prompt, tools = replies[0].prompt, replies[0].tools
    return Pair(place, "own", prompt, *texts, 0, 0, setting, tools, rejected_ends=not cut)


def _find_cut_thought(reply: Any) -> str | None:
    """The thought of a reply that was cut within it: a text behind <think>, or `reasoning_content` with no answer."""
    if isinstance(reply, list | tuple) and len(reply) == 1:
        reply = reply[0]
    message = reply if isinstance(reply, dict) else {"role": "assistant", "content": reply}
    content = message.get("content") if message.get("content") is not None else message.get("value")
    thought = message.get("reasoning_content") if not content else None
    if isinstance(content, str) and content.lstrip().startswith("<think>"):
        thought = content.lstrip().removeprefix("<think>")
    if message.get("role") != "assistant" or message.get("tool_calls") or not isinstance(thought, str):
        return None
    return None if "</think>" in thought else thought.strip() or None


def _read_reply(row: dict[str, Any], name: str, place: str, config: RunConfig) -> Example:
    columns = {key: row.get(key) for key in ("prompt", "tools", "chat_template_kwargs")}
    examples = read_examples(
        columns | {"completion": row[name]}, place, config.data.prompt_suffix, config.data.system_prompt
    )
    if len(examples) > 1:
        raise Refused("several turns", f"its column {name} has several turns of the assistant, and one is compared")
    return examples[0]


def _leave_out_repeated(pairs: list[Pair], leave_out: Callable[[str, str, str], None]) -> list[Pair]:
    """The pairs without those that another contradicts or that repeat one."""
    replies = {(pair.asks, pair.chosen, pair.rejected) for pair in pairs}
    seen, kept = set(), []
    for pair in pairs:
        key = pair.asks, pair.chosen, pair.rejected
        if (pair.asks, pair.rejected, pair.chosen) in replies:
            leave_out("contradicting", pair.id, "another pair prefers the other reply to the same prompt")
        elif key in seen:
            leave_out("repeated", pair.id, "it equals an earlier pair")
        else:
            kept.append(pair)
        seen.add(key)
    return kept


def _find_held_out(pairs: list[Pair], config: RunConfig, run: Run) -> set[int]:
    """The pairs in which a turn or a reply asks, holds or gives away a held-out problem."""
    suffix = config.data.prompt_suffix

    def ask(prompt: str | Messages) -> str:
        return completion_text(prompt if isinstance(prompt, str) else prompt[-1:]).removesuffix(suffix)

    held_out = {split: [ask(row["prompt"]) for row in read_lines(run.data_file(split))] for split in ("val", "test")}
    held_out |= {name: [ask(row["prompt"]) for row in load_set(name, config, run)] for name in config.evaluation.sets}
    turns = [(number, ask([turn])) for number, pair in enumerate(pairs) for turn in pair.prompt]
    texts = turns + [(number, text) for number, pair in enumerate(pairs) for text in (pair.chosen, pair.rejected)]
    problems = [problem for each in held_out.values() for problem in each]
    found = {turns[place][0] for place in leaks.find_leaks([text for _, text in turns], held_out).dropped}
    return found | {texts[place][0] for place in leaks.find_contained([text for _, text in texts], problems)}
