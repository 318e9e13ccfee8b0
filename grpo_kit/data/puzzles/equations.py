"""Equation transformation: two numbers of two digits, a sign that hides an operation, and a way of writing.

The left side is always five characters; its numbers are 10 to 99. In half of the puzzles every digit is a symbol
(`cryptarithms`). One set of weighted rules (`rules`) serves both sides: `draw` draws by it, and `solve` takes the answer
of most weight among all rules that agree with the examples.
"""

import random
import re
import string
from collections import Counter

from grpo_kit.data.puzzles.puzzle import Family, Knobs, after
from grpo_kit.data.puzzles.rules import (  # fmt: skip
    WAY_SHARES,
    WAYS,
    assignments,
    for_query,
    possible,
    read,
    usual,
    weight_of_all,
    worked,
    written,
)

OPENING = "In Alice's Wonderland, a secret set of transformation rules is applied to equations."
SIGNS = "!\"#$%&'()*+-/:<>?@[\\]^`{|}"
SYMBOLS = "".join(sign for sign in SIGNS if sign not in "+-*")  # what digits turn into


def answers(shown: list[tuple[str, str]], asked: str) -> dict[str | None, float]:
    """Answer to its weight, over all rules that agree with the examples; None for answers in a symbol never shown."""
    if asked[0] not in string.digits:
        from grpo_kit.data.puzzles import cryptarithms  # numpy, which nothing else here needs

        return cryptarithms.answers(shown, asked)
    found: Counter = Counter()
    signs = "".join({left[2] for left, _ in shown} | {asked[2]})
    for way in range(len(WAYS)):
        if not all(possible(left, way) for left in [asked, *(left for left, _ in shown)]):
            continue
        for rules in assignments(shown, way, lambda rule, way, left, right: written(rule, way, left) == right):
            share = weight_of_all(rules, way, usual(signs))
            for rule, part in for_query(rules, asked[2], way, usual(signs)).items():
                found[written(rule, way, asked)] += share * part
    return found


def draw(rng: random.Random, knobs: Knobs) -> tuple[str, str, str, bool]:
    if not 1 <= knobs["operators"][0] <= knobs["operators"][1] <= 3 or knobs["symbols"][1] > 1:
        raise ValueError(
            f"operators is {knobs['operators']} and symbols {knobs['symbols']}; a puzzle has 1 to 3 operators, and symbols "
            "are 0 (digits) or 1. Set operators=(2, 3) and symbols=(0, 1)."
        )
    symbols, plain_signs = rng.randint(*knobs["symbols"]), rng.random() < 0.5
    way = rng.choices(range(len(WAYS)), WAY_SHARES[plain_signs])[0]
    rules: dict[str, str] = {}
    for sign in rng.sample("+-*" if plain_signs else SIGNS, rng.randint(*knobs["operators"])):
        open_rules = for_query(rules, sign, way, plain_signs)
        rules[sign] = rng.choices(list(open_rules), list(open_rules.values()))[0]
    digits = dict(
        zip("0123456789", rng.sample([c for c in SYMBOLS if c not in rules], 10) if symbols else "0123456789")
    )

    def left() -> str:
        return "{1}{0}{2}".format(rng.choice(list(rules)), *read(f"{rng.randint(10, 99)} {rng.randint(10, 99)}", way))

    *lefts, asked = (left() for _ in range(rng.randint(*knobs["examples"]) + 1))
    shown = [(side, written(rules[side[2]], way, side)) for side in lefts]
    back = written(rules[asked[2]], way, asked)

    def hide(text: str) -> str:
        return "".join(digits.get(letter, letter) for letter in text)

    seen = [(hide(a), hide(b)) for a, b in shown]
    prompt = (
        f"{OPENING} Below are a few examples:\n{''.join(f'{a} = {b}{chr(10)}' for a, b in seen)}"
        f"Now, determine the result for: {hide(asked)}"
    )
    sure = set(answers(seen, hide(asked))) == {hide(back)} and asked not in lefts and len(set(lefts)) == len(lefts)
    return prompt, hide(back), _trace(shown, asked, way, rules, digits if symbols else {}), sure


def _trace(shown: list[tuple[str, str]], asked: str, way: int, rules: dict[str, str], digits: dict[str, str]) -> str:
    """Sign by sign: what the usual operations would give, which rule fits all its examples; then the query.

    Of symbols it states a filling and shows that every example comes true; the search for it is not written out.
    """

    def hide(text: str) -> str:
        return "".join(digits.get(letter, letter) for letter in text)

    lines = []
    own = [(a, b) for a, b in shown if a[2] == asked[2]]
    if digits and own and rules[asked[2]].startswith("join"):  # then no digit is needed
        crossed = (rules[asked[2]] == "join swapped") != (way == 1)
        order = "right pair, left pair" if crossed else "left pair, right pair"
        copied = [f"{hide(a)} = {hide(b)}: {order}" for a, b in own]
        return "\n".join(
            [*copied, f"{asked[2]} copies, {order}", f"{hide(asked)}: {hide(written(rules[asked[2]], way, asked))}"]
        )
    if digits:
        known = sorted({letter for a, b in [*shown, (asked, "")] for letter in a + b if letter.isdigit()})
        lines = [
            "Each symbol is a digit. A filling that makes every example true:",
            " ".join(f"{digits[digit]}={digit}" for digit in known),
            *(f"{hide(a)} = {hide(b)} is {a} = {b}" for a, b in shown),
            f"{hide(asked)} is {asked}",
        ]
    for sign in dict.fromkeys(a[2] for a, _ in shown):
        own = [(a, b) for a, b in shown if a[2] == sign]
        first = own[0]
        for reading in dict.fromkeys([0, way]):
            a, b = (int(number) for number in read(first[0], reading))
            lines.append(f"{first[0]}, {WAYS[reading]}: {a}+{b}={a + b} {a}-{b}={a - b} {a}*{b}={a * b}")
        lines += [f"{worked(rules[sign], way, a)}, written {written(rules[sign], way, a)}, shown {b}" for a, b in own]
        lines.append(f"{sign} means {rules[sign]}")
    if asked[2] not in {a[2] for a, _ in shown}:
        lines.append(f"{asked[2]} was never shown; of the rules left, take {rules[asked[2]]}")
    back = written(rules[asked[2]], way, asked)
    lines.append(f"{asked}: {worked(rules[asked[2]], way, asked)}, written {back}")
    return "\n".join([*lines, *([f"in symbols {hide(back)}"] if digits else [])])


def solve(prompt: str) -> str | None:
    """The answer of most weight, None where no rule agrees with the examples."""
    shown = re.findall(r"^(\S{5}) = (\S{1,5})$", prompt, re.MULTILINE)
    asked = after(prompt, "determine the result for: ")
    numbers = "".join(left[:2] + left[3:] for left in [asked, *(left for left, _ in shown)])
    if not shown or len(asked) != 5 or len({letter in string.digits for letter in numbers}) != 1:
        return None
    if len({left[2] for left, _ in shown}) > 10:  # a puzzle has three at most
        return None
    found = {answer: share for answer, share in answers(shown, asked).items() if answer is not None}
    return max(found, key=found.__getitem__) if found else None


EQUATIONS = Family(
    "equation transformation", OPENING, {"examples": (3, 5), "operators": (2, 3), "symbols": (0, 1)}, draw, solve
)
