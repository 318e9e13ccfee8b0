r"""math_answer decides whether the final answer of a math reply equals the gold: 1.0 right, 0.0 wrong, None for a
gold that cannot be used.

Paste this whole file into a notebook cell, or import it. GRPOTrainer calls `math_reward` with the dataset's `answer`
column. A verdict takes three steps. The file finds the answer (after the last </think>: the last box, then <answer>,
####, "answer is", then a last line that states a value). It compares both answers exactly where rational arithmetic
is enough, and algebra by its values at several points. It asks math-verify where a text has two meanings, where a
branch of a root or logarithm matters, and where it does not know a notation, in a child process that may use 1 s of
processor time for each verdict.

It reads numbers in every usual spelling, mixed numbers, percentages, bases, units, tuples, lists, sets, intervals,
matrices, inequalities, equations, text and choice letters. It compares forms piece by piece, so a subset, a superset or
a bound around the gold is wrong, and what does not exist (0/0) equals nothing. An unfinished calculation is wrong
(84 - 37 for 47, 8/2 for 4, 2x + 7x for 9x), and so is an equation that is not solved yet (2x = 6 for x = 3). A fraction
may stay unreduced (6/8 for 3/4), and a power, a root or a factored form may stay as it is. It does not judge
proofs, convert units or understand answers that only the question explains.
Nothing in a reply is ever run as Python. What math-verify decides needs Linux or macOS and `pip install math-verify`.
"""

import atexit
import contextlib
import json
import math
import os
import random
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

DEADLINE = 1.0  # seconds of processor time that the comparisons of one verdict may use
PATIENCE = 60.0  # seconds of wall time after which a comparison counts as lost, on a machine that is very busy
LONGEST = 2000  # characters; a longer answer is not compared and not remembered
REASONS = ("right", "wrong", "no_box", "empty_box", "unclosed_box", "unclosed_think", "hedged")
REASONS += ("unevaluated", "too_costly", "timed_out", "unreadable", "unusable_gold")


class Verdict(NamedTuple):
    """A reward (1.0, 0.0, or None for an unusable gold) and the one of REASONS that led to it."""

    reward: float | None
    reason: str


def math_reward(
    completions: Sequence,
    answer: Sequence,
    prompt_opened_think: bool | Sequence[bool] = False,
    **kwargs,
) -> list[float | None]:
    r"""1.0 where the final answer equals the gold, 0.0 where it does not, None where the gold is unusable.

    Args:
        completions: texts or message lists; of several turns the last one of the assistant is judged. TRL's
            `reasoning_content` counts as thinking that is closed.
        answer: one gold for each completion: text, LaTeX, a number or a solution in GSM8K's form.
        prompt_opened_think: whether the chat template put <think> into the prompt, so that a completion without
            </think> is unfinished and earns 0. A bool, or a column of the dataset.
        kwargs: other columns. If `log_metric` is among them (TRL passes it), the share of each reason is logged as
            `math_answer/<reason>`.

    Returns:
        One reward for each completion.

    Raises:
        ValueError: the lengths differ.
        ImportError: an answer needs math-verify, and it is not installed or the system is Windows.

    Example:
        >>> math_reward([r"so \boxed{\frac{1}{2}}", r"\boxed{3}"], answer=["0.5", "4"])
        [1.0, 0.0]
    """
    if len(completions) != len(answer):
        raise ValueError(
            f"math_reward got {len(completions)} completions and {len(answer)} answers; each "
            "completion needs its own gold. Pass the answer column repeated once per completion."
        )
    opened = prompt_opened_think
    flags = [opened] * len(answer) if isinstance(opened, bool) else opened
    verdicts = [math_verdict(*row) for row in zip(completions, answer, flags, strict=True)]
    if log_metric := kwargs.get("log_metric"):
        counts = Counter(verdict.reason for verdict in verdicts)
        for reason in REASONS:
            log_metric(f"math_answer/{reason}", counts[reason] / max(len(verdicts), 1))
    return [verdict.reward for verdict in verdicts]


def math_verdict(completion: str | list, answer: object, prompt_opened_think: bool = False) -> Verdict:
    r"""The reward of one completion and its reason.

    The same gold and answer get the same verdict, however busy the machine is: a comparison is limited by processor
    time, a lost one is made again, and a verdict of `timed_out` is not remembered.

    >>> math_verdict(r"Either \boxed{3} or \boxed{4}", "4")
    Verdict(reward=0.0, reason='hedged')
    """
    gold = None if answer is None else _read_gold(str(answer)[: 20 * LONGEST])
    if gold is None:
        return Verdict(None, "unusable_gold")
    reply = _find_answer(_join_contents(completion), bool(prompt_opened_think))
    if isinstance(reply, str):
        return Verdict(0.0, reply)
    try:
        too_long = sum(map(len, reply.parts)) > LONGEST
        reason = "too_costly" if too_long else _compare_answers(gold, reply)
    except _TimedOut:  # is raised through the cache, which then remembers nothing
        reason = "timed_out"
    return Verdict(1.0 if reason == "right" else 0.0, reason)


def final_answer(completion: str | list, prompt_opened_think: bool = False, **kwargs) -> str | None:
    r"""The answer that a reply commits to, None without one, for counting votes.

    x = 1/2, 0.50 and 50% are spelled alike, and so are sets in another order. Answers that are equal only by algebra
    keep different spellings.

    >>> final_answer(r"\boxed{\frac{2}{4}}"), final_answer("x = 0.5"), final_answer("Who knows that?")
    ('1/2', '1/2', None)
    """
    reply = _find_answer(_join_contents(completion), bool(prompt_opened_think))
    if isinstance(reply, str) or len(reply.parts[-1]) > LONGEST:
        return None
    text = _normalize(reply.parts[-1])
    with contextlib.suppress(_Stop, RecursionError):
        return _spell_tree(_parse(text))
    return text


math_reward.final_answer = final_answer  # stays this one where another reward file is pasted below


def _join_contents(completion: str | list | dict | None) -> str:
    """The last assistant turn as the model wrote it; thinking that TRL has taken off stands before </think> again."""
    if completion is None or isinstance(completion, str):
        return completion or ""
    turns = [completion] if isinstance(completion, dict) else completion
    turn = next((turn for turn in reversed(turns) if turn.get("role", "assistant") == "assistant"), {})
    content = turn.get("content") or ""
    if not isinstance(content, str):
        content = "".join(block if isinstance(block, str) else str(block.get("text") or "") for block in content)
    thinking = turn.get("reasoning_content", turn.get("thinking"))
    return content if thinking is None else f"{thinking}</think>{content}"


def _spell_tree(tree: object) -> str:
    if not isinstance(tree, _Group):
        leaf = tree if isinstance(tree, str) else _spell_tree(tree.value)
        value = _read_number(leaf)
        return str(value) if isinstance(value, Fraction) else leaf
    items = [_spell_tree(item) for item in tree.items]
    unordered = tree.kind in ("list", "set", "union")
    return items[-1] if tree.kind == "chain" else f"{tree.kind}: {', '.join(sorted(items) if unordered else items)}"


# ------------------------------------------------ 1. where is the answer? (linear in the length)


class _Reply(NamedTuple):
    parts: tuple[str, ...]  # the last answer, after those that were given beside it
    hedging: bool = False  # those beside it are alternatives, not steps
    alone: bool = False  # the reply is nothing but the answer
    boxes: tuple[str, ...] = ()  # every box of a reply that takes none back


_BRACE = re.compile(
    r"\\{1,3}(?:boxed|fbox)(?![a-zA-Z])[ \t\n]{0,9}(\{|-?\d[\d.,/]*\d|\d|[A-Z](?![a-zA-Z]))"
    r"|\\[^\w\s]|[{}]"
)
_TAKES_BACK = (
    r"wait|actually|correct\w*|mistaken?|error|no|not|sorry|instead|rather|recheck\w*|revis\w*|oops|hmm+|but"
    r"|wrong|incorrect"
)
_CORRECTION = re.compile(rf"(?i)\b(?:{_TAKES_BACK})\b")
_TAKEN_BACK = re.compile(
    r"(?is)[.!?\n—]\s{0,9}(?:wait\b|oops\b|hmm+\b|sorry\b|scratch that|no, (?:it|wait)\b)(?=.{0,99}?\d)"
)
_NO_ANSWER = re.compile(  # Step 1: 72; Let x = 72; is it 72?
    r"(?i)\W*(?:(?:step|page|chapter|section|figure|line) \d+(?=[^a-zA-Z=]*$)"
    r"|(?:let|suppose|assume)\b[^.]*\.?\W*$)|.*\?\W*$"
)
_GOES_ON = re.compile(
    rf"(?i)\b(?:{_TAKES_BACK}|then|so|thus|hence|therefore|finally?|answer|now|next|total)\b|[因所答]"
)
_UNSURE = re.compile(r"(?i)\b(?:or|either|maybe|perhaps|possibly|alternatively|guess)\b")
_DENIED_BEFORE = re.compile(
    r"(?i)(?:\b(?:not|never|cannot be|neither)|n['’]t|≠|\\neq?)(?: be| equal(?: to)?)?[\s:$*]*$"
)
_DENIED_AFTER = re.compile(
    r"(?i)[\s$.*)\]\\]{0,9}(?:(?:is|was|would be|seems|looks)\s+)?(?:definitely |clearly |also |the )?"
    r"(?:not\b(?! only)|n['’]t\b|(?:is|was|does)n['’]t\b|wrong\b|incorrect\b|false\b"
    r"|(?:cannot|can['’]t|could not|couldn['’]t) be (?:right|correct|true|it\b|the ))"
)
_TOUCHES_BEFORE = re.compile(  # -\boxed{7}, 2\boxed{7}, \sqrt{\boxed{7}}, x > \boxed{7}, except \boxed{7}
    r"(?:(?:[\s$=(]|^)-|(?<![a-zA-Z*_\\])[a-zA-Z]|\d(?:\\[,;!])?|(?:[\d)}]|(?<![a-zA-Z])[a-zA-Z])(?:[-+/]| *\+ *| +/ +)"
    r"|[\d)}](?:\*| \* )|\w_\{?|\^\{?|\\(?:cdot|times|div|pm|mp)\s*"
    r"|\\(?:sqrt|[dt]?frac|sin|cos|tan|log|ln|exp|binom)(?:\[\d\])?\s*\{?|\\[dt]?frac\{[^{}]*\}\s*\{)$"
    r"|(?:(?<=[\w)}] )[<>]|(?<![<\w/]\w)(?<=\w)[<>]|[≤≥≠]|\\(?:le|ge|leq|geq|leqslant|geqslant|lt|gt|neq?)\b"
    r"|\b(?i:is (?:at least|at most|(?:more|less|greater|fewer) than)|except|other than|(?:anything|all) but)"
    r"|^\W*(?i:at least|at most|(?:more|less|greater|fewer) than))[\s:$*]*$"
)
_TOUCHES_AFTER = re.compile(  # \boxed{7}^2, \boxed{7}x, \boxed{7}+1, \boxed{7} million
    r"\^\{?[-+]?(?:\d|[a-zA-Z](?![a-zA-Z]))|\d|\.\d|(?:\\[,;!])?(?![hsmgLlNJVWAKC])[a-zA-Z](?![a-zA-Z])"
    r"|\\(?:pi|sqrt|[dt]?frac)\b| *(?:[-+*/] ?(?:\d|\\(?!text|mathrm)))"
    r"| *(?:[-+/](?![hsmgL])[a-zA-Z](?![a-zA-Z])|\\(?:cdot|times|div|pm)\b)"
    r"|[\s$~\\,]*(?:\\text\w*\s?\{\s*)?(?:hundred|thousand|million|billion|trillion|dozen|squared|cubed|halves"
    r"|thirds|fourths|fifths|sixths|eighths|tenths)\b"
)
_OTHER_BEFORE = re.compile(r"(-?\d+(?:[./]\d+)?)[\s$]+or[\s$:]*(?:[a-zA-Z] ?= ?)?$")  # either 6 or \boxed{7}
_OTHER_AFTER = re.compile(r"[\s$]*(?:,|,?\s+or\b)[\s$]*(-?\d+(?:[./]\d+)?)[\s$]*(?:[.;]?$|\n|\.\s)")
_ANCHOR = re.compile(
    r"(?i)(?:answer|réponse|respuesta|risposta|resposta|antwort|ответ|答案|答え|답)[*_ \t]{0,4}"
    r"(?:(?:is|are|was|equals|(?:will|would|should|must) be|est|es|è|ist)\b|[:：=]|是|为|은|는)[*_ \t]{0,4}[:：]?"
)
_NUMBER = r"[-−]?(?:\d[\d,]*\d|\d)?(?:\.\d+|(?<=\d))"
_VALUE = re.compile(
    r"\$\$?([^$]{1,400})\$|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]|\*\*([^*\n]{1,200})\*\*"
    r"|\[([^\[\]]{1,200})\]|([-−]?\\[dtc]?frac\{[^{}]{1,99}\}\{[^{}]{1,99}\}"
    r"|[-−]?\d{0,9}\\sqrt\s?\{[^{}]{1,99}\}"
    rf"|{_NUMBER}(?: \d+)?/\d+(?:\.\d+)?|{_NUMBER}(?:\\?%)?)"
)
_WORD = re.compile(
    r"\\(?:text\w*|mathrm|mbox|operatorname|begin|end)\s?\{[^{}]{0,200}\}|\\[a-zA-Z]+|\b(?:and|or)\b"
    r"|(?<![a-zA-Z])(?:sin|cos|tan|sec|csc|cot|log|exp|sqrt|abs|inf)(?=[\s(^*]|$)"
    r"|((?i:(?<![\w\\^{(])[ia]s(?=[\s:,]))|[^\W\d_]{3,}|[\u3040-\u9fff])"
)
_LEAD_IN = re.compile(  # so it's 42
    r"(?i)(?:(?:so|thus|hence|therefore|then|ok|okay)\b[,:]?\s+)*"
    r"(?:(?:it['’]s|it is|that['’]s|that is|this is|(?:we|i) (?:get|got|have)|which is)\b:?\s+)?(?=\S)"
)
_CHOICE = re.compile(  # C, (C), C. text, C text; but "I think" and "A dog" choose nothing
    r"\(?([A-J])(?:\)|[.:](?!\d)|$|(?<![AI])\s+[A-Za-z]{3,}|[^\x00-\x7f])"
)
_SECOND_CHOICE = re.compile(
    r"[)\s.]*(?:\b(?:and|or|nor)\b|[,;/&+])\s*(?:\b(?:and|or|maybe|perhaps|possibly)\s+)*\(?[A-J](?![\w'])"
)
_CHANGED_AFTER = re.compile(  # 4, maybe 5; 2 thirds; 3 out of 5; 48 in April and 24 in May
    r"(?i)\W{0,3}\s*(?:or )?(?:maybe|perhaps|possibly|alternatively)\b"
    r"|[\s$*]*(?:halves|thirds|fourths|fifths|sixths|eighths|tenths|hundredths)\b|[\s$*]*(?:out of|less)\s+\$?\d"
    r"|[\s$*]*(?:(?!because|since|as\b|which|so\b|when|where|if\b|not\b)[a-z]+\s+){1,4}and\s+\$?\d"
)
_NEXT_TERM = re.compile(r"\s*(?:[-+*/^×·÷](?=\s*[\d(\\$])|(?:,|and|or)\s+[-−]?\d)")
_TERMS = re.compile(r"[\s\d+\-−*/^×·÷().,=$\\]*(?:(?:and|or)\b[\s\d+\-−*/^.,$]*)*")
_EMPHASIS = re.compile(  # ** and __ around a word, not 2**3 and x_1
    r"(?<![\w)}\]*])[*_]{1,3}(?=[^\s*_])|(?<=[^\s*_])[*_]{1,3}(?![\w(\\{\[*])"
    r"|</?(?:b|strong|i|em|u|p|span|br)\b[^<>]{0,99}>"
)


