r"""A process reward: how much of the calculation that leads to the answer is written down in a reply.

Paste this file into a notebook cell as it is; it needs nothing but the standard library.

A step is GSM8K's `<<48/2=24>>` or plain `48 / 2 = 24`. It is checked with exact rationals (a result that is written
with decimals may be rounded to them). What it earns depends on the gold:
  A GSM8K solution with its annotations: the reward is the share of the gold's own steps that the reply makes. A step is
    the gold's if it adds or multiplies to the same result and has a number in common, so order and spelling do not
    matter: 3+2=5 is 2+3=5, and 48*0.5 is 48/2. False steps lower the share; other true ones change nothing.
  Any other gold: the share of the reply's steps that are true, not made before, grounded (each number comes from the
    question or from an earlier true step; number words, halves and factors such as 60 and 100 included) and needed: the
    result is the answer, or later steps lead from it to the answer.
So neither `5*1=5`, nor a step that is spelled anew, nor "1+1=2" a hundred times lifts the reward.

It sees + - * / and brackets, commas, $, %, the spellings × ÷ \times \cdot \div \frac{48}{2}, and nothing else: no
algebra, powers or units, no step in words. It cannot see why a step is made. With an annotated gold a right reply on
another path earns less; without one a single line that computes the answer from the question earns as much as five, and
numbers of the question that happen to give the answer count as needed. On LaTeX-heavy text (MATH) a third of the plain
matches mislead, so use it on GSM8K-like problems.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from typing import NamedTuple

MOST_STEPS = 300  # of one reply; later ones are not looked at

_PLAIN = r"\$?\d[\d,]{0,20}(?:\.\d{1,12})?%?|\$?\.\d{1,12}%?"
_ANNOTATED = re.compile(r"<<([^<>=\n]{1,200})=([^<>=\n]{1,60})>>")
_STEP = re.compile(
    rf"(?<![\w.,$%)])((?:{_PLAIN})(?:\s{{0,2}}[-+*/]\s{{0,2}}(?:{_PLAIN})){{1,12}})\s{{0,2}}=\s{{0,2}}({_PLAIN})"
)
_STEP_SIGNS = {
    "×": "*",
    "÷": "/",
    "−": "-",
    "–": "-",
    r"\times": "*",
    r"\cdot": "*",
    r"\div": "/",
    r"\$": "$",
}
_STEP_TOKEN = re.compile(r"\d+\.?\d*|\.\d+|[-+*/()%]")
_OUTCOME_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s?\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\})?")
_OUTCOME_TAG = re.compile(r"<answer>([^<]{0,200})</answer>")
_OUTCOME_STATED = re.compile(
    r"(?i)(?:^|[.!?:\n]|\b(?:so|thus|hence|therefore)\b),?\s{0,3}(?:(?:the|final|correct|my) )*"
    r"answer(?: is:?|:)([^\n]*)$"
)
_OUTCOME_DENIED = re.compile(
    r"(?i)\b(?:not|never|neither|either|or|maybe|perhaps|wrong|incorrect|false|at least|at most)\b|n['’]t\b|≠|\\ne"
)
_QUESTION_NUMBER = re.compile(r"\d[\d,]{0,20}(?:\.\d{1,12})?|\.\d{1,12}")
_FACTORS = {Fraction(n) for n in (1, 2, 4, 7, 10, 12, 24, 30, 52, 60, 100, 365, 1000)}
_FACTORS |= {1 / n for n in _FACTORS}  # halves, percents; a step of factors alone is not grounded
_QUESTION_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_QUESTION_WORDS = {word: i for i, word in enumerate(_QUESTION_WORDS.split())} | {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80,
    "ninety": 90, "hundred": 100, "thousand": 1000, "million": 1_000_000, "once": 1, "single": 1,
    "double": 2, "twice": 2, "couple": 2, "half": 2, "halve": 2, "triple": 3, "thrice": 3,
    "third": 3, "quarter": 4, "fourth": 4, "quadruple": 4, "fifth": 5, "sixth": 6,
    "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "dozen": 12,
}  # fmt: skip


class _Node(NamedTuple):
    """A sum or a product: its value and its parts (-n where n is subtracted, 1/n for a divisor); a number: kind ""."""

    kind: str
    value: Fraction
    parts: tuple[Fraction, ...] = ()


def arithmetic_steps_reward(
    completions: Sequence,
    prompts: Sequence,
    answer: Sequence,
    outcome_gated: bool = True,
    prompt_opened_think: bool | Sequence[bool] = False,
    **kwargs,
) -> list[float | None]:
    r"""The share of the gold's steps, or of the reply's own, that earn, in [0, 1]; None where the gold is no number.

    Args:
        completions: texts or message lists; of several turns the last one of the assistant is judged. TRL's
            `reasoning_content` counts as thinking that is closed.
        prompts: texts or message lists that hold the question.
        answer: for each completion the gold: a number, or a GSM8K solution, whose number stands behind ####.
        outcome_gated: whether a reply with another answer than the gold earns 0, so that steps never pay for a wrong
            answer. The gate is narrower than math_reward. The answer is what stands in the boxes after the thinking,
            else in <answer>, else behind the last ####, else in a last line that ends "the answer is 72." It must be
            one plain number; "x =" before it, bold and words of the question behind it ("72 clips") may be there, but
            nothing that denies it, and no second answer. To gate by math_reward, pass False and use
            `Part(..., gated=True)` of combine.py.
        prompt_opened_think: whether the chat template put <think> into the prompt, so that a completion without
            </think> is unfinished and earns 0. A bool, or a column of the dataset.
        kwargs: other columns, which are ignored.

    Returns:
        One reward for each completion. A reply without steps earns 0.

    Raises:
        ValueError: the lengths differ.

    Example:
        >>> question = "A robe takes 2 bolts of blue fiber and half that much white. How many bolts?"
        >>> replies = ["2/2=<<2/2=1>>1, 2+1=<<2+1=3>>3\n#### 3", "3*1=3, 1+1=2\n#### 3"]
        >>> arithmetic_steps_reward(replies, [question] * 2, ["3"] * 2)
        [1.0, 0.0]
    """
    if not len(completions) == len(prompts) == len(answer):
        raise ValueError(
            f"arithmetic_steps_reward got {len(completions)} completions, {len(prompts)} prompts "
            f"and {len(answer)} answers; each completion needs its own. Pass TRL's prompts and the "
            "dataset's answer column."
        )
    opened = prompt_opened_think
    flags = [opened] * len(answer) if isinstance(opened, bool) else opened
    rewards: list[float | None] = []
    for completion, prompt, gold, flag in zip(completions, prompts, answer, flags, strict=True):
        text, question = _join_contents(completion), _join_turns(prompt)
        solution = str(gold if gold is not None else "")
        number = _find_outcome(solution) if "####" in solution or "\\boxed" in solution else _read_outcome(solution)
        if number is None:
            rewards.append(None)
        elif flag and "</think>" not in text or outcome_gated and _find_outcome(text, question) != number:
            rewards.append(0.0)
        elif gold_steps := _gold_steps(solution):
            rewards.append(_share_of_gold(text, gold_steps))
        else:
            earned = [e for *_, e in check_steps(text, question, number) if e is not None]
            rewards.append(sum(earned) / max(len(earned), 1))
    return rewards


def check_steps(text: str, question: str, answer: Fraction | None = None) -> list[tuple[str, bool, bool | None]]:
    """Each step of a text as (the equation, is it true, does it earn), for a gold without steps of its own.

    An equation that computes nothing, as 40 = 40, neither earns nor counts: None. Without `answer` a step need not lead
    to it.

    >>> check_steps("5 + 4 = 9. 9 * 2 = 19. 4 + 5 = 9.", "Ann has 5 apples, Bo 4.")
    [('5+4=9', True, True), ('9*2=19', False, False), ('4+5=9', True, False)]
    """
    known = dict.fromkeys(_numbers_in(question), ("", frozenset()))  # number: the kind of its node, all parts of it
    makers: dict[Fraction, int] = {}  # number: the step that first gave it
    seen: set[_Node] = set()
    steps: list[tuple[str, bool, bool | None]] = []
    operands_of: dict[int, set[Fraction]] = {}
    for equation, nodes, told, true in islice(_read_steps(text), MOST_STEPS):
        if not nodes:  # computes nothing
            steps.append((equation, true, None))
            continue
        operands = {Fraction(number) for number in re.findall(r"\d+\.?\d*|\.\d+", equation.partition("=")[0])}
        grounded = operands <= known.keys() | _FACTORS and not operands.isdisjoint(known)
        kind, _, parts = nodes[-1]
        reach = frozenset(parts).union(*(known[part][1] for part in parts if part in known and known[part][0] == kind))
        unchanged = told in operands and len(parts) < 2  # 5*1=5
        idle = unchanged or told in (reach if told in operands else reach.difference(parts))  # 5+3-3=5; 5*2=10, 10/2=5
        earns = true and grounded and not idle and not seen.issuperset(nodes)
        seen.update(nodes)
        if true and grounded:
            for number in (told, told / 100, told * 100, abs(told)):
                known.setdefault(number, (kind, reach))
                if earns:
                    makers.setdefault(number, len(steps))
        if earns:
            operands_of[len(steps)] = operands
        steps.append((equation, true, earns))
    if answer is None:
        return steps
    needed, waiting = set(), [answer]
    while waiting:
        step = makers.get(waiting.pop())
        if step is not None and step not in needed:
            needed.add(step)
            waiting += operands_of[step]
    return [(*step[:2], step[2] and i in needed) for i, step in enumerate(steps)]


def _gold_steps(solution: str) -> list[_Node]:
    """The sums and products of a solution's <<annotations>>, each once."""
    equations = " ".join(f"<<{left}={right}>>" for left, right in _ANNOTATED.findall(solution))
    return list(dict.fromkeys(node for _, nodes, _, true in _read_steps(equations) if true for node in nodes))


