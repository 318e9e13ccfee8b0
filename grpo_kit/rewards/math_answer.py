r"""Is the final answer of a math reply equal to the gold? 1.0 right, 0.0 wrong, None: unusable
gold.

Paste this whole file into a notebook cell, or import it; GRPOTrainer calls `math_reward` with the
dataset's `answer` column. Three steps: find the answer (after the last </think>: the last box, then
<answer>, ####, "answer is", then a last line that gives a value), decide it exactly where rational
arithmetic can, and ask math-verify about the rest in a child process that is killed after 2 s.

Covered: numbers in every usual spelling, mixed numbers, percent, bases, units, tuples, sets,
intervals, matrices, inequalities, equations, text, choice letters. Forms are compared piece by
piece, so a subset, a superset or a bound around the gold is wrong; what does not exist (0/0) equals
nothing. Not covered: proofs, conversion between units, answers that only the question explains.
Nothing in a reply is ever run as Python. Needs POSIX and `pip install math-verify`.
"""

import atexit
import contextlib
import json
import os
import re
import select
import struct
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

DEADLINE = 2.0  # seconds that one symbolic comparison may work before its process is killed
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
    r"""1.0 where the final answer equals the gold, 0.0 where not, None where the gold is unusable.

    completions: strings or message lists. answer: a gold each: text, LaTeX, number, GSM8K solution.
    prompt_opened_think: the chat template put <think> into the prompt, so a completion without
    </think> is unfinished and earns 0; a bool, or a dataset column of them. If `log_metric` is
    passed (TRL does), the share of each reason is logged as `math_answer/<reason>`.
    Raises ValueError when the lengths differ, ImportError when math-verify is missing.

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
    r"""(reward, reason) of one completion; the same gold and answer always get the same verdict.

    >>> math_verdict(r"Either \boxed{3} or \boxed{4}", "4")
    Verdict(reward=0.0, reason='hedged')
    """
    gold = None if answer is None else _gold(str(answer)[: 20 * LONGEST])
    if gold is None:
        return Verdict(None, "unusable_gold")
    if not isinstance(completion, str):
        completion = "".join(str(message.get("content") or "") for message in completion)
    found = _find(completion, bool(prompt_opened_think))
    if isinstance(found, str):
        return Verdict(0.0, found)
    too_long = sum(map(len, found.parts)) > LONGEST
    reason = "too_costly" if too_long else _judge(gold, found)
    return Verdict(1.0 if reason == "right" else 0.0, reason)


def final_answer(completion: str | list, prompt_opened_think: bool = False, **kwargs) -> str | None:
    r"""The answer that a reply commits to, None if none, for counting votes: x = 1/2, 0.50 and 50%
    are spelled alike, and so are sets in another order; what takes algebra is not seen through.

    >>> final_answer(r"\boxed{\frac{2}{4}}"), final_answer("x = 0.5"), final_answer("Who knows that?")
    ('1/2', '1/2', None)
    """
    if not isinstance(completion, str):
        completion = "".join(str(message.get("content") or "") for message in completion)
    found = _find(completion, bool(prompt_opened_think))
    if isinstance(found, str) or len(found.parts[-1]) > LONGEST:
        return None
    normal = _normal(found.parts[-1])
    with contextlib.suppress(_Stop, RecursionError):
        return _spelled(_tree(normal))
    return normal


def _spelled(tree: object) -> str:
    if not isinstance(tree, _Many):
        leaf = tree if isinstance(tree, str) else _spelled(tree.value)
        value = _exact(leaf)
        return str(value) if isinstance(value, Fraction) else leaf
    items = [_spelled(item) for item in tree.items]
    many = tree.kind in ("list", "set", "union")
    return items[-1] if tree.kind == "chain" else f"{tree.kind}: {', '.join(sorted(items) if many else items)}"


# ------------------------------------------------ where is the answer? (linear in the length)


class _Found(NamedTuple):
    parts: tuple[str, ...]  # the last answer, after those that were given beside it
    boxed: bool = False
    hedging: bool = False  # those beside it are alternatives, not steps


_BRACE = re.compile(
    r"\\{1,3}(?:boxed|fbox)(?![a-zA-Z])[ \t\n]{0,9}(\{|-?\d[\d.,/]*\d|\d|[A-Z](?![a-zA-Z]))"
    r"|\\[^\w\s]|[{}]"
)
_GOES_ON = re.compile(
    r"(?i)\b(?:wait|actually|correct\w*|mistaken?|error|no|sorry|instead|rather|recheck\w*|revis\w*"
    r"|oops|hmm+|but|then|so|thus|hence|therefore|finally?|answer|now|next|total)\b|[因所答]"
)
_UNSURE = re.compile(r"(?i)\b(?:or|either|maybe|perhaps|possibly|alternatively|guess)\b")
_ANCHOR = re.compile(
    r"(?i)(?:answer|réponse|respuesta|risposta|resposta|antwort|ответ|答案|答え|답)[*_ \t]{0,4}"
    r"(?:(?:is|are|was|est|es|è|ist)\b|[:：=]|是|为|은|는)[*_ \t]{0,4}[:：]?"
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
    r"|([^\W\d_]{3,}|[\u3040-\u9fff])"
)
_CHOICE = re.compile(  # C, (C), C. text, C text; but "I think" and "A dog" choose nothing
    r"\(?([A-J])(?:\)|[.:](?!\d)|$|(?<![AI])\s+[A-Za-z]{3,}|[^\x00-\x7f])"
)


def _find(text: str, opened: bool) -> _Found | str:
    """The answer that the reply commits to, or the reason why there is none."""
    close = text.rfind("</think>")
    if text.rfind("<think>") > close or (opened and close < 0):
        return "unclosed_think"
    text = text[close + len("</think>") :] if close >= 0 else text
    text = text.split("<|im_")[0]
    if "\\boxed" in text or "\\fbox" in text:
        prose = " ".join(text.split("```")[::2])  # a box in code counts when there is no other
        if found := (_boxes(prose) if prose != text else None) or _boxes(text):
            return found
    tag = text.rfind("<answer>")
    if tag >= 0:
        inside = text[tag + len("<answer>") :].split("</answer>")[0].strip()
        return _Found((inside,)) if inside else "empty_box"
    mark = text.rfind("####")
    line = text[mark + 4 : mark + LONGEST].strip(" \t:").split("\n")[0] if mark >= 0 else ""
    if line and len(_words(line)) < 3:  # with more words it is a heading
        return _Found((_value_in(line, first=True) or line,))
    anchors = [m.end() for m in _ANCHOR.finditer(text)]
    line = text[anchors[-1] :][:LONGEST].strip().split("\n")[0] if anchors else ""
    if line:
        return _Found((_value_in(line, first=True) or line,))
    text = text[-LONGEST:].strip()
    line = text if not _words(text) else text.splitlines()[-1].strip()
    value = _value_in(line, first=False)
    return _Found((value,)) if value else "no_box"


def _boxes(text: str) -> _Found | str | None:
    """The last box and the boxes said in one breath with it; why it is unusable; None: no box."""
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
    parts, hedging = [text[closed[-1][1] : closed[-1][2]].strip()], False
    for (_, start, end), (following, _, _) in zip(closed[-2::-1], closed[:0:-1]):
        gap = text[end + 1 : following]
        words = len(_words(gap)) if len(gap) < 200 else 99
        if words > 8 or _GOES_ON.search(gap) or len(parts) > 64:
            break
        if not text[start:end].strip():  # "I put it in \boxed{}"
            continue
        hedging |= bool(_UNSURE.search(gap)) or (words < 2 and "=" not in gap)
        parts.insert(0, text[start:end].strip())
    return _Found(tuple(parts), True, hedging) if parts[-1] else "empty_box"


def _words(text: str) -> list[int]:
    """Where the words of prose start, commands, units in \text and lone letters aside."""
    return [m.start() for m in _WORD.finditer(text) if m.group(1)]


def _value_in(text: str, first: bool) -> str | None:
    """The value that a sentence states: all of it without prose, else its first or last value."""
    text = re.split(r"\.\s+(?=[A-Z])", text)[0 if first else -1].strip().rstrip(".。 ")
    words = _words(text)
    values = list(_VALUE.finditer(text))
    told = [m for m in values if re.search(r"\d|\\", m.group())] or values
    short = len(words) < 3 and not re.search(r"[\u3040-\u9fff\uac00-\ud7af]", text)
    if not words or (short and not any(m.start() > words[0] for m in told)):
        return text or None
    if not first and _UNSURE.search(text):
        return None
    if not told:
        return text if len(words) < 3 or _CHOICE.match(text) else None
    chosen = told[0 if first else -1]
    value = chosen.group(chosen.lastindex)
    return value if not _words(value) or chosen.lastindex == 6 else _value_in(value, first=False)


@lru_cache(4096)
def _gold(text: str) -> str | None:
    """The gold value inside a gold text, None when there is none to compare with."""
    found = _boxes(text) if "\\boxed" in text or "\\fbox" in text else None
    if isinstance(found, str):
        return None
    if found:
        distinct = dict.fromkeys(found.parts)
        text = ", ".join(distinct) if len(distinct) > 1 else found.parts[-1]
    elif "####" in text or "<answer>" in text or (len(_words(text)) > 2 and _ANCHOR.search(text)):
        found = _find(text, opened=False)
        text = found.parts[-1] if isinstance(found, _Found) else ""
    try:
        tree = _tree(_normal(text)) if 0 < len(text) <= LONGEST else ""
    except _Stop:
        return None
    exists = tree and not (isinstance(tree, str) and _exact(tree) is _NOTHING)
    return text if exists else None


# ------------------------------------------------ 2. one spelling for one answer

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/",
    "⁄": "/", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "∞": r"\infty ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\neq ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ",
    "∖": r"\setminus ", "±": r"\pm ", "≈": r"\approx ", "∅": r"\emptyset ", "°": r"^\circ ",
    "½": r" \frac{1}{2}", "⅓": r" \frac{1}{3}", "⅔": r" \frac{2}{3}", "¼": r" \frac{1}{4}",
    "¾": r" \frac{3}{4}", "²": "^2", "³": "^3", "⁴": "^4", "’": "'", "€": "", "£": "", "¥": "",
}  # fmt: skip
_INVISIBLE = dict.fromkeys([0xAD, *range(0x200B, 0x2010), 0x2060, 0xFEFF])
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")  # would show digits in another order
_UNITS = (
    "degrees?|dollars?|cents?|units?|square|sq|cubic|meters?|metres?|centimeters?|feet|foot|inch(?:es)?"
    "|hours?|minutes?|seconds?|days?|weeks?|months?|years?|miles?|cm|mm|km|kg|mph|ft|in|hr|min|sec|lbs?"
)
_RULES = [
    (re.compile(pattern, re.S), replacement)
    for pattern, replacement in (
        (r"\\\\(?=[a-zA-Z])(?!.*\\end)", r"\\"),  # a command escaped twice
        (r"\\(?:dis|text|script)[a-z]*style|\\(?:(?:no)?limits|bf|rm|it)(?![a-z])", ""),
        (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:left|right|mleft|mright|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\.?", ""),
        (r"\\(?:[lr]?vert|mid)(?![a-zA-Z])", "|"),
        (r"\\(?:langle|lparen|lgroup)(?![a-zA-Z])", "("),
        (r"\\(?:rangle|rparen|rgroup)(?![a-zA-Z])", ")"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"(?<=\d)(?:\\[,!:; ]|\{,\}|,\\!|~)+\s?(?=\d{3}(?!\d))", ""),  # thousands
        (r"\\q?quad(?![a-zA-Z])|(?<!\\)\\[,:;! \n]|~|[\n\t]", " "),
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
        (r"√\s?\(([^()]*)\)|\\sqrt\s?\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"(?:√|\\sqrt(?![a-zA-Z]))\s?(\d+|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"\\frac\s*(\d|[a-zA-Z]|\\pi)", r"\\frac{\1}"),
        (r"(\\frac\s?\{[^{}]*\})\s*(\d|[a-zA-Z]|\\pi)", r"\1{\2}"),
        (r"(?<![\d/.])(\d{1,9}) (\d{1,9})/(\d{1,9})(?![\d.])", r"\1\\frac{\2}{\3}"),  # 4 4/9
        (rf"(?<=[\d)}}])\s*\b(?:{_UNITS})\b\.?(?:\s*\^\s?\{{?\d\}}?)?", ""),
        (r"([\^_])\{([\w+-])\}", r"\1\2"),
        (r"(\^(?:\w|\{[^{}]*\}))(_(?:\w|\{[^{}]*\}))", r"\2\1"),
    )
]
_LITERAL = re.compile(r"-?(?:\d{1,300}(?:\.\d{0,300})?|\.\d{1,300})")
_TEXT = re.compile(
    r"\\(?:text\w*|mbox|mathrm)\s?\{([^{}]*)\}(?:\s*\^\{?-?\d\}?)?"
    r"(?:\s*/\s*\\(?:text\w*|mathrm)\s?\{[^{}]*\}(?:\^\{?\d\}?)?)?"
)


@lru_cache(4096)
def _normal(text: str) -> str:
    """LaTeX, Unicode and plain spellings made one, units and currency dropped; idempotent."""
    if _LITERAL.fullmatch(text):
        return text
    for sign, latex in () if text.isascii() else _SIGNS.items():
        if sign in text:
            text = text.replace(sign, latex)
    text = unicodedata.normalize("NFKC", text).translate(_INVISIBLE).replace("−", "-").strip(" `")
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    if not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = re.sub(r"\^\s?\{?\s?\\(?:circ|degree)\s?\}?|\\degree(?![a-z])", "", text)
    beside = _TEXT.sub("", text)
    is_math = re.search(r"\d|\\[a-z]{2}", beside)  # then words in \text are units or remarks
    text = _TEXT.sub(lambda m: _said(m, bool(is_math)), text)
    text = re.sub(r"[,\s]*\b(?:and|or)\b[,\s]*", " , ", text)
    if number := re.fullmatch(r"\s*(-?[\d.,/]*\d)\s+(?!pi\b|[a-z]{3,4}\s*\()[a-zA-Z]{3}[a-zA-Z ]*", text):
        text = number.group(1)  # 12 apples
    text = re.sub(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])", "\\1\0", text.lstrip(" :;,=").rstrip(" ;:.,"))
    text = re.sub(r"\s+(?!\d)|(?<!\d)\s+", "", text).replace("\0", " ")
    text = re.sub(r"(^|[(\[,{])\+(?=[\d\\])", r"\1", text.rstrip("\\"))
    return re.sub(
        r"(?<![\d.,])(\d{1,3})((?:[, ]\d{3})+)(?!\d|[, ]\d)",  # 1,234 and 1 234, not in a tuple
        lambda m: m.group() if _depth(m.string[: m.start()]) else re.sub("[, ]", "", m.group()),
        text,
    )


def _said(m: re.Match, beside_math: bool) -> str:
    word = m.group(1).strip()
    if re.fullmatch(r",?\s*(?:and|or)\s*,?", word):
        return f" {word} "
    return " " if beside_math else f" {word} "


def _depth(text: str) -> int:
    """How many brackets of tuples, sets and intervals are open at the end of the text."""
    return sum(text.count(c) for c in ("(", "[", r"\{")) - sum(text.count(c) for c in (")", "]", r"\}"))


class _Nothing:
    """0/0, 4 0/0, 11 6/6: no number, equal to nothing."""


_NOTHING = _Nothing()
_DECIMAL_COMMA = re.compile(r"^(-?\d+),(\d{1,2}|\d{4,})$")
_SIMPLE = r"\d{1,300}(?:\.\d{1,300})?|\.\d{1,300}"
_RATIO = re.compile(
    rf"(-?)(?:(\d{{1,99}})(?=\\frac))?(?:\\frac\{{(-?(?:{_SIMPLE}))\}}\{{(-?(?:{_SIMPLE}))\}}"
    rf"|\(?(-?(?:{_SIMPLE}))\)?/\(?(-?(?:{_SIMPLE}))\)?)"
)
_SCIENTIFIC = re.compile(rf"(-?)(?:({_SIMPLE})(?:\\cdot|(?=[eE])))?(?:10\^|[eE])\{{?([+-]?\d{{1,3}})\}}?")
_REPEATING = re.compile(r"(-?\d{1,30})\.(\d{0,30})\\(?:overline|bar|dot)\{(\d{1,30})\}")
_BASED = re.compile(r"(-?[0-9a-zA-Z]{1,99})_\{?(\d{1,2})\}?")


@lru_cache(4096)
def _exact(text: str) -> Fraction | _Nothing | None:
    """The rational number that a normal text spells out; None when it takes more than reading."""
    if _LITERAL.fullmatch(text):
        return Fraction(text)
    if text.endswith("%") and not text.endswith("%%"):
        value = _exact(text[:-1])
        return value / 100 if isinstance(value, Fraction) else value
    if based := _BASED.fullmatch(text):
        with contextlib.suppress(ValueError):
            return Fraction(int(based[1], int(based[2])))
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
_NAME = re.compile(  # x, f(x), a_1, (x,y), P(A), \angle ABC, AB:CD; and no number
    r"(?!\\(?:pi|infty)$|[ei]$)(?:"
    r"\\?[a-zA-Z]+(?:_\w|_\{\w+\})?'*(?:\^\{-1\})?(?:\([a-z](?:,[a-z])*\))?|P\(\w+\)|\\angle [A-Z]+"
    r"|\([a-z](?:,[a-z])+\)|[A-Z]+(?:_\{?\w+\}?)?:[A-Z]+|\\frac\{[a-zA-Z_]+\}\{[a-zA-Z_]+\})"
)
_MATRIX = re.compile(r"[\[(]?\\begin\{(\w*matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}[\])]?", re.S)
_SIGN = r"=|<|>|\\(?:le|ge|neq|in|equiv)(?![a-z])"


class _Stop(Exception):
    """Ends a comparison; its text is the reason."""


class _Many(NamedTuple):
    """kind: list, set, union (unordered), matrix, chain, or the brackets of a tuple or interval."""

    kind: str
    items: tuple


class _Named(NamedTuple):
    """x = 5, or x < 5 as the interval (-oo, 5); with the text as it was."""

    name: str
    value: object
    text: str


def _nesting(text: str) -> int:
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
def _tree(text: str) -> str | _Many | _Named:
    """A normal text as a leaf, or as named or many parts. Raises _Stop when it cannot be read."""
    depth = -1 if _BIDI.search(text) else _nesting(text)
    if depth < 0 or depth > 15:
        raise _Stop("unreadable" if depth < 0 else "too_costly")
    if (matrix := _MATRIX.fullmatch(text)) and r"\begin" not in matrix[2]:
        rows = [row.split("&") for row in matrix[2].split(r"\\") if row]
        return _Many("matrix", tuple(_Many("row", tuple(map(_tree, row))) for row in rows))
    parts = [part for piece in _split(text, "[,;]") for part in _both_signs(piece) if part]
    if len(parts) > 1:
        return _list([_tree(part) for part in parts])
    if len(pieces := _split(text, r"\\cup(?![a-z])")) > 1:
        return _Many("union", tuple(map(_tree, pieces)))
    if len(pieces := _split(text, r"=|\\in(?![a-z])")) > 1:
        if name := next((piece for piece in pieces[:-1] if _NAME.fullmatch(piece)), None):
            return _Named(name, _tree(pieces[-1]), text)  # x = 1 + 1 = 2
        if _NAME.fullmatch(pieces[-1]):
            return _Named(pieces[-1], _tree(pieces[0]), text)  # 2 = x
        return text if _letters(text) else _Many("chain", tuple(map(_tree, pieces)))  # 1 + 1 = 2
    if len(pieces := _split(text, r"\\approx(?![a-z])")) > 1:
        named = _NAME.fullmatch(pieces[0])
        return _Named(pieces[0], _tree(pieces[-1]), text) if named else _tree(pieces[0])
    if len(pieces := _split(text, r"(<|>|\\le(?![a-z])|\\ge(?![a-z]))")) in (3, 5):
        return _interval(text, pieces)
    if builder := re.fullmatch(r"\\\{\w(?:\\in\\mathbb\{?R\}?)?[|:](.*)\\\}", text):
        return _tree(builder[1])
    if text.startswith(r"\{") and text.endswith(r"\}") and _nesting(text[2:-2]) >= 0:
        inside = _tree(text[2:-2])
        return _Many("set", inside.items if getattr(inside, "kind", "") == "list" else (inside,))
    if text[:1] in "([{" and text[-1:] in ")]}" and len(text) > 2 and _nesting(text[1:-1]) >= 0:
        items = _split(text[1:-1], "[,;]")
        if text[0] == "{" or (len(items) == 1 and text[0] + text[-1] in ("()", "[]")):
            return _tree(text[1:-1])
        if len(items) > 1:
            return _Many(text[0] + text[-1], tuple(map(_tree, items)))
    return text


def _both_signs(text: str) -> list[str]:
    if not re.search(r"\\[pm][pm](?![a-z])", text):
        return [text]
    minus = re.sub(r"\\([pm])[pm]", lambda m: "-" if m[1] == "p" else "+", text)
    plus = re.sub(r"\\([pm])[pm]", lambda m: "+" if m[1] == "p" else "-", text)
    return [re.sub(r"(^|[=({])\+", r"\1", sign) for sign in (plus, minus)]


def _list(trees: list) -> object:
    names = [tree.name for tree in trees if isinstance(tree, _Named)]
    bare = tuple(tree.value if isinstance(tree, _Named) else tree for tree in trees)
    if len(names) == 1 and isinstance(trees[0], _Named):  # k = 1, 2, 3
        return _Named(names[0], _Many("list", bare), "")
    ranges = all(isinstance(tree, _Many) and len(tree.kind) == 2 for tree in bare)
    if ranges and len(names) == len(trees) and len(set(names)) == 1:  # x < 1 or x > 3
        return _Named(names[0], _Many("union", bare), "")
    distinct = tuple(dict.fromkeys(trees))
    return _Many("list", distinct) if len(distinct) > 1 else distinct[0]


def _interval(text: str, pieces: list[str]) -> object:
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
    return _Named(name, _Many(brackets, (_tree(low), _tree(high))), text)


def _letters(text: str) -> set[str]:
    """The variables of a normal text, as lone letters; e, i and the names of functions are none."""
    text = re.sub(r"\\[a-zA-Z]+|[a-zA-Z]{3,}(?=\()|\d[eE]\d", "", text)
    return {c for c in text if c.isalpha() and c not in "ei"}


class _Case:
    """The seconds that one verdict may still spend in the child; whether its answer was boxed."""

    def __init__(self, boxed: bool):
        self.boxed, self.seconds = boxed, DEADLINE


@lru_cache(8192)
def _judge(gold: str, found: _Found) -> str:
    """The reason for the verdict on what was found."""
    answer, many = found.parts[-1], ("list", "set")
    if answer == gold and len(found.parts) == 1:
        return "right"
    try:
        wanted = _normal(gold)
        normals = [_normal(part) for part in found.parts]
        distinct = {_exact(normal) or normal: normal for normal in normals}
        answer = normals[-1]
        if "," not in answer:  # 1,22 is a decimal beside 1.22, else a list
            wanted = _DECIMAL_COMMA.sub(r"\1.\2", wanted)
        elif "," not in wanted:
            answer = _DECIMAL_COMMA.sub(r"\1.\2", answer)
        tree = _tree(wanted)
        if len(distinct) > 1 and _kind(getattr(tree, "value", tree)) not in many:
            if found.hedging:
                return "hedged"
        elif len(distinct) > 1 and _kind(_tree(answer)) not in many:
            answer = ",".join(distinct.values())
        bare = (_TEXT.sub(r"\1", text).strip("$ ") for text in (gold, found.parts[-1]))
        choices = [_CHOICE.match(text) for text in bare]
        if all(choices):
            return "right" if choices[0][1] == choices[1][1] else "wrong"
        told = _tree(answer)
        case = _Case(found.boxed)
        if _kind(tree) == "matrix" and isinstance(told, str) and r"\begin" in told:  # A + B
            return "right" if _ask(wanted, answer, case) else "wrong"
        return "right" if _same(tree, told, case) else "wrong"
    except _Stop as stop:
        return str(stop)
    except RecursionError:
        return "too_costly"


def _kind(tree: object) -> str:
    return getattr(tree, "kind", "")


def _same(gold: object, answer: object, case: _Case) -> bool:
    """Whether two trees are equal, piece by piece; a piece of another kind is never equal."""
    if _kind(gold) == "chain":
        gold = gold.items[-1]
    if _kind(answer) == "chain":  # 16 = 17 is not 17
        steps, last = answer.items[:-1], answer.items[-1]
        return _same(gold, last, case) and all(_same(gold, s, _Case(False)) for s in steps)
    named = [isinstance(tree, _Named) for tree in (gold, answer)]
    if any(named):
        texts = [getattr(tree, "text", tree) for tree in (gold, answer)]
        told = all(isinstance(t, str) and re.search(_SIGN, t) for t in texts)
        if told and not (all(named) and gold.name == answer.name):  # y = 2x and 2x - y = 0
            return _leaf(*texts, case)
        if not all(named) or gold.name == answer.name:
            values = [tree.value if n else tree for tree, n in zip((gold, answer), named)]
            return _same(*values, case)
        return False
    gold, answer = (t.items[0] if _kind(t) == "set" and len(t.items) == 1 else t for t in (gold, answer))
    if isinstance(gold, str) or isinstance(answer, str):
        return isinstance(gold, str) and isinstance(answer, str) and _leaf(gold, answer, case)
    kinds = {gold.kind, answer.kind}
    if len(gold.items) != len(answer.items) or not (len(kinds) == 1 or kinds in _ALIKE):
        return False
    if len(gold.items) > 64:
        raise _Stop("too_costly")
    pairs = zip(gold.items, answer.items)
    if kinds <= {"list", "set"} or kinds == {"union"}:
        return _unordered(gold.items, answer.items, case)
    return all(_same(g, a, case) for g, a in pairs)


_ALIKE = ({"list", "set"}, {"list", "()"})


def _unordered(gold: tuple, answer: tuple, case: _Case) -> bool:
    """Whether the items pair up; x = 1, y = 2 against 1, 2 keeps the order of the names."""
    for side, other in ((gold, answer), (answer, gold)):
        names = {tree.name for tree in side if isinstance(tree, _Named)}
        if len(names) == len(side) and not any(isinstance(tree, _Named) for tree in other):
            return all(_same(g, a, case) for g, a in zip(gold, answer))
    left = list(answer)
    for item in gold:
        left.sort(key=lambda other: other != item)  # equal spellings first: most need no more
        partner = next((i for i, other in enumerate(left) if _same(item, other, case)), None)
        if partner is None:
            return False
        del left[partner]
    return True


_UNEVALUATED = [  # restating the question is no answer, unless the gold itself is written so
    re.compile(pattern)
    for pattern in (
        r"\\(?:sum|prod|int|lim)(?![a-z])", r"\\[dt]?binom|!", r"\\(?:log|ln|lg)(?![a-z])",
        r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)", r"\\(?:gcd|lcm|max|min|b?mod|pmod|floor|ceil)",
    )
]  # fmt: skip
_ARITHMETIC = re.compile(r"(?:\d[)}]*[-+]|\\cdot(?!10\^))[({]*\d")
_BOMB = re.compile(
    r"\^\{?[-+(]*\d{5,}|\^\{[^{}]*\d[)}]*[\^!]|\^\(?[\d.]+\^|\d{4,}\)*!|!\)*!|\^[^()]*\)!|\d{301,}"
    r"|e\^\{?e\^\{?e\^|binom\{[^{}]*\d{4,}|\d[eE][+-]?\d{4,}"
)


def _leaf(gold: str, answer: str, case: _Case) -> bool:
    """Whether two texts without inner structure are equal: exactly, as text, or by math-verify."""
    a, b = _exact(gold), _exact(answer)
    if a is _NOTHING or b is _NOTHING:
        return False
    if gold == answer:
        return True
    if case.boxed and not _letters(gold):
        restated = any(f.search(answer) and not f.search(gold) for f in _UNEVALUATED)
        if restated or (a is not None and b is None and _ARITHMETIC.search(answer)):
            raise _Stop("unevaluated")
    if a is not None and b is not None:
        return _equal_numbers(a, b, gold, answer)
    pair = (gold, answer)
    plain = [re.sub(r"\\[a-zA-Z]+|[a-zA-Z]+(?=\()", "", text) for text in pair]
    words = [bool(re.search(r"[^\W\d_]{4,}", text)) for text in plain]
    spoken = [re.sub(r"[\W_]", "", text).casefold() for text in pair]
    if gold.isalpha() and len(gold) > 2 and spoken[0] == spoken[1]:
        return True
    if ":" in gold + answer or (any(words) and not re.search(r"\d", gold)):
        return all(words) and spoken[0] == spoken[1]
    bound = re.search(r"\\(?:sum|prod|int|lim|frac\{d)(?![a-z])", gold + answer)
    relations = [bool(re.search(_SIGN, re.sub(r"_\{[^{}]*\}", "", text))) for text in pair]
    if relations[0] != relations[1] or not (bound or _letters(gold) == _letters(answer)):
        return False
    for text in pair:
        many = len(text) > 400 or len(re.findall(r"[-+/^!]|\\[a-zA-Z]+", text)) > 60
        if many or _BOMB.search(text) or (bound and re.search(r"\d{5,}|10\^", text)):
            raise _Stop("too_costly")
    return _ask(gold, answer, case)


def _equal_numbers(a: Fraction, b: Fraction, gold: str, answer: str) -> bool:
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


# ------------------------------------------------ 4. math-verify, in a process that can be killed

_WORKER = r"""
import json, os, random, re, resource, signal, struct, sys
out = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

