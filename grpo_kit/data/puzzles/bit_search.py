"""The search for a bit rule, written so that a model can follow it: few copies first, from the outer places inwards.

A rule joins at most one rotated copy (place j holds input bit j + k), one shifted left (bit j + s, or 0) and one
shifted right (bit j - r, or 0). At place 0 the right copy is 0 and at place 7 the left one is, so one or two input bits
must decide the outer output bits, and that leaves few amounts to try at the other places. A candidate is read example
by example, as digits of its bits and of the output bit, until equal bits have two outputs.
"""

import itertools
import re
from collections.abc import Iterator, Sequence

from grpo_kit.data.puzzles.bit_rules import find_readings, find_source
from grpo_kit.data.puzzles.puzzle import AMBIGUOUS, NO_RULE, NO_SEARCH, Solution, text_after

OPENING = "In Alice's Wonderland, a secret bit manipulation rule transforms 8-bit binary numbers."
TRIED = (1, 7, 0, 6, 2, 5, 3, 4)  # the order of places in which a candidate contradicts itself soonest
WORDS = {"rotated": "rot", "left": "left", "right": "right"}

Names = tuple[tuple[str, int], ...]  # of copies: (kind, steps)
Table = dict[str, str]  # the bits of the copies to the output bit


def solve_puzzle(prompt: str) -> Solution:
    """The rule of fewest copies; ambiguous where rules of so many copies give different bytes."""
    pairs = re.findall(r"^([01]{8}) -> ([01]{8})$", prompt, re.MULTILINE)
    query = re.match(r"[01]{8}\b", text_after(prompt, "determine the output for: "))
    if not pairs or not query:
        return Solution(None, reason=NO_RULE, detail="The prompt has no example, or it asks for nothing.")
    shown = [(int(given, 2), int(output, 2)) for given, output in pairs]
    readings = next(filter(None, find_readings(shown, int(query[0], 2), mixed=True)), None)
    if readings is None:
        return Solution(None, reason=NO_RULE, detail="No rule of up to three copies gives all outputs.")
    answer = f"{readings[0].value:08b}"
    for reading in readings:
        if reading.unknown:
            names, bits = name_copies(reading.copies), f"{reading.unknown:08b}".count("1")
            detail = f"The examples do not show what {names} give for {bits} bits of {query[0]}: 0 and 1 agree."
            return Solution(answer, reason=AMBIGUOUS, detail=detail)
        if reading.value != readings[0].value:
            both = [f"{name_copies(found.copies)} ({found.value:08b})" for found in (readings[0], reading)]
            return Solution(answer, reason=AMBIGUOUS, detail=f"{' and '.join(both)} agree with every example.")
    search = Search(pairs)
    names = search.find_copies()
    if names is None:
        return Solution(answer, reason=NO_SEARCH, detail="All output bits are equal.")
    return Solution(answer, "\n".join([*search.lines, *search.apply(names, query[0]), answer]))


def name_copies(names: Names) -> str:
    """`rot 2 right 3`."""
    return " ".join(f"{WORDS[kind]} {steps}" for kind, steps in names) or "a constant"