def _find_answer(text: str, opened: bool) -> _Reply | str:
    """The answer that the reply commits to, or the reason why there is none."""
    close = text.rfind("</think>")
    if text.rfind("<think>") > close or (opened and close < 0):
        return "unclosed_think"
    text = text[close + len("</think>") :] if close >= 0 else text
    text = text.split("<|im_")[0]
    if "\\boxed" in text or "\\fbox" in text:
        prose = " ".join(text.split("```")[::2])  # a box in code counts when there is no other
        if reply := (_read_boxes(prose) if prose != text else None) or _read_boxes(text):
            return reply
    tag = text.rfind("<answer>")
    if tag >= 0:
        inside = text[tag + len("<answer>") :].split("</answer>")[0].strip()
        return _Reply((_EMPHASIS.sub("", inside) if len(inside) <= LONGEST else inside,)) if inside else "empty_box"
    mark = text.rfind("####")
    line = _first_line(text[mark + 4 :].lstrip(" \t:")) if mark >= 0 else ""
    if line and len(_find_words(line)) < 3:  # with more words it is a heading
        return _Reply((_pick_value(line, first=True) or line,))
    anchors = [m.end() for m in _ANCHOR.finditer(text)]
    line = _first_line(text[anchors[-1] :].lstrip()) if anchors else ""
    if line.endswith("?"):
        return "hedged"
    if line and not _TAKEN_BACK.search(text[anchors[-1] :]):
        return _Reply((_pick_value(line, first=True) or line,))
    whole = len(text) <= LONGEST
    text = text[-LONGEST:].strip()
    alone = whole and not _find_words(text)
    line = _EMPHASIS.sub("", text if not _find_words(text) else text.splitlines()[-1].strip())
    lead = _LEAD_IN.match(line)
    line, alone = line[lead.end() if lead else 0 :], alone and not (lead and lead.end())
    value = None if _NO_ANSWER.match(line) else _pick_value(line, first=False)
    return _Reply((value,), alone=alone) if value else "no_box"


def _first_line(text: str) -> str:
    return _EMPHASIS.sub("", text[:LONGEST].strip().split("\n")[0])


def _is_touched(before: str, after: str) -> bool:
    """Whether an operator, a factor or a scale stands at the box; an equation may be completed by it (2 + [3] = 5)."""
    if re.match(r"[^$\n=]*=", after):
        return False
    return bool(_TOUCHES_BEFORE.search(before) or _TOUCHES_AFTER.match(after))


def _read_boxes(text: str, gold: bool = False) -> _Reply | str | None:
    """The last box and the boxes given in one breath with it; the reason why it is unusable; None without a box."""
    stack: list[tuple[int, int] | None] = []
    closed: list[tuple[int, int, int]] = []  # command, start of content, end of content
    for m in _BRACE.finditer(text):
        box, token = m.group(1), m.group(1) or m.group()
        if token == "{":
            stack.append((m.start(), m.end()) if box else None)
        elif box:  # \boxed 7
            closed.append((m.start(), m.start(1), m.end(1)))
        elif token == "}" and stack and (opened := stack.pop()):
            while closed and closed[-1][0] > opened[0]:  # boxes inside this one
                closed.pop()
            closed.append((*opened, m.start()))
    unclosed = max((start[0] for start in stack if start), default=-1)
    if unclosed > (closed[-1][0] if closed else -1):
        return "unclosed_box"
    if not closed:
        return None
    command, start, end = closed[-1]
    parts, hedging = [text[start:end].strip()], False
    if not parts[-1]:
        return "empty_box"
    before, after = text[max(0, command - 40) : command], text[end + 1 : end + 60]
    denied = _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after)
    if denied or (not gold and _is_touched(before, after)):
        return "hedged"
    for (_, start, end), (following, _, _) in zip(closed[-2::-1], closed[:0:-1]):
        gap = text[end + 1 : following]
        words = len(_find_words(gap)) if len(gap) < 200 else 99
        if words > 8 or _GOES_ON.search(gap) or len(parts) > 64:
            break
        if not text[start:end].strip():  # "I put it in \boxed{}"
            continue
        hedging |= bool(_UNSURE.search(gap)) or (words < 2 and "=" not in gap)
        parts.insert(0, text[start:end].strip())
    if other := _OTHER_BEFORE.search(before) or _OTHER_AFTER.match(after):
        parts.insert(0, other[1])
        hedging = True
    boxes = [text[start:end].strip() for _, start, end in closed[-64:]]
    gaps = text[closed[-64:][0][2] : command]
    steady = 1 < len(closed) <= 64 and len(gaps) <= 20 * LONGEST and not _CORRECTION.search(gaps)
    return _Reply(tuple(parts), hedging, boxes=tuple(boxes) if steady else ())


def _find_words(text: str) -> list[int]:
    """Where the words of prose start. Commands, units in \\text, functions and lone letters do not count."""
    return [m.start() for m in _WORD.finditer(text) if m.group(1)]


def _pick_value(text: str, first: bool) -> str | None:
    """The value that a sentence states: all of it without prose, else its first or last value."""
    text = re.split(r"\.\s+(?=[A-Z])", text)[0 if first else -1].strip().rstrip(".。 ")
    text = _SIGN_WORD.sub(r"\1-", re.sub(r"(?<=[$*])!$", "", text))
    words = _find_words(text)
    values = list(_VALUE.finditer(text))
    with_digits = [m for m in values if re.search(r"\d|\\", m.group())] or values
    short = len(words) < 3 and not re.search(r"[\u3040-\u9fff\uac00-\ud7af]", text)
    if not words or (short and not any(m.start() > words[0] for m in with_digits)):
        return text or None
    if not first and _UNSURE.search(text):
        return None
    if not with_digits:
        return text if len(words) < 3 or _CHOICE.match(text) else None
    chosen = with_digits[0 if first else -1]
    before = max((m.end() for m in with_digits if m.end() <= chosen.start()), default=0)
    if _QUALIFIER.search(_read_prose(text[before : chosen.start()] + "0")):  # it is not 42, at least 42
        return text if first else None
    value = chosen.group(chosen.lastindex)
    after = text[chosen.end() :]
    if first and _CHANGED_AFTER.match(after):
        return text
    more = _NEXT_TERM.match(after) if first and chosen.lastindex == 6 else None
    if more:  # 84 - 37, which ...; 3 or 4 apples
        return (value + after[: more.end() - 1] + _TERMS.match(after, more.end() - 1).group()).rstrip(" ,.$(=")
    return value if not _find_words(value) or chosen.lastindex == 6 else _pick_value(value, first=False)


@lru_cache(4096)
def _read_gold(text: str) -> str | None:
    """The gold value inside a gold text, None when there is none to compare with."""
    reply = _read_boxes(text, gold=True) if "\\boxed" in text or "\\fbox" in text else None
    if isinstance(reply, str):
        return None
    if reply:
        distinct = dict.fromkeys(reply.parts)
        text = ", ".join(distinct) if len(distinct) > 1 else reply.parts[-1]
    elif "####" in text or "<answer>" in text or (len(_find_words(text)) > 2 and _ANCHOR.search(text)):
        reply = _find_answer(text, opened=False)
        text = reply.parts[-1] if isinstance(reply, _Reply) else ""
    try:
        tree = _parse(_normalize(text)) if 0 < len(text) <= LONGEST else ""
    except _Stop:
        return None
    exists = tree and not (isinstance(tree, str) and _read_number(tree) is _NOTHING)
    return text if exists else None