def receive():
    head = sys.stdin.buffer.read(4)
    if len(head) < 4:
        sys.exit()
    return json.loads(sys.stdin.buffer.read(struct.unpack(">I", head)[0]))

def send(value):
    body = json.dumps(value).encode()
    out.write(struct.pack(">I", len(body)) + body)
    out.flush()

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

def read(text):
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

def zero(x):  # to at least 30 digits, by sympy's own error bound
    x = sympy.N(x, 30)
    if undefined(x) or not x.is_number:
        raise ArithmeticError
    return all(part == 0 or getattr(part, "_prec", 2) == 1 for part in x.as_real_imag())

def points(symbols):
    rng = random.Random(7)
    for sign in (1, 1, -1, 1, -1, -1):
        yield {s: sign * sympy.Rational(rng.randint(100, 3000), 997) for s in symbols}

def equal(a, b):
    if a == b or a in (sympy.oo, -sympy.oo) or b in (sympy.oo, -sympy.oo):
        return a == b
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if not symbols:
        return zero(a - b)
    checked = 0
    for point in points(symbols):
        try:
            if not zero(a.subs(point) - b.subs(point)):
                return False
            checked += 1
        except ArithmeticError:
            pass
    return checked > 2

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

send("")
while True:
    gold, answer, seconds = receive()
    signal.setitimer(signal.ITIMER_REAL, 2 * seconds)  # no handler: ends even an orphan
    try:
        send(same(gold, answer))
    except MemoryError:
        os._exit(1)
    except (Exception, TimeoutException):
        send(None)
    signal.setitimer(signal.ITIMER_REAL, 0)
