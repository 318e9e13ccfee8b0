"""Puzzles as texts to learn from: the solver's trace as the thought, the answer in a box as the content.

    rows, left_out = solver_traces(make_rows(600, seed=7), count_tokens, limit=7680)
    summarise_traces(rows, left_out, [7680, 512])

A puzzle is left out, with the reason, where its solver has no trace, where the trace ends in another answer than the
row's, and where it does not fit. Nothing is cut.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from grpo_kit.data.puzzles.families import FAMILIES, classify_prompt, solve_prompt
from grpo_kit.data.puzzles.puzzle import AMBIGUOUS, NO_RULE, NO_SEARCH, Solution
from grpo_kit.nemotron import tiny
from grpo_kit.policy.chat import build_messages

NO_PUZZLE, NO_ANSWER, OTHER_ANSWER, TOO_LONG = "not a puzzle", "no answer", "other answer", "too long"
REASONS = (NO_PUZZLE, NO_ANSWER, NO_RULE, AMBIGUOUS, NO_SEARCH, OTHER_ANSWER, TOO_LONG)
SUMS = "sums"  # of the embedded policy, worked out digit by digit as it was taught
CLOSING = "\n</think>\n"  # between thought and content, as the chat template of Nemotron writes them
TOKEN_BATCH = 1000  # completions whose tokens are counted at a time


def solver_traces(
    rows: Iterable[dict[str, Any]],
    count_tokens: Callable[[list[str]], Sequence[int]],
    limit: int | None = None,
    suffix: str = "",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Solve puzzles and write their traces as completions.

    Args:
        rows: puzzles with a `prompt` (a text, or messages whose last user turn is the puzzle) and an `answer`, such as
            a run's training rows or the rows of `make_rows`.
        count_tokens: takes texts and returns the length of each in the policy's tokens.
        limit: the longest completion, in tokens, its end included; None for any.
        suffix: text that is appended to prompts that are plain texts, for example how to write the answer.

    Returns:
        (rows, left out). A row has `prompt` (messages), `completion` (one turn with `reasoning_content` and `content`),
        `answer` (the row's own), `family` (`SUMS` for what the embedded policy knows), `tokens` (of the completion)
        and, where the puzzle has one, its `id`. What is left out has `row` (its place, from 0), `family` (None where it
        is of no family), `reason`, one of `REASONS`, and `detail`, a sentence.

    Raises:
        ValueError: the limit is below 1, or a row has no prompt.

    Example:
        >>> from grpo_kit.data.puzzles import make_rows
        >>> rows, left_out = solver_traces(make_rows(1, 7, ["numeral system"]), lambda texts: map(len, texts))
        >>> rows[0]["completion"][0]["reasoning_content"].splitlines()[-1]
        '67 = 60 + 7: LX VII -> LXVII'
    """
    if limit is not None and limit < 1:
        raise ValueError(f"The limit is {limit} tokens; a completion has at least 1. Set it to 1 or more.")
    traced: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        messages = _read_messages(place, row.get("prompt"), suffix)
        text = next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")
        gold = row.get("answer")
        family, solution = _solve(text)
        known = {"row": place, "family": family}
        if family is None:
            left_out.append(known | {"reason": NO_PUZZLE, "detail": solution.detail})
        elif gold is None or not str(gold).strip():
            left_out.append(known | {"reason": NO_ANSWER, "detail": "The row has no answer to hold the trace against."})
        elif solution.reason:
            left_out.append(known | {"reason": solution.reason, "detail": solution.detail})
        elif not are_equal(family, str(gold), solution.answer):
            detail = f"The trace ends in {solution.answer}, and the row's answer is {gold}."
            left_out.append(known | {"reason": OTHER_ANSWER, "detail": detail})
        else:
            turn = {
                "role": "assistant",
                "reasoning_content": solution.trace,
                "content": f"\\boxed{{{solution.answer}}}",
            }
            new = {"prompt": messages, "completion": [turn], "answer": gold, "family": family}
            traced.append(new | ({"id": row["id"]} if "id" in row else {}) | {"row": place})
    kept = []
    for start in range(0, len(traced), TOKEN_BATCH):
        batch = traced[start : start + TOKEN_BATCH]
        turns = [row["completion"][0] for row in batch]
        lengths = count_tokens([turn["reasoning_content"] + CLOSING + turn["content"] for turn in turns])
        for row, length in zip(batch, lengths, strict=True):
            place, row["tokens"] = row.pop("row"), length + 1  # and the token that ends the turn
            if limit is None or row["tokens"] <= limit:
                kept.append(row)
                continue
            detail = f"The completion has {row['tokens']} tokens, and {limit} fit."
            left_out.append({"row": place, "family": row["family"], "reason": TOO_LONG, "detail": detail})
    return kept, sorted(left_out, key=lambda one: one["row"])


