"""Problems as numbers: a text's tokens, and a 64-bit hash of every run of n tokens, many texts at a time in numpy.

Two texts with equal tokens ask the same problem: case, white space, compatibility forms, `$`, braces, spacing commands
and a problem's number in front do not count; words, digits and operators do.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

CHUNK = 20_000  # texts that are held as numbers at a time

_NUMBERED = re.compile(r"\s*(?:(?:problem|example|exercise|question)\s*\d{1,3}\s*[.:)]?|\d{1,3}\s*[.)])\s+(?=\D)")
_DECORATION = re.compile(r"\\(?:left|right|displaystyle|[,;:! ()\[\]])|[${}~]")
_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s.,;:?\"'`]")
_FIGURE = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL | re.IGNORECASE)


class Runs(NamedTuple):
    """Hashes of all runs of n tokens of some texts, one text after another; text i owns `hashes[starts[i]:starts[i + 1]]`."""

    hashes: np.ndarray  # uint64
    starts: np.ndarray  # int64, one more than there are texts


def split_tokens(text: str) -> list[str]:
    r"""The words, numbers and operators of a problem, in lower case.

    >>> split_tokens(r"12. What is $\left( 2+X \right)$?") == split_tokens("what is (2 + x)")
    True
    """
    plain = unicodedata.normalize("NFKC", text).casefold().replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    numbered = _NUMBERED.match(plain)
    return _TOKEN.findall(_DECORATION.sub(" ", plain[numbered.end() :] if numbered else plain))


def split_words(text: str) -> list[str]:
    """The tokens that are letters or digits, figures drawn in Asymptote left out: what a reader would call its words."""
    return [token for token in split_tokens(_FIGURE.sub(" ", text)) if token.isalnum()]


def digest_tokens(text: str) -> bytes:
    """A digest that two texts share when their tokens are equal."""
    return _digest(split_tokens(text))


def split_and_digest(text: str) -> tuple[list[str], bytes]:
    """(`split_words`, `digest_tokens`) of a text, at the price of one."""
    read = split_tokens(text)
    drawn = _FIGURE.search(text)
    return split_words(text) if drawn else [token for token in read if token.isalnum()], _digest(read)


def _digest(read: list[str]) -> bytes:
    return hashlib.blake2b(" ".join(read).encode(), digest_size=16).digest()


class Vocabulary(dict):
    """Token to 64-bit hash, the same in every process (Python's own `hash` is salted)."""

    def __missing__(self, token: str) -> int:
        self[token] = value = int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "little")
        return value


def hash_runs(texts: Sequence[Iterable[str]], n: int, vocabulary: Vocabulary, short: bool) -> Runs:
    """Hashes of each run of `n` tokens; `texts` are token lists. A text of fewer than n has one run of all it has, if `short`."""
    lists = [list(map(vocabulary.__getitem__, text)) for text in texts]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    ends = np.cumsum(lengths)
    flat = np.fromiter((value for one in lists for value in one), np.uint64, int(ends[-1]) if len(ends) else 0)
    counts = np.maximum(lengths - n + 1, 0)
    if short:
        counts = np.maximum(counts, (lengths > 0).astype(np.int64))
    starts = np.concatenate(([0], np.cumsum(counts)))
    # where each run begins in `flat`: the text's first token, plus the run's number within its text
    at = np.repeat(ends - lengths - starts[:-1], counts) + np.arange(starts[-1])
    stop = np.repeat(ends, counts)
    hashes = np.zeros(len(at), np.uint64)
    for step in range(n):
        here = at + step
        value = flat[np.minimum(here, len(flat) - 1)] if len(flat) else flat
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + np.where(here < stop, value, np.uint64(step + 1))
        hashes ^= hashes >> np.uint64(29)
    return Runs(hashes, starts)


def split_range(count: int, size: int = CHUNK) -> Iterator[range]:
    """0..count in pieces of at most `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))