def _share_of_gold(text: str, gold_steps: list[_Node]) -> float:
    steps = list(islice(_read_steps(text), MOST_STEPS))
    values = {gold.value for gold in gold_steps}  # or a long sum would hold the parts of every short one
    made = {node for _, nodes, _, true in steps if true for node in nodes if node.value in values}
    there = sum(any(_is_same_step(node, gold) for node in made) for gold in gold_steps)
    return there / (len(gold_steps) + sum(not true for *_, true in steps))


def _is_same_step(node: _Node, gold: _Node) -> bool:
    """Whether a node of a reply is a step of the gold, or adds (multiplies) its parts and more in one go."""
    if node.kind != gold.kind:
        return False
    if all(node.parts.count(part) >= gold.parts.count(part) for part in gold.parts):
        return True
    return node.value == gold.value and bool(set(node.parts) & set(gold.parts) - {gold.value})


def _read_steps(text: str):
    """(the equation, its sums and products, its result as written, is it true) of each step in the text's order."""
    for left, right in _equations(text):
        nodes: list[_Node] = []
        value, told = _evaluate_side(left, nodes), _evaluate_side(right, [])
        if value is None or told is None:
            continue
        places = len(right.rstrip("%").partition(".")[2])
        rounding = Fraction(1, 2 * 10**places) if places else 0
        percent = 100 if right.endswith("%") else 1  # 9/30 = 30% and 9/30*100 = 30% are both said
        true = abs(value - told * percent) <= rounding or abs(value - told) * percent <= rounding
        yield f"{left}={right}", nodes, told, true