# ------------------------------------------------ 2. one spelling for one answer

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ",
    "∗": "*", "∙": r"\cdot ", "∕": "/", "¢": "", "₹": "",
    "⁄": "/", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "∞": r"\infty ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\neq ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ",
    "∖": r"\setminus ", "±": r"\pm ", "≈": r"\approx ", "∅": r"\emptyset ", "°": r"^\circ ",
    "’": "'", "€": "", "£": "", "¥": "", "√": r"\sqrt ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "，": ", ", "、": ", ", "；": "; ", "∨": r"\lor ",
    "∧": r"\land ",
}  # fmt: skip
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋ₙ]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")  # NFKC writes ½ as 1⁄2
_INVISIBLE = dict.fromkeys([0xAD, *range(0x200B, 0x2010), 0x2060, 0xFEFF])
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")  # would show digits in another order
_UNIT = (
    r"(?:degrees?|deg|radians?|rad|dollars?|bucks|cents?|euros?|pounds?|pence|USD|EUR|units?|square|sq\.?|cubic"
    r"|(?:kilo|centi|milli|deci)?(?:met(?:er|re)|gram|lit(?:er|re))s?|feet|foot|inch(?:es)?|yards?|miles?|ounces?"
    r"|tons?|gallons?|hours?|minutes?|seconds?|days?|weeks?|months?|years?|cm|mm|dm|km|nm|kg|mg|ml|mL|kph|mph|rpm"
    r"|ft|yd|in|mi|hrs?|min|sec|ms|lbs?|oz|Hz|kHz|MHz|kPa|Pa|kJ|kW|kWh|mol)"
)
_SHORT_UNIT = rf"(?:{_UNIT}|[hsmgLlN])"
_NAMES = "theta|alpha|beta|gamma|delta|lambda|omega|sigma|phi|rho|mu|infty|infinity|inf|oo|pi"
_FUNCTIONS = "arcsin|arccos|arctan|asin|acos|atan|sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|ln|log"
_TEXT = r"\\(?:text\w*|mbox|mathrm)\s?\{\s*"
_RULES = [
    (re.compile(pattern, re.S), replacement)
    for pattern, replacement in (
        (r"\\\\(?=[a-zA-Z])(?!.*\\end)", r"\\"),  # a command escaped twice
        (r"\\(?:dis|text|script)[a-z]*style|\\(?:(?:no)?limits|bf|rm|it)(?![a-z])", ""),
        (r"\\(?:textcolor|color)\s?\{\w+\}", ""),
        (r"\\([lg]e)([a-pr-z])(?![a-z])", r"\\\1 \2"),  # \lex
        (r"\{\s?([^{}]{1,20}?)\s?\\choose(?![a-z])\s?([^{}]{1,20}?)\s?\}", r"\\binom{\1}{\2}"),
        (r"\\log_\{?e\}?(?![a-zA-Z])", r"\\ln "),
        (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:left|right|mleft|mright|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\.?", ""),
        (r"\\(?:[lr]?vert|mid)(?![a-zA-Z])", "|"),
        (r"\\(?:langle|lparen|lgroup)(?![a-zA-Z])", "("),
        (r"\\(?:rangle|rparen|rgroup)(?![a-zA-Z])", ")"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"(?<=\d)(?:\\[,!:; ]|\{,\}|,\\!|~)+\s?(?=\d{3}(?!\d))", ""),  # thousands
        (r"(?<=\d)\{,\}(?=\d)", "."),  # a decimal comma in braces
        (r"\\q?quad(?![a-zA-Z])", " ; "),
        (r"(?<!\\)\\[,:;! \n]|~|\s+", " "),
        (r" {2,}", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(?:le|leq|leqslant|leqq)(?![a-zA-Z])|<=", r"\\le "),
        (r"\\(?:ge|geq|geqslant|geqq)(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\(?:ne|neq)(?![a-zA-Z])|!=", r"\\neq "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:times|cdot|ast)(?![a-zA-Z])|(?<!\*)\*(?!\*)", r"\\cdot "),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\operatorname\*?\s?\{([a-zA-Z]+)\}", r"\\\1 "),
        (r"\\(?:mathbf|boldsymbol|mathit|bm|vec|mathsf|boxed|fbox)\s?\{([^{}]*)\}", r"{\1}"),
        (r"\\mathrm\s?\{([dei])\}", r"\1"),
        (r"(?<![\w)])\*\*([^*]+)\*\*(?![\w(])", r"\1"),  # bold
        (r"\*\*", "^"),
        (r"(?i)(?<=[\d)}$])\s*(?:\\?%|\\text\w*\s?\{\s*percent\s*\}|percent(?:age)?\b|pct\b)", "%"),
        (r"\\?\$|\\[()](?!.*\\end)|\\[\[\]](?!.*\\end)", " "),
        (r"\\(?:mathbb|Bbb)\s?\{?\s?([RZN])(?![a-zA-Z])\s?\}?", r"\\mathbb{\1}"),
        (r"(?i)\\text\w*\s?\{([^{}]*\breals?\b[^{}]*)\}", r" \1 "),
        (
            r"(?i)(?:\b(?:for|the set of|where|and)\s+)?\b(?:all|any|every)\s+real(?:s\b|\s+(?:numbers?|values?)\b"
            r"(?:\s+(?:of\s+)?[a-z]\b(?!\s*=))?|\s+[a-z]\b)\.?",
            r"\\mathbb{R}",
        ),
        (
            r"(\\mathbb\{R\})\s*,?\s*(?:\\text\w*\s?\{)?\s*(?:except|excluding|other than|but not)(?: for)?\b\s*\}?",
            r"\1\\setminus ",
        ),
        (r"\\(?:text|mathrm|operatorname)\s?\{([A-Za-z]+)\}(?=\s*\([^()]*\)\s*=)", r"\1"),  # Var(X) = 4
        (rf"{_TEXT}(sqrt|log|ln|sin|cos|tan|exp)\s*\}}", r"\\\1 "),
        (rf"(?i)(?<=\d)\s*{_TEXT[:-3]}\s*(hundred|thousand|million|billion|trillion)\b", r" \1 \\text{"),
        (rf"{_TEXT},?\s*(?:and|und|et|y)\s*,?\s*\}}|\\(?:land|wedge)(?![a-z])|,\s*and\b|\band\b", " and "),
        (rf"{_TEXT},?\s*(?:or|oder|ou|o)\s*,?\s*\}}|\\(?:lor|vee)(?![a-z])|,\s*or\b|\bor\b", " or "),
        (r"√\s?\(([^()]*)\)|\\sqrt\s?\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"(?:√|\\sqrt(?![a-zA-Z]))\s?(\[\d\])?\s?(\d+|[a-zA-Z])", r"\\sqrt\1{\2}"),
        (r"\\frac\s*(\d|[a-zA-Z]|\\pi)", r"\\frac{\1}"),
        (r"(\\frac\s?\{[^{}]*\})\s*(\d|[a-zA-Z]|\\pi)", r"\1{\2}"),
        (r"(?<![\d/.])(\d{1,9}) (\d{1,9})/(\d{1,9})(?![\d.])", r"\1\\frac{\2}{\3}"),  # 4 4/9
        (r"(?<=\d)\s*\^\s?\{?\s?\\circ\s?\}?\s?[CF](?![a-zA-Z])", ""),
        (
            rf"(?<=[\d)}}])\s*\{{?{_UNIT}(?![a-zA-Z])\.?(?:\s*\^\s?\{{?\d\}}?)?\}}?"
            rf"(?:\s+{_UNIT}(?![a-zA-Z])(?:\s?\^\s?\{{?\d\}}?)?)*"
            rf"(?:\s*(?:/|\bper\b|\\cdot)\s*{_SHORT_UNIT}(?![a-zA-Z(])(?:\s?\^\s?\{{?-?\d\}}?)?)*",
            "",
        ),
        (r"(?<=\d)\s*[mg]\s*/\s*(?:s|h|mol|L|cm|m|min)(?![a-zA-Z(])(?:\s?\^\s?\{?\d\}?)?", ""),  # 5 m/s
        (rf"(?<![a-zA-Z\\])({_NAMES})(?![a-zA-Z])", r"\\\1 "),
        (rf"(?<![a-zA-Z\\])({_FUNCTIONS})(?![a-zA-Z{{])", r"\\\1 "),
        (r"\\(?:oo|inf|infinity)(?![a-z])", r"\\infty "),
        (r"\\a(sin|cos|tan)(?![a-z])", r"\\arc\1"),
        (r"\bRs\.?\s*(?=\d)|(?<=\d)\s*[ap]\.\s?m\.?(?!\w)", ""),
        (r"^\](?=[^\[\]]*[,;][^\[\]]*[\[\]]$)", "("),
        (r"^([\[(][^\[\]]*[,;][^\[\]]*)\[$", r"\1)"),
        (r"\^\s?(\d*\.\d+|\d{2,})", r"^{\1}"),
        (r"\^\s?-\s?(\d+|[a-zA-Z])", r"^{-\1}"),
        (r"([\^_])\{\s?([\w+-])\s?\}", r"\1\2"),
        (r"(\^(?:\w|\{[^{}]*\}))(_(?:\w|\{[^{}]*\}))", r"\2\1"),
    )
]
_LITERAL = re.compile(r"-?(?:\d{1,300}(?:\.\d{0,300})?|\.\d{1,300})")
_WORDS_IN_MATH = re.compile(
    r"\\(?:text\w*|mbox|mathrm)\s?\{([^{}]*)\}(?:\s*\^\{?-?\d\}?)?"
    r"(?:\s*/\s*\\(?:text\w*|mathrm)\s?\{[^{}]*\}(?:\^\{?\d\}?)?)?"
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_CALLS = {"sqrt": r"\sqrt{%s}", "cbrt": r"\sqrt[3]{%s}", "exp": "e^{%s}", "abs": "|%s|", "^": "^{%s}"}
_CALL = re.compile(r"(?:(?<![a-zA-Z\\])(sqrt|cbrt|exp|abs)|\\(exp|sqrt)|(\^))\s?\(")
_QUANTIFIER = re.compile(  # k in Z, where k is an integer; no repeated part can match a text in two ways
    r"[\s,;(:]*(?:\\text\w*\s?\{)?\s*(?:(?:where|with|for|and|any|all|every|some|an|integers?|real|positive|natural"
    r"|numbers?|constants?|each|arbitrary|\\forall)\b[\s}]*|;\s*)*"
    r"([a-zA-Z])\s*(?:\\in\s*\\mathbb\{[ZNR]\}(?:\^[+*])?|(?:\\text\w*\s?\{)?"
    r"(?:(?:is|an?|any|integers?|constant|arbitrary"
    r"|real|number)\b|\s|\})+)?[)\s}.$]*$"
)
_HAS_QUANTIFIER = re.compile(r"\\in(?![a-z])|integer|for all|forall|constant|arbitrary", re.I)
_OPENS_CLAUSE = re.compile(r"[,;(:]|\\text|\bfor\b|\bwhere\b|\bwith\b|\bany\b|forall")
_COUNTED = re.compile(  # 12 apples, x = 12 apples
    r"(.*=)?\s*(-?[\d.,/]*\d)\s+(?!pi\b|[a-z]{3,4}\s*\()(?=.*[a-zA-Z]{3})[a-zA-Z]{2}[a-zA-Z ]*", re.S
)


@lru_cache(4096)
def _normalize(text: str) -> str:
    """LaTeX, Unicode and plain spellings made one, without units and currency. Doing it twice changes nothing."""
    if _LITERAL.fullmatch(text):
        return text
    if not text.isascii():
        text = _write_signs(text)
    text = _SIGN_WORD.sub(r"\1-", text.strip(" `"))
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _separate(_drop_quantifier(_rewrite_calls(text)))
    if not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = re.sub(r"\^\s?\{?\s?\\(?:circ|degree)\s?\}?|\\degree(?![a-z])", "", text)
    text = re.sub(rf"(?i)(?<=\d)\s*({'|'.join(_SCALES)})s?\b", lambda m: rf"\cdot 10^{{{_SCALES[m[1].lower()]}}}", text)
    beside = _WORDS_IN_MATH.sub("", text)
    is_math = re.search(r"\d|\\[a-z]{2}", beside)  # then words in \text are units or remarks
    text = _WORDS_IN_MATH.sub(lambda m: " " if is_math and not re.search(r"\d", m[1]) else f" {m[1].strip()} ", text)
    text = re.sub(r"(?<=[\d}])\s*\([a-zA-Z]{3}[a-zA-Z ,'-]*\)\s*$", "", text)  # 12 (twelve)
    if number := _COUNTED.fullmatch(text):
        text = (number[1] or "") + number[2]
    text = re.sub(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])", "\\1\0", text.lstrip(" :;,=").rstrip(" ;:.,"))
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" (?!\d)|(?<!\d) ", "", text).replace("\0", " ")
    text = re.sub(r"(^|[(\[,;{])\+(?=[\d\\])", r"\1", text.rstrip("\\"))
    return re.sub(r"([\^_])\{([\w+-])\}", r"\1\2", text)


def _write_signs(text: str) -> str:
    """Signs, raised and lowered digits and fractions of Unicode in LaTeX."""
    plain = lambda m: unicodedata.normalize("NFKC", m[0]).replace("−", "-")  # noqa: E731
    text = re.sub("[\u2600-\u27bf\ufe0f\U0001f300-\U0001faff]", "", text)  # emoji
    text = _VULGAR.sub(lambda m: rf" \frac{{{plain(m).replace('⁄', '}{')}}}", text)
    text = _RAISED.sub(lambda m: f"^{{{plain(m)}}}", text)
    text = _LOWERED.sub(lambda m: f"_{{{plain(m)}}}", text)
    for sign, latex in _SIGNS.items():
        text = text.replace(sign, latex)
    return unicodedata.normalize("NFKC", text).translate(_INVISIBLE).replace("−", "-")


def _separate(text: str) -> str:
    """Commas decided while spaces and words still stand between the numbers.

    1,234 and 1 234 become 1234. A comma of a list becomes ";", and so do "and", and a line break; "or" becomes \\lor.
    A comma stays where no space follows it (1,22), since it may mark decimals, and inside of brackets.
    """
    pieces, depth, done = [], 0, 0
    if r"\begin" in text:
        return re.sub(r"\s*\band\b\s*", " , ", text)
    grouped = re.compile(r"(?<![\d.,])(?<![\d.,] )(\d{1,3})((?:,\d{3})+|(?: \d{3})+)(?![\d]|,\d| \d)")
    tokens = r"\\?[{(\[]|\\?[})\]]|\s*,\s*|\s*\band\b\s*|\s*\bor\b\s*|\\\\|" + grouped.pattern
    for m in re.finditer(tokens, text):
        token, inner = m.group().strip(), m.group()
        if token[-1:] in "{([":
            depth += 1
        elif token[-1:] in "})]":
            depth -= 1
        elif m[1]:
            inner = re.sub("[, ]", "", inner) if depth == 0 else inner
        elif token == "or":
            inner = r"\lor " if depth == 0 else ","
        elif token == "and":
            inner = r"\land " if depth == 0 else ","
        elif token == "\\\\":
            inner = " ; " if depth == 0 else inner
        elif depth == 0:
            tight = m.start() > 0 and text[m.start() - 1].isdigit() and text[m.end() : m.end() + 1].isdigit()
            inner = "," if tight and inner == "," else " ; "
        pieces += [text[done : m.start()], inner]
        done = m.end()
    return "".join(pieces) + text[done:]


def _rewrite_calls(text: str) -> str:
    """sqrt(...), exp(...), abs(...) and ^(...) with braces around what stands in the brackets."""
    start = 0
    while m := _CALL.search(text, start):
        depth, end = 1, m.end()
        while end < len(text) and depth:
            depth += (text[end] == "(") - (text[end] == ")")
            end += 1
        if depth:
            return text
        form = _CALLS[m[1] or m[2] or m[3]]
        head = form.split("%s")[0]
        text = text[: m.start()] + form % text[m.end() : end - 1] + text[end:]
        start = m.start() + len(head)
    return text


def _read_domain(text: str) -> str:
    """N or Z where a clause at the end of a text says that a letter is a natural number or an integer, else ""."""
    domain = re.search(r"[a-zA-Z] ?(?:\\in\b|∈) ?(?:\\mathbb ?\{? ?([ZN])|([ℤℕ])) ?\}?(\^\{?\+)?[^\w]*$", text)
    letter = {"Z": "Z", "ℤ": "Z"}.get(domain[1] or domain[2], "N") if domain else ""
    return "N" if domain and domain[3] else letter


def _drop_quantifier(text: str) -> str:
    """The text without a closing clause about a letter that it uses: "k in Z", "for all z", "any integer n"."""
    clause = _QUANTIFIER.search(text) if _HAS_QUANTIFIER.search(text) else None
    if not clause or len(clause.group().strip()) < 3 or not _OPENS_CLAUSE.search(clause.group()):
        return text
    rest = text[: clause.start()]
    return rest if clause[1] in re.sub(r"\\[a-zA-Z]+", "", rest) else text


# Words that change what a value says. They are looked for in the prose beside a value.
_QUALIFIER = re.compile(
    r"(?i)\b(?:not|never|neither|nor|cannot|incorrect|wrong|false|untrue|mistaken|anything|everything|nothing|except"
    r"|excluding|unless|but|than"
    r"|or (?:more|less|fewer|greater|higher|so)|and (?:above|below|over|up)|up to"
    r"|between|maybe|perhaps|possibly|either|guess|unsure|unknown|impossible"
    r"|at least|at most"
    r"|times|plus|minus|multiplied|divided|modulo|mod|choose|to the power|dozen"
    r"|(?:of|half|twice|double|triple|over|under|above|below|exceeds)(?=\s*[$\\]?\s*-?\d)"
    r"|fails?|doubtful|unlikely|invalid|(?:below|under) zero"
    r"|(?:without|less|no|out of)(?=[\s,]*[$\\]?\s*-?\d))\b"
    r"|n't\b|\d\s*(?:squared|cubed|factorial|halves|thirds|fourths|fifths|sixths|eighths|tenths|hundredths)\b"
    r"|\(\s*negative\s*\)|\d\s*\?"
)
_SIGN_WORD = re.compile(  # negative 5, minus 5, a sign in \text
    r"(?i)^([\s$]*(?:[a-z]\s*=\s*)?)(?:\\(?:text\w*|mbox|mathrm)\s?\{\s*)?"
    r"(?:negative|neg\.?|minus|[-−–])\s{0,9}\}?[\s$]{0,9}"
    r"(?=\.?\d|\\[dt]?frac|\\sqrt)"
)


def _read_prose(text: str) -> str:
    """The words and numbers of a text, without its commands."""
    text = re.sub(r"\\(?:text\w*|mbox|mathrm)\s?\{([^{}]*)\}", r" \1 ", text)
    return re.sub(r"\\[a-zA-Z]+|[{}$~]|\\.", " ", text).replace("’", "'")


def _list_qualifiers(text: str) -> set[str]:
    """The qualifying words of an answer that has a value beside them; "no solution" is itself an answer."""
    text = _SIGN_WORD.sub(r"\1-", text)
    if not re.search(r"[a-zA-Z]{3}", text):
        return set()
    if "real" in text:  # all real numbers except 2
        text = re.sub(r"except|excluding|other than|but not", "", text)
    prose = _read_prose(text)
    outside = re.sub(r"\\(?:text\w*|mbox|mathrm)\s?\{[^{}]*\}|[^\W\d_]{2,}|[^\w(]", "", text)
    return {" ".join(word.lower().split()) for word in _QUALIFIER.findall(prose)} if outside else set()


class _Nothing:
    """0/0, 4 0/0, 11 6/6: no number, equal to nothing."""


_NOTHING = _Nothing()
_DECIMAL_COMMA = re.compile(r"(-?\d+),(\d+)")
_SIMPLE = r"\d{1,300}(?:\.\d{1,300})?|\.\d{1,300}"
_RATIO = re.compile(
    rf"(-?)(?:(\d{{1,99}})(?=\\frac))?(?:\\frac\{{(-?(?:{_SIMPLE}))\}}\{{(-?(?:{_SIMPLE}))\}}"
    rf"|\(?(-?(?:{_SIMPLE}))\)?/\(?(-?(?:{_SIMPLE}))\)?)"
)
_SCIENTIFIC = re.compile(rf"(-?)(?:({_SIMPLE})(?:\\cdot|(?=[eE])))?(?:10\^|[eE])\{{?([+-]?\d{{1,3}})\}}?")
_REPEATING = re.compile(r"(-?\d{1,30})\.(\d{0,30})\\(?:overline|bar|dot)\{(\d{1,30})\}")
_BASED = re.compile(r"(-?[0-9A-Z]*\d[0-9A-Z]*)_\{?(\d{1,2})\}?")


@lru_cache(4096)
def _read_number(text: str) -> Fraction | _Nothing | None:
    """The rational number that a normal text spells out; None when it takes more than reading."""
    if _LITERAL.fullmatch(text):
        return Fraction(text)
    if text.endswith("%") and not text.endswith("%%"):
        value = _read_number(text[:-1])
        return value / 100 if isinstance(value, Fraction) else value
    if based := _BASED.fullmatch(text):
        try:
            return Fraction(int(based[1], int(based[2])))
        except ValueError:  # 52_4
            return _NOTHING
    if repeating := _REPEATING.fullmatch(text):
        head, tail, cycle = repeating.groups()
        nines = Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(tail))
        return Fraction(f"{head}.{tail}0") + (-nines if head[:1] == "-" else nines)
    if re.fullmatch(r"\d{1,9}:0*[1-9]\d{0,8}", text):  # a ratio; 12:00 is a time
        text = text.replace(":", "/")
    if power := _SCIENTIFIC.fullmatch(text):
        return Fraction(power[1] + (power[2] or "1")) * Fraction(10) ** int(power[3])
    if not (ratio := _RATIO.fullmatch(text)):
        return _NOTHING if text.casefold() == "nan" else None
    sign, whole, above, below = ratio[1], ratio[2], ratio[3] or ratio[5], ratio[4] or ratio[6]
    if not Fraction(below):
        return _NOTHING
    part = Fraction(above) / Fraction(below)
    if whole and not 0 < part < 1:
        return _NOTHING
    return (Fraction(whole or 0) + part) * (-1 if sign else 1)


