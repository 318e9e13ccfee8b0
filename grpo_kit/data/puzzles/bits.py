"""Bit manipulation: eight bits from up to three shifted or rotated copies of the input, joined bit by bit.

A rule is a truth table over at most three of 22 copies (rotated left by 0-7, shifted left or right by 1-7), which
covers NOT, AND, OR, XOR, majority and choice of three copies. An example's byte shows eight rows of that table, so
a few ANDs on long integers show which tables agree: bit j of every word is one observation.
"""

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from grpo_kit.data.puzzles.puzzle import Family, Knobs, text_after

OPENING = "In Alice's Wonderland, a secret bit manipulation rule transforms 8-bit binary numbers."
HINT = (
    "The transformation involves operations like bit shifts, rotations, XOR, AND, OR, NOT, and possibly majority or "
    "choice functions."
)
KINDS = {"rotated": range(8), "left": range(1, 8), "right": range(1, 8)}
COPIES = [(kind, steps) for kind, amounts in KINDS.items() for steps in amounts]
MOST_COPIES = 3


def shift_byte(byte: int, kind: str, steps: int) -> int:
    """The byte rotated left, shifted left or shifted right, zeros moving in."""
    if kind == "right":
        return byte >> steps
    return (byte << steps | (byte >> (8 - steps) if kind == "rotated" else 0)) & 255


def find_source(place: int, kind: str, steps: int) -> int | None:
    """Which input bit (0 is the leftmost) stands at `place` in the copy; None where a zero moved in."""
    at = place - steps if kind == "right" else place + steps
    return at % 8 if kind == "rotated" else at if 0 <= at < 8 else None


class Reading(NamedTuple):
    """A rule that agrees with the examples, and what it says about the query.

    Attributes:
        copies: the copies that the rule joins.
        value: the byte that the rule gives for the query.
        unknown: bits of that byte whose row of the truth table no example shows (`value` has 0 there).
    """

    copies: tuple[tuple[str, int], ...]
    value: int
    unknown: int


def find_readings(shown: list[tuple[int, int]], query: int, most: int = MOST_COPIES) -> Iterator[list[Reading]]:
    """For 0, 1, 2 and 3 copies: all sets of copies from which the outputs follow by some truth table."""
    everything = (1 << 8 * len(shown)) - 1
    outputs = int.from_bytes(bytes(output for _, output in shown))
    words = {name: int.from_bytes(bytes(shift_byte(given, *name) for given, _ in shown)) for name in COPIES}
    both = {name: (everything & ~word, word) for name, word in words.items()}
    query_masks = {name: (255 & ~shift_byte(query, *name), shift_byte(query, *name)) for name in COPIES}
    for count in range(most + 1):
        agreeing = []
        for names in itertools.combinations(COPIES, count):
            value = unknown = 0
            for row in range(1 << count):
                mask, query_mask = everything, 255
                for j, name in enumerate(names):
                    mask &= both[name][row >> j & 1]
                    query_mask &= query_masks[name][row >> j & 1]
                if not mask:
                    unknown |= query_mask
                elif (ones := mask & outputs) == mask:
                    value |= query_mask
                elif ones:
                    break
            else:
                agreeing.append(Reading(names, value, unknown))
        yield agreeing


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


def format_rule(rule: int | tuple, names: list[str]) -> str:
    if isinstance(rule, int):
        return names[rule]
    name, *parts = rule
    inner = [format_rule(part, names) for part in parts]
    if name in _SIGNS:
        return "(" + f" {name} ".join(inner) + ")"
    return f"not {inner[0]}" if name == "not" else f"{name}({', '.join(inner)})"


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


def draw_puzzle(rng: random.Random, knobs: Knobs) -> tuple[str, str, str, bool]:
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
    return prompt, answer, _trace(shown, query, names, rule), is_determined


def _trace(shown: list[tuple[int, int]], query: int, names: list[tuple[str, int]], rule: int | tuple) -> str:
    """Columns of the input bits; each output column from them; the same for the query."""

    def column(at: int | None, which: int) -> str:
        return "".join("0" if at is None else str(pair[which] >> (7 - at) & 1) for pair in shown)

    def on(columns: list[str]) -> str:
        length = len(columns[0])
        value = evaluate_rule(rule, [int(bits, 2) for bits in columns], (1 << length) - 1)
        return f"{value:0{length}b}"

    lines = ["Columns of the input bits, one digit an example:", *(f"i{at} {column(at, 0)}" for at in range(8))]
    lines.append("Each output column, from input columns:")
    last, bits = [f"For {query:08b}:"], ""
    for place in range(8):
        at = [find_source(place, *name) for name in names]
        labels = ["0" if i is None else f"i{i}" for i in at]
        columns = [column(i, 0) for i in at]
        by = format_rule(rule, labels)
        lines.append(f"o{place} {column(place, 1)}: {format_rule(rule, columns)} = {on(columns)}, so o{place} = {by}")
        query_bits = ["0" if i is None else str(query >> (7 - i) & 1) for i in at]
        bits += on(query_bits)
        last.append(f"o{place} = {by} = {format_rule(rule, query_bits)} = {bits[-1]}")
    return "\n".join([*lines, *last, bits])


def solve_puzzle(prompt: str) -> str | None:
    """The answer that most of the simplest rules give; a rule whose table is shown completely counts most."""
    pairs = re.findall(r"^([01]{8}) -> ([01]{8})$", prompt, re.MULTILINE)
    query = re.match(r"[01]{8}\b", text_after(prompt, "determine the output for: "))
    if not pairs or not query:
        return None
    for group in find_readings([(int(a, 2), int(b, 2)) for a, b in pairs], int(query[0], 2)):
        if group:
            votes: Counter = Counter()
            for names, value, unknown in group:
                votes[value] += len({kind for kind, _ in names}) ** 2 / (1 + 100 * bool(unknown))
            return f"{votes.most_common(1)[0][0]:08b}"
    return None


BITS = Family("bit manipulation", OPENING, {"examples": (7, 10), "copies": (1, 3)}, draw_puzzle, solve_puzzle)