"""


class _Child:
    """The process that runs math-verify, started at once and importing in the background."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.ready = False
        self.send(sys.path)

    def send(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.process.stdin.write(struct.pack(">I", len(body)) + body)
        self.process.stdin.flush()

    def receive(self, seconds: float) -> object:
        """The next message. Raises TimeoutError when it is late, EOFError when the child ended."""
        fd, until = self.process.stdout.fileno(), time.monotonic() + seconds
        waiting, data = select.poll(), b""
        waiting.register(fd, select.POLLIN)
        while len(data) < 4 or len(data) < 4 + struct.unpack(">I", data[:4])[0]:
            if not waiting.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError
            if not (more := os.read(fd, 65536)):
                raise EOFError
            data += more
        return json.loads(data[4:])

    def wait_until_ready(self) -> None:
        """Waits for the imports, two minutes at most. Raises ImportError when they fail."""
        try:
            error = "" if self.ready else self.receive(120)
        except (EOFError, TimeoutError) as failed:
            error = f"its process did not start: {type(failed).__name__}"
        if error:
            raise ImportError(
                f"this answer needs math-verify, which {sys.executable} cannot import ({error}). "
                "Install it with: pip install math-verify"
            )
        self.ready = True

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
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


def _ask(gold: str, answer: str, case: _Case) -> bool:
    """math-verify's view of two texts, within what is left of the case's seconds."""
    global _child
    with _lock:
        if _child and _child.process.poll() is not None:  # it died while idle
            _stop()
        child = _child = _child or _Child()
        try:
            child.wait_until_ready()
            start = time.monotonic()
            child.send([gold, answer, case.seconds])
            verdict = child.receive(case.seconds)
        except (TimeoutError, EOFError, BrokenPipeError) as error:  # EOF: it ran out of memory
            child.end()
            _child = _Child()
            raise _Stop("timed_out" if isinstance(error, TimeoutError) else "too_costly") from None
        except BaseException:  # an interrupt must not leave a late answer in the pipe
            _stop()
            raise
        case.seconds -= time.monotonic() - start
    if verdict is None:
        raise _Stop("unreadable")
    return bool(verdict)


def _stop() -> None:
    global _child
    child, _child = _child, None
    if child:
        child.end()


def _forget() -> None:
    """In a forked process: the parent keeps its child, this process will start its own."""
    global _child, _lock
    child, _child, _lock = _child, None, threading.Lock()
    if child:
        os.close(child.process.stdin.fileno())
        os.close(child.process.stdout.fileno())


atexit.register(_stop)
os.register_at_fork(after_in_child=_forget)
