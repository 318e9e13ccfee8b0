"""Gravity and unit conversion: one hidden factor, and results that are rounded to two decimals.

A distance is factor * t^2 (the factor is g/2), a converted measurement is factor * x. A rounded result allows an
interval of factors, and all results together allow the intersection (`allowed_factors`). The solver divides the largest
result, because its rounding matters least, to four decimals, and tries that factor on every other example. A generated
puzzle's hidden factor is the quotient of this division, so the solver's answer is exact and not only within the
scorer's 1 %.
"""

import random
import re
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from grpo_kit.data.puzzles.puzzle import AMBIGUOUS, NO_RULE, Family, Knobs, Solution, text_after
from grpo_kit.data.puzzles.working import plain, round_half_up, write_product, write_quotient

TOLERANCE = Decimal("0.01")  # the scorer's, relative to the larger number
DECIMALS = 4  # of a factor
_NUMBER = r"(\d{1,4}(?:\.\d{1,4})?)"

Shown = list[tuple[Decimal, Decimal]]  # (the number to multiply: t^2 or the measurement; the result shown)


def allowed_factors(shown: Shown) -> tuple[Decimal, Decimal]:
    """(lowest, highest) factor that agrees with every example; lowest > highest when none does."""
    half = Decimal("0.005")
    return max((result - half) / value for value, result in shown), min(
        (result + half) / value for value, result in shown
    )


def is_determined(shown: Shown) -> bool:
    """Whether all allowed factors give answers that the scorer counts as equal."""
    low, high = allowed_factors(shown)
    return low <= high and high - low <= TOLERANCE * high


def write_number(value: Decimal) -> str:
    """As Python prints a float: no zeros at the end, but one decimal at least (`130.2`, `4.0`)."""
    return str(float(value))


def _draw_shown(
    rng: random.Random, knobs: Knobs, bounds: tuple[float, float], factors: tuple[float, float], power: int
) -> tuple[list[Decimal], Shown, Decimal]:
    """(numbers in `bounds`, the query last; examples; answer). The largest result gives the factor."""
    count, decimals = rng.randint(*knobs["examples"]), rng.randint(*knobs["decimals"])
    factor_decimals = rng.randint(*knobs["factor_decimals"])
    if decimals > 2 or factor_decimals > 3:
        raise ValueError(
            f"decimals is {knobs['decimals']} and factor_decimals {knobs['factor_decimals']}; the numbers of a puzzle "
            "have 2 decimals at most, and its factor is drawn with 3 at most. Set decimals=(2, 2) and "
            "factor_decimals=(3, 3)."
        )
    low, high = (round(10**decimals * end) for end in bounds)
    if not 0 < low < high - count or factors[0] <= 0:
        raise ValueError(
            f"Cannot draw {count} different examples between {bounds} with factors {factors}: all numbers must be "
            f"above 0, and the bounds must be more than {count} steps of {Decimal(1).scaleb(-decimals)} apart. Set the "
            "knobs further apart."
        )
    scale = 10**factor_decimals
    for _ in range(1000):
        hidden = Decimal(rng.randint(round(scale * factors[0]), round(scale * factors[1]))) / scale
        names = [Decimal(step).scaleb(-decimals) for step in rng.sample(range(low, high + 1), count + 1)]
        values = [name**power for name in names]
        shown = [(value, round_half_up(value * hidden)) for value in values[:-1]]
        best, result = max(shown)
        factor = round_half_up(result / best, DECIMALS)
        if all(round_half_up(value * factor) == result for value, result in shown):
            return names, shown, round_half_up(values[-1] * factor)
    raise ValueError(
        f"No factor in {factors} with {DECIMALS} decimals gives {count} examples between {bounds} that round "
        "correctly. Set larger bounds."
    )


def draw_gravity(rng: random.Random, knobs: Knobs) -> tuple[str, str, bool]:
    halves = (knobs["g"][0] / 2, knobs["g"][1] / 2)
    names, shown, answer = _draw_shown(rng, knobs, knobs["seconds"], halves, power=2)
    lines = [
        f"For t = {write_number(t)}s, distance = {write_number(result)} m\n" for t, (_, result) in zip(names, shown)
    ]
    prompt = (
        f"{GRAVITY_OPENING} Here are some example observations:\n{''.join(lines)}"
        f"Now, determine the falling distance for t = {write_number(names[-1])}s given d = 0.5*g*t^2."
    )
    return prompt, write_number(answer), is_determined(shown)


