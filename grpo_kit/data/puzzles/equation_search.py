"""What the sign of an equation can mean, sign by sign: the answers that rules allow, and the search written out.

Every way of writing is tried, the likeliest first. In one way the first example of a sign is compared with the result
of each rule, and the rules that give it with the sign's other examples; a way without a rule for some sign falls.
"""

import re
import string
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from grpo_kit.data.puzzles.puzzle import AMBIGUOUS, NO_RULE, NO_SEARCH, Solution, text_after
from grpo_kit.data.puzzles.rules import (
    RULES,
    WAYS,
    are_usual_signs,
    assign_rules,
    is_possible,
    order_ways,
    read_numbers,
    read_result,
    rules_of_query,
    weigh_rules,
    write_result,
    write_working,
)

Shown = list[tuple[str, str]]  # (left side, right side) of each example


class Reading(NamedTuple):
    """What the signs can mean in one way of writing, the rule of the query's sign, its answer, and how likely it is."""

    way: int
    rules: dict[str, str]
    rule: str
    answer: str
    weight: float


def find_readings(shown: Shown, query: str) -> Iterator[Reading]:
    """Every reading of a puzzle in digits that agrees with its examples."""
    usual_signs = are_usual_signs("".join({left[2] for left, _ in shown} | {query[2]}))
    for way in order_ways(usual_signs):
        if not all(is_possible(left, way) for left in [query, *(left for left, _ in shown)]):
            continue
        for rules in assign_rules(shown, way, lambda rule, way, left, right: write_result(rule, way, left) == right):
            share = weigh_rules(rules, way, usual_signs)
            for rule, part in rules_of_query(rules, query[2], way, usual_signs).items():
                yield Reading(way, rules, rule, write_result(rule, way, query), share * part)


def weigh_answers(shown: Shown, query: str) -> dict[str | None, float]:
    """Weight of each answer over all rules that agree with the examples; None: answers with a symbol never shown."""
    if query[0] not in string.digits:
        from grpo_kit.data.puzzles import cryptarithms  # numpy, which nothing else here needs

        return cryptarithms.weigh_answers(shown, query)
    weights: Counter = Counter()
    for reading in find_readings(shown, query):
        weights[reading.answer] += reading.weight
    return weights


def solve_puzzle(prompt: str) -> Solution:
    """The answer with the largest weight; ambiguous where another has any."""
    shown = re.findall(r"^(\S{5}) = (\S{1,5})$", prompt, re.MULTILINE)
    query = text_after(prompt, "determine the result for: ")
    numbers = "".join(left[:2] + left[3:] for left in [query, *(left for left, _ in shown)])
    if not shown or len(query) != 5 or len({letter in string.digits for letter in numbers}) != 1:
        return Solution(None, reason=NO_RULE, detail="The prompt has no examples of one kind, or it asks for nothing.")
    if len({left[2] for left, _ in shown}) > 10:  # a puzzle has three at most
        return Solution(None, reason=NO_RULE, detail="The examples have more than ten signs.")
    weights = weigh_answers(shown, query)
    answers = sorted(filter(None, weights), key=weights.__getitem__, reverse=True)
    if not weights:
        return Solution(None, reason=NO_RULE, detail="No rules for the signs give all results of the examples.")
    if not answers:
        return Solution(None, reason=AMBIGUOUS, detail="The result has a symbol that the examples do not show.")
    if len(weights) > 1 or query[2] not in {left[2] for left, _ in shown}:
        return Solution(answers[0], reason=AMBIGUOUS, detail=_name_two(shown, query, answers))
    if query[0] not in string.digits:
        lines = write_copies(shown, query, answers[0])
        detail = "Which digit each symbol stands for takes a search over fillings."
        return Solution(answers[0], "\n".join(lines)) if lines else Solution(answers[0], "", NO_SEARCH, detail)
    return Solution(answers[0], "\n".join(write_search(shown, query)))


def _name_two(shown: Shown, query: str, answers: list[str]) -> str:
    if query[0] not in string.digits or len(answers) < 2:
        return f"The result can be {' or '.join([*answers[:2], 'one with a symbol never shown'][:2])}."
    readings = list(find_readings(shown, query))
    best = [max((r for r in readings if r.answer == a), key=lambda r: r.weight) for a in answers[:2]]
    return "The result can be " + " or ".join(f"{r.answer} ({r.rule}, {WAYS[r.way]})" for r in best) + "."