# ------------------------------------------------ 3. what kind of answer is it, and are two equal?

_OPEN = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}
_NAME = re.compile(  # x, f(x), a_1, m_{\max}, E(X), (x,y), P(A), \angle ABC, AB:CD, dy/dx; and no number
    r"(?!\\(?:pi|infty)$|[ei]$)(?:"
    r"\\?[a-zA-Z]+(?:_\w|_\{[^{}]*\})?'*(?:\^\{-1\}|\^[*'])?(?:\(-?[a-zA-Z0-9](?:,[a-zA-Z0-9])*\))?'*"
    r"|[A-Z][a-z]*\([^()]*\)|[EPV]\[[^\[\]]*\]|(?:m?\\angle |\\triangle )[A-Z]+"
    r"|\\(?:bar|hat|tilde|overline|vec|dot)\{[a-zA-Z]+\}|\|[A-Z]{2}\||\[[A-Z]{3,}\]"
    r"|\([a-z](?:,[a-z])+\)|[A-Z]+(?:_\{?\w+\}?)?:[A-Z]+|\\frac\{[a-zA-Z_]+\}\{[a-zA-Z_]+\}|[dy]{1,2}/dx)"
)
_MATRIX = re.compile(r"[\[(]?\\begin\{(\w*matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}[\])]?", re.S)
_RELATION = r"=|<|>|\\(?:le|ge|neq|in|equiv)(?![a-z])"
_REALS = r"\\mathbb\{?R\}?"


class _Stop(Exception):
    """Ends a comparison; its text is the reason."""


class _TimedOut(Exception):
    """Ends a comparison whose verdict must not be remembered."""


class _Group(NamedTuple):
    """kind: list, set, union (unordered), without (a region, points), matrix, row, chain, or brackets such as "(]"."""

    kind: str
    items: tuple


class _Named(NamedTuple):
    """x = 5, or x < 5 as the interval (-oo, 5); with the text as it was."""

    name: str
    value: object
    text: str


_ALL_REALS = _Group("()", (r"-\infty", r"\infty"))


def _measure_nesting(text: str) -> int:
    """The deepest nesting of brackets of all kinds together; -1 when they do not balance."""
    depth = deepest = 0
    for c in text:
        depth += _OPEN.get(c, 0)
        deepest = max(deepest, depth)
        if depth < 0:
            return -1
    return -1 if depth else deepest


def _split(text: str, separator: str) -> list[str]:
    """The pieces between the matches of a regex that stand outside of all brackets."""
    pieces, start, depth, done = [], 0, 0, 0
    for m in re.finditer(separator, text):
        depth += sum(_OPEN.get(c, 0) for c in text[done : m.start()])
        done = m.start()
        if depth == 0:
            pieces += [text[start : m.start()].strip(), *m.groups()]
            start = m.end()
    return [*pieces, text[start:].strip()]


@lru_cache(4096)
def _parse(text: str) -> str | _Group | _Named:
    """A normal text as a leaf, or as named or grouped parts. Raises _Stop when it cannot be read."""
    depth = -1 if _BIDI.search(text) else _measure_nesting(text)
    if depth < 0 or depth > 15:
        raise _Stop("unreadable" if depth < 0 else "too_costly")
    if (matrix := _MATRIX.fullmatch(text)) and r"\begin" not in matrix[2]:
        rows = [row.split("&") for row in matrix[2].split(r"\\") if row]
        return _Group("matrix", tuple(_Group("row", tuple(map(_parse, row))) for row in rows))
    pieces = _split(text, r"([,;]|\\lor(?![a-z])|\\land(?![a-z]))")
    parts = [part for piece in pieces[::2] for part in _expand_signs(piece) if part]
    if len(parts) > 1:
        return _join_items([_parse(part) for part in parts], set(pieces[1::2]))
    if parts and parts[0] != text:
        return _parse(parts[0])
    if re.fullmatch(_REALS, text):
        return _ALL_REALS
    if len(pieces := _split(text, r"\\cup(?![a-z])")) > 1:
        return _Group("union", tuple(map(_parse, pieces)))
    if len(pieces := _split(text, r"\\(?:setminus|backslash)(?![a-z])")) == 2:
        return _Group("without", tuple(map(_parse, pieces)))
    if len(pieces := _split(text, r"\\neq(?![a-z])")) == 2 and _NAME.fullmatch(pieces[0]):
        return _Named(pieces[0], _Group("without", (_ALL_REALS, _parse(pieces[1]))), text)
    if len(pieces := _split(text, r"=|\\in(?![a-z])")) > 1:
        if name := next((piece for piece in pieces[:-1] if _NAME.fullmatch(piece)), None):
            if len(pieces) == 3 and all(map(_LITERAL.fullmatch, pieces[1:])):  # x = 4 = 5
                return _Named(name, _Group("chain", tuple(pieces[1:])), text)
            return _Named(name, _parse(pieces[-1]), text)  # x = 1 + 1 = 2
        if _NAME.fullmatch(pieces[-1]):
            return _Named(pieces[-1], _parse(pieces[0]), text)  # 2 = x
        return text if _list_variables(text) else _Group("chain", tuple(map(_parse, pieces)))  # 1 + 1 = 2
    if len(pieces := _split(text, r"\\approx(?![a-z])")) > 1:
        named = _NAME.fullmatch(pieces[0])
        return _Named(pieces[0], _parse(pieces[-1]), text) if named else _parse(pieces[0])
    if len(pieces := _split(text, r"(<|>|\\le(?![a-z])|\\ge(?![a-z]))")) in (3, 5):
        return _read_inequality(text, pieces)
    if builder := re.fullmatch(rf"\\\{{\w(?:\\in{_REALS})?[|:](.*)\\\}}", text):
        return _parse(builder[1])
    if text.startswith(r"\{") and text.endswith(r"\}") and _measure_nesting(text[2:-2]) >= 0:
        inside = _parse(text[2:-2])
        return _Group("set", inside.items if getattr(inside, "kind", "") == "list" else (inside,))
    if text[:1] in "([{" and text[-1:] in ")]}" and len(text) > 2 and _measure_nesting(text[1:-1]) >= 0:
        items = [item for item in _split(text[1:-1], "[,;]") if item]
        if text[0] == "{" or (len(items) == 1 and text[0] + text[-1] in ("()", "[]")):
            return _parse(text[1:-1])
        if len(items) > 1:
            return _Group(text[0] + text[-1], tuple(map(_parse, items)))
    return text


def _expand_signs(text: str) -> list[str]:
    if not re.search(r"\\[pm][pm](?![a-z])", text):
        return [text]
    minus = re.sub(r"\\([pm])[pm]", lambda m: "-" if m[1] == "p" else "+", text)
    plus = re.sub(r"\\([pm])[pm]", lambda m: "+" if m[1] == "p" else "-", text)
    return [re.sub(r"(^|[=({])\+", r"\1", sign) for sign in (plus, minus)]


def _join_items(trees: list, joiners: set[str]) -> object:
    """The items of a list, or the region that inequalities of one name describe together."""
    names = [tree.name for tree in trees if isinstance(tree, _Named)]
    bare = tuple(tree.value if isinstance(tree, _Named) else tree for tree in trees)
    if len(names) == 1 and isinstance(trees[0], _Named):  # k = 1, 2, 3
        return _Named(names[0], _Group("list", bare), "")
    ranges = all(
        isinstance(tree, _Group) and (len(tree.kind) == 2 or tree.kind in ("union", "without")) for tree in bare
    )
    if ranges and len(names) == len(trees) and len(set(names)) == 1:
        holes = [tree.items[1] for tree in bare if tree.kind == "without" and tree.items[0] == _ALL_REALS]
        if holes and r"\lor" not in joiners:  # x in R, x != 3
            rest = tuple(tree for tree in bare if tree.kind != "without" and tree != _ALL_REALS) or (_ALL_REALS,)
            region = rest[0] if len(rest) == 1 else _intersect(rest) or _Group("union", rest)
            points = holes[0] if len(holes) == 1 else _Group("list", tuple(holes))
            return _Named(names[0], _Group("without", (region, points)), "")
        common = None if r"\lor" in joiners else _intersect(bare)
        return _Named(names[0], common or _Group("union", bare), "")  # x > 1 and x < 5; x < 1 or x > 3
    different = {isinstance(tree, str) and _read_number(tree) or tree for tree in trees}  # 1/2 or 0.5 is one value
    return _Group("list", tuple(trees)) if len(different) > 1 else trees[0]


def _read_inequality(text: str, pieces: list[str]) -> object:
    """An inequality of one name as the interval that it describes, else the text itself."""
    if len({sign in ("<", r"\le") for sign in pieces[1::2]}) > 1:
        return text
    if pieces[1] not in ("<", r"\le"):
        pieces = pieces[::-1]
    if len(pieces) == 3 and bool(_NAME.fullmatch(pieces[0])) != bool(_NAME.fullmatch(pieces[2])):
        named = _NAME.fullmatch(pieces[0])
        pieces = [r"-\infty", "<", *pieces] if named else [*pieces, "<", r"\infty"]
    if len(pieces) != 5 or not _NAME.fullmatch(pieces[2]):
        return text
    low, after, name, before, high = pieces
    brackets = ("(" if after in "<>" else "[") + (")" if before in "<>" else "]")
    return _Named(name, _Group(brackets, (_parse(low), _parse(high))), text)


# Ends of intervals are compared as (number, rank): rank 0 is the point itself, 1 lies just above it, -1 just below.


def _list_spans(tree: object) -> list | None:
    """The intervals and points of a region as (low end, high end), None where an end is no rational number."""
    if isinstance(tree, _Named):
        tree = tree.value
    if isinstance(tree, _Group) and tree.kind in ("union", "set", "list"):
        spans = [_list_spans(item) for item in tree.items]
        return None if None in spans else [span for part in spans for span in part]
    if isinstance(tree, _Group) and tree.kind == "without":
        region, points = map(_list_spans, tree.items)
        return None if None in (region, points) else _remove_points(region, points)
    if isinstance(tree, str):
        point = _read_end(tree)
        return [((point, 0), (point, 0))] if isinstance(point, Fraction) else None
    if len(tree.kind) != 2 or len(tree.items) != 2:
        return None
    low, high = map(_read_end, tree.items)
    if low is None or high is None:
        return None
    return [((low, int(tree.kind[0] == "(")), (high, -int(tree.kind[1] == ")")))]