def _equations(text: str):
    """The two sides of each step, in the text's order; an annotated line is not read twice."""
    for sign, plain in _STEP_SIGNS.items():
        text = text.replace(sign, plain)
    text = re.sub(r"(?<=\d)\s?[xX]\s?(?=[\d$.])", "*", text)
    # 2\frac{1}{2} is one number, and 8 / \frac{4}{2} would need brackets
    text = re.sub(r"(?<![\d./])(?<!/ )\\[dt]?frac\{(\d[\d,.]{0,20})\}\{(\d[\d,.]{0,20})\}", r"\1/\2", text)
    for line in text.split("\n"):
        annotated = _ANNOTATED.findall(line)
        if annotated:
            yield from ((_strip_side(left), _strip_side(right)) for left, right in annotated)
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
                yield _strip_side(match[1]), _strip_side(match[2])


def _strip_side(side: str) -> str:
    return re.sub(r"[\s,$]", "", side)


def _evaluate_side(text: str, nodes: list[_Node]) -> Fraction | None:
    """The exact value of sums, products and brackets; None for anything else, and for x/0.

    Each sum and product that is computed on the way is appended to `nodes`, the outermost last.
    """
    tokens = _STEP_TOKEN.findall(text)
    if "".join(tokens) != text or not tokens or text.count("(") > 15:
        return None
    try:
        node, end = _read_sum(tokens, 0, nodes)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return node.value if end == len(tokens) else None


