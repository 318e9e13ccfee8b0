"""Training problems that give an evaluation problem away: equal tokens, or shared runs of eight words.

There are two kinds of hits. *Equal* means the same tokens. *Overlap* means shared 8-word runs, and one of these:
- the training problem contains the whole evaluation problem (every run of it);
- they share 13 words in a row or more (6 runs) that are not a stock phrase;
- they share half of the evaluation problem's runs and at least 6, of which at least 3 are not a stock phrase.

A single shared run decides nothing: "where m and n are relatively prime positive integers. Find m + n" is part of
hundreds of problems. A run is a stock phrase when it contains a set phrase of contests (`STOCK`), or when it occurs
in three evaluation problems or in five different training problems (one in 20,000 where there are more than 100,000).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from grpo_kit.data import ngrams

RUN = 8  # words
LEAST = 6  # shared runs: 13 words in a row have six
COMMON = 20  # a run that occurs in more evaluation problems is the frame of a template
RARE = 3  # shared runs that are not stock phrases, where half of the evaluation problem is shared
LEAST_CONTAINED = 12  # characters of a problem that `find_contained` looks for
STOCK = (
    "relatively prime",
    "square of any prime",
    "square of a prime",
    "in the form",
    "in simplest form",
    "enter your answer",
    "express your answer",
    "give your answer",
    "round your answer",
    "your answer as",
    "find the remainder when",
    "what is the remainder when",
    "the following text",
    "are positive integers",
)


class Leaks(NamedTuple):
    """What `find_leaks` finds.

    Attributes:
        dropped: number of each training problem that leaks, with (reason, detail).
        report: for each evaluation set its counts, by kind of hit.
    """

    dropped: dict[int, tuple[str, str]]
    report: dict[str, dict[str, int]]


class _EvaluationRuns(NamedTuple):
    """The runs of the evaluation problems that are not the frame of a template."""

    hashes: np.ndarray  # (runs,) sorted
    run_of_pair: np.ndarray  # (pairs,) sorted; a pair is a run and a problem in which it occurs
    problem_of_pair: np.ndarray  # (pairs,)
    texts: list[str]  # the words of each run, with a space before and after


def find_leaks(problems: Sequence[str], sets: Mapping[str, Sequence[str]]) -> Leaks:
    """Find the training problems that give problems of evaluation sets away.

    Args:
        problems: the training problems.
        sets: the problems of each evaluation set, by its name.

    Returns:
        The problems to drop, and a report: for each set, how many `problems` it has, how many of them `leaked`, and
        of the training problems how many are `equal` to one, how many `overlap` one, and how many were `kept`
        although they share a run of eight words with one.

    Example:
        >>> find_leaks(["What is 17 + 25?", "What is 1 + 2?"], {"contest": ["what is 17+25"]}).dropped
        {0: ('leaked, equal', 'contest: what is 17+25')}
    """
    evaluation = [(name, text) for name, texts in sets.items() for text in texts]
    set_of = [name for name, _ in evaluation]
    overlaps, digests = _find_overlaps(problems, [text for _, text in evaluation])
    first_of = {ngrams.digest_tokens(text): other for other, (_, text) in reversed(list(enumerate(evaluation)))}
    equal = {number: first_of[digest] for number, digest in enumerate(digests) if digest in first_of}
    report = {}
    for name, texts in sets.items():
        equals = {number for number, other in equal.items() if set_of[other] == name}
        touched = {number for number, other, _ in overlaps if set_of[other] == name}
        leaking = {(number, other) for number, other, is_leak in overlaps if is_leak and set_of[other] == name}
        overlapping = {number for number, _ in leaking}
        leaked = {equal[number] for number in equals} | {other for _, other in leaking}
        report[name] = {
            "problems": len(texts),
            "leaked": len(leaked),
            "equal": len(equals),
            "overlap": len(overlapping),
            "kept": len(touched - overlapping - equals),
        }
    dropped = {}
    for number, other in equal.items():
        dropped[number] = ("leaked, equal", f"{set_of[other]}: {_shorten(evaluation[other][1])}")
    for number, other, is_leak in overlaps:
        if is_leak and number not in dropped:
            dropped[number] = ("leaked, overlap", f"{set_of[other]}: {_shorten(evaluation[other][1])}")
    return Leaks(dropped, report)


def find_contained(texts: Sequence[str], problems: Sequence[str]) -> set[int]:
    """Find the texts that hold a whole problem, whatever stands around it.

    Args:
        texts: turns of conversations.
        problems: those of at least 12 characters and three tokens are looked for, token by token.

    Returns:
        The numbers of the texts.

    Example:
        >>> find_contained(["Think. What is 17 + 25? Go.", "What is 17 + 2?"], ["what is 17+25"])
        {0}
    """
    # By start and length, since the problems of a template all begin alike.
    by_start: dict[tuple[str, ...], dict[int, set[tuple[str, ...]]]] = {}
    for problem in problems:
        tokens = tuple(ngrams.split_tokens(problem))
        if len(tokens) >= 3 and len(problem) >= LEAST_CONTAINED:
            by_start.setdefault(tokens[:3], {}).setdefault(len(tokens), set()).add(tokens)
    found = set()
    for number, text in enumerate(texts):
        tokens = tuple(ngrams.split_tokens(text))
        starts = ((at, by_start.get(tokens[at : at + 3], {})) for at in range(len(tokens) - 2))
        if any(tokens[at : at + length] in alike for at, lengths in starts for length, alike in lengths.items()):
            found.add(number)
    return found


def _find_overlaps(problems: Sequence[str], evaluation: list[str]) -> tuple[list[tuple[int, int, bool]], list[bytes]]:
    """([(training problem, evaluation problem, is it a leak)] of pairs that share a run, digests of the problems)."""
    vocabulary = ngrams.Vocabulary()
    runs = _collect_runs([ngrams.split_words(text) for text in evaluation], vocabulary)
    count = len(runs.hashes)
    row, hit, digests = _match_runs(problems, runs.hashes, vocabulary)

    distinct = np.zeros(len(problems), bool)  # copies of a problem must not make its words a stock phrase
    distinct[list({digest: number for number, digest in enumerate(digests)}.values())] = True
    stock = np.bincount(hit[distinct[row]], minlength=count) >= max(5, len(problems) // 20_000)
    stock |= np.bincount(runs.run_of_pair, minlength=count) >= 3
    stock |= np.fromiter((any(f" {phrase} " in text for phrase in STOCK) for text in runs.texts), bool, count)

    # join (row, run) with (run, evaluation problem), then count for each (row, problem)
    begins = np.searchsorted(runs.run_of_pair, np.arange(count + 1))
    times = np.diff(begins)[hit]
    pick = np.repeat(begins[hit] - (np.cumsum(times) - times), times) + np.arange(times.sum())
    keys = np.repeat(row, times) * len(evaluation) + runs.problem_of_pair[pick]
    pairs, inverse = np.unique(keys, return_inverse=True)
    shared = np.bincount(inverse, minlength=len(pairs))
    rare = np.bincount(inverse, weights=~np.repeat(stock[hit], times), minlength=len(pairs))
    number, other = np.divmod(pairs, max(len(evaluation), 1))
    runs_in_problem = np.bincount(runs.problem_of_pair, minlength=len(evaluation))  # different ones
    size = runs_in_problem[other]
    is_half = (2 * shared >= size) & (shared >= LEAST) & (rare >= RARE)
    is_leak = (shared == size) | (rare >= LEAST) | is_half
    return list(zip(number.tolist(), other.tolist(), is_leak.tolist())), digests


def _match_runs(
    problems: Sequence[str], hashes: np.ndarray, vocabulary: ngrams.Vocabulary
) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """(number of the problem and number of the run, for each run that both have; digests of all problems)."""
    rows, hits, digests = [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
    for part in ngrams.split_range(len(problems)):
        texts = [ngrams.split_and_digest(problems[number]) for number in part]
        digests += [digest for _, digest in texts]
        runs = ngrams.hash_runs([words for words, _ in texts], RUN, vocabulary, short=False)
        place = np.minimum(np.searchsorted(hashes, runs.hashes), len(hashes) - 1)
        equal = np.flatnonzero(hashes[place] == runs.hashes) if len(hashes) else np.empty(0, np.int64)
        row = np.repeat(np.arange(part.start, part.stop), np.diff(runs.starts))[equal]
        unique = np.unique(np.stack([row, place[equal]]), axis=1)
        rows.append(unique[0])
        hits.append(unique[1])
    return np.concatenate(rows), np.concatenate(hits), digests


def _collect_runs(texts: list[list[str]], vocabulary: ngrams.Vocabulary) -> _EvaluationRuns:
    """The runs of evaluation problems, given as words, without those that occur in more than `COMMON` problems."""
    runs = ngrams.hash_runs(texts, RUN, vocabulary, short=False)
    owner = np.repeat(np.arange(len(texts)), np.diff(runs.starts))
    hashes, first, inverse = np.unique(runs.hashes, return_index=True, return_inverse=True)
    run_of_pair, problem_of_pair = np.unique(np.stack([inverse, owner]), axis=1)  # a run counts once in a problem
    is_kept = np.bincount(run_of_pair, minlength=len(hashes)) <= COMMON
    kept_pairs = is_kept[run_of_pair]
    places = zip(owner[first], first - runs.starts[owner[first]])
    spelled = [f" {' '.join(texts[text][at : at + RUN])} " for text, at in places]
    return _EvaluationRuns(
        hashes[is_kept],
        (np.cumsum(is_kept) - 1)[run_of_pair[kept_pairs]],
        problem_of_pair[kept_pairs],
        [text for text, kept in zip(spelled, is_kept) if kept],
    )


def _shorten(text: str) -> str:
    return " ".join(text.split())[:80]
