"""Texts as the trainer takes them: rendered by the policy's chat template, turned into tokens, checked, and ordered.

A row's prompt must be a true prefix of prompt and reply, token by token, because the policy sees exactly that prompt
when it replies. Nemotron's template breaks this for a reply without a thought whose prompt opens one, so such a row's
prompt is written with `enable_thinking` false. Nothing is cut: a row that does not fit is left out, with its place.
"""

import random
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from grpo_kit.training.sft.conversations import Example, LeftOut, split_thought

STRIPPED, CUT = 0.10, 0.03  # shares of the texts with a thought, of Nemotron 3 Nano's recipe
IGNORED = -100  # the label of a token that is not trained
TOO_LONG, NO_PREFIX = "too long", "prompt is no prefix"  # reasons
BLOCK = 50  # steps whose rows are sorted by length together


class Row(NamedTuple):
    """A text in tokens: those of prompt and reply, and how many of them are the prompt's.

    It ends with the token that ends the turn. A line break that the template writes behind it is never sampled, and a
    policy that was not taught it may find it so unlikely that it makes up most of the loss.
    """

    input_ids: list[int]
    prompt_length: int
    place: str

    def as_trainer_takes_it(self) -> dict[str, list[int]]:
        """The columns of TRL's SFTTrainer; only the reply's tokens, with the end of the turn, are trained."""
        labels = [IGNORED] * self.prompt_length + self.input_ids[self.prompt_length :]
        return {"input_ids": self.input_ids, "labels": labels}


def apply_recipe(examples: Sequence[Example], tokenizer: Any, seed: int) -> list[Example]:
    """Leave out the thought of 10 % of the texts, and cut that of 3 % at varying budgets (`sft.reasoning=recipe`).

    A reply whose thought is cut goes on with the original answer. So the policy learns to answer without a thought, and
    after one that was ended early. Which texts these are depends on their number and the seed alone.

    Args:
        examples: the texts; those without a thought stay as they are.
        tokenizer: the policy's; a budget is a number of its tokens, drawn evenly from 1 to one less than the thought
            has.
        seed: of the draw.

    Source: NVIDIA Nemotron 3 Nano's technical report, section 3.1.
    """
    rng, changed = random.Random(f"recipe {seed}"), list(examples)
    with_thought = [place for place, example in enumerate(examples) if _thought_of(example.reply)]
    stripped, cut = (round(share * len(with_thought)) for share in (STRIPPED, CUT))
    chosen = rng.sample(with_thought, stripped + cut)
    for number, place in enumerate(chosen):
        thought, reply = _thought_of(examples[place].reply), dict(examples[place].reply)
        if "reasoning_content" in reply:
            del reply["reasoning_content"]
        else:
            reply["content"] = split_thought(reply["content"])[1]
        if number >= stripped:
            ids = tokenizer.encode(thought, add_special_tokens=False)
            budget = rng.randint(1, max(1, len(ids) - 1))
            # A budget may end within a character of several tokens.
            reply["reasoning_content"] = tokenizer.decode(ids[:budget]).rstrip("\ufffd").strip() or thought[0]
        # No prompt may open a thought that was left out, also where the row says that the policy thinks.
        setting = False if number < stripped else examples[place].enable_thinking
        changed[place] = examples[place]._replace(reply=reply, enable_thinking=setting)
    return changed


def encode_examples(tokenizer: Any, examples: Sequence[Example], longest: int) -> tuple[list[Row], list[LeftOut]]:
    """Write the texts by the chat template and turn them into tokens.

    Args:
        tokenizer: the policy's.
        examples: the texts.
        longest: the most tokens that a row may have, prompt and reply together.

    Returns:
        The rows, and the texts that the template cannot write, that it changes, or that are longer.
    """
    rows, left_out = [], []
    marks = [token for token in tokenizer.all_special_tokens if token == tokenizer.eos_token or token.startswith("<|")]
    for example in examples:
        outcome = _encode(tokenizer, example, longest, marks)
        (rows if isinstance(outcome, Row) else left_out).append(outcome)
    return rows, left_out