def _read_sum(tokens: list[str], i: int, nodes: list[_Node]) -> tuple[_Node, int]:
    first, i = _read_product(tokens, i, nodes)
    terms = [first]
    while i < len(tokens) and tokens[i] in "+-":
        term, j = _read_product(tokens, i + 1, nodes)
        terms.append(term if tokens[i] == "+" else _Node("", -term.value))
        i = j
    return _join_nodes("+", terms, sum((term.value for term in terms), Fraction(0)), nodes), i


def _read_product(tokens: list[str], i: int, nodes: list[_Node]) -> tuple[_Node, int]:
    first, i = _read_atom(tokens, i, nodes)
    factors, value = [first], first.value
    while i < len(tokens) and tokens[i] in "*/(":
        factor, j = _read_atom(tokens, i + (tokens[i] != "("), nodes)  # 2(3) multiplies
        factors.append(_Node("", 1 / factor.value) if tokens[i] == "/" else factor)
        value, i = value * factors[-1].value, j
    return _join_nodes("*", factors, value, nodes), i


def _join_nodes(kind: str, children: list[_Node], value: Fraction, nodes: list[_Node]) -> _Node:
    """The sum or product of several children, with its parts in order; an only child itself."""
    if len(children) == 1:
        return children[0]
    parts: list[Fraction] = []
    for child in children:  # (1 + 2) + 3 is one sum
        parts += child.parts if child.kind == kind else [child.value]
    nothing = 0 if kind == "+" else 1
    nodes.append(_Node(kind, value, tuple(sorted(part for part in parts if part != nothing))))
    return nodes[-1]


def _read_atom(tokens: list[str], i: int, nodes: list[_Node]) -> tuple[_Node, int]:
    if tokens[i] in "+-":
        node, end = _read_atom(tokens, i + 1, nodes)
        return (_Node("", -node.value) if tokens[i] == "-" else node), end
    if tokens[i] == "(":
        node, end = _read_sum(tokens, i + 1, nodes)
        if tokens[end] != ")":
            raise ValueError("a bracket is not closed")
        end += 1
    else:
        node, end = _Node("", Fraction(tokens[i])), i + 1
    while tokens[end : end + 1] == ["%"]:
        node, end = _Node("", node.value / 100), end + 1
    return node, end