class Search:
    """The search over examples, and the lines that it has written.

    Attributes:
        lines: what was looked at, in its order.
        table: of the copies found, their bits to the output bit.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._inputs = ["".join(given[place] for given, _ in pairs) for place in range(8)]
        self._outputs = ["".join(output[place] for _, output in pairs) for place in range(8)]
        self._zeros = "0" * len(pairs)
        self.table: Table = {}
        self.lines = ["Columns, one digit an example:"]
        self.lines += [f"i{place} {column}" for place, column in enumerate(self._inputs)]
        self.lines += [f"o{place} {column}" for place, column in enumerate(self._outputs)]

    def find_copies(self) -> Names | None:
        """The copies of the first rule that agrees with every example."""
        for title, candidates in self._candidates():
            found = list(candidates)
            self.lines.append(f"{title}: {'try' if found else 'none'}")
            for names in found:
                if self._try_copies(names):
                    return names
        return None

    def apply(self, names: Names, query: str) -> Iterator[str]:
        """Lines that look the query's bits up in the table, place by place."""
        yield f"{name_copies(names)}: " + " ".join(f"{bits}={bit}" for bits, bit in sorted(self.table.items()))
        yield f"{query}: " + " ".join(f"i{place}={bit}" for place, bit in enumerate(query))
        for place in range(8):
            sources = [find_source(place, *name) for name in names]
            bits = "".join("0" if at is None else query[at] for at in sources)
            yield f"o{place}: {_name_sources(sources)} = {bits}, {self.table[bits]}"

    def _candidates(self) -> Iterator[tuple[str, Iterator[Names]]]:
        """(what the copies need, the copies that have it) of each stage, whose lines are written when it begins."""
        first, last = self._decide_by_one(0), self._decide_by_one(7)
        first_constant, last_constant = (len(set(self._outputs[place])) == 1 for place in (0, 7))
        ones = [(("rotated", k),) for k in range(8) if k in first and (k + 7) % 8 in last]
        ones += [(("left", s),) for s in range(1, 8) if s in first and last_constant]
        ones += [(("right", r),) for r in range(1, 8) if first_constant and 7 - r in last]
        yield "one copy, rot k: o0 from i(k), o7 from i(k-1)", iter(ones)
        amounts = range(1, 8)
        yield (
            "left s, right r: o0 from i(s), o7 from i(7-r)",
            ((("left", s), ("right", r)) for s in amounts if s in first for r in amounts if 7 - r in last),
        )
        yield (
            "rot k, left s: o7 from i(k-1)",
            ((("rotated", k), ("left", s)) for k in range(8) if (k + 7) % 8 in last for s in amounts),
        )
        yield (
            "rot k, right r: o0 from i(k)",
            ((("rotated", k), ("right", r)) for k in range(8) if k in first for r in amounts),
        )
        # Where an outer output bit is constant, its neighbour decides; there too a copy shifted further is 0.
        start, end = 1 if first_constant else 0, 6 if last_constant else 7
        starts = self._decide_by_two(start, self._decide_by_one(start) if first_constant else first)
        ends = self._decide_by_two(end, self._decide_by_one(end) if last_constant else last)
        yield (
            f"rot k, left s, right r: o{start} by rot and left{' if r > 1' * first_constant}, "
            f"o{end} by rot and right{' if s > 1' * last_constant}",
            (
                (("rotated", k), ("left", s), ("right", r))
                for k, s, r in itertools.product(range(8), amounts, amounts)
                if (r <= start or _find_bits(start, ("rotated", k), ("left", s)) in starts)
                and (s <= 7 - end or _find_bits(end, ("rotated", k), ("right", r)) in ends)
            ),
        )

    def _decide_by_one(self, place: int) -> set[int]:
        """The input bits that decide an output bit alone."""
        if len(set(self._outputs[place])) == 1:
            self.lines.append(f"o{place} is always {self._outputs[place][0]}: any input bit decides it")
            return set(range(8))
        self.lines.append(f"o{place} by one input bit:")
        return {at for at in range(8) if self._read_groups(f"i{at}", [self._inputs[at]], place, {})}

    def _decide_by_two(self, place: int, alone: set[int]) -> set[frozenset[int]]:
        """The pairs of input bits that decide an output bit; a bit that decides it alone does so in every pair."""
        pairs = {frozenset((a, b)) for a in alone for b in range(8)}
        if len(alone) < 8:
            self.lines.append(f"o{place} by two input bits:")
        for a, b in itertools.combinations(range(8), 2):
            columns = [self._inputs[a], self._inputs[b]]
            if frozenset((a, b)) not in pairs and self._read_groups(f"i{a} i{b}", columns, place, {}):
                pairs.add(frozenset((a, b)))
        return pairs

    def _try_copies(self, names: Names) -> bool:
        """Read a candidate's bits and output bits, place by place."""
        table: Table = {}
        self.lines.append(f"{name_copies(names)}:")
        for place in TRIED:
            sources = [find_source(place, *name) for name in names]
            columns = [self._zeros if at is None else self._inputs[at] for at in sources]
            if not self._read_groups(f"o{place} {_name_sources(sources)}", columns, place, table):
                return False
        self.table = table
        return True

    def _read_groups(self, title: str, columns: list[str], place: int, table: Table) -> bool:
        """Read one example after the other into `table`, until one contradicts it; whether none did."""
        groups, agrees = [], True
        for *bits, output in zip(*columns, self._outputs[place]):
            groups.append("".join(bits) + output)
            agrees = table.setdefault("".join(bits), output) == output
            if not agrees:
                break
        self.lines.append(f"{title}: {' '.join(groups)} {'yes' if agrees else 'no'}")
        return agrees


def _find_bits(place: int, *names: tuple[str, int]) -> frozenset[int]:
    """The input bits that stand at a place of copies."""
    return frozenset(at for at in (find_source(place, *name) for name in names) if at is not None)


def _name_sources(sources: list[int | None]) -> str:
    return " ".join("0" if at is None else f"i{at}" for at in sources)
