"""Numeral system: numbers and their Roman numerals, and one more number."""

import random
import re

from grpo_kit.data.puzzles.puzzle import NO_RULE, Family, Knobs, Solution, text_after

OPENING = "In Alice's Wonderland, numbers are secretly converted into a different numeral system."
LARGEST = 3999
_PARTS = [
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"),
    (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
]  # fmt: skip


def split_number(number: int) -> list[tuple[int, str]]:
    """The parts that a number is the sum of, the largest first: `[(10, "X"), (4, "IV")]` for 14."""
    parts = []
    for value, letters in _PARTS:
        parts += [(value, letters)] * (number // value)
        number %= value
    return parts


def to_roman(number: int) -> str:
    """The Roman numeral of 1..3999, upper case.

    >>> to_roman(94)
    'XCIV'
    """
    return "".join(letters for _, letters in split_number(number))


def format_digits(number: int) -> str:
    """A number as the sum of its digits, and the letters of each: `94 = 90 + 4: XC IV`."""
    digits = str(number)
    parts = [int(digit) * 10 ** (len(digits) - place) for place, digit in enumerate(digits, 1) if digit != "0"]
    return f"{number} = {' + '.join(map(str, parts))}: {' '.join(map(to_roman, parts))}"


def draw_puzzle(rng: random.Random, knobs: Knobs) -> tuple[str, str, bool]:
    low, high = knobs["numbers"]
    if not 1 <= low < high <= LARGEST:
        raise ValueError(
            f"numbers is {(low, high)}; Roman numerals go from 1 to {LARGEST}. Set both bounds within that range."
        )
    count = min(rng.randint(*knobs["examples"]), high - low)
    *shown, query = rng.sample(range(low, high + 1), count + 1)
    lines = "".join(f"{number} -> {to_roman(number)}\n" for number in shown)
    prompt = (
        f"{OPENING} Some examples are given below:\n{lines}"
        f"Now, write the number {query} in the Wonderland numeral system."
    )
    return prompt, to_roman(query), True  # there is only one rule, so every puzzle is determined


def solve_puzzle(prompt: str) -> Solution:
    """Read every number digit by digit, the examples' first."""
    shown = [(int(number), letters) for number, letters in re.findall(r"^(\d{1,4}) -> ([A-Z]+)$", prompt, re.MULTILINE)]
    query = re.match(r"\d{1,4}\b", text_after(prompt, "write the number "))
    if not query or not 0 < int(query[0]) <= LARGEST:
        return Solution(None, reason=NO_RULE, detail=f"The prompt asks for no number from 1 to {LARGEST}.")
    for number, letters in shown:
        if not 0 < number <= LARGEST or to_roman(number) != letters:
            return Solution(None, reason=NO_RULE, detail=f"{letters} is not the Roman numeral of {number}.")
    checks = [f"{format_digits(number)} -> {to_roman(number)}, shown {letters}: equal" for number, letters in shown]
    number, answer = int(query[0]), to_roman(int(query[0]))
    lines = ["Roman numerals, digit by digit.", *checks, f"{format_digits(number)} -> {answer}"]
    return Solution(answer, "\n".join(lines))


NUMERALS = Family("numeral system", OPENING, {"examples": (3, 5), "numbers": (1, 100)}, draw_puzzle, solve_puzzle)
