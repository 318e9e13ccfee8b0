"""Training problems that give an evaluation problem away: equal tokens, or shared runs of eight words.

Two hits are counted. *Equal*: the same tokens. *Overlap*: shared 8-word runs, one of
- the whole evaluation problem stands in the training problem (every run of it);
- 13 words in a row or more (6 runs) that are no stock phrase;
- half of the evaluation problem's runs and at least 6, at least 3 of them no stock phrase.
A single shared run decides nothing: "where m and n are relatively prime positive integers. Find m + n" stands in
hundreds of problems. A run is a stock phrase when a set phrase of contests is in it (`STOCK`), or when it stands in three
evaluation problems or in five different training problems (one in 20,000 where there are more).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grpo_kit import ngrams

RUN = 8  # words
LEAST = 6  # shared runs: 13 words in a row have six
RARE = 3  # of them no stock phrases, where half of the evaluation problem is shared
STOCK = (
    "relatively prime", "square of any prime", "square of a prime", "in the form", "in simplest form",
    "enter your answer", "express your answer", "give your answer", "round your answer", "your answer as",
    "find the remainder when", "what is the remainder when", "the following text", "are positive integers",
)  # fmt: skip


class Leaks(NamedTuple):
    """Numbers of training problems with (reason, why), and for each evaluation set how many were hit in which way."""

    dropped: dict[int, tuple[str, str]]
    report: dict[str, dict[str, int]]


def find(problems: Sequence[str], sets: Mapping[str, Sequence[str]]) -> Leaks:
    """Which of `problems` leak from the evaluation `sets` (name: problems).

    The report counts, for each set, its `problems`, those of them `leaked`, and of the training problems those `equal`
    to one, those that `overlap` one, and those `kept` although they share a run of eight words.
    """
    held = [(name, text) for name, texts in sets.items() for text in texts]
    name_of = [name for name, _ in held]
    digests = [ngrams.same_tokens(problem) for problem in problems]
    known = {ngrams.same_tokens(text): other for other, (_, text) in reversed(list(enumerate(held)))}
    equal = {number: known[digest] for number, digest in enumerate(digests) if digest in known}
    fresh = np.zeros(len(problems), bool)  # a problem that is there five times is no stock phrase
    fresh[list({digest: number for number, digest in enumerate(digests)}.values())] = True
    pairs = _overlaps(problems, [text for _, text in held], fresh)
    dropped: dict[int, tuple[str, str]] = {}
    report = {name: Counter(problems=len(texts)) for name, texts in sets.items()}
    for name in sets:
        equals = {number for number, other in equal.items() if name_of[other] == name}
        overlaps = {number for number, other, is_leak in pairs if is_leak and name_of[other] == name}
        touched = {number for number, other, _ in pairs if name_of[other] == name}
        gone = {other for number, other in equal.items() if number in equals}
        gone |= {other for _, other, is_leak in pairs if is_leak and name_of[other] == name}
        report[name].update(
            leaked=len(gone), equal=len(equals), overlap=len(overlaps), kept=len(touched - overlaps - equals)
        )
    for number, other in equal.items():
        dropped[number] = ("leaked, equal", f"{name_of[other]}: {_short(held[other][1])}")
    for number, other, is_leak in pairs:
        if is_leak and number not in dropped:
            dropped[number] = ("leaked, overlap", f"{name_of[other]}: {_short(held[other][1])}")
    return Leaks(dropped, {name: dict(counts) for name, counts in report.items()})


def _overlaps(problems: Sequence[str], held: list[str], fresh: np.ndarray) -> list[tuple[int, int, bool]]:
    """(training problem, evaluation problem, whether it is a leak), for every pair that shares a run of eight words."""
    vocabulary = ngrams.Vocabulary()
    texts = [ngrams.words(text) for text in held]
    have = ngrams.runs(texts, RUN, vocabulary, short=False)
    owner = np.repeat(np.arange(len(held)), np.diff(have.starts))
    known, first, which = np.unique(have.hashes, return_index=True, return_inverse=True)
    # each run of the evaluation sets once a problem: pairs (run, problem), sorted by run
    of_run, of_problem = np.unique(np.stack([which, owner]), axis=1)
    if not len(known):
        return []
    size = np.bincount(of_problem, minlength=len(held))  # different runs of each evaluation problem
    rows, hits = [], []
    for part in ngrams.chunks(len(problems)):
        mine = ngrams.runs([ngrams.words(problems[number]) for number in part], RUN, vocabulary, short=False)
        at = np.minimum(np.searchsorted(known, mine.hashes), len(known) - 1)
        found = np.flatnonzero(known[at] == mine.hashes)
        row = np.repeat(np.arange(part.start, part.stop), np.diff(mine.starts))[found]
        unique = np.unique(np.stack([row, at[found]]), axis=1)
        rows.append(unique[0])
        hits.append(unique[1])
    row, hit = (np.concatenate(parts) if parts else np.empty(0, np.int64) for parts in (rows, hits))
    stock = np.bincount(hit[fresh[row]], minlength=len(known)) >= max(5, len(problems) // 20_000)
    stock |= np.bincount(of_run, minlength=len(known)) >= 3
    spelled = _spelled(texts, have.starts, first, owner)
    stock |= np.fromiter((any(f" {phrase} " in run for phrase in STOCK) for run in spelled), bool, len(known))
    # join (row, run) with (run, evaluation problem), then count for each (row, problem)
    begin = np.searchsorted(of_run, np.arange(len(known) + 1))
    times = np.diff(begin)[hit]
    pick = np.repeat(begin[hit] - np.concatenate(([0], np.cumsum(times)[:-1])), times) + np.arange(times.sum())
    keys = np.repeat(row, times) * len(held) + of_problem[pick]
    pair, inverse = np.unique(keys, return_inverse=True)
    shared = np.bincount(inverse, minlength=len(pair))
    rare = np.bincount(inverse, weights=~np.repeat(stock[hit], times), minlength=len(pair))
    other = pair % len(held)
    leak = (
        (shared == size[other]) | (rare >= LEAST) | ((shared >= LEAST) & (rare >= RARE) & (2 * shared >= size[other]))
    )
    return list(zip((pair // len(held)).tolist(), other.tolist(), leak.tolist()))


def _spelled(texts: list[list[str]], starts: np.ndarray, first: np.ndarray, owner: np.ndarray) -> list[str]:
    """Each known run in words, a space at both ends."""
    return [
        " " + " ".join(texts[owner[at]][at - starts[owner[at]] : at - starts[owner[at]] + RUN]) + " " for at in first
    ]


def _short(text: str) -> str:
    return " ".join(text.split())[:80]


def summary(report: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The report in lines to print, a set each."""
    return [
        f"{name}: {found['leaked']} of {found['problems']} problems leaked ({found['equal']} equal, {found['overlap']} overlapping rows); "
        f"{found['kept']} rows kept that share only a stock phrase"
        for name, found in report.items()
    ]
