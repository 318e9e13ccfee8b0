"""Bit manipulation: eight bits from up to three shifted or rotated copies of the input, joined bit by bit."""

import random

from grpo_kit.data.puzzles.bit_rules import KINDS, MOST_COPIES, find_readings, shift_byte
from grpo_kit.data.puzzles.bit_search import OPENING, solve_puzzle
from grpo_kit.data.puzzles.puzzle import Family, Knobs

HINT = (
    "The transformation involves operations like bit shifts, rotations, XOR, AND, OR, NOT, and possibly majority or "
    "choice functions."
)

# A rule as an expression: a copy is its index, else (operation, operand, ...).
_SIGNS = {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}


def evaluate_rule(rule: int | tuple, words: list[int], ones: int) -> int:
    """The rule on whole words at once; `ones` is a word of ones."""
    if isinstance(rule, int):
        return words[rule]
    name, *parts = rule
    a, *rest = (evaluate_rule(part, words, ones) for part in parts)
    if name == "not":
        return ones & ~a
    if name == "majority":
        return a & rest[0] | a & rest[1] | rest[0] & rest[1]
    if name == "choice":  # a chooses: the second where it is 1, the third where it is 0
        return a & rest[0] | ones & ~a & rest[1]
    return _SIGNS[name](a, rest[0])


def draw_rule(rng: random.Random, count: int) -> int | tuple:
    """Joins `count` copies: none, one or several NOTs; of three, also majority and choice."""

    def maybe_not(rule: int | tuple) -> int | tuple:
        return ("not", rule) if rng.random() < 0.2 else rule

    def join(a: int | tuple, b: int | tuple) -> tuple:
        return (rng.choice(["and", "or", "xor", "xor"]), a, b)

    if count == 1:
        return ("not", 0) if rng.random() < 0.5 else 0
    if count == 2:
        return maybe_not(join(0, maybe_not(1)))
    if rng.random() < 0.4:
        return (rng.choice(["majority", "choice"]), 0, 1, 2)
    return join(maybe_not(join(0, 1)), maybe_not(2))


def draw_puzzle(rng: random.Random, knobs: Knobs) -> tuple[str, str, bool]:
    low, high = knobs["copies"]
    if not 1 <= low <= high <= MOST_COPIES or knobs["examples"][1] > 255:
        raise ValueError(
            f"copies is {(low, high)} and examples {knobs['examples']}; a rule joins 1 to {MOST_COPIES} copies, and "
            "there are 256 bytes. Set copies=(1, 3) and examples=(7, 10)."
        )
    count = rng.randint(low, high)
    kinds = rng.sample(list(KINDS), count)
    names = [(kind, rng.choice(KINDS[kind])) for kind in kinds]
    rule = draw_rule(rng, count)

    def output(byte: int) -> int:
        return evaluate_rule(rule, [shift_byte(byte, *name) for name in names], 255)

    *inputs, query = rng.sample(range(256), rng.randint(*knobs["examples"]) + 1)
    shown, answer = [(byte, output(byte)) for byte in inputs], f"{output(query):08b}"
    lines = "\n".join(f"{a:08b} -> {b:08b}" for a, b in shown)
    prompt = (
        f"{OPENING} {HINT}\n\nHere are some examples of input -> output:\n{lines}\n\n"
        f"Now, determine the output for: {query:08b}"
    )
    is_determined = all(reading[1:] == (output(query), 0) for group in find_readings(shown, query) for reading in group)
    return prompt, answer, is_determined


BITS = Family("bit manipulation", OPENING, {"examples": (7, 10), "copies": (1, 3)}, draw_puzzle, solve_puzzle)
