r"""A process reward that cannot be talked into paying: the share of a reply's arithmetic that is
true, new and relevant.

Paste this file into a notebook cell as it is; it needs nothing but the standard library.

A step is GSM8K's `<<48/2=24>>` or plain `48 / 2 = 24`. It is checked with exact rationals (a result
that is written with decimals may be rounded to them). It earns when it is true, was not made
before, and each number in it comes from the question or from an earlier true step, number words,
halves and conversion factors (60, 100, ...) included: so "1+1=2" a hundred times earns nothing.
Lines that hold no such equation are neutral. Covered: + - * / and brackets, commas, $, %, the
spellings × ÷ \times \cdot \div. Not covered: algebra, powers, units; on LaTeX-heavy text (MATH) a
third of the plain matches mislead, so use it on GSM8K-like problems.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice

MOST_STEPS = 300  # of one reply; later ones are not looked at

_PLAIN = r"\$?\d[\d,]{0,20}(?:\.\d{1,12})?%?|\$?\.\d{1,12}%?"
_ANNOTATED = re.compile(r"<<([^<>=\n]{1,200})=([^<>=\n]{1,60})>>")
_STEP = re.compile(
    rf"(?<![\w.,$%)])((?:{_PLAIN})(?:\s{{0,2}}[-+*/]\s{{0,2}}(?:{_PLAIN})){{1,12}})\s{{0,2}}=\s{{0,2}}({_PLAIN})"
)
_SIGNS = {
    "×": "*",
    "÷": "/",
    "−": "-",
    "–": "-",
    r"\times": "*",
    r"\cdot": "*",
    r"\div": "/",
    r"\$": "$",
}
_TOKEN = re.compile(r"\d+\.?\d*|\.\d+|[-+*/()%]")
_NUMBER = re.compile(r"\d[\d,]{0,20}(?:\.\d{1,12})?|\.\d{1,12}")
_FACTORS = {Fraction(n) for n in (1, 2, 4, 7, 10, 12, 24, 30, 52, 60, 100, 365, 1000)}
_FACTORS |= {1 / n for n in _FACTORS}  # halves, percents; a step of factors alone is not grounded
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_WORDS = {word: i for i, word in enumerate(_WORDS.split())} | {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80,
    "ninety": 90, "hundred": 100, "thousand": 1000, "million": 1_000_000, "once": 1, "single": 1,
    "double": 2, "twice": 2, "couple": 2, "half": 2, "halve": 2, "triple": 3, "thrice": 3,
    "third": 3, "quarter": 4, "fourth": 4, "quadruple": 4, "fifth": 5, "sixth": 6,
    "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "dozen": 12,
}  # fmt: skip


def arithmetic_steps_reward(
    completions: Sequence, prompts: Sequence, answer: Sequence, outcome_gated: bool = True, **kwargs
) -> list[float | None]:
    r"""Distinct, true, grounded steps over all steps, in [0, 1]; None where the gold has no number.

    completions, prompts: strings or message lists; a prompt holds the question. answer: the gold,
    whose last number counts (a GSM8K solution will do). outcome_gated: a reply whose last box or
    #### is not the gold number earns 0, so the steps never pay for a wrong answer; give this reward
    at most the outcome's weight. A reply without steps earns 0. Raises ValueError when the lengths
    differ.

    >>> question = "A robe takes 2 bolts of blue fiber and half that much white. How many bolts?"
    >>> replies = ["2/2=<<2/2=1>>1, 2+1=<<2+1=3>>3\n#### 3", "1+1=2 #### 3"]
    >>> arithmetic_steps_reward(replies, [question] * 2, ["3"] * 2)
    [1.0, 0.0]
    """
    if not len(completions) == len(prompts) == len(answer):
        raise ValueError(
            f"arithmetic_steps_reward got {len(completions)} completions, {len(prompts)} prompts "
            f"and {len(answer)} answers; each completion needs its own. Pass TRL's prompts and the "
            "dataset's answer column."
        )
    rewards: list[float | None] = []
    for completion, prompt, gold in zip(completions, prompts, answer):
        text, wanted = _text(completion), _last_number(str(gold if gold is not None else ""))
        if wanted is None:
            rewards.append(None)
        elif outcome_gated and _outcome(text) != wanted:
            rewards.append(0.0)
        else:
            earned = [earns for *_, earns in check_steps(text, _text(prompt)) if earns is not None]
            rewards.append(sum(earned) / max(len(earned), 1))
    return rewards


def check_steps(text: str, question: str) -> list[tuple[str, bool, bool | None]]:
    """Each step of a text as (the equation, is it true, does it earn).

    An equation that computes nothing, as 40 = 40, neither earns nor counts: None.

    >>> check_steps("5 + 4 = 9. 9 * 2 = 19. 5 + 4 = 9.", "Ann has 5 apples, Bo 4.")
    [('5+4=9', True, True), ('9*2=19', False, False), ('5+4=9', True, False)]
    """
    known = _numbers_in(question)
    seen: set[str] = set()
    steps = []
    for left, right in islice(_equations(text), MOST_STEPS):
        value, told = _value(left), _value(right)
        if value is None or told is None:
            continue
        places = len(right.rstrip("%").partition(".")[2])
        rounding = Fraction(1, 2 * 10**places) if places else 0
        percent = 100 if right.endswith("%") else 1  # 9/30 = 30% and 9/30*100 = 30% are both said
        true = abs(value - told * percent) <= rounding or abs(value - told) * percent <= rounding
        operands = {Fraction(number) for number in re.findall(r"\d+\.?\d*|\.\d+", left)}
        grounded = operands <= known | _FACTORS and bool(operands & known)
        computes = re.search(r"[-+*/]", left[1:])
        earns = true and grounded and left not in seen
        steps.append((f"{left}={right}", true, earns if computes else None))
        seen.add(left)
        if true and grounded:
            known |= {told, told / 100, told * 100, abs(told)}
    return steps


def _equations(text: str):
    """The two sides of each step, in the text's order; an annotated line is not read twice."""
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    text = re.sub(r"(?<=\d)\s?[xX]\s?(?=[\d$.])", "*", text)
    for line in text.split("\n"):
        annotated = _ANNOTATED.findall(line)
        if annotated:
            yield from ((_bare(left), _bare(right)) for left, right in annotated)
            continue
        last = 0
        for match in _STEP.finditer(line):
            start, end = match.span()
            before = line[max(last, start - 3) : start].rstrip()[-1:]
            after = line[end : end + 12].lstrip()
            last = end
            # 3 1/2 is one number, 2x + 3 + 4 and = 5 + 1 belong to something longer
            part = re.match(r"[-+*/^(=%]|\d+/\d+\b(?!\s*[-+*/=])", after)
            if not part and not re.match(r"[-+*/=^\\x\d]", before):
                yield _bare(match[1]), _bare(match[2])


