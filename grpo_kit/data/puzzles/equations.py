"""Equation transformation: two numbers of two digits, a sign that hides an operation, and a way of writing.

The left side is always five characters; its numbers are 10 to 99. In half of the puzzles every digit is a symbol
(`cryptarithms`). One set of weighted rules (`rules`) serves both sides: `draw_puzzle` draws by it, and `solve_puzzle`
takes the answer with the largest weight among all rules that agree with the examples.
"""

import random

from grpo_kit.data.puzzles.equation_search import solve_puzzle, weigh_answers
from grpo_kit.data.puzzles.puzzle import Family, Knobs
from grpo_kit.data.puzzles.rules import WAY_SHARES, WAYS, read_numbers, rules_of_query, write_result

OPENING = "In Alice's Wonderland, a secret set of transformation rules is applied to equations."
SIGNS = "!\"#$%&'()*+-/:<>?@[\\]^`{|}"
SYMBOLS = "".join(sign for sign in SIGNS if sign not in "+-*")  # what digits turn into


def draw_puzzle(rng: random.Random, knobs: Knobs) -> tuple[str, str, bool]:
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
    return prompt, hide(back), is_determined


EQUATIONS = Family(
    "equation transformation",
    OPENING,
    {"examples": (3, 5), "operators": (2, 3), "symbols": (0, 1)},
    draw_puzzle,
    solve_puzzle,
)
