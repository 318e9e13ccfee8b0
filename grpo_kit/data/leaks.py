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
from typing import NamedTuple

import numpy as np

from grpo_kit.data import ngrams

RUN = 8  # words
LEAST = 6  # shared runs: 13 words in a row have six
COMMON = 20  # evaluation problems with a run in common that make it the frame of a template
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


def find_leaks(problems: Sequence[str], sets: Mapping[str, Sequence[str]]) -> Leaks:
    """Which of `problems` leak from the evaluation `sets` (name: problems).

    The report counts, for each set, its `problems`, those of them `leaked`, and of the training problems those `equal`
    to one, those that `overlap` one, and those `kept` although they share a run of eight words.
    """
    held = [(name, text) for name, texts in sets.items() for text in texts]
    name_of = [name for name, _ in held]
    pairs, digests = _overlaps(problems, [text for _, text in held])
    known = {ngrams.digest_tokens(text): other for other, (_, text) in reversed(list(enumerate(held)))}
    equal = {number: known[digest] for number, digest in enumerate(digests) if digest in known}
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


def _overlaps(problems: Sequence[str], held: list[str]) -> tuple[list[tuple[int, int, bool]], list[bytes]]:
    """((training problem, evaluation problem, whether it is a leak) for pairs that share a run, digests of the problems)."""
    vocabulary = ngrams.Vocabulary()
    texts = [ngrams.split_words(text) for text in held]
    known, of_run, of_problem, spelled = _runs_of(texts, vocabulary)
    rows, hits, digests = [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
    for part in ngrams.split_range(len(problems)):
        read = [ngrams.split_and_digest(problems[number]) for number in part]
        digests += [digest for _, digest in read]
        mine = ngrams.hash_runs([words for words, _ in read], RUN, vocabulary, short=False)
        at = np.minimum(np.searchsorted(known, mine.hashes), len(known) - 1)
        found = np.flatnonzero(known[at] == mine.hashes) if len(known) else np.empty(0, np.int64)
        row = np.repeat(np.arange(part.start, part.stop), np.diff(mine.starts))[found]
        unique = np.unique(np.stack([row, at[found]]), axis=1)
        rows.append(unique[0])
        hits.append(unique[1])
    row, hit = np.concatenate(rows), np.concatenate(hits)

    fresh = np.zeros(len(problems), bool)  # a problem that is there five times is no stock phrase
    fresh[list({digest: number for number, digest in enumerate(digests)}.values())] = True
    stock = np.bincount(hit[fresh[row]], minlength=len(known)) >= max(5, len(problems) // 20_000)
    stock |= np.bincount(of_run, minlength=len(known)) >= 3
    stock |= np.fromiter((any(f" {phrase} " in run for phrase in STOCK) for run in spelled), bool, len(known))

    # join (row, run) with (run, evaluation problem), then count for each (row, problem)
    begin = np.searchsorted(of_run, np.arange(len(known) + 1))
    times = np.diff(begin)[hit]
    pick = np.repeat(begin[hit] - (np.cumsum(times) - times), times) + np.arange(times.sum())
    pair, inverse = np.unique(np.repeat(row, times) * len(held) + of_problem[pick], return_inverse=True)
    shared = np.bincount(inverse, minlength=len(pair))
    rare = np.bincount(inverse, weights=~np.repeat(stock[hit], times), minlength=len(pair))
    other = pair % max(len(held), 1)
    size = np.bincount(of_problem, minlength=len(held))[other]  # different runs of the evaluation problem
    half = (2 * shared >= size) & (shared >= LEAST) & (rare >= RARE)
    leak = (shared == size) | (rare >= LEAST) | half
    return list(zip((pair // max(len(held), 1)).tolist(), other.tolist(), leak.tolist())), digests


def _runs_of(
    texts: list[list[str]], vocabulary: ngrams.Vocabulary
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """The evaluation problems' runs: (hashes, sorted; run and problem of each pair, sorted by run; each run in words).

    A run of more than `COMMON` problems is the frame of a template and tells nothing; it is left out.
    """
    have = ngrams.hash_runs(texts, RUN, vocabulary, short=False)
    owner = np.repeat(np.arange(len(texts)), np.diff(have.starts))
    hashes, first, which = np.unique(have.hashes, return_index=True, return_inverse=True)
    of_run, of_problem = np.unique(np.stack([which, owner]), axis=1)  # a run counts once a problem
    telling = np.bincount(of_run, minlength=len(hashes)) <= COMMON
    keep = telling[of_run]
    place = owner[first], first - have.starts[owner[first]]
    spelled = [f" {' '.join(texts[text][at : at + RUN])} " for text, at in zip(*place)]
    return (
        hashes[telling], (np.cumsum(telling) - 1)[of_run[keep]], of_problem[keep], [s for s, t in zip(spelled, telling) if t],
    )  # fmt: skip


def _short(text: str) -> str:
    return " ".join(text.split())[:80]
