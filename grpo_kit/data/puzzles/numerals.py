"""Numeral system: numbers and their Roman numerals, and one more number."""

import random
import re

from grpo_kit.data.puzzles.puzzle import Family, Knobs, after

OPENING = "In Alice's Wonderland, numbers are secretly converted into a different numeral system."
LARGEST = 3999
_PARTS = [
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"),
    (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
]  # fmt: skip


def parts(number: int) -> list[tuple[int, str]]:
    """Largest first, what a number is the sum of: `[(10, "X"), (4, "IV")]` for 14."""
    found = []
    for value, letters in _PARTS:
        found += [(value, letters)] * (number // value)
        number %= value
    return found


def roman(number: int) -> str:
    """The Roman numeral of 1..3999, upper case.

    >>> roman(94)
    'XCIV'
    """
    return "".join(letters for _, letters in parts(number))


def _worked(number: int) -> str:
    found = parts(number)
    return f"{number} = {' + '.join(str(value) for value, _ in found)}: {' + '.join(name for _, name in found)}"


def draw(rng: random.Random, knobs: Knobs) -> tuple[str, str, str, bool]:
    low, high = knobs["numbers"]
    if not 1 <= low < high <= LARGEST:
        raise ValueError(f"numbers is {(low, high)}; Roman numerals go from 1 to {LARGEST}. Set both ends in there.")
    count = min(rng.randint(*knobs["examples"]), high - low)
    *shown, asked = rng.sample(range(low, high + 1), count + 1)
    lines = "".join(f"{number} -> {roman(number)}\n" for number in shown)
    prompt = (
        f"{OPENING} Some examples are given below:\n{lines}"
        f"Now, write the number {asked} in the Wonderland numeral system."
    )
    # One rule only: whatever is shown is Roman.
    checks = "\n".join(f"{_worked(number)} -> {roman(number)}" for number in shown)
    trace = f"The letters are Roman numerals, largest part first.\n{checks}\n{_worked(asked)} -> {roman(asked)}"
    return prompt, roman(asked), trace, True


def solve(prompt: str) -> str | None:
    shown = re.findall(r"^(\d{1,4}) -> ([A-Z]+)$", prompt, re.MULTILINE)
    asked = re.match(r"\d{1,4}\b", after(prompt, "write the number "))
    if not asked or any(not 0 < int(number) <= LARGEST or roman(int(number)) != letters for number, letters in shown):
        return None
    return roman(int(asked[0])) if 0 < int(asked[0]) <= LARGEST else None


NUMERALS = Family("numeral system", OPENING, {"examples": (3, 5), "numbers": (1, 100)}, draw, solve)