def _numbers_in(question: str) -> set[Fraction]:
    """A question's numbers: digits, words ("half", "twice"), percents as both 20 and 0.2."""
    numbers = {Fraction(number.replace(",", "")) for number in _QUESTION_NUMBER.findall(question[:20_000])}
    words = [word.removesuffix("s") for word in re.findall(r"[a-z]+", question[:20_000].lower())]
    said = [Fraction(_QUESTION_WORDS.get(word, 0)) for word in words]
    numbers |= {number for number in said if number}
    numbers |= {tens + ones for tens, ones in zip(said, said[1:]) if tens >= 20 and 0 < ones < 10}
    if "%" in question or "percent" in words:
        numbers |= {n / 100 for n in numbers} | {1 - n / 100 for n in numbers} | {1 + n / 100 for n in numbers}
    return numbers | {1 / n for n in numbers if n}


def _find_outcome(text: str, question: str = "") -> Fraction | None:
    """The number that a reply commits to after its thinking, None where it is not plain; never looser than math_reward.

    All boxes, or else all <answer> tags, must hold the same number; without either the line behind the last ####, or a
    last line such as "The answer is 72.", must end with the number alone.
    """
    close = text.rfind("</think>")
    if text.rfind("<think>") > close:
        return None
    text = text[close + len("</think>") :] if close >= 0 else text
    text = text.split("<|im_")[0]
    boxes = list(_OUTCOME_BOX.finditer(text)) or list(_OUTCOME_TAG.finditer(text))
    if not boxes:
        mark, stated = text.rfind("####"), _OUTCOME_STATED.search(text[-200:].strip())
        line = text[mark + 4 :].strip(" \t").partition("\n")[0] if mark >= 0 else stated[1] if stated else ""
        return _read_outcome(_strip_decoration(line, question))
    if any(_OUTCOME_DENIED.search(text[max(0, box.start() - 60) : box.end() + 60]) for box in boxes):
        return None
    numbers = {_read_outcome(_strip_decoration(box[1] or "", question)) for box in boxes}
    return numbers.pop() if len(numbers) == 1 else None


def _strip_decoration(text: str, question: str) -> str:
    """An answer without bold, last stop or thin space, braces, "x =" before it and words of the question behind it."""
    if len(text) > 200:
        return text
    text = re.sub(r"(?:\\[,;:! ]|[.\s])+$", "", text.strip(" \t\n$*"))
    text = re.sub(r"^\{(.*)\}$", r"\1", text.strip(" \t\n$*"))
    text = re.sub(r"^[A-Za-z]\s?=\s?", "", text)
    words = "([A-Za-z ]{1,40})"
    unit = re.fullmatch(rf"([^A-Za-z]*\d)\s{{0,3}}(?:\\(?:text|mathrm)\s?\{{\s?{words}\}}|{words})", text)
    if not unit:
        return text
    units = {word.removesuffix("s") for word in (unit[2] or unit[3]).lower().split()}
    asked = {word.removesuffix("s") for word in re.findall("[a-z]+", question.lower().replace("$", " dollar "))}
    return unit[1] if units <= asked - _QUESTION_WORDS.keys() and not _OUTCOME_DENIED.search(text) else text


def _read_outcome(text: str) -> Fraction | None:
    """The value of "1,200", "-3.5", "$4", "1/2" or "\\frac{1}{2}"; None for anything else."""
    text = re.sub(r"\\[dt]?frac\{(\d{1,20})\}\{(\d{1,20})\}", r"\1/\2", text.strip(" \t\n$").replace("−", "-"))
    match = re.fullmatch(
        r"(-?)\\?\$?((?:\d{1,3}(?:,\d{3}){1,6}|\d{1,20})(?:\.\d{1,12})?|\.\d{1,12})(?:/(\d{1,20}))?", text
    )
    if not match or (match[3] and not int(match[3])):
        return None
    value = Fraction(match[2].replace(",", "")) / int(match[3] or 1)
    if match[3] and value.denominator == 1:  # 144/2 is not computed yet
        return None
    return -value if match[1] else value


def _join_turns(prompt: str | list) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(turn.get("content") or "") for turn in prompt)


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
