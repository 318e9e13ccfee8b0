"""Equation transformation: two numbers of two digits, a sign that hides an operation, and a way of writing.

The left side is always five characters; its numbers are 10 to 99. In half of the puzzles every digit is a symbol
(`cryptarithms`). One set of weighted rules (`rules`) serves both sides: `draw_puzzle` draws by it, and `solve_puzzle`
takes the answer with the largest weight among all rules that agree with the examples.
"""

import random
import re
import string
from collections import Counter

from grpo_kit.data.puzzles.puzzle import Family, Knobs, text_after
from grpo_kit.data.puzzles.rules import (
    WAY_SHARES,
    WAYS,
    are_usual_signs,
    assign_rules,
    format_working,
    is_possible,
    read_numbers,
    rules_of_query,
    weigh_rules,
    write_result,
)

OPENING = "In Alice's Wonderland, a secret set of transformation rules is applied to equations."
SIGNS = "!\"#$%&'()*+-/:<>?@[\\]^`{|}"
SYMBOLS = "".join(sign for sign in SIGNS if sign not in "+-*")  # what digits turn into


def weigh_answers(shown: list[tuple[str, str]], query: str) -> dict[str | None, float]:
    """Weight of each answer over all rules that agree with the examples; None: answers with a symbol never shown."""
    if query[0] not in string.digits:
        from grpo_kit.data.puzzles import cryptarithms  # numpy, which nothing else here needs

        return cryptarithms.weigh_answers(shown, query)
    weights: Counter = Counter()
    signs = "".join({left[2] for left, _ in shown} | {query[2]})
    for way in range(len(WAYS)):
        if not all(is_possible(left, way) for left in [query, *(left for left, _ in shown)]):
            continue
        for rules in assign_rules(shown, way, lambda rule, way, left, right: write_result(rule, way, left) == right):
            share = weigh_rules(rules, way, are_usual_signs(signs))
            for rule, part in rules_of_query(rules, query[2], way, are_usual_signs(signs)).items():
                weights[write_result(rule, way, query)] += share * part
    return weights


def draw_puzzle(rng: random.Random, knobs: Knobs) -> tuple[str, str, str, bool]:
    if not 1 <= knobs["operators"][0] <= knobs["operators"][1] <= 3 or knobs["symbols"][1] > 1:
        raise ValueError(
            f"operators is {knobs['operators']} and symbols {knobs['symbols']}; a puzzle has 1 to 3 operators, and "
            "symbols are 0 (digits) or 1. Set operators=(2, 3) and symbols=(0, 1)."
        )
    symbols, plain_signs = rng.randint(*knobs["symbols"]), rng.random() < 0.5
    way = rng.choices(range(len(WAYS)), WAY_SHARES[plain_signs])[0]
    rules: dict[str, str] = {}
    for sign in rng.sample("+-*" if plain_signs else SIGNS, rng.randint(*knobs["operators"])):
        open_rules = rules_of_query(rules, sign, way, plain_signs)
        rules[sign] = rng.choices(list(open_rules), list(open_rules.values()))[0]
    digits = dict(
        zip("0123456789", rng.sample([c for c in SYMBOLS if c not in rules], 10) if symbols else "0123456789")
    )

    def left() -> str:
        return "{1}{0}{2}".format(
            rng.choice(list(rules)), *read_numbers(f"{rng.randint(10, 99)} {rng.randint(10, 99)}", way)
        )

    *lefts, query = (left() for _ in range(rng.randint(*knobs["examples"]) + 1))
    shown = [(side, write_result(rules[side[2]], way, side)) for side in lefts]
    back = write_result(rules[query[2]], way, query)

    def hide(text: str) -> str:
        return "".join(digits.get(letter, letter) for letter in text)

    seen = [(hide(a), hide(b)) for a, b in shown]
    prompt = (
        f"{OPENING} Below are a few examples:\n{''.join(f'{a} = {b}{chr(10)}' for a, b in seen)}"
        f"Now, determine the result for: {hide(query)}"
    )
    is_determined = (
        set(weigh_answers(seen, hide(query))) == {hide(back)} and query not in lefts and len(set(lefts)) == len(lefts)
    )
    return prompt, hide(back), _trace(shown, query, way, rules, digits if symbols else {}), is_determined


def _trace(shown: list[tuple[str, str]], query: str, way: int, rules: dict[str, str], digits: dict[str, str]) -> str:
    """Sign by sign: what the usual operations would give, which rule fits all its examples; then the query.

    Of symbols it states a filling and shows that every example comes true; the search for it is not written out.
    """

    def hide(text: str) -> str:
        return "".join(digits.get(letter, letter) for letter in text)

    lines = []
    own = [(a, b) for a, b in shown if a[2] == query[2]]
    if digits and own and rules[query[2]].startswith("join"):  # then no digit is needed
        crossed = (rules[query[2]] == "join swapped") != (way == 1)
        order = "right pair, left pair" if crossed else "left pair, right pair"
        copied = [f"{hide(a)} = {hide(b)}: {order}" for a, b in own]
        return "\n".join(
            [
                *copied,
                f"{query[2]} copies, {order}",
                f"{hide(query)}: {hide(write_result(rules[query[2]], way, query))}",
            ]
        )
    if digits:
        digits_shown = sorted({letter for a, b in [*shown, (query, "")] for letter in a + b if letter.isdigit()})
        lines = [
            "Each symbol is a digit. A filling that makes every example true:",
            " ".join(f"{digits[digit]}={digit}" for digit in digits_shown),
            *(f"{hide(a)} = {hide(b)} is {a} = {b}" for a, b in shown),
            f"{hide(query)} is {query}",
        ]
    for sign in dict.fromkeys(a[2] for a, _ in shown):
        own = [(a, b) for a, b in shown if a[2] == sign]
        first = own[0]
        for reading in dict.fromkeys([0, way]):
            a, b = (int(number) for number in read_numbers(first[0], reading))
            lines.append(f"{first[0]}, {WAYS[reading]}: {a}+{b}={a + b} {a}-{b}={a - b} {a}*{b}={a * b}")
        lines += [
            f"{format_working(rules[sign], way, a)}, written {write_result(rules[sign], way, a)}, shown {b}"
            for a, b in own
        ]
        lines.append(f"{sign} means {rules[sign]}")
    if query[2] not in {a[2] for a, _ in shown}:
        lines.append(f"{query[2]} was never shown; of the rules left, take {rules[query[2]]}")
    back = write_result(rules[query[2]], way, query)
    lines.append(f"{query}: {format_working(rules[query[2]], way, query)}, written {back}")
    return "\n".join([*lines, *([f"in symbols {hide(back)}"] if digits else [])])


def solve_puzzle(prompt: str) -> str | None:
    """The answer with the largest weight, None where no rule agrees with the examples."""
    shown = re.findall(r"^(\S{5}) = (\S{1,5})$", prompt, re.MULTILINE)
    query = text_after(prompt, "determine the result for: ")
    numbers = "".join(left[:2] + left[3:] for left in [query, *(left for left, _ in shown)])
    if not shown or len(query) != 5 or len({letter in string.digits for letter in numbers}) != 1:
        return None
    if len({left[2] for left, _ in shown}) > 10:  # a puzzle has three at most
        return None
    weights = {answer: share for answer, share in weigh_answers(shown, query).items() if answer is not None}
    return max(weights, key=weights.__getitem__) if weights else None


EQUATIONS = Family(
    "equation transformation",
    OPENING,
    {"examples": (3, 5), "operators": (2, 3), "symbols": (0, 1)},
    draw_puzzle,
    solve_puzzle,
)
