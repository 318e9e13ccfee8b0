"""What the sign of an equation can mean, how likely each meaning is, and how the result is written.

Three ways of writing: as it stands; each number and the result backwards; the whole line backwards (which swaps the
numbers). The sign stands in place of the minus. RULES lists what a sign can mean, `weigh_rule` says how often; the
weights were fitted to the examples, and not to the answers, of the challenge's digit puzzles.
"""

import math
from collections.abc import Callable, Iterator
from decimal import Decimal

from grpo_kit.data.puzzles.working import write_product

WAYS = (
    "read as it stands",
    "each number and the result written backwards",
    "the whole line written backwards",
)

# {rule: (its group, the number it gives)}. In one puzzle no two signs share a group, except the group of joins.
RULES = {
    "add": ("sum", lambda a, b: a + b),
    "add, plus 1": ("sum", lambda a, b: a + b + 1),
    "add, minus 1": ("sum", lambda a, b: a + b - 1),
    "multiply": ("product", lambda a, b: a * b),
    "multiply, plus 1": ("product", lambda a, b: a * b + 1),
    "multiply, minus 1": ("product", lambda a, b: a * b - 1),
    "subtract": ("difference", lambda a, b: a - b),
    "distance below zero": ("difference", lambda a, b: -abs(a - b)),
    "distance": ("difference", lambda a, b: abs(a - b)),
    "remainder of larger by smaller": ("difference", lambda a, b: max(a, b) % min(a, b)),
    "join": ("join", None),
    "join swapped": ("join", None),
}
# The usual signs are nearly always written the second way and say which group they are of.
_USUAL = {"+": ("sum", "join"), "-": ("difference",), "*": ("product", "join")}
WAY_SHARES = {True: (0.02, 0.96, 0.02), False: (0.52, 0.24, 0.24)}


def are_usual_signs(signs: str) -> bool:
    """Whether all signs of a puzzle are among + - *."""
    return set(signs) <= set(_USUAL)


def order_ways(usual_signs: bool) -> list[int]:
    """The ways of writing, the likeliest first."""
    return sorted(range(len(WAYS)), key=WAY_SHARES[usual_signs].__getitem__, reverse=True)


def weigh_rule(rule: str, sign: str, way: int, usual_signs: bool) -> float:
    """How likely a sign has the meaning of a rule, not normalised."""
    plain = rule in ("add", "multiply", "subtract")
    if usual_signs:
        if rule == "join swapped" or RULES[rule][0] not in _USUAL[sign]:
            return 0.02
        return 2.0 if plain else 1.2
    if way == 0:
        return 0.02 if rule == "join swapped" else 1.0
    return {"join": 2.0, "join swapped": 0.3}.get(rule, 6.0 if plain else 1.0)


def weigh_rules(rules: dict[str, str], way: int, usual_signs: bool) -> float:
    """How likely a way of writing is with these rules of the signs, not normalised."""
    return WAY_SHARES[usual_signs][way] * math.prod(
        weigh_rule(rule, sign, way, usual_signs) for sign, rule in rules.items()
    )


def read_numbers(left: str, way: int) -> tuple[str, str]:
    """The two numbers of a left side as the rule takes them, two digits each."""
    a, b = left[:2], left[3:]
    return (a, b) if way == 0 else (a[::-1], b[::-1]) if way == 1 else (b[::-1], a[::-1])


def write_result(rule: str, way: int, left: str) -> str:
    """The right side.

    >>> write_result("subtract", 2, "69/52"), write_result("multiply", 0, "12*12")
    ('17/', '144')
    """
    a, b = read_numbers(left, way)
    if rule.startswith("join"):
        text = a + b if rule == "join" else b + a
        return text[::-1] if way else text
    number = RULES[rule][1](int(a), int(b))
    digits, minus = str(abs(number)), left[2] if number < 0 else ""
    return minus + digits if way == 0 else minus + digits[::-1] if way == 1 else digits[::-1] + minus


def read_result(right: str, sign: str, way: int) -> str | None:
    """A right side as the rule gave it, with a minus in place of the sign; None where it is none of that way.

    >>> read_result("17/", "/", 2), read_result("-05", "-", 1), read_result("17/", "/", 0)
    ('-71', '-50', None)
    """
    text = right[::-1] if way == 2 else right
    bare = text.removeprefix(sign)
    if not (bare.isascii() and bare.isdigit()):
        return None
    return "-" * (bare != text) + (bare[::-1] if way == 1 else bare)


def is_possible(left: str, way: int) -> bool:
    """Whether both numbers are 10 or more."""
    return not any(number.startswith("0") for number in read_numbers(left, way))


def assign_rules(
    shown: list[tuple[str, str]], way: int, fits: Callable[[str, int, str, str], bool]
) -> Iterator[dict[str, str]]:
    """Every choice of a rule for each sign in the examples; no two signs share a group, except that of joins.

    `fits(rule, way, left, right)` says whether a rule can give an example.
    """
    choices = {
        sign: [rule for rule in RULES if all(fits(rule, way, left, right) for left, right in shown if left[2] == sign)]
        for sign in dict.fromkeys(left[2] for left, _ in shown)
    }

    def go(rules: dict[str, str], used: set[str]) -> Iterator[dict[str, str]]:
        if len(rules) == len(choices):
            yield rules
            return
        sign = list(choices)[len(rules)]
        for rule in choices[sign]:
            group = RULES[rule][0]
            if group not in used:
                yield from go(rules | {sign: rule}, used if group == "join" else used | {group})

    return go({}, set())


def rules_of_query(rules: dict[str, str], sign: str, way: int, usual_signs: bool) -> dict[str, float]:
    """What the sign of the query may mean, as shares: its rule where it was shown, else any rule of an unused group."""
    if sign in rules:
        return {rules[sign]: 1.0}
    used = {RULES[rule][0] for rule in rules.values()} - {"join"}
    open_rules = {rule: weigh_rule(rule, sign, way, usual_signs) for rule in RULES if RULES[rule][0] not in used}
    return {rule: share / sum(open_rules.values()) for rule, share in open_rules.items()}


def write_working(rule: str, a: int, b: int) -> tuple[str, str]:
    """(the working of a rule on two numbers, a product digit by digit; the result before it is written).

    >>> write_working("multiply, plus 1", 43, 44)
    ('43 * 40 = 1720, 43 * 4 = 172, 1720 + 172 = 1892, 1892 + 1 = 1893', '1893')
    """
    if rule.startswith("join"):
        joined = f"{a}{b}" if rule == "join" else f"{b}{a}"
        return f"joined {joined}", joined
    number = RULES[rule][1](a, b)
    if rule.startswith("remainder"):
        large, small = max(a, b), min(a, b)
        times = large // small
        return f"{small} * {times} = {small * times}, {large} - {small * times} = {number}", str(number)
    if rule.startswith("distance"):
        large, small = max(a, b), min(a, b)
        return f"{large} - {small} = {large - small}{', below zero' if rule != 'distance' else ''}", str(number)
    sign, base = ("-", a - b) if rule == "subtract" else ("+", a + b)
    steps = [f"{a} {sign} {b} = {base}"]
    if rule.startswith("multiply"):
        lines, product = write_product(Decimal(a), Decimal(b))
        steps, base = lines, int(product)
    if base != number:
        steps.append(f"{base} {'+' if number > base else '-'} 1 = {number}")
    return ", ".join(steps), str(number)