def _bare(side: str) -> str:
    return re.sub(r"[\s,$]", "", side)


def _value(text: str) -> Fraction | None:
    """The exact value of sums, products and brackets; None for anything else, and for x/0."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text or not tokens or text.count("(") > 15:
        return None
    try:
        value, end = _sum(tokens, 0)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return value if end == len(tokens) else None


def _sum(tokens: list[str], i: int) -> tuple[Fraction, int]:
    value, i = _product(tokens, i)
    while i < len(tokens) and tokens[i] in "+-":
        term, j = _product(tokens, i + 1)
        value, i = (value + term if tokens[i] == "+" else value - term), j
    return value, i


def _product(tokens: list[str], i: int) -> tuple[Fraction, int]:
    value, i = _atom(tokens, i)
    while i < len(tokens) and tokens[i] in "*/(":
        factor, j = _atom(tokens, i + (tokens[i] != "("))  # 2(3) multiplies
        value, i = (value / factor if tokens[i] == "/" else value * factor), j
    return value, i


def _atom(tokens: list[str], i: int) -> tuple[Fraction, int]:
    if tokens[i] in "+-":
        value, end = _atom(tokens, i + 1)
        return (-value if tokens[i] == "-" else value), end
    if tokens[i] == "(":
        value, end = _sum(tokens, i + 1)
        if tokens[end] != ")":
            raise ValueError("a bracket is not closed")
        end += 1
    else:
        value, end = Fraction(tokens[i]), i + 1
    while tokens[end : end + 1] == ["%"]:
        value, end = value / 100, end + 1
    return value, end


def _numbers_in(question: str) -> set[Fraction]:
    """A question's numbers: digits, words ("half", "twice"), percents as both 20 and 0.2."""
    numbers = {Fraction(number.replace(",", "")) for number in _NUMBER.findall(question[:20_000])}
    words = [word.removesuffix("s") for word in re.findall(r"[a-z]+", question[:20_000].lower())]
    said = [Fraction(_WORDS.get(word, 0)) for word in words]
    numbers |= {number for number in said if number}
    numbers |= {tens + ones for tens, ones in zip(said, said[1:]) if tens >= 20 and 0 < ones < 10}
    if "%" in question or "percent" in words:
        numbers |= {n / 100 for n in numbers} | {1 - n / 100 for n in numbers} | {1 + n / 100 for n in numbers}
    return numbers | {1 / n for n in numbers if n}


def _outcome(text: str) -> Fraction | None:
    """The number in the last box, else after the last ####; of the part after the thinking."""
    close = text.rfind("</think>")
    if text.rfind("<think>") > close:
        return None
    text = text[close + 1 :] if close >= 0 else text
    start = max(text.rfind("\\boxed"), text.rfind("####"))
    return _last_number(text[start : start + 200].split("\n")[0].split("}")[0]) if start >= 0 else None


def _last_number(text: str) -> Fraction | None:
    found = re.findall(rf"-?\$?(?:{_NUMBER.pattern})", text[-2000:].replace("−", "-"))
    return Fraction(re.sub(r"[$,]", "", found[-1])) if found else None


def _text(message: str | list) -> str:
    if isinstance(message, str):
        return message
    return "".join(str(turn.get("content") or "") for turn in message)