def write_copies(shown: Shown, query: str, answer: str) -> list[str]:
    """Lines for a sign whose examples copy both pairs of symbols; [] where they do not."""
    orders = {"left pair, right pair": (0, 3), "right pair, left pair": (3, 0)}
    for order, (a, b) in orders.items():
        own = [(left, right) for left, right in shown if left[2] == query[2]]
        if all(right == left[a : a + 2] + left[b : b + 2] for left, right in own):
            pairs = [f"{left} = {right}: {left[:2]} and {left[3:]}, {order}" for left, right in own]
            written = query[a : a + 2] + query[b : b + 2]
            if written == answer:
                last = f"{query}: {query[:2]} and {query[3:]}, {order}:"
                return [*pairs, f"{query[2]} copies, {order}", last, answer]
    return []


def write_search(shown: Shown, query: str) -> list[str]:
    """The lines of the search over digits, from the first way of writing to the query's result."""
    signs = list(dict.fromkeys(left[2] for left, _ in shown))
    first: dict[int, Reading] = {}  # all readings give the same answer, so the first in the order of the rules will do
    for reading in find_readings(shown, query):
        first.setdefault(reading.way, reading)
    lines = []
    for way in order_ways(are_usual_signs("".join(signs))):
        lines.append(f"{WAYS[way]}:")
        if small := next((left for left in [*(left for left, _ in shown), query] if not is_possible(left, way)), None):
            lines.append(f"{small} is {' and '.join(read_numbers(small, way))}, and a number begins with 0: no")
            continue
        for sign in signs:
            more, rules = _search_sign([pair for pair in shown if pair[0][2] == sign], way)
            lines += more
            lines.append(f"{sign} is {' or '.join(rules) or 'none of the rules: no'}")
            if not rules:
                break
        else:
            if way not in first:
                lines.append("two signs would be of one group: no")
                continue
            reading = first[way]
            lines.append("so " + ", ".join(f"{sign} is {rule}" for sign, rule in reading.rules.items()))
            a, b = read_numbers(query, way)
            working, number = write_working(reading.rule, int(a), int(b))
            return [*lines, f"{query}: {a} and {b}", working, f"{number} is written {reading.answer}", reading.answer]
    raise ValueError(f"No way of writing agrees with {shown}.")


def _search_sign(own: Shown, way: int) -> tuple[list[str], list[str]]:
    """(lines, rules that give every example of a sign)."""
    lines, rules = [], list(RULES)
    for left, right in own:
        a, b = read_numbers(left, way)
        result = read_result(right, left[2], way)
        lines.append(f"{left} = {right}: {a} and {b} give {result or 'nothing that can be read'}")
        if result is None:
            return lines, []
        groups = dict.fromkeys(RULES[rule][0] for rule in rules)
        fitting = [rule for rule in rules if write_result(rule, way, left) == right]
        for group in groups:
            lines.append(_try_group(group, int(a), int(b), result, [r for r in fitting if RULES[r][0] == group]))
        rules = fitting
        if not rules:
            break
    return lines, rules


def _try_group(group: str, a: int, b: int, result: str, fitting: list[str]) -> str:
    """One line that compares what the rules of a group give with the result."""
    verdict = " or ".join(fitting) or "no"
    digits = result.lstrip("-")
    if group == "product":
        if len(digits) < 3 and (a, b) != (10, 10):
            return "a product has 3 or 4 digits: no"
        end = a % 10 * (b % 10)
        ends = f"{a % 10} * {b % 10} = {end}, so a product ends in {end % 10}, {(end + 1) % 10} or {(end - 1) % 10}"
        if int(digits) % 10 not in (end % 10, (end + 1) % 10, (end - 1) % 10):
            return f"{ends}: no"
        working, _ = write_working("multiply", a, b)
        product = a * b
        return f"{ends}; {working}, {product} + 1 = {product + 1}, {product} - 1 = {product - 1}: {verdict}"
    if group == "join":
        return f"joined {a}{b} or {b}{a}: {verdict}" if len(digits) == 4 else "joined has 4 digits: no"
    if group == "sum":
        return f"{a} + {b} = {a + b}, {a + b} + 1 = {a + b + 1}, {a + b} - 1 = {a + b - 1}: {verdict}"
    remainder, _ = write_working("remainder of larger by smaller", a, b)
    return f"{a} - {b} = {a - b}, distance {abs(a - b)}, remainder {remainder}: {verdict}"
