"""What a bit rule is, and which rules agree with examples.

A rule is a truth table over at most three of 22 copies (rotated left by 0-7, shifted left or right by 1-7), which
covers NOT, AND, OR, XOR, majority and choice of three copies. An example's byte shows eight rows of that table, so
a few ANDs on long integers show which tables agree: bit j of every word is one observation.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

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


def find_readings(shown: list[tuple[int, int]], query: int, mixed: bool = False) -> Iterator[list[Reading]]:
    """For 0, 1, 2 and 3 copies: all sets of copies from which the outputs follow by some truth table.

    With `mixed` at most one copy of a set is rotated, one shifted left and one shifted right, as in the challenge.
    """
    everything = (1 << 8 * len(shown)) - 1
    outputs = int.from_bytes(bytes(output for _, output in shown))
    words = {name: int.from_bytes(bytes(shift_byte(given, *name) for given, _ in shown)) for name in COPIES}
    both = {name: (everything & ~word, word) for name, word in words.items()}
    query_masks = {name: (255 & ~shift_byte(query, *name), shift_byte(query, *name)) for name in COPIES}
    for count in range(MOST_COPIES + 1):
        agreeing = []
        for names in itertools.combinations(COPIES, count):
            if mixed and len({kind for kind, _ in names}) < count:
                continue
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