def _read_end(tree: object) -> Fraction | float | None:
    if not isinstance(tree, str):
        return None
    if re.fullmatch(r"[-+]?\\infty\s?", tree):
        return float("-inf") if tree[0] == "-" else float("inf")
    value = _read_number(tree)
    return value if isinstance(value, Fraction) else None


def _merge_spans(spans: list) -> list:
    """The same region with spans that overlap or touch joined, in rising order."""
    merged: list = []
    for low, high in sorted(span for span in spans if span[0] <= span[1]):
        if merged and (low <= merged[-1][1] or (low[0] == merged[-1][1][0] and low[1] - merged[-1][1][1] <= 1)):
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def _remove_points(region: list, points: list) -> list | None:
    if any(low != high for low, high in points):
        return None
    for point, _ in points:
        before = [(low, min(high, (point[0], -1))) for low, high in region]
        after = [(max(low, (point[0], 1)), high) for low, high in region]
        region = [span for span in before + after if span[0] <= span[1]]
    return region


def _intersect(trees: tuple) -> object:
    """What intervals have in common, as one interval; None where that is empty or cannot be told."""
    spans = [_list_spans(tree) for tree in trees]
    if any(span is None or len(span) != 1 for span in spans):
        return None
    low, high = max(span[0][0] for span in spans), min(span[0][1] for span in spans)
    if low >= high:
        return None
    first = next(tree for span, tree in zip(spans, trees) if span[0][0] == low)
    last = next(tree for span, tree in zip(spans, trees) if span[0][1] == high)
    return _Group(first.kind[0] + last.kind[1], (first.items[0], last.items[1]))


def _list_variables(text: str) -> set[str]:
    """The variables of a normal text, as lone letters; e, i and the names of functions are none."""
    text = re.sub(r"\\[a-zA-Z]+|[a-zA-Z]{3,}(?=\()|\d[eE]\d", "", text)
    return {c for c in text if c.isalpha() and c not in "ei"}


class _Budget:
    """The seconds of processor time that one verdict may still use, and whether a mixed number may be a sum."""

    def __init__(self, alone: bool):
        self.alone, self.seconds = alone, DEADLINE


@lru_cache(8192)
def _compare_answers(gold: str, reply: _Reply) -> str:
    """The reason for the verdict on an answer. Raises _TimedOut."""
    answer, unordered = reply.parts[-1], ("list", "set")
    if answer == gold and len(reply.parts) == 1:
        return "right"
    try:
        choices = [_read_choice(text) for text in (gold, answer)]
        if not all(choices) and _list_qualifiers(answer) != _list_qualifiers(gold):
            return "wrong"
        cut_short = _CUT_SHORT.search(answer) and not _CUT_SHORT.search(gold)
        if cut_short or {_read_domain(gold), _read_domain(answer)} == {"N", "Z"}:
            return "wrong"
        if _DIVIDED.search(answer) and not _DIVIDED.search(gold) and not _list_variables(_normalize(gold)):
            return "unevaluated"
        if (absence := _read_absence(gold)) and absence == _read_absence(answer):
            return "right"
        expected = _normalize(gold)
        normals = [_normalize(part) for part in reply.parts]
        distinct = {_read_number(normal) or normal: normal for normal in normals}
        expected, answer = _read_decimal_commas(expected, normals[-1])
        if expected.endswith("+C") and not re.search("[cKk]", expected):
            answer = re.sub(r"\+[cKk]$", "+C", answer)
        other = _list_variables(answer) - _list_variables(expected)
        letter = _list_variables(expected) - _list_variables(answer)
        if _read_domain(gold) == "Z" and len(other) == len(letter) == 1 and other < set("jklmn"):  # 2n\pi for 2k\pi
            answer = re.sub(rf"(?<![\\a-zA-Z]){other.pop()}(?![a-zA-Z])", letter.pop(), answer)
        expected, answer = _drop_short_unit(expected, answer), _drop_short_unit(answer, expected)
        tree = _parse(expected)
        wants_many = _kind(getattr(tree, "value", tree)) in unordered
        if len(distinct) > 1 and not wants_many:
            if reply.hedging:
                return "hedged"
        elif wants_many and _kind(_parse(answer)) not in unordered:
            boxes = {_read_number(box) or box: box for box in map(_normalize, reply.boxes)}
            size = len(set(getattr(tree, "value", tree).items))
            if len(distinct) > 1 and not (len(distinct) != size and len(boxes) == size):
                answer = ";".join(distinct.values())
            elif len(boxes) == size:  # the first root is \boxed{...}. ... The second root is \boxed{...}
                answer = ";".join(boxes.values())
        if all(choices):
            return "right" if choices[0] == choices[1] else "wrong"
        given = _parse(answer)
        budget = _Budget(reply.alone)
        if _kind(tree) == "matrix" and isinstance(given, str) and r"\begin" in given:  # A + B
            return "right" if _ask_child(expected, answer, budget) else "wrong"
        return "right" if _match(tree, given, budget) else "wrong"
    except _Stop as stop:
        return str(stop)
    except RecursionError:
        return "too_costly"


def _read_absence(text: str) -> str:
    """How a text says that nothing solves the problem or that no value exists, "" for other texts."""
    words = re.sub(r"\\(?:text\w*|mathrm|mbox)|[^a-z∅\\]", "", text[:99].lower())
    if re.fullmatch(r"\\emptyset|\\varnothing|∅|no(?:real)?solutions?(?:exists?)?", words):
        return "empty"
    return "undefined" if words in ("dne", "doesnotexist") else ""


def _read_choice(text: str) -> str | None:
    """The letter of a choice such as (C) or "C. text", None for anything else and for two letters."""
    text = _WORDS_IN_MATH.sub(r"\1", text).strip("$ ")
    choice = _CHOICE.match(text)
    if not choice or _SECOND_CHOICE.match(text, choice.end(1)) or _DENIED_AFTER.match(text[choice.end(1) :]):
        return None
    return choice[1]


def _read_decimal_commas(gold: str, answer: str) -> tuple[str, str]:
    """Both texts, with 1,22 as 1.22 where the other one is a single number.

    A gold of two numbers, such as 5,10, is a decimal only beside the same digits with a point.
    """
    decimals = [_DECIMAL_COMMA.fullmatch(text) for text in (gold, answer)]
    pointed = answer.replace(",", ".")
    if decimals[0] and not decimals[1] and answer == gold.replace(",", "."):
        return answer, answer
    single = decimals[1] and not decimals[0] and not re.search(r"[,;]|\\l(?:and|or)", gold)
    if single and (answer[-1] != "0" or gold == pointed):
        return gold, pointed
    return gold, answer


def _drop_short_unit(text: str, other: str) -> str:
    """10m as 10 where the other text is a number; elsewhere m is a variable."""
    unit = re.fullmatch(r"(.*\d)(?:[mgshLlNJVWK]|\\Omega)(?:\^\d)?", text)
    numbers = unit and isinstance(_read_number(other), Fraction) and isinstance(_read_number(unit[1]), Fraction)
    return unit[1] if numbers else text


def _kind(tree: object) -> str:
    return getattr(tree, "kind", "")


def _match(gold: object, answer: object, budget: _Budget) -> bool:
    """Whether two trees are equal, piece by piece; a piece of another kind is never equal."""
    gold, answer = (t.items[0] if _kind(t) == "set" and len(t.items) == 1 else t for t in (gold, answer))
    if _kind(gold) == "chain":
        gold = gold.items[-1]
    if _kind(answer) == "chain":  # 16 = 17 is not 17
        steps, last = answer.items[:-1], answer.items[-1]
        return _match(gold, last, budget) and all(_match_step(gold, step, budget) for step in steps)
    named = [isinstance(tree, _Named) for tree in (gold, answer)]
    if any(named):
        texts = [getattr(tree, "text", tree) for tree in (gold, answer)]
        relations = all(isinstance(text, str) and re.search(_RELATION, text) for text in texts)
        if relations and not (all(named) and gold.name == answer.name):  # y = 2x and 2x - y = 0
            if named[0] and isinstance(gold.value, str) and not _list_variables(gold.value):
                raise _Stop("unevaluated")  # 2x = 6 for x = 3
            return _match_leaves(*texts, budget)
        if not all(named) or gold.name == answer.name:
            values = [tree.value if n else tree for tree, n in zip((gold, answer), named)]
            return _match(*values, budget)
        return False
    if isinstance(gold, str) or isinstance(answer, str):
        return isinstance(gold, str) and isinstance(answer, str) and _match_leaves(gold, answer, budget)
    kinds = {gold.kind, answer.kind}
    parts = answer.items if answer.kind == "union" else answer.items[:1] if answer.kind == "without" else ()
    if gold.kind != answer.kind and parts and all(_kind(part) == "set" for part in parts):
        raise _Stop("unevaluated")  # \{1, 2\} \cup \{3\}
    if kinds & {"union", "without"}:
        spans = [_list_spans(tree) for tree in (gold, answer)]
        if None not in spans:
            return _merge_spans(spans[0]) == _merge_spans(spans[1])
    if kinds <= {"list", "set"} and (len(gold.items) != len(answer.items) or "set" in kinds):
        gold, answer = (_Group(tree.kind, tuple(dict.fromkeys(tree.items))) for tree in (gold, answer))
    if len(gold.items) != len(answer.items) or not (len(kinds) == 1 or kinds in _ALIKE):
        return False
    if len(gold.items) > 64:
        raise _Stop("too_costly")
    pairs = zip(gold.items, answer.items)
    if kinds <= {"list", "set"} or kinds == {"union"}:
        return _match_unordered(gold.items, answer.items, budget)
    return all(_match(g, a, budget) for g, a in pairs)


_ALIKE = ({"list", "set"}, {"list", "()"})


def _match_step(gold: object, step: object, budget: _Budget) -> bool:
    """Whether a step of a chain has the gold's value; a calculation is allowed there."""
    if isinstance(gold, str) and isinstance(step, str):
        return _match_leaves(gold, step, budget, finished=False)
    return _match(gold, step, budget)


def _match_unordered(gold: tuple, answer: tuple, budget: _Budget) -> bool:
    """Whether the items pair up; x = 1, y = 2 against 1, 2 keeps the order of the names."""
    for side, other in ((gold, answer), (answer, gold)):
        names = {tree.name for tree in side if isinstance(tree, _Named)}
        if len(names) == len(side) and not any(isinstance(tree, _Named) for tree in other):
            return all(_match(g, a, budget) for g, a in zip(gold, answer))
    left = list(answer)
    for item in gold:
        left.sort(key=lambda other: other != item)  # equal spellings first: most need no more
        partner = next((i for i, other in enumerate(left) if _match(item, other, budget)), None)
        if partner is None:
            return False
        del left[partner]
    return True


_OPERATORS = [  # what calculates a value: an answer with one is unfinished, unless the gold has it too
    re.compile(pattern)
    for pattern in (
        r"\\i*(?:int|oint)(?![a-z])", r"\\sum(?![a-z])|\\prod(?![a-z])", r"\\lim(?![a-z])",
        r"\\frac\{(?:d|\\partial)[^{}]*\}\{(?:d|\\partial)|d/d[a-z](?![a-z])",
        r"\\(?:gcd|lcm|max|min|b?mod|pmod)(?![a-z])",
        r"\\frac\{\d*([a-z])(?:\^\w)?\}\{\d*\1(?:\^\w)?\}",
    )
]  # fmt: skip
_FUNCTIONS_LEFT = [  # the same for a gold without letters
    re.compile(pattern)
    for pattern in (
        r"\\[dt]?binom|!", r"\\(?:log|ln|lg)(?![a-z])",
        r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)", r"\\(?:floor|ceil|lfloor|lceil)", r"\|",
    )
]  # fmt: skip
_ATOM = r"(?:\d+(?:\.\d+)?|\\frac\{-?\d+\}\{-?\d+\})"
_CALCULATION = re.compile(  # two numbers with a sign between them, or brackets of numbers side by side
    rf"(?<![\w^.}}]){_ATOM}(?:[-+]\(?-?{_ATOM}(?![\w.^!(\\{{])|\\cdot\(?-?{_ATOM}(?![\d.^!(]))"
    rf"|\(-?{_ATOM}\)\(?-?{_ATOM}(?![\w.^])"
    rf"|(?<![\w)}}]){_ATOM}\(-?{_ATOM}\)"
)
_PRODUCT = re.compile(  # of two complex numbers or two roots of numbers
    r"\((?=[^()]*(?<![a-z])i(?![a-z]))[^()]*\)(?:\\cdot ?)?\((?=[^()]*(?<![a-z])i(?![a-z]))"
    r"|\\sqrt\{\d+\}\\cdot ?\\sqrt\{\d+\}"
)
_SIGN_BETWEEN = re.compile(r"(?<=[\w)}!|])[-+]|\\cdot(?!10\^)|[)}\d][(]|[)][({\d\\]")
_CUT_SHORT = re.compile(r"(?<![\d.])\d*\.?\d{0,5}\s*(?:\\[lcd]?dots|\.{3}|…)[\s.$}]*$")  # 0.3... and 20...
_DIVIDED = re.compile(r"(?:÷|\\div(?![a-z])|∕)(?!.*[=≈])", re.S)  # always a calculation, where 7/2 may be a value
_MIXED_SUM = re.compile(r"\d+[-+](?:\\frac\{\d+\}\{\d+\}|\d+/\d+)")
_BOMB = re.compile(
    r"\^\{?[-+(]*\d{5,}|\^\{[^{}]*\d[)}]*[\^!]|\^\(?[\d.]+\^|\d{4,}\)*!|!\)*!|\^[^()]*\)!|\d{301,}"
    r"|e\^\{?e\^\{?e\^|binom\{[^{}]*\d{4,}|\d[eE][+-]?\d{4,}"
)


