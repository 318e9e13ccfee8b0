"""math_reward: 1.0 when the boxed answer after the thinking equals the gold exactly, as a rational number or as text.

Paste this file into a notebook cell as it is; it needs nothing but the standard library.

Covered: integers, decimals, `a/b`, `\\frac{a}{b}`, signs, thousands commas, `$`, `%` and spacing around them; other
answers match as text after the same tidying. Not covered: algebra, sets, intervals, units. Nothing is evaluated.
"""

import re
from fractions import Fraction

_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
_FRAC = re.compile(r"([+-]?)\\[dt]?frac\{([^{}]{1,300})\}\{([^{}]{1,300})\}")
_LONGEST = 300  # characters of an answer that are read as a number; a longer one is compared as text


def math_reward(completions, answer, **kwargs) -> list[float | None]:
    """1.0 right, 0.0 wrong or unanswered, None when the gold is empty (TRL then skips the sample).

    `completions`: strings or TRL's message lists; `answer`: the golds, one a completion, plain or in a box.
    What stands before the last `</think>` does not count; a `<think>` that is never closed gets 0.0; a completion with
    neither tag is read whole. Raises ValueError when the two lists differ in length.
    """
    if len(completions) != len(answer):
        raise ValueError(
            f"math_reward got {len(completions)} completions and {len(answer)} answers; each completion needs its gold. "
            "Pass the dataset's answer column unchanged."
        )
    return [_score(completion, gold) for completion, gold in zip(completions, answer)]


def _score(completion, gold) -> float | None:
    gold = "" if gold is None else str(gold)
    boxed = _last_box(gold)
    wanted = _tidy(gold if boxed is None else boxed)
    if not wanted:
        return None
    text = completion if isinstance(completion, str) else "".join(turn.get("content") or "" for turn in completion)
    before, closed, after = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return 0.0
    said = _last_box(after if closed else text)
    if not said or not said.strip():
        return 0.0
    said = _tidy(said)
    left, right = _number(wanted), _number(said)
    if left is not None and right is not None:
        return float(left == right)
    return float(wanted == said)


def _last_box(text: str) -> str | None:
    """What stands in the last `\\boxed{}`, braces balanced; "" when it is never closed, None when there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start:i]
    return ""


def _tidy(answer: str) -> str:
    for mark in ("\\left", "\\right", "\\!", "\\,", "\\;", "\\$", "$", "\\%", "%"):
        answer = answer.replace(mark, "")
    return " ".join(answer.replace("\u2212", "-").replace("{,}", ",").split()).strip(" .")


def _number(text: str) -> Fraction | None:
    """The exact value of a plain number or fraction; None for anything else, a zero denominator included."""
    text = text.replace(" ", "")
    if not text or len(text) > _LONGEST:
        return None
    match = _FRAC.fullmatch(text)
    if match:
        sign, top, bottom = match.groups()
    else:
        sign, (top, slash, bottom) = "", text.partition("/")
        bottom = bottom if slash else "1"
    if not (
        _NUMBER.fullmatch(top) and _NUMBER.fullmatch(bottom) and re.search(r"\d", top) and re.search(r"\d", bottom)
    ):
        return None
    if not (top + bottom).isascii():
        return None
    top, bottom = Fraction(top.replace(",", "")), Fraction(bottom.replace(",", ""))
    if bottom == 0:
        return None
    return (-top if sign == "-" else top) / bottom
