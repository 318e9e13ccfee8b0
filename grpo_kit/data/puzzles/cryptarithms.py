"""Equations whose digits are symbols: every filling that the examples allow, and what it says of the query.

An example with a rule and a way of writing is a table: one row for each choice of digits under which it is true. The
tables of all examples are joined on the symbols they share, the smallest first, two symbols never one digit. What is
left is weighed: each filling of m symbols by 1 / (10 * 9 * ... m factors), each rule by its own weight.
"""

import functools
import itertools
import math
from collections import Counter

import numpy as np

from grpo_kit.data.puzzles.rules import (
    WAYS,
    are_usual_signs,
    assign_rules,
    is_possible,
    rules_of_query,
    weigh_rules,
    write_result,
)

LARGEST = 1_000_000  # rows of a joined table; a combination of rules that needs more is left out
_LEFT = np.array([[a // 10, a % 10, b // 10, b % 10] for a in range(100) for b in range(100)], np.int16)
_BITS = np.array([n.bit_count() for n in range(1024)])
_MINUS = {"": 0, "front": 1, "back": 2}


@functools.lru_cache(None)
def tabulate_results(rule: str, way: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of the 10,000 left sides: (digits of the right side, -1 where it has ended; where the minus stands)."""
    digits, minus = np.full((len(_LEFT), 4), -1, np.int16), np.full(len(_LEFT), -1, np.int16)
    for i, (p, q, r, s) in enumerate(_LEFT.tolist()):
        if is_possible(left := f"{p}{q}-{r}{s}", way):
            right = write_result(rule, way, left)
            bare = right.strip("-")
            digits[i, : len(bare)] = [int(digit) for digit in bare]
            minus[i] = _MINUS["" if bare == right else "front" if right[0] == "-" else "back"]
    return digits, minus


@functools.lru_cache(None)
def _select_length(rule: str, way: int, length: int, minus: int) -> np.ndarray:
    """Left and right digits, side by side, of the equations whose right side has that length and minus."""
    digits, signs = tabulate_results(rule, way)
    keep = (signs == minus) & ((digits >= 0).sum(axis=1) == length)
    return np.concatenate([_LEFT[keep], digits[keep, :length]], axis=1)


@functools.lru_cache(2048)
def list_equations(pattern: tuple[int, ...], minus: int, rule: str, way: int) -> np.ndarray:
    """The table of one example, a column for each symbol. pattern: its symbols, numbered, four left and then right."""
    table, count = _select_length(rule, way, len(pattern) - 4, minus), max(pattern) + 1
    first = [pattern.index(symbol) for symbol in range(count)]
    for place, symbol in enumerate(pattern):
        if place != first[symbol]:
            table = table[table[:, place] == table[:, first[symbol]]]
    table = table[:, first]
    return table[_BITS[_used(table)] == count]


def _used(table: np.ndarray) -> np.ndarray:
    """The digits of each row as bits."""
    bits = np.zeros(len(table), np.int16)
    for column in table.T:
        bits |= np.left_shift(1, column, dtype=np.int16)
    return bits


def join_tables(
    columns: list[str], left: np.ndarray, symbols: list[str], right: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Rows of both tables that agree on shared symbols and give no digit twice; MemoryError past LARGEST rows."""
    shared = [symbol for symbol in symbols if symbol in columns]
    new = [i for i, symbol in enumerate(symbols) if symbol not in columns]
    keys, others = np.zeros(len(left), np.int64), np.zeros(len(right), np.int64)
    for symbol in shared:
        keys = keys * 10 + left[:, columns.index(symbol)]
        others = others * 10 + right[:, symbols.index(symbol)]
    order = np.argsort(others, kind="stable")
    start, end = (np.searchsorted(others[order], keys, side) for side in ("left", "right"))
    counts = end - start
    if counts.sum() > LARGEST:
        raise MemoryError(f"{counts.sum()} rows")
    at = np.repeat(np.arange(len(left)), counts)
    within = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
    other = order[np.repeat(start, counts) + within]
    apart = _used(left)[at] & _used(right[:, new])[other] == 0
    columns = columns + [symbols[i] for i in new]
    return columns, np.concatenate([left[at[apart]], right[other[apart]][:, new]], axis=1)


def _split_example(left: str, right: str) -> tuple[list[str], tuple[int, ...], int]:
    """(symbols, their pattern, where the minus stands) of one example."""
    bare = right.strip(left[2]) or right
    minus = 0 if bare == right else 1 if right[0] == left[2] else 2
    text = left[:2] + left[3:] + bare
    symbols = list(dict.fromkeys(text))
    return symbols, tuple(symbols.index(symbol) for symbol in text), minus


def weigh_answers(shown: list[tuple[str, str]], query: str) -> dict[str | None, float]:
    """The weight of each answer; as `equations.weigh_answers`."""
    weights: Counter = Counter()
    usual_signs = are_usual_signs("".join({left[2] for left, _ in shown} | {query[2]}))
    seen = {symbol for left, right in shown for symbol in left[:2] + left[3:] + right.strip(left[2])}
    seen |= set(query[:2] + query[3:])
    examples = {pair: _split_example(*pair) for pair in shown}

    def fits(rule: str, way: int, left: str, right: str) -> bool:
        if rule.startswith("join"):
            return write_result(rule, way, left) == right
        _, pattern, minus = examples[left, right]
        return len(pattern) <= 8 and len(list_equations(pattern, minus, rule, way)) > 0

    for way in range(len(WAYS)):
        leading = {left[i] for left in [query, *(left for left, _ in shown)] for i in ((0, 3) if way == 0 else (1, 4))}
        for rules in assign_rules(shown, way, fits):
            share = weigh_rules(rules, way, usual_signs)
            tables = [
                (symbols, list_equations(pattern, minus, rules[left[2]], way))
                for (left, _), (symbols, pattern, minus) in examples.items()
                if not rules[left[2]].startswith("join")
            ]
            try:
                columns, table = _join_all_tables(tables)
                table = table[(table[:, [i for i, symbol in enumerate(columns) if symbol in leading]] > 0).all(axis=1)]
                if not len(table):
                    continue
                for rule, part in rules_of_query(rules, query[2], way, usual_signs).items():
                    for answer, value in _weigh_query(columns, table, query, rule, way, seen, leading).items():
                        weights[answer] += share * part * value
            except MemoryError:  # too many fillings to count, so this share of the weight has no answer
                weights[None] += share
    return weights


def _join_all_tables(tables: list[tuple[list[str], np.ndarray]]) -> tuple[list[str], np.ndarray]:
    columns, table, tables = [], np.zeros((1, 0), np.int16), list(tables)
    while tables and len(table):
        # The one that should leave fewest rows.
        sizes = [len(rows) / 10 ** sum(symbol in columns for symbol in symbols) for symbols, rows in tables]
        columns, table = join_tables(columns, table, *tables.pop(sizes.index(min(sizes))))
    return columns, table


def _weigh_query(
    columns: list[str], table: np.ndarray, query: str, rule: str, way: int, seen: set[str], leading: set[str]
) -> Counter:
    """Answer to its weight under one rule; symbols that stand in no table may be any digit left."""
    if rule.startswith("join"):
        return Counter({write_result(rule, way, query): len(table) / math.perm(10, len(columns))})
    left = query[:2] + query[3:]
    for symbol in dict.fromkeys(left):
        if symbol not in columns:
            digits = np.arange(1 if symbol in leading else 0, 10, dtype=np.int16)[:, None]
            columns, table = join_tables(columns, table, [symbol], digits)
    digits, minus = tabulate_results(rule, way)
    number = functools.reduce(lambda total, symbol: total * 10 + table[:, columns.index(symbol)].astype(int), left, 0)
    # Which column holds each digit; -1 where none does, and then it is a symbol's that stands in no table.
    where = np.full((len(table), 11), -1, np.int16)
    for i, column in enumerate(table.T):
        where[np.arange(len(table)), column] = i
    right, code, unknown = digits[number], minus[number].astype(np.int64), np.zeros(len(table), np.int64)
    places: list[np.ndarray] = []  # of each digit of the right side: 0-9 its column, 10-13 an unknown one, 20 the end
    for i in range(4):
        place = np.where(right[:, i] < 0, 20, where[np.arange(len(table)), right[:, i]]).astype(np.int64)
        new = place < 0
        for j in range(i):
            again = new & (right[:, j] == right[:, i])
            place[again], new = places[j][again], new & ~again
        place[new] = 10 + unknown[new]
        unknown += new
        places.append(place)
        code = code * 21 + place
    weights: Counter = Counter()
    free = sorted(seen - set(columns))
    for value, count in zip(*np.unique(code, return_counts=True)):
        value, letters = int(value), []
        for _ in range(4):
            value, letter = divmod(value, 21)
            letters.insert(0, letter)
        hidden = sorted({letter for letter in letters if 10 <= letter < 20})
        ways = math.perm(10 - len(columns), len(hidden))
        weight = int(count) / math.perm(10, len(columns)) / ways
        choices = list(itertools.permutations(free, len(hidden)))
        for choice in choices:
            names = dict(enumerate(columns)) | dict(zip(hidden, choice)) | {20: ""}
            text = "".join(names[letter] for letter in letters)
            weights[(text, query[2] + text, text + query[2])[value]] += weight
        weights[None] += weight * (ways - len(choices))
    return +weights