def _encode(tokenizer: Any, example: Example, longest: int, marks: list[str]) -> Row | LeftOut:
    thought = _thought_of(example.reply)
    thinking = bool(thought) if example.enable_thinking is None else example.enable_thinking
    options = {"tools": example.tools, "tokenize": False, "enable_thinking": thinking}
    texts = [*(str(turn.get("content")) for turn in example.prompt), *map(str, example.reply.values())]
    if found := next((mark for mark in marks for text in texts if mark in text), None):
        return LeftOut(
            example.place, "mark of the template", f"a text of it holds {found}, which ends or begins a turn"
        )
    try:
        prompt = tokenizer.apply_chat_template(example.prompt, add_generation_prompt=True, **options)
        text = tokenizer.apply_chat_template([*example.prompt, example.reply], **options)
    except Exception as error:  # a template may raise anything: Jinja's errors, its own, or those of Python
        words = " ".join(str(error).split())[:100] or type(error).__name__
        return LeftOut(example.place, "template", f"the chat template cannot write it ({words})")
    prompt_ids, ids = (tokenizer.encode(each, add_special_tokens=False) for each in (prompt, text))
    if ids[: len(prompt_ids)] != prompt_ids or len(ids) == len(prompt_ids):
        detail = (
            "the chat template writes the prompt in another way where a reply follows, so the policy would learn to "
        )
        detail += "reply to a prompt that it never gets"
        return LeftOut(example.place, NO_PREFIX, detail)
    if tokenizer.eos_token_id not in ids[len(prompt_ids) :]:
        detail = f"the chat template does not end the reply with {tokenizer.eos_token}, so no end would be learned"
        return LeftOut(example.place, "no end", detail)
    reply = text[len(prompt) :]
    if any(part.strip() not in reply for part in (thought or "", split_thought(example.reply["content"])[1])):
        return LeftOut(example.place, "text left out", "the chat template leaves a part of the reply out")
    ids = ids[: ids.index(tokenizer.eos_token_id, len(prompt_ids)) + 1]
    if len(ids) > longest:
        return LeftOut(example.place, TOO_LONG, f"it has {len(ids):,} tokens", len(ids))
    return Row(ids, len(prompt_ids), example.place)


def order_rows(lengths: Sequence[int], batch_size: int, rows_per_step: int, steps: int, seed: int) -> list[int]:
    """The rows of every micro-batch of a training, one after the other.

    Every row is taken once before any is taken again. Where a micro-batch has several rows, rows of similar length
    share one, so that little is padded. The order depends on the seed alone; a training that is resumed, or that takes
    more steps, goes on in it.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a micro-batch.
        rows_per_step: rows of an optimiser step.
        steps: optimiser steps.
        seed: of the shuffling.

    Returns:
        `steps * rows_per_step` numbers of rows.

    Example:
        >>> order_rows([5, 9, 5, 9], batch_size=2, rows_per_step=2, steps=2, seed=0)
        [0, 2, 3, 1]
    """
    needed, order, epoch = steps * rows_per_step, [], 0
    while len(order) < needed:
        rng = random.Random(f"order {seed} {epoch}")
        shuffled = rng.sample(range(len(lengths)), len(lengths))
        if batch_size > 1:
            block = BLOCK * rows_per_step
            blocks = [
                sorted(shuffled[i : i + block], key=lambda row: lengths[row]) for i in range(0, len(shuffled), block)
            ]
            batches = [rows[i : i + batch_size] for rows in blocks for i in range(0, len(rows), batch_size)]
            shuffled = [row for batch in rng.sample(batches, len(batches)) for row in batch]
        order += shuffled
        epoch += 1
    return order[:needed]


def describe_rows(
    rows: Sequence[Row], left_out: Sequence[LeftOut], families: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """What is trained on, in figures: `rows`, their `tokens`, how many of these are `trained`, and what is `left_out`.

    Args:
        rows: what is trained on, at least one.
        left_out: what is not.
        families: of traces, the table by family.

    Returns:
        Counts; `tokens` and `trained` as median, 90th percentile and longest; of each reason its `count`, and the first
        three with `place` and `detail`; of those that are too long the `longest`, in tokens.
    """
    lengths = [len(row.input_ids) for row in rows]
    by_reason: dict[str, dict[str, Any]] = {}
    for each in left_out:
        group = by_reason.setdefault(each.reason, {"count": 0, "examples": []})
        group["count"] += 1
        if len(group["examples"]) < 3:
            group["examples"].append({"place": each.place, "detail": each.detail})
        if each.tokens:
            group["longest"] = max(each.tokens, group.get("longest", 0))
    return {
        "rows": len(rows),
        "tokens": _spread(lengths),
        "trained": _spread([len(row.input_ids) - row.prompt_length for row in rows]),
        "left_out": by_reason,
    } | ({"families": list(families)} if families else {})


def _thought_of(reply: dict[str, Any]) -> str | None:
    """The thought of a reply, in whichever of its fields; None without one."""
    return (reply.get("reasoning_content") or "").strip() or split_thought(reply["content"])[0]


def _spread(lengths: Sequence[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    return {
        "median": round(statistics.median(ordered)),
        "90th": ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))],
        "longest": ordered[-1],
        "sum": sum(ordered),
    }
