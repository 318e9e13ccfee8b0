"""The text of problems: mended without changing what it says, and tested for what makes a row unfit to train on.

`tidy_text` mends line ends, unusual and zero-width spaces and control characters, and composes Unicode (NFC, so that
x² stays x²). `FILTERS` drop rows by their text alone; `gold_answers.find_unusable_golds` finds golds that the verifier
cannot use.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

_SPACES = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")  # replaced by a plain space
_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_IMAGE = re.compile(
    r"!\[[^\]]{0,300}\]\(|<img\b|<\|?image(?:[ _]?\d+|_pad|_start)?\|?>|\\includegraphics|\w\.(?:png|jpe?g|gif|svg)\b",
    re.I,
)
_ASY = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.I | re.S)
_FIGURE = re.compile(
    r"\b(?:shown|see|seen|pictured|drawn|indicated|as) in the (?:figure|diagram|picture|drawing|graph|image)\b"
    r"|(?:^|[.!?]\s{1,9})in the (?:figure|diagram|picture|drawing|image)\b"
    r"|\b(?:figure|diagram|picture|drawing|image) (?:below|above|shown|shows|at (?:the )?(?:right|left))\b"
    r"|\bsee (?:the )?(?:figure|diagram|picture|drawing|image)\b",
    re.I,
)
# A quick test: without one of these nouns _FIGURE cannot match.
_NOUN = re.compile(r"(?i:figure|diagram|picture|drawing|graph|image)")
_DRAWN = re.compile(r"\[asy\]|\\begin\{(?:tabular|array|tikzpicture|picture)|^\|.*\|[ \t]*$", re.I | re.M)
_PROOF = re.compile(
    r"(?:^|[.;:!?)]\s{1,9}|[$,]\s{0,9}|\band )(?:prove|show|demonstrate|verify|justify)\b(?! your)", re.I | re.M
)
_ASKS = re.compile(r"\?|\b(?:find|determine|compute|calculate|evaluate|what|how (?:many|much)|simplify|solve)\b", re.I)
_LABEL = r"(?:[a-e]|[1-6]|i{1,3}|iv|vi?)"
_PART = re.compile(rf"(?:^|[\n.;:?!,$])\s{{0,9}}\({_LABEL}\)\s|(?:^|\n)\s{{0,9}}{_LABEL}\)\s", re.I)
_TASK = re.compile(_ASKS.pattern + r"|\b(?:prove|show|write|express)\b", re.I)


class RowFilter(NamedTuple):
    """A rule that drops rows.

    Attributes:
        reason: its name in the funnel.
        detail: the reason as a sentence.
        matches: whether the rule drops a row of (problem, gold).
    """

    reason: str
    detail: str
    matches: Callable[[str, str], bool]


def _count_tasks(problem: str) -> int:
    """How many of the problem's lettered or numbered parts ask for something; conditions and options do not count."""
    return sum(bool(_TASK.search(part)) for part in _PART.split(problem)[1:])


def _is_drawing_only(problem: str) -> bool:
    return "[asy]" in problem.lower() and len(re.findall(r"[^\W\d_]{2,}", _ASY.sub(" ", problem))) < 4


def _lacks_figure(problem: str) -> bool:
    return bool(_NOUN.search(problem)) and bool(_FIGURE.search(problem)) and not _DRAWN.search(problem)


def _is_proof(problem: str) -> bool:
    return bool(_PROOF.search(problem)) and not _ASKS.search(problem)


FILTERS = (
    RowFilter("no problem", "there is nothing to ask", lambda problem, gold: not problem),
    RowFilter("no answer", "there is nothing to check a reply against", lambda problem, gold: not gold),
    RowFilter("broken characters", "bytes were lost on the way here", lambda problem, gold: "\ufffd" in problem + gold),
    RowFilter("image", "the problem shows an image", lambda problem, gold: bool(_IMAGE.search(problem))),
    RowFilter("figure only", "the question is only in a drawn figure", lambda problem, gold: _is_drawing_only(problem)),
    RowFilter(
        "missing figure",
        "the problem refers to a figure that is not in the text",
        lambda problem, gold: _lacks_figure(problem),
    ),
    RowFilter(
        "proof", "it asks for a proof, which no final answer can check", lambda problem, gold: _is_proof(problem)
    ),
    RowFilter(
        "several parts", "it asks several questions and has one gold", lambda problem, gold: _count_tasks(problem) > 1
    ),
)


def find_unfit_reason(problem: str, gold: str) -> str | None:
    """Find out whether a row is unfit to train on.

    Args:
        problem: the mended text of the problem.
        gold: its reference answer.

    Returns:
        The reason of the first of the `FILTERS` that matches, or None for a fit row.

    Example:
        >>> find_unfit_reason("Prove that 2 is prime.", "proof")
        'proof'
    """
    return next((rule.reason for rule in FILTERS if rule.matches(problem, gold)), None)


def tidy_text(text: str) -> str:
    r"""Mend a text without changing what it says.

    Args:
        text: any string.

    Returns:
        The text in NFC with plain spaces and line feeds, without invisible characters, stripped. Lone surrogates are
        replaced by U+FFFD, which the filter "broken characters" then finds.

    Example:
        >>> tidy_text("x\u00a0= 1\u200b\r\n")
        'x = 1'
    """
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = _SPACES.sub(" ", unicodedata.normalize("NFC", text))
    return _INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def normalise_text(problem: str) -> str:
    """Normalise a problem so that compatibility forms, case and white space make no difference. Ids are hashes of this.

    Args:
        problem: the text of a problem.

    Returns:
        The text in NFKC and lower case, words separated by single spaces.

    Example:
        >>> normalise_text("  What is\\n2 + 2? ")
        'what is 2 + 2?'
    """
    return " ".join(unicodedata.normalize("NFKC", problem).casefold().split())