_TERM_TOKEN = re.compile(
    r"(?:/|(?P<number>\d+(?:\.\d+)?)(?![\d.^])|\\sqrt\{(?P<root>\d{1,4})\}|\\sqrt(?:\[\d+\])?\{[^{}]*\}|\\[a-zA-Z]+ ?"
    r"|\d+|.)(?:[_^](?:\{[^{}]*\}|\w))*'*"
)
_NOT_MONOMIAL = re.compile(
    r"[^\w{}^.'/\\ ]|\\(?!(?:sqrt|pi|alpha|beta|gamma|delta|lambda|theta|omega|sigma|phi|rho|mu|tau)(?![a-zA-Z]))"
)
_COEFFICIENT = re.compile(r"^(?:\d+(?:\.\d+)?(?![\d.^])|\\frac\{\d+\}\{\d+\})(?:\\cdot ?)?(?=.)")


def _read_kind_of_term(term: str) -> str:
    r"""A term without its coefficient: x for 2x and x/3, \sqrt3 for \sqrt{12}, "" for a number."""
    plain = re.sub(r"\\frac\{([^{}]*)\}\{\d+\}", r"\1", term)
    plain = re.sub(r"\\frac\{\d+\}\{(\w*)\}", r"/\1", plain).replace(r"\cdot", " ")
    if _NOT_MONOMIAL.search(plain):
        return _COEFFICIENT.sub("", term)
    factors, over = [], ""
    for token in _TERM_TOKEN.finditer(plain):
        factor = token.group().strip()
        if root := int(token["root"] or 0):  # its part without squares
            root //= next(k * k for k in range(math.isqrt(root), 0, -1) if root % (k * k) == 0)
            factor = rf"\sqrt{root}" if root > 1 else ""
        if factor and factor != "/" and not token["number"]:
            factors.append(over + factor)
        over = factor if factor == "/" else ""
    return " ".join(sorted(factors))


def _has_like_terms(text: str, numbers: bool) -> bool:
    r"""Whether a sum has two terms that could be added: 2x + 7x, \sqrt{12} + \sqrt{27}; with `numbers`, 1 + x + 2."""
    if "|" in text or "+" not in text and "-" not in text:
        return False
    text = re.sub(r"(^|[-+(,=])\(([^()]*)\)(?=$|[-+),=])", r"\1\2", text)
    text = re.sub(r"=|<|>|\\(?:le|ge|neq|in|pm|mp|lor|land)(?![a-z])|[;:]", ",", text)
    levels: list[tuple[int, set]] = [(0, set())]  # where the term starts, and the kinds of the terms before it
    for at, c in enumerate(text + ","):
        start, kinds = levels[-1]
        if c in "+-,)}]" and (term := text[start:at].strip()):
            kind = _read_kind_of_term(term)
            if kind in kinds and (kind or numbers):
                return True
            kinds.add(kind)
        if c in "([{":
            levels.append((at + 1, set()))
        elif c in ")}]" and len(levels) > 1:
            levels.pop()
        elif c in "+-,":
            levels[-1] = (at + 1, set() if c == "," else kinds)
    return False


def _is_unfinished(gold: str, answer: str, alone: bool) -> bool:
    """Whether an answer leaves a calculation to do that the gold does not leave.

    A reply that is nothing but an answer may name a function of numbers (a maximum or a root); a sum, a product, a
    factorial or a binomial of numbers is unfinished there too.
    """
    named = set(re.findall(r"\\[a-z]+", answer)) - {r"\cdot", r"\frac", r"\binom"}
    if alone and ("|" in answer or named):
        return False
    letters = _list_variables(gold) or _GREEK.intersection(re.findall(r"\\([a-zA-Z]+)", gold))
    operators = _OPERATORS if letters else _OPERATORS + _FUNCTIONS_LEFT
    if any(f.search(answer) and not f.search(gold) for f in operators):
        return True
    if not letters and _PRODUCT.search(answer) and not _PRODUCT.search(gold):
        return True
    if _has_like_terms(answer, bool(letters)) and not _has_like_terms(gold, bool(letters)):
        return True
    gold, answer = gold.replace("%", ""), answer.replace("%", "")
    if _CALCULATION.search(answer) and not _CALCULATION.search(gold):
        return not (alone and _MIXED_SUM.fullmatch(answer))  # 4 + 4/9 spells the mixed number 4 4/9
    if isinstance(_read_number(gold), Fraction) and _read_number(answer) is None:
        if re.fullmatch(r"(?:[-\d./(){}]|\\frac)*", answer) and len(re.findall(r"/|frac", answer)) > 1:
            return True  # (3/4)/(1/2)
        return bool(_SIGN_BETWEEN.search(answer)) and not (alone and _MIXED_SUM.fullmatch(answer))
    return False


def _match_leaves(gold: str, answer: str, budget: _Budget, finished: bool = True) -> bool:
    """Whether two texts without inner structure are equal: exactly, as text, or by math-verify."""
    a, b = _read_number(gold), _read_number(answer)
    if a is _NOTHING or b is _NOTHING:
        return False
    if gold == answer:
        return True
    if a is not None and b is not None:
        whole = finished and not budget.alone and _is_whole_ratio(answer, b)
        if whole and not _RATIO.fullmatch(gold.replace(":", "/")):
            raise _Stop("unevaluated")
        return _match_numbers(a, b, gold, answer)
    if (
        re.fullmatch(r".*(?:\\infty\s?[-+]|\\infty\\cdot|.[-+]\\infty|\\cdot\(?-?\\infty).*", answer)
        and "_" not in answer
    ):  # \infty + 1
        return False
    if finished and _is_unfinished(gold, answer, budget.alone):
        raise _Stop("unevaluated")
    pair = (gold, answer)
    if gold.count("'") != answer.count("'") and not re.search(r"[a-zA-Z]{2}'[a-z]", gold + answer):  # x' is not x
        return False
    if any(re.search(r"(?<![_\d.])\d[\d.]* \d", text) for text in pair):  # two numbers side by side are not one
        return False
    words = [bool(re.search(r"[^\W\d_]{4,}(?!\w*\()", text)) and not re.search(r"[\\^_=+*/<>]", text) for text in pair]
    spoken = [re.sub(r"(?<!^)\W|[^-\w]|_", "", text).casefold() for text in pair]  # a sign in front still counts
    if gold.isalpha() and len(gold) > 2 and spoken[0] == spoken[1] and not re.search(r"[-+*/^_=<>|\\]", answer):
        return True
    if ":" in gold + answer or (any(words) and not re.search(r"\d", gold)):
        return all(words) and spoken[0] == spoken[1]
    bound = re.search(r"\\(?:sum|prod|int|lim|frac\{d)(?![a-z])", gold + answer)
    relations = [bool(re.search(_RELATION, re.sub(r"_\{[^{}]*\}", "", text))) for text in pair]
    if relations[0] != relations[1] or not (bound or _list_variables(gold) == _list_variables(answer)):
        return False
    for text in pair:
        many = len(text) > 400 or len(re.findall(r"[-+/^!]|\\[a-zA-Z]+", text)) > 60
        if many or _BOMB.search(text) or (bound and re.search(r"\d{5,}|10\^", text)):
            raise _Stop("too_costly")
    verdict = None if bound else _compare_values(gold, answer)
    if verdict is not None:
        return verdict
    if r"\ln" in gold + answer:  # then \log is natural too
        gold, answer = (_BARE_LOGARITHM.sub(r"\\ln ", text) for text in (gold, answer))
    return _ask_child(gold, answer, budget)


def _is_whole_ratio(text: str, value: Fraction) -> bool:
    """Whether a fraction is an integer that was not calculated: 8/2, but neither 6/8 nor 4/1."""
    ratio = _RATIO.fullmatch(text.replace(":", "/"))
    return bool(ratio) and value.denominator == 1 and abs(Fraction(ratio[4] or ratio[6])) != 1


def _match_numbers(a: Fraction, b: Fraction, gold: str, answer: str) -> bool:
    """Exactly equal, but for a dropped % sign, or a decimal of 6 digits or more that rounds."""
    if a == b:
        return True
    if gold.endswith("%") and not answer.endswith("%"):
        return abs(b) >= 1 and a * 100 == b
    if answer.endswith("%") and _LITERAL.fullmatch(gold):
        return abs(a) > 1 and b * 100 == a
    for text, other in ((gold, b), (answer, a)):
        _, point, places = text.partition(".")
        if point and _LITERAL.fullmatch(text) and len(text.strip("-0.").replace(".", "")) >= 6:
            unit = Fraction(1, 10 ** len(places))
            if (other / unit).denominator != 1 and abs(a - b) <= unit / 2:
                return True
    return False


# ------------------------------------------------ 4. algebra, by its values at points

PRECISION = 240  # bits of a value that is no fraction, 72 digits
_LARGE = 64  # a value beyond 2**64 or below 2**-64 is left to math-verify, so that no sum loses too many digits
_NOISE = 160  # a difference below 2**-160 of its terms is zero; one between 2**-160 and 2**-64 is left to math-verify
_NEAR = (
    "+",
    "-",
    0,
    1,
    "+",
    "-",
    "+",
)  # the sign of all variables at a point, or the bit of a name that gives its sign
_FAR = ((2, 1), (3, 1), (4, 1), (5, 1), ("+", 20), ("-", 30), ("+", 1000), ("-", 2000))  # a sign and a factor
_POINTS = tuple((sign, 1) for sign in _NEAR) + _FAR  # the far ones for what has several forms, such as |x - 5|
_TOKEN = re.compile(r"\d+\.\d+|\.\d+|\d+|\\[a-zA-Z]+|\S")
_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu", "nu",
    "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Sigma",
    "Phi", "Psi", "Omega", "ell",
}  # fmt: skip
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_READ_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan", "exp", "ln", "log",
    "lg",
}  # fmt: skip
_BARE_LOGARITHM = re.compile(r"\\log(?!\s?_|[a-z])\s?")
_SIDES = {"=": "=", r"\neq": "!", "<": "<", ">": "<", r"\le": "<=", r"\ge": "<="}


class _Unclear(Exception):
    """The text or the value at a point is not clear enough; math-verify decides."""


class _Undefined(Exception):
    """There is no value at this point."""


class _Point:
    """One of _POINTS, the base of \\log (0 is e), and whether a value at it depends on a branch of a root."""

    def __init__(self, number: int, base: int):
        self.number, self.base, self.branch = number, base, False


@lru_cache(4096)
def _choose_value(name: str, number: int) -> Fraction:
    sign, factor = _POINTS[number]
    negative = sign == "-" if isinstance(sign, str) else sum(map(ord, name)) >> sign & 1
    size = random.Random(f"{name} {number}").randint(800 if factor > 1 else 100, 3000)
    return Fraction((-1 if negative else 1) * factor * size, 997)


@lru_cache(1)
def _precise() -> object:
    """mpmath's arithmetic with its own precision, whatever the caller does with mpmath."""
    import mpmath

    context = mpmath.mp.clone()
    context.prec = PRECISION
    return context


def _float(v: object) -> object:
    return _precise().mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else v


def _clean(v: object) -> object:
    """A value without what only rounding left of it. Raises _Unclear where digits may have been lost."""
    if isinstance(v, Fraction):
        if max(v.numerator.bit_length(), v.denominator.bit_length()) > 6000:
            raise _Unclear
        return v
    real, imaginary = map(_clean_part, (v.real, v.imag))
    if imaginary:
        return _precise().mpc(real, imaginary)
    return real or Fraction(0)


def _clean_part(part: object) -> object:
    if not part:
        return part
    size = _precise().mag(part)
    if size < -_NOISE:
        return part * 0
    if not -_LARGE <= size <= _LARGE:  # also infinite and nan
        raise _Unclear
    return part


def _add(a: object, b: object) -> object:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _clean(a + b)
    return _clean(_float(a) + _float(b))


def _multiply(a: object, b: object) -> object:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _clean(a * b)
    return _clean(_float(a) * _float(b)) if a and b else Fraction(0)


def _divide(a: object, b: object) -> object:
    if not b:
        raise _Undefined
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _clean(a / b)
    return _clean(_float(a) / _float(b)) if a else a


def _is_complex(v: object) -> bool:
    return not isinstance(v, Fraction) and bool(v.imag)


def _measure(v: object) -> int:
    """The size of a value in bits: 4 for a value near 10."""
    return _precise().mag(_float(v)) if v else 0


def _raise(a: object, b: object, point: _Point) -> object:
    """a to the power b: the real root where b has an odd denominator, the principal value elsewhere."""
    if not a:
        if _is_complex(b) or b <= 0:
            raise _Undefined
        return Fraction(0)
    if isinstance(b, Fraction) and b.denominator == 1:
        if abs(b) > 500:
            raise _Unclear
        if isinstance(a, Fraction):
            if max(a.numerator.bit_length(), a.denominator.bit_length()) * abs(b) > 6000:
                raise _Unclear
            return a ** int(b)
        if abs(_measure(a) * b) > 2 * _LARGE:
            raise _Unclear
        return _clean(a ** int(b))
    if (abs(_measure(a)) + 1) * 2.0 ** min(_measure(b), 99) > 2 * _LARGE:
        raise _Unclear
    context, sign = _precise(), 1
    if _is_complex(a) or a < 0:
        point.branch = True
        if isinstance(b, Fraction) and b.denominator % 2 and not _is_complex(a):
            a, sign = -a, -1 if b.numerator % 2 else 1
    power = context.sqrt(_float(a)) ** b.numerator if _is_half(b) else context.exp(_float(b) * context.ln(_float(a)))
    return _clean(sign * power)


def _is_half(b: object) -> bool:
    return isinstance(b, Fraction) and b.denominator == 2 and abs(b) < 20


