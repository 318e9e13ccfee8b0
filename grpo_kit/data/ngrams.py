"""Problems as numbers: their tokens, and a 64-bit hash of every run of n tokens, for many texts at a time in numpy.

Two texts with equal tokens are the same problem. Case, white space, compatibility forms, `$`, braces, spacing commands
and a number in front of the problem make no difference; words, digits and operators do.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

CHUNK = 20_000  # texts whose numbers are in memory at a time

_NUMBER_IN_FRONT = re.compile(
    r"\s*(?:(?:problem|example|exercise|question)\s*\d{1,3}\s*[.:)]?|\d{1,3}\s*[.)])\s+(?=\D)"
)
_DECORATION = re.compile(r"\\(?:left|right|displaystyle|[,;:! ()\[\]])|[${}~]")
_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s.,;:?\"'`]")
_FIGURE = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL | re.IGNORECASE)


class Runs(NamedTuple):
    """Hashes of all runs of n tokens of some texts, one text after another.

    Attributes:
        hashes: (runs,) uint64.
        starts: (texts + 1,) int64; the runs of text i are `hashes[starts[i]:starts[i + 1]]`.
    """

    hashes: np.ndarray
    starts: np.ndarray


def split_tokens(text: str) -> list[str]:
    r"""Split a problem into its words, numbers and operators, in lower case.

    >>> split_tokens(r"12. What is $\left( 2+X \right)$?") == split_tokens("what is (2 + x)")
    True
    """
    plain = unicodedata.normalize("NFKC", text).casefold().replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    number = _NUMBER_IN_FRONT.match(plain)
    return _TOKEN.findall(_DECORATION.sub(" ", plain[number.end() :] if number else plain))


def split_words(text: str) -> list[str]:
    """Split a problem into the tokens that are letters or digits; figures drawn in Asymptote are left out.

    >>> split_words("Find $x+1$. [asy] draw((0,0)--(1,1)); [/asy]")
    ['find', 'x', '1']
    """
    return [token for token in split_tokens(_FIGURE.sub(" ", text)) if token.isalnum()]


def digest_tokens(text: str) -> bytes:
    """A digest of 16 bytes that two texts share when their tokens are equal."""
    return _digest(split_tokens(text))


def split_and_digest(text: str) -> tuple[list[str], bytes]:
    """(`split_words`, `digest_tokens`) of a text; a text without a figure is split once for both."""
    tokens = split_tokens(text)
    has_figure = _FIGURE.search(text)
    return split_words(text) if has_figure else [token for token in tokens if token.isalnum()], _digest(tokens)


def _digest(tokens: list[str]) -> bytes:
    return hashlib.blake2b(" ".join(tokens).encode(), digest_size=16).digest()


class Vocabulary(dict):
    """Token to 64-bit hash, the same in every process (Python's own `hash` is salted)."""

    def __missing__(self, token: str) -> int:
        self[token] = value = int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "little")
        return value


def hash_runs(texts: Sequence[Iterable[str]], n: int, vocabulary: Vocabulary, short: bool) -> Runs:
    """Hash each run of `n` tokens.

    Args:
        texts: the tokens of each text.
        n: tokens in a run.
        vocabulary: hashes of tokens, kept from call to call.
        short: whether a text of fewer than n tokens has one run of all its tokens, or none.

    Returns:
        The hashes of all texts.
    """
    lists = [list(map(vocabulary.__getitem__, text)) for text in texts]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    ends = np.cumsum(lengths)
    flat = np.fromiter((value for tokens in lists for value in tokens), np.uint64, int(ends[-1]) if len(ends) else 0)
    counts = np.maximum(lengths - n + 1, 0)
    if short:
        counts = np.maximum(counts, (lengths > 0).astype(np.int64))
    starts = np.concatenate(([0], np.cumsum(counts)))
    # where each run begins in `flat`: the text's first token, plus the run's number within its text
    begins = np.repeat(ends - lengths - starts[:-1], counts) + np.arange(starts[-1])
    text_ends = np.repeat(ends, counts)
    hashes = np.zeros(len(begins), np.uint64)
    for step in range(n):
        place = begins + step
        value = flat[np.minimum(place, len(flat) - 1)] if len(flat) else flat
        # past the end of a short text, the step's own number stands for a token
        value = np.where(place < text_ends, value, np.uint64(step + 1))
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + value
        hashes ^= hashes >> np.uint64(29)
    return Runs(hashes, starts)


def split_range(count: int, size: int = CHUNK) -> Iterator[range]:
    """0..count in pieces of at most `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))