def _solve(text: str) -> tuple[str | None, Solution]:
    if problem := tiny.read_problem(text):
        return SUMS, Solution(str(problem.answer), problem.working)
    return classify_prompt(text), solve_prompt(text)


def are_equal(family: str, gold: str, answer: str) -> bool:
    """Whether two answers of a family are the same text, or as near as the challenge's scorer asks of measures."""
    if gold.strip() == answer:
        return True
    if family not in FAMILIES:
        return False
    tolerance = FAMILIES[family].tolerance
    try:
        a, b = Decimal(gold.strip()), Decimal(answer)
    except InvalidOperation:
        return False
    return tolerance > 0 and a.is_finite() and abs(a - b) <= tolerance * max(abs(a), abs(b))


def summarise_traces(
    rows: Sequence[dict[str, Any]], left_out: Sequence[dict[str, Any]], limits: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Count traces and their lengths by family.

    Args:
        rows: the rows of `solver_traces`.
        left_out: what it left out.
        limits: lengths in tokens, for example the scorer's 7,680 and the preset's completion length.

    Returns:
        One entry for each family that occurs, in the order of `FAMILIES`, then sums, then other prompts: `family`,
        `rows`, `left_out` (reason to number), and where there are rows `median`, `ninetieth` and `longest` (tokens) and
        `within` (limit to the share of the rows that fit).
    """
    table = []
    for family in (*FAMILIES, SUMS, None):
        lengths = sorted(row["tokens"] for row in rows if row["family"] == family)
        reasons = Counter(one["reason"] for one in left_out if one["family"] == family)
        if not lengths and not reasons:
            continue
        entry: dict[str, Any] = {"family": family, "rows": len(lengths), "left_out": dict(reasons.most_common())}
        if lengths:
            entry |= {
                "median": lengths[(len(lengths) - 1) // 2],
                "ninetieth": lengths[(9 * len(lengths) - 1) // 10],
                "longest": lengths[-1],
                "within": {limit: sum(length <= limit for length in lengths) / len(lengths) for limit in limits},
            }
        table.append(entry)
    return table


def format_traces(summary: Sequence[dict[str, Any]]) -> list[str]:
    """The summary as lines of text, one a family."""
    lines = []
    for entry in summary:
        line = f"{entry['family'] or 'other prompts'}: {entry['rows']} traces"
        if entry["rows"]:
            line += f" of {entry['median']} tokens (90th of 100: {entry['ninetieth']}, longest {entry['longest']})"
            line += "".join(f", {share:.1%} within {limit}" for limit, share in entry["within"].items())
        reasons = ", ".join(f"{count} {reason}" for reason, count in entry["left_out"].items())
        lines.append(line + (f"; left out: {reasons}" if reasons else ""))
    return lines


def _read_messages(place: int, prompt: Any, suffix: str) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return build_messages(prompt, suffix)
    turns = prompt if isinstance(prompt, list) else []
    if not turns or not all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns):
        raise ValueError(f"Row {place} has the prompt {prompt!r}; it must be a text or messages. Give puzzles as rows.")
    return turns