def _absolute(a: object) -> object:
    return abs(a) if isinstance(a, Fraction) else _clean(abs(a))


def _apply(name: str, a: object, point: _Point) -> object:
    """A function of one number. Real arguments outside of a real domain choose a branch."""
    context = _precise()
    if name in ("log", "lg", "ln"):
        if not a:
            raise _Undefined
        point.branch |= _is_complex(a) or a < 0
        base = {"log": point.base, "lg": 10}.get(name)
        value = context.ln(_float(a))
        return _clean(value / context.ln(base) if base else value)
    if _measure(a) > (5 if _is_complex(a) or name in ("exp", "sinh", "cosh", "tanh") else _LARGE):
        raise _Unclear
    if name in ("arcsin", "arccos", "arctan"):
        point.branch |= _is_complex(a) or (name != "arctan" and abs(a) > 1)
    if name in ("tan", "sec"):
        return _divide(_apply("sin", a, point) if name == "tan" else Fraction(1), _apply("cos", a, point))
    if name in ("cot", "csc"):
        return _divide(_apply("cos", a, point) if name == "cot" else Fraction(1), _apply("sin", a, point))
    function = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(name, name)
    try:
        return _clean(getattr(context, function)(_float(a)))
    except (ValueError, ZeroDivisionError):  # arctan i
        raise _Undefined from None


def _count(name: str, a: object, b: object = None) -> object:
    """a! or "a over b", of whole numbers, or of any a over a small b."""
    if name == "!":
        if not isinstance(a, Fraction) or a.denominator != 1 or not 0 <= a <= 300:
            raise _Unclear
        return Fraction(math.factorial(int(a)))
    if not isinstance(b, Fraction) or b.denominator != 1 or not 0 <= b <= 500 or not isinstance(a, Fraction):
        raise _Unclear
    if a.denominator == 1 and 0 <= a <= 2000:
        return Fraction(math.comb(int(a), int(b)))
    if b > 20:
        raise _Unclear
    return Fraction(math.prod(a - k for k in range(int(b))), math.factorial(int(b)))


class _Reader:
    """Turns a normal text into a function of a _Point. Raises _Unclear where it is not sure what the text means.

    Some notations have a usual and a rare meaning: 3/4x, sin(x)^2, x(y). It takes the usual one and sets `ambiguous`.
    """

    def __init__(self, text: str):
        self.tokens = _TOKEN.findall(text)
        self.names: set[str] = set()
        self.at = self.depth = self.angles = self.bars = 0
        self.ambiguous = False
        self.kinked = bool(re.search(r"[|]|\\sqrt|\\arc|\^\{[^{}]*(?:[/.]|\\frac|-1\})", text))
        doubt = r"(?<![_\d])\d+\s+\d|\d[eE]\d|^[a-zA-Z]{3,}$|(?<![\\a-zA-Z])[a-zA-Z]{5}"  # two numbers, 1e5, words
        if len(self.tokens) > 300 or re.search(doubt, text):
            raise _Unclear

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise _Unclear
        self.at += 1
        return token

    def read_sides(self) -> tuple[str, object]:
        """The kind of relation ("" for none) and left side minus right side."""
        left, sign = self.read_sum(), self.peek()
        if not sign:
            return "", left
        if sign not in _SIDES:
            raise _Unclear
        self.take()
        right = self.read_sum()
        if self.peek():
            raise _Unclear
        if sign in (">", r"\ge"):
            left, right = right, left
        return _SIDES[sign], lambda p: _add(left(p), _multiply(Fraction(-1), right(p)))

    def read_sum(self) -> object:
        self.depth += 1
        if self.depth > 16:
            raise _Unclear
        total = self.read_signed()
        while self.peek() in ("+", "-"):
            total = self._join(_add, total, self.read_signed())
        self.depth -= 1
        return total

    def read_signed(self) -> object:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        product = self.read_product()
        return (lambda p: _multiply(Fraction(-1), product(p))) if negative else product

    @staticmethod
    def _join(operation: Callable, a: object, b: object) -> object:
        return lambda p: operation(a(p), b(p))

    def read_product(self) -> object:
        started, divided = self.at, False
        product = self.read_factor()
        while True:
            token = self.peek()
            if token == r"\cdot":
                self.take()
                negative = self.peek() == "-" and self.take() == "-"
                factor = self.read_factor()
                product = self._join(_multiply, product, factor)
                product = self._join(_multiply, product, lambda p: Fraction(-1)) if negative else product
                divided = False
            elif token == "/":
                self.take()
                product, divided = self._join(_divide, product, self.read_factor()), True
            elif self.starts_factor(token):
                if divided and re.fullmatch(r"\d+/\d+", "".join(self.tokens[started : self.at])):  # 3/4x
                    divided, self.ambiguous = False, True
                if divided or (token[0] in ".0123456789" and self.tokens[self.at - 1] != ")"):  # a/bx; x2
                    raise _Unclear
                product = self._join(_multiply, product, self.read_factor())
            else:
                return product

    def starts_factor(self, token: str) -> bool:
        if token == "|":
            return self.bars == 0
        return bool(token) and (token in "([{" or token[0].isalnum() or token[0] == "." or self.is_factor_name(token))

    @staticmethod
    def is_factor_name(token: str) -> bool:
        name = token[1:] if token[:1] == "\\" else ""
        return name in _GREEK or name in _READ_FUNCTIONS or name in ("pi", "frac", "sqrt", "binom")

    def read_factor(self) -> object:
        first = self.at
        base = self.read_atom()
        if self.peek() == "!":
            self.take()
            if self.peek() in ("!", "^"):
                raise _Unclear
            return lambda p: _count("!", base(p))
        if self.peek() != "^" or (self.peek(1) == r"\circ" and self.angles):
            return base
        self.take()
        constant = self.tokens[first : self.at - 1]
        exponent = self.read_exponent()
        if self.peek() in ("^", "!"):
            raise _Unclear
        if constant == ["e"]:
            return lambda p: _apply("exp", exponent(p), p)
        return lambda p: _raise(base(p), exponent(p), p)

    def read_exponent(self) -> object:
        token = self.peek()
        if token in ("{", r"\pi", r"\frac") or (len(token) == 1 and token.isalnum()) or token[1:] in _GREEK:
            return self.read_atom()
        raise _Unclear

    def read_group(self, close: str) -> object:
        bars, self.bars = self.bars, 0
        inside = self.read_sum()
        self.take(close)
        self.bars = bars
        return inside

    def read_braces(self) -> object:
        self.take("{")
        return self.read_group("}")

    def read_atom(self) -> object:
        token = self.take()
        if token in ("(", "[", "{"):
            return self.read_group({"(": ")", "[": "]", "{": "}"}[token])
        if token == "|":
            self.bars += 1
            inside = self.read_sum()
            self.take("|")
            self.bars -= 1
            return lambda p: _absolute(inside(p))
        if token[0] in ".0123456789" and token != ".":
            return self.read_number(token)
        name = token[1:] if token[0] == "\\" else token
        if token[0] != "\\" and not (token.isascii() and token.isalpha()):
            raise _Unclear
        if token == r"\pi":
            return lambda p: _precise().pi + 0
        if name in _GREEK or token[0] != "\\":
            return self.read_variable(name)
        if name in _READ_FUNCTIONS:
            return self.read_function(name)
        if name == "frac":
            return self._join(_divide, self.read_braces(), self.read_braces())
        if name == "binom":
            above, below = self.read_braces(), self.read_braces()
            return lambda p: _count("binom", above(p), below(p))
        if name == "sqrt":
            return self.read_root()
        raise _Unclear

    def read_number(self, token: str) -> object:
        value = Fraction(token)
        if len(token) > 300 or self.peek() in ("_", "%"):
            raise _Unclear
        if self.peek() == "^" and self.peek(1) == r"\circ":
            if not self.angles:
                raise _Unclear
            self.at += 2
            return lambda p: _multiply(value / 180, _precise().pi + 0)
        if token.isdigit() and self.peek() == r"\frac":  # 2\frac13 is a mixed number or a product
            inside = "".join(self.tokens[self.at + 1 : self.at + 7])
            if re.match(r"\{\d+\}\{\d+\}", inside):
                raise _Unclear
        return lambda p: value

    def read_variable(self, name: str) -> object:
        if self.peek() == "_":
            self.take()
            name += "_" + self.read_subscript()
        if self.peek() in ("'", "_"):
            raise _Unclear
        if name == "e":
            return lambda p: _precise().e + 0
        if name == "i":
            return lambda p: _precise().mpc(0, 1)
        if (self.peek() == "(" and name[0] in "fghFGHPE") or (name == "d" and self.peek().isalpha()) or name == "I":
            raise _Unclear  # f(x), dx
        self.ambiguous |= self.peek() == "(" and self.peek(1).isalpha() and self.peek(2) == ")"
        self.names.add(name)
        return lambda p: _choose_value(name, p.number)

    def read_subscript(self) -> str:
        token = self.take()
        if token.isalnum() and len(token) == 1:
            return token
        if token != "{":
            raise _Unclear
        inside = ""
        while self.peek() != "}":
            inside += self.take()
        self.take()
        if not re.fullmatch(r"[\w+-]+", inside):
            raise _Unclear
        return inside

    def read_root(self) -> object:
        degree = Fraction(2)
        if self.peek() == "[":
            self.take()
            token = self.take()
            if not token.isdigit() or not 2 <= int(token) <= 99:
                raise _Unclear
            self.take("]")
            degree = Fraction(int(token))
        inside = self.read_braces()
        return lambda p: _raise(inside(p), 1 / degree, p)

    def read_function(self, name: str) -> object:
        power = base = None
        if name == "log" and self.peek() == "_":
            self.take()
            base = self.read_exponent()
        if self.peek() == "^":
            self.take()
            sign = self.tokens[self.at : self.at + 4]
            power = self.read_exponent()
            if sign == ["{", "-", "1", "}"] and name in _INVERSE:
                name, power = _INVERSE[name], None
            elif not (sign[:1] and sign[0].isdigit()):
                raise _Unclear
        self.angles += 1
        argument = self.read_argument()
        self.angles -= 1
        if base is not None:
            ratio = lambda p: _divide(_apply("ln", argument(p), p), _apply("ln", base(p), p))  # noqa: E731
        else:
            ratio = lambda p: _apply(name, argument(p), p)  # noqa: E731
        if self.peek() == "^":  # sin(x)^2 is the square of the sine
            self.take()
            if power:
                raise _Unclear
            power = self.read_exponent()
            if self.peek() in ("^", "!"):
                raise _Unclear
        return (lambda p: _raise(ratio(p), power(p), p)) if power else ratio

    def read_argument(self) -> object:
        """(...), |...|, another function, or a product such as 2\\pi x that ends where no doubt is possible."""
        token = self.peek()
        if token in ("(", "{", "|"):
            argument = self.read_atom()
            if self.peek() in ("!", "[", "{") or self.peek()[:1].isdigit():
                raise _Unclear
            self.ambiguous |= self.peek() in ("^", "(")
            return argument
        if token[1:] in _READ_FUNCTIONS:
            return self.read_factor()
        argument, factors = None, 0
        while self.starts_argument(self.peek()):
            power = self.at
            factors += not self.peek()[0].isdigit()
            factor = self.read_factor()
            argument = factor if argument is None else self._join(_multiply, argument, factor)
            if "^" in self.tokens[power : self.at] and self.starts_argument(self.peek()):  # sin x^2 y
                raise _Unclear
        ends = self.peek() in ("", "+", "-", ")", "]", "}", "=", "<", ">", r"\le", r"\ge", r"\neq")
        ends = ends or self.peek() == r"\cdot" or self.peek()[1:] in _READ_FUNCTIONS
        if argument is None or not ends:
            raise _Unclear
        self.ambiguous |= factors > 1 or (self.peek() == r"\cdot" and self.peek(1)[1:] not in _READ_FUNCTIONS)
        return argument

    def starts_argument(self, token: str) -> bool:
        name = token[1:] if token[:1] == "\\" else ""
        return token[:1].isalnum() or name in _GREEK or name in ("pi", "frac", "sqrt")


class _Compiled(NamedTuple):
    relation: str
    function: object
    names: frozenset
    logarithm: bool  # has \log without its base
    kinked: bool  # may have another form far from 0
    ambiguous: bool  # has another meaning, though a rare one
    values: dict  # number of the point and base: the value there


@lru_cache(1024)
def _compile(text: str) -> _Compiled | None:
    """A normal text as a function of its variables, None where the reader is not sure what it means."""
    try:
        reader = _Reader(text)
        relation, function = reader.read_sides()
    except (_Unclear, RecursionError):
        return None
    if relation and not reader.names:
        return None
    logarithm = bool(_BARE_LOGARITHM.search(text))
    return _Compiled(relation, function, frozenset(reader.names), logarithm, reader.kinked, reader.ambiguous, {})


def _evaluate(side: _Compiled, number: int, base: int) -> tuple[object, bool]:
    """The value at a point, None where there is none, and whether it depends on a branch."""
    key = (number, base if side.logarithm else 0)
    if key not in side.values:
        point = _Point(number, base)
        try:
            value = side.function(point)
        except _Undefined:
            value = None
        except _Unclear:
            value = _Unclear
        side.values[key] = value, point.branch
    if side.values[key][0] is _Unclear:
        raise _Unclear
    return side.values[key]


def _evaluate_both(a: _Compiled, b: _Compiled, base: int) -> Iterator[tuple[object, object, bool]]:
    """Both values at each point, and whether one depends on a branch. Far points count where they can be computed."""
    count = 1 if not (a.names or b.names) else len(_POINTS) if a.kinked or b.kinked else len(_NEAR)
    for number in range(count):
        try:
            (x, x_branch), (y, y_branch) = _evaluate(a, number, base), _evaluate(b, number, base)
        except _Unclear:
            if number < len(_NEAR):
                raise
        else:
            yield x, y, x_branch or y_branch


