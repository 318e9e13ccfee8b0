"""Where the trained policy is least sure of the texts that it learned: the lowest log-prob of each text.

Greedy decoding fails there first. A token that is not the most likely one ends the text as it was learned, whatever the
mean loss is: 99.9 % a token is 37 % for a trace of 1,000 tokens.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

from grpo_kit.training.sft.rows import Row
from grpo_kit.training.sft.trainer import TextTrainer

SCORED, SHOWN = 300, 20  # rows that are scored at most, and that are listed
AROUND = 30  # characters on each side of the token


def find_weakest(trainer: TextTrainer, rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Score texts under the policy as it is, one at a time.

    Args:
        trainer: holds the policy.
        rows: the texts; of more than 300, that many are drawn.
        seed: of the draw.

    Returns:
        `texts`, how many were scored; `greedy`, the share whose every token is the most likely one, so that greedy
        decoding writes the whole text; `lowest`, the median of the texts' lowest log-probs, in nats; and `rows`, the 20
        texts with the lowest one: `place`, `logprob` (None where it is no number), `greedy`, `token` (counted from 1 in
        the reply) of `tokens`, and `text` around that token, which stands between two bars.
    """
    chosen = rows if len(rows) <= SCORED else random.Random(f"weakest {seed}").sample(list(rows), SCORED)
    model, training = trainer.model, trainer.model.training
    model.eval()
    try:
        scored = [_score(trainer, row) for row in chosen]
    finally:
        model.train(training)
    scored.sort(key=lambda row: -math.inf if row["logprob"] is None else row["logprob"])
    return {
        "texts": len(scored),
        "greedy": sum(row["greedy"] for row in scored) / len(scored),
        "lowest": scored[len(scored) // 2]["logprob"],
        "rows": scored[:SHOWN],
    }


def _score(trainer: TextTrainer, row: Row) -> dict[str, Any]:
    columns, start = row.as_trainer_takes_it(), row.prompt_length
    log_probs, is_top = trainer.score_tokens(columns["input_ids"], columns["labels"])
    of_reply = log_probs[start - 1 :]
    lowest = int(of_reply.argmin())  # the first one that is NaN, where one is
    log_prob = float(of_reply[lowest])
    return {
        "place": row.place,
        "logprob": round(log_prob, 4) if math.isfinite(log_prob) else None,
        "greedy": bool(is_top[start - 1 :].all()),
        "token": lowest + 1,
        "tokens": len(row.input_ids) - start,
        "text": show_place(trainer.processing_class, row.input_ids[start:], lowest),
    }


def show_place(tokenizer: Any, ids: Sequence[int], place: int) -> str:
    """The text around one token, which stands between two bars, in one line.

    Args:
        tokenizer: of the tokens.
        ids: the tokens of the reply.
        place: the token's number, from 0.
    """
    before, token, after = (tokenizer.decode(part) for part in (ids[:place], ids[place : place + 1], ids[place + 1 :]))
    cut_before = "..." + before[-AROUND:] if len(before) > AROUND else before
    cut_after = after[:AROUND] + "..." if len(after) > AROUND else after
    return f"{cut_before}|{token}|{cut_after}".replace("\n", "\\n")