def draw_unit(rng: random.Random, knobs: Knobs) -> tuple[str, str, bool]:
    names, shown, answer = _draw_shown(rng, knobs, knobs["metres"], knobs["factor"], power=1)
    lines = [f"{write_number(value)} m becomes {result}\n" for value, result in shown]
    prompt = (
        f"{UNIT_OPENING} For example:\n{''.join(lines)}"
        f"Now, convert the following measurement: {write_number(names[-1])} m"
    )
    return prompt, str(answer), is_determined(shown)


class Measure(NamedTuple):
    """One number of a puzzle with the lines that work out what the factor multiplies, and that value."""

    name: str
    lines: list[str]
    value: Decimal


def read_time(name: str) -> Measure:
    """A time and its square."""
    lines, square = write_product(Decimal(name), Decimal(name))
    return Measure(f"t = {name}", [*lines, f"t^2 = {plain(square)}"], square)


def read_metres(name: str) -> Measure:
    return Measure(f"{name} m", [], Decimal(name))


def solve_gravity(prompt: str) -> Solution:
    pairs = re.findall(rf"^For t = {_NUMBER}s, distance = {_NUMBER} m$", prompt, re.MULTILINE)
    query = re.match(_NUMBER, text_after(prompt, "falling distance for t = "))
    opening = "d / t^2 is the same factor in every line; the longest fall tells it best."
    return _solve(pairs, query, read_time, opening, write_number)


def solve_unit(prompt: str) -> Solution:
    pairs = re.findall(rf"^{_NUMBER} m becomes {_NUMBER}$", prompt, re.MULTILINE)
    query = re.match(_NUMBER, text_after(prompt, "following measurement: "))
    opening = "The factor is the same in every line; the largest measurement tells it best."
    return _solve(pairs, query, read_metres, opening, str)


def _solve(
    pairs: list[tuple[str, str]],
    query: re.Match[str] | None,
    read: Callable[[str], Measure],
    opening: str,
    write: Callable[[Decimal], str],
) -> Solution:
    """Divide the largest result, multiply for every other example, then for the query."""
    examples = [(read(name), Decimal(result)) for name, result in pairs if Decimal(name)]
    if not query or not examples:
        return Solution(None, reason=NO_RULE, detail="The prompt has no example, or it asks for nothing.")
    shown = [(measure.value, result) for measure, result in examples]
    low, high = allowed_factors(shown)
    if low > high:
        return Solution(None, reason=NO_RULE, detail="No factor gives the results of all examples.")
    best = max(range(len(shown)), key=lambda i: shown[i])
    lines, factor = write_quotient(shown[best][1], shown[best][0], DECIMALS)
    trace = [opening, f"{examples[best][0].name}:", *examples[best][0].lines]
    trace += [f"{plain(shown[best][1])} / {plain(shown[best][0])}:", *lines, f"factor {plain(factor)}"]
    for i, (measure, result) in enumerate(examples):
        if i != best:
            lines, product = write_product(factor, measure.value)
            found = round_half_up(product)
            verdict = "equal" if found == result else f"{abs(found - result)} off, by rounding"
            trace += [
                f"check {measure.name}:",
                *measure.lines,
                *lines,
                f"rounded {write(found)}, shown {write(result)}: {verdict}",
            ]
    asked = read(query[1])
    lines, product = write_product(factor, asked.value)
    answer = write(round_half_up(product))
    if not is_determined(shown):
        ends = [f"{plain(round_half_up(end, 5))} ({write(round_half_up(end * asked.value))})" for end in (low, high)]
        detail = f"The factors {' and '.join(ends)} agree with every example."
        return Solution(answer, reason=AMBIGUOUS, detail=detail)
    return Solution(answer, "\n".join([*trace, f"{asked.name}:", *asked.lines, *lines, f"rounded {answer}"]))


GRAVITY_OPENING = "In Alice's Wonderland, the gravitational constant has been secretly changed."
UNIT_OPENING = "In Alice's Wonderland, a secret unit conversion is applied to measurements."
GRAVITY = Family(
    "gravity",
    GRAVITY_OPENING,
    {"examples": (3, 5), "seconds": (1.0, 5.0), "g": (4.9, 19.6), "decimals": (2, 2), "factor_decimals": (3, 3)},
    draw_gravity,
    solve_gravity,
    TOLERANCE,
)
UNIT = Family(
    "unit conversion",
    UNIT_OPENING,
    {"examples": (3, 5), "metres": (5.0, 50.0), "factor": (0.5, 2.0), "decimals": (2, 2), "factor_decimals": (3, 3)},
    draw_unit,
    solve_unit,
    TOLERANCE,
)