def _is_close(a: object, b: object) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    gap = abs(_float(a) - _float(b))
    if not gap:
        return True
    scale = max(_measure(a), _measure(b)) if a and b else _measure(a or b)
    size = _precise().mag(gap) - scale
    if -_NOISE < size < -_LARGE:
        raise _Unclear
    return size <= -_NOISE


def _compare_values(gold: str, answer: str) -> bool | None:
    r"""Whether two normal texts have equal values at several points, None where that is not certain.

    It is certain only where no branch of a root or logarithm matters. That they differ is certain only where both
    texts have one possible meaning.
    \log without a base means base e or base 10, the same one in both texts.
    """
    a, b = _compile(gold), _compile(answer)
    if a is None or b is None:
        return None
    if a.relation != b.relation or (a.relation and a.names != b.names):
        return None if a.ambiguous or b.ambiguous else False
    compare = _compare_relations if a.relation else _compare_expressions
    try:
        if not (a.names or b.names) and (_is_rounding(gold, b) or _is_rounding(answer, a)):
            return True
        verdicts = [compare(a, b, base) for base in ((0, 10) if a.logarithm or b.logarithm else (0,))]
    except (_Unclear, ImportError, OverflowError, RecursionError):  # without mpmath only fractions are certain
        return None
    if True in verdicts:
        return True
    return None if None in verdicts or a.ambiguous or b.ambiguous else False


def _compare_expressions(a: _Compiled, b: _Compiled, base: int) -> bool | None:
    agreed, doubtful = 0, False
    for x, y, branch in _evaluate_both(a, b, base):
        if x is None or y is None:
            doubtful |= x is not y
        elif _is_close(x, y):
            agreed += 1
        elif branch:
            doubtful = True
        else:
            return False
    least = 4 if a.names or b.names else 1
    return None if doubtful or agreed < least else True


def _compare_relations(a: _Compiled, b: _Compiled, base: int) -> bool | None:
    """Whether two relations are the same up to a factor."""
    ratios = []
    for x, y, branch in _evaluate_both(a, b, base):
        if x is None or y is None or branch or _is_complex(x) or _is_complex(y):
            return None
        if bool(x) != bool(y):
            return False
        if x:
            ratios.append(_divide(x, y))
            if not _is_close(ratios[0], ratios[-1]):
                return False
    if len(ratios) < 4:
        return None
    return a.relation in "=!" or ratios[0] > 0


def _is_rounding(text: str, value: _Compiled) -> bool:
    """Whether a text is a decimal of 6 digits or more that rounds an irrational number."""
    if not re.fullmatch(r"-?\d*\.\d+", text) or len(text.strip("-0.").replace(".", "")) < 6:
        return False
    exact, _ = _evaluate(value, 0, 0)
    if exact is None or isinstance(exact, Fraction) or _is_complex(exact):
        return False
    places = len(text.split(".")[1])
    return places < 40 and abs(exact - _float(Fraction(text))) <= _float(Fraction(1, 2 * 10**places))


# ------------------------------------------------ 5. math-verify, in a process that can be killed

_WORKER = r"""
import json, mmap, os, random, re, signal, struct, sys
out = os.dup(1)
os.dup2(2, 1)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ImportError, OSError, ValueError):  # macOS has no such limit
    pass

def read_bytes(count):
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            os._exit(0)
        data += more
    return data

def receive():
    return json.loads(read_bytes(struct.unpack(">I", read_bytes(4))[0]))

def send(*value):
    body = json.dumps(value).encode()
    os.write(out, struct.pack(">I", len(body)) + body)

sys.path[:] = receive()
try:
    import logging, sympy
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.errors import TimeoutException
    from sympy.core.function import AppliedUndef
    from sympy.core.relational import Relational
except ImportError as error:
    send(str(error))
    sys.exit()
logging.disable(logging.CRITICAL)
PLAIN = LatexExtractionConfig(normalization_config=NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none",
    equations=False))

def exact(m):  # 0.25 as \frac{25}{100}: rational points need rational coefficients
    power, whole, places = m.groups()
    fraction = "\\frac{%d}{1%s}" % (int(whole + places), "0" * len(places))
    return "^{" + fraction + "}" if power else fraction

def read(text):
    if not re.search(r"[,;]|\\(?:cap|cup|setminus)", text):
        text = re.sub(r"(?<![\w.])(\^?)(\d*)\.(\d+)(?![\d.])", exact, text)
    found = parse("$" + text + "$", extraction_config=[PLAIN], parsing_timeout=None)
    value = next((x for x in found if not isinstance(x, str)), None)
    if value is None:
        return None
    value = value.doit() if hasattr(value, "doit") else value
    for f in list(getattr(value, "atoms", lambda *_: ())(AppliedUndef)):
        value = value.xreplace({f: sympy.Symbol(re.sub(r"\W", "_", str(f)))})
    names = {s: sympy.I if s.name == "i" else sympy.Symbol(s.name) for s in value.free_symbols}
    return value.xreplace(names)

def undefined(x):
    return x.has(sympy.nan, sympy.zoo, sympy.S.ComplexInfinity)

def vanishes(part):  # to at least 30 digits, by sympy's own error bound
    return part == 0 or getattr(part, "_prec", 2) == 1

def number(x):
    x = sympy.N(x, 30)
    if undefined(x) or not x.is_number:
        raise ArithmeticError
    return x

def zero(x):
    return all(map(vanishes, number(x).as_real_imag()))

def real(x):
    return vanishes(number(x).as_real_imag()[1])

def points(symbols, far=False):  # far ones for what changes its form far from 0, such as |x - 5|
    rng = random.Random(7)
    signs = ((1, 1), (1, 1), (-1, -1), (7, 5), (-1, -1), (1, -1), (-1, 1), (-1, -1), (1, 1))
    for pair in signs + ((20, 20), (-30, -30), (1000, -1000), (-2000, 2000)) * far:
        yield {s: pair[i % 2] * sympy.Rational(rng.randint(100, 3000), 997) for i, s in enumerate(symbols)}

def kinked(x):
    return x.has(sympy.Abs, sympy.floor, sympy.ceiling) or any(
        power.exp.is_Rational and not power.exp.is_Integer and not power.base.is_Atom for power in x.atoms(sympy.Pow))

def equal(a, b):
    if a == b or a in (sympy.oo, -sympy.oo) or b in (sympy.oo, -sympy.oo):
        return a == b
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if not symbols:
        return zero(a - b)
    # Only points where both are real numbers count: ln(x/y) is ln x - ln y there, while sqrt(x^2) is not x. Where an
    # absolute value shows that the domain matters, both must be real at the same points.
    strict = a.has(sympy.Abs) or b.has(sympy.Abs)
    checked, complex_values = 0, []
    for point in points(symbols, kinked(a) or kinked(b)):
        x, y = a.subs(point), b.subs(point)
        try:
            domain = [real(x), real(y)]
            if domain == [False, False]:
                complex_values.append(zero(x - y))
            elif all(domain):
                if not zero(x - y):
                    return False
                checked += 1
            elif strict:
                return False
        except ArithmeticError:
            pass
    return checked > 2 or (checked == 0 and len(complex_values) > 2 and all(complex_values))

def sides(r):  # l < r as l - r, with the kind of relation
    flipped = isinstance(r, (sympy.Gt, sympy.Ge))
    kind = {sympy.Gt: sympy.Lt, sympy.Ge: sympy.Le}.get(type(r), type(r))
    return kind, (r.rhs - r.lhs if flipped else r.lhs - r.rhs)

def equivalent(r, s):  # the same relation up to a factor
    (kind, f), (other, g) = sides(r), sides(s)
    ratios = []
    if kind != other or f.free_symbols != g.free_symbols or not f.free_symbols:
        return False
    for point in points(sorted(f.free_symbols, key=str)):
        x, y = f.subs(point), g.subs(point)
        if zero(x) != zero(y):
            return False
        if not zero(x):
            ratios.append(sympy.N(x / y, 40))
    loose = kind in (sympy.Eq, sympy.Ne)
    same = all(zero(ratios[0] - q) for q in ratios[1:])
    return len(ratios) > 2 and same and (loose or bool(ratios[0] > 0))

def rounds(text, value):  # a decimal of 6 digits or more that rounds an irrational number
    if not re.fullmatch(r"-?\d*\.\d+", text) or len(text.strip("-0.").replace(".", "")) < 6:
        return False
    places = len(text.split(".")[1])
    gap = abs(sympy.N(value, places + 20) - sympy.Rational(text))
    return bool(value.is_real) and bool(gap <= sympy.Rational(1, 2 * 10**places))

def same(gold, answer):
    a, b = read(gold), read(answer)
    if a is None or b is None:
        return None
    if undefined(a) or undefined(b):
        return False
    if isinstance(a, Relational) or isinstance(b, Relational):
        return isinstance(a, Relational) and isinstance(b, Relational) and equivalent(a, b)
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        if not (a.free_symbols or b.free_symbols) and (rounds(gold, b) or rounds(answer, a)):
            return True
        try:
            return equal(a, b)
        except ArithmeticError:
            return False
    return bool(verify([a], [b], strict=True, timeout_seconds=None))

def serve():
    while True:
        number_asked, gold, answer, seconds = receive()
        current[:8] = struct.pack(">Q", number_asked)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # processor time; no handler: it ends the process
        try:
            verdict = same(gold, answer)
        except MemoryError:
            os._exit(1)
        except (Exception, TimeoutException):
            verdict = None
        left = signal.setitimer(signal.ITIMER_PROF, 0)[0]
        current[:8] = bytes(8)
        send(number_asked, verdict, seconds - left)

# This process only imports. A fork of it answers questions; when that is killed, the next fork is ready at once.
try:
    same(r"\frac{x^2+2.5x}{x}", r"x+\frac{5}{2}"), same(r"\sqrt{8}", r"2\sqrt{2}"), same("x<1", "2x<2")
except Exception:
    pass
current = mmap.mmap(-1, 8)  # the number of the question that is being answered, 0 while idle
send("")
while True:
    worker = os.fork()
    if not worker:
        serve()
    _, status = os.waitpid(worker, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        os._exit(0)
    number_asked = struct.unpack(">Q", current[:8])[0]
    current[:8] = bytes(8)
    timed_out = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
    memory = os.WIFEXITED(status)
    send(number_asked, "timed_out" if timed_out else "too_costly" if memory else "lost", 0.0)
"""


class _Child:
    """The process that runs math-verify, started at once and importing in the background."""

    def __init__(self):
        if not hasattr(select, "poll") or not hasattr(os, "fork"):
            raise ImportError(
                "this answer takes algebra, and math_reward checks algebra in a process that only Linux and macOS can "
                "limit. On Windows run it in WSL; numbers and fractions are compared without that process."
            )
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.ready = False
        self.questions = 0
        self.send(sys.path)

    def send(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.process.stdin.write(struct.pack(">I", len(body)) + body)
        self.process.stdin.flush()

    def receive(self, seconds: float) -> list:
        """The next message. Raises TimeoutError when it is late, EOFError when the child ended."""
        fd, until = self.process.stdout.fileno(), time.monotonic() + seconds
        waiting, data = select.poll(), b""
        waiting.register(fd, select.POLLIN)
        while len(data) < 4 or len(data) < 4 + struct.unpack(">I", data[:4])[0]:
            if not waiting.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError
            size = 4 - len(data) if len(data) < 4 else 4 + struct.unpack(">I", data[:4])[0] - len(data)
            if not (more := os.read(fd, size)):
                raise EOFError
            data += more
        return json.loads(data[4:])

    def wait_until_ready(self) -> None:
        """Waits for the imports, two minutes at most. Raises ImportError when they fail."""
        try:
            error = "" if self.ready else self.receive(120)[0]
        except (EOFError, TimeoutError) as failed:
            error = f"its process did not start: {type(failed).__name__}"
        if error:
            raise ImportError(
                f"this answer needs math-verify, which {sys.executable} cannot import ({error}). "
                "Install it with: pip install math-verify"
            )
        self.ready = True

    def ask(self, gold: str, answer: str, seconds: float) -> tuple[object, float]:
        """The verdict on two texts and the seconds of processor time that it took."""
        self.questions += 1
        self.send([self.questions, gold, answer, seconds])
        while True:
            number, verdict, used = self.receive(PATIENCE)
            if number == self.questions:  # else a fork ended while it was idle
                return verdict, used

    def end(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the child and its fork
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


_lock = threading.Lock()
_child: _Child | None = None


def prestart() -> None:
    """Starts the checking process now (about a second of import) instead of at the first need."""
    global _child
    with _lock:
        _child = _child or _Child()


def _ask_child(gold: str, answer: str, budget: _Budget) -> bool:
    """math-verify's view of two texts, within what is left of the budget.

    A question that was lost, because something ended the process or the machine stood still, is asked once more.
    """
    global _child
    with _lock:
        for _ in range(2):
            if _child and _child.process.poll() is not None:  # it died while idle
                _stop_child()
            child = _child = _child or _Child()
            try:
                child.wait_until_ready()
                verdict, used = child.ask(gold, answer, max(budget.seconds, 0.01))
            except (TimeoutError, EOFError, BrokenPipeError):
                _stop_child()
                verdict, used = "lost", 0.0
            except BaseException:  # an interrupt must not leave a late answer in the pipe
                _stop_child()
                raise
            if verdict != "lost":
                break
        budget.seconds -= used
    if verdict in ("timed_out", "lost"):
        raise _TimedOut
    if verdict == "too_costly":
        raise _Stop(verdict)
    if verdict is None:
        raise _Stop("unreadable")
    return bool(verdict)


def _stop_child() -> None:
    global _child
    child, _child = _child, None
    if child:
        child.end()


def _forget_child() -> None:
    """In a forked process: the parent keeps its child, this process will start its own."""
    global _child, _lock
    child, _child, _lock = _child, None, threading.Lock()
    if child:
        os.close(child.process.stdin.fileno())
        os.close(child.process.stdout.fileno())


atexit.register(_stop_child)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_child)
