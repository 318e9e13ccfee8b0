"""Gravity and unit conversion: one hidden factor, and results that are rounded to two decimals.

A distance is factor * t^2 (the factor is g/2), a converted measurement is factor * x. A rounded result allows an
interval of factors, and all results together allow the intersection (`allowed_factors`). The worked trace divides the
largest result, because its rounding matters least, and tries that factor on every other example. A generated puzzle's
hidden factor is the quotient of this division, so the trace's answer is exact and not only within the scorer's 1 %.
"""

import random
import re
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

from grpo_kit.data.puzzles.puzzle import Family, Knobs, text_after

TOLERANCE = Decimal("0.01")  # the scorer's, relative to the larger number
_NUMBER = r"(\d{1,4}(?:\.\d{1,4})?)"

Shown = list[tuple[Decimal, Decimal]]  # (the number to multiply: t^2 or the measurement; the result shown)


def round_half_up(value: Decimal, decimals: int = 2) -> Decimal:
    """Halves up, as by hand."""
    return value.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP)


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


def _plain(value: Decimal) -> str:
    """As Python prints a float: no zeros at the end, but one decimal at least (`130.2`, `4.0`)."""
    return str(float(value))


def _product(value: Decimal, factor: Decimal) -> str:
    """The product cut (not rounded) to four decimals, so that its two decimals follow from the digits in sight."""
    return f"{value} * {factor} = {(value * factor).quantize(Decimal('0.0001'), rounding=ROUND_DOWN)}"


def _draw_shown(
    rng: random.Random, count: int, bounds: tuple[float, float], factors: tuple[float, float], power: int
) -> tuple[list[Decimal], Shown, Decimal, Decimal]:
    """(numbers in `bounds`, the query last; examples; factor; answer). The largest result gives the factor."""
    low, high = (round(100 * end) for end in bounds)
    if not 0 < low < high - count or factors[0] <= 0:
        raise ValueError(
            f"Cannot draw {count} different examples between {bounds} with factors {factors}: all numbers must be "
            f"above 0, and the bounds must be more than {count} hundredths apart. Set the knobs further apart."
        )
    for _ in range(1000):
        hidden = Decimal(rng.randint(round(1000 * factors[0]), round(1000 * factors[1]))) / 1000
        names = [Decimal(cents) / 100 for cents in rng.sample(range(low, high + 1), count + 1)]
        values = [name**power for name in names]
        shown = [(value, round_half_up(value * hidden)) for value in values[:-1]]
        best, result = max(shown)
        factor = round_half_up(result / best, 5)
        if all(round_half_up(value * factor) == result for value, result in shown):
            return names, shown, factor, round_half_up(values[-1] * factor)
    raise ValueError(
        f"No factor in {factors} with five decimals gives {count} examples between {bounds} that round correctly. Set "
        "larger bounds."
    )


def draw_gravity(rng: random.Random, knobs: Knobs) -> tuple[str, str, str, bool]:
    count, halves = rng.randint(*knobs["examples"]), (knobs["g"][0] / 2, knobs["g"][1] / 2)
    names, shown, factor, answer = _draw_shown(rng, count, knobs["seconds"], halves, power=2)
    lines = [f"For t = {_plain(t)}s, distance = {_plain(result)} m\n" for t, (_, result) in zip(names, shown)]
    query = _plain(names[-1])
    prompt = (
        f"{GRAVITY_OPENING} Here are some example observations:\n{''.join(lines)}"
        f"Now, determine the falling distance for t = {query}s given d = 0.5*g*t^2."
    )
    best = shown.index(max(shown))

    def check(t: Decimal, value: Decimal) -> str:
        product = _product(value, factor)
        return f"check t = {_plain(t)}: t^2 = {value}, {product} -> {_plain(round_half_up(value * factor))}"

    trace = [
        "0.5*g = d / t^2 is the same in every line; the longest fall tells it best.",
        f"t = {_plain(names[best])}: t^2 = {shown[best][0]}, {_plain(shown[best][1])} / {shown[best][0]} = {factor}",
        *(check(t, value) for i, (t, (value, _)) in enumerate(zip(names, shown)) if i != best),
        f"t = {query}: t^2 = {names[-1] ** 2}, {_product(names[-1] ** 2, factor)} -> {_plain(answer)}",
    ]
    return prompt, _plain(answer), "\n".join(trace), is_determined(shown)


def draw_unit(rng: random.Random, knobs: Knobs) -> tuple[str, str, str, bool]:
    count = rng.randint(*knobs["examples"])
    names, shown, factor, answer = _draw_shown(rng, count, knobs["metres"], knobs["factor"], power=1)
    lines = [f"{_plain(value)} m becomes {result}\n" for value, result in shown]
    prompt = (
        f"{UNIT_OPENING} For example:\n{''.join(lines)}Now, convert the following measurement: {_plain(names[-1])} m"
    )
    best = max(shown)
    trace = [
        "The factor is the same in every line; the largest measurement tells it best.",
        f"{best[1]} / {_plain(best[0])} = {factor}",
        *(
            f"check {_product(value, factor)} -> {round_half_up(value * factor)}"
            for value, _ in shown
            if value != best[0]
        ),
        f"{_product(names[-1], factor)} -> {answer}",
    ]
    return prompt, str(answer), "\n".join(trace), is_determined(shown)


def _solve(pairs: list[tuple[str, str]], query: str, power: int) -> Decimal | None:
    """The middle of the allowed factors, times the query."""
    number = re.match(_NUMBER, query)
    shown = [(Decimal(given) ** power, Decimal(result)) for given, result in pairs if Decimal(given)]
    if not number or not shown:
        return None
    low, high = allowed_factors(shown)
    return round_half_up((low + high) / 2 * Decimal(number[1]) ** power) if low <= high else None


def solve_gravity(prompt: str) -> str | None:
    pairs = re.findall(rf"^For t = {_NUMBER}s, distance = {_NUMBER} m$", prompt, re.MULTILINE)
    answer = _solve(pairs, text_after(prompt, "falling distance for t = "), power=2)
    return None if answer is None else _plain(answer)


def solve_unit(prompt: str) -> str | None:
    pairs = re.findall(rf"^{_NUMBER} m becomes {_NUMBER}$", prompt, re.MULTILINE)
    answer = _solve(pairs, text_after(prompt, "following measurement: "), power=1)
    return None if answer is None else str(answer)


GRAVITY_OPENING = "In Alice's Wonderland, the gravitational constant has been secretly changed."
UNIT_OPENING = "In Alice's Wonderland, a secret unit conversion is applied to measurements."
GRAVITY = Family(
    "gravity",
    GRAVITY_OPENING,
    {"examples": (3, 5), "seconds": (1.0, 5.0), "g": (4.9, 19.6)},
    draw_gravity,
    solve_gravity,
)
UNIT = Family(
    "unit conversion",
    UNIT_OPENING,
    {"examples": (3, 5), "metres": (5.0, 50.0), "factor": (0.5, 2.0)},
    draw_unit,
    solve_unit,
)
