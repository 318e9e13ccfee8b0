r"""What makes a row unfit to train on, one step each with its reason; and what is mended instead of dropped.

Mended: line ends, exotic and zero-width spaces, control characters, Unicode composed (NFC, so that x² stays x²).
Dropped: the `FILTERS`, in order, by the text alone; and golds that the run's own verifier cannot use, of which a right
reply in a box would earn nothing.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

_SPACES = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")  # exotic spaces: a plain one
_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_IMAGE = re.compile(r"!\[[^\]]{0,300}\]\(|<img\b|\\includegraphics|\w\.(?:png|jpe?g|gif|svg)\b", re.I)
_ASY = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.I | re.S)
_FIGURE = re.compile(
    r"\b(?:shown|see|seen|pictured|drawn|indicated|as) in the (?:figure|diagram|picture|drawing|graph|image)\b"
    r"|(?:^|[.!?]\s{1,9})in the (?:figure|diagram|picture|drawing|image)\b"
    r"|\b(?:figure|diagram|picture|drawing|image) (?:below|above|shown|shows|at (?:the )?(?:right|left))\b"
    r"|\bsee (?:the )?(?:figure|diagram|picture|drawing|image)\b",
    re.I,
)
_NOUN = re.compile(r"(?i:figure|diagram|picture|drawing|graph|image)")  # without one of them, nothing to look closer at
_DRAWN = re.compile(r"\[asy\]|\\begin\{(?:tabular|array|tikzpicture|picture)|^\|.*\|[ \t]*$", re.I | re.M)
_PROOF = re.compile(
    r"(?:^|[.;:!?)]\s{1,9}|[$,]\s{0,9}|\band )(?:prove|show|demonstrate|verify|justify)\b(?! your)", re.I | re.M
)
_ASKS = re.compile(r"\?|\b(?:find|determine|compute|calculate|evaluate|what|how (?:many|much)|simplify|solve)\b", re.I)
_LABEL = r"(?:[a-e]|[1-6]|i{1,3}|iv|vi?)"
_PART = re.compile(rf"(?:^|[\n.;:?!,$])\s{{0,9}}\({_LABEL}\)\s|(?:^|\n)\s{{0,9}}{_LABEL}\)\s", re.I)
_TASK = re.compile(_ASKS.pattern + r"|\b(?:prove|show|write|express)\b", re.I)


class RowFilter(NamedTuple):
    """A reason to drop a row: how the funnel calls it, the sentence behind it, and whether (problem, gold) is such a row."""

    reason: str
    why: str
    drops: Callable[[str, str], bool]


def _parts(problem: str) -> int:
    """How many of the problem's lettered or numbered parts ask for something; conditions and options do not."""
    return sum(bool(_TASK.search(part)) for part in _PART.split(problem)[1:])


def _wordless(problem: str) -> bool:
    return len(re.findall(r"[^\W\d_]{2,}", _ASY.sub(" ", problem))) < 4


FILTERS = (
    RowFilter("no problem", "there is nothing to ask", lambda problem, gold: not problem),
    RowFilter("no answer", "there is nothing to check a reply against", lambda problem, gold: not gold),
    RowFilter("broken characters", "bytes were lost on the way here", lambda problem, gold: "\ufffd" in problem + gold),
    RowFilter("image", "the problem shows an image", lambda problem, gold: bool(_IMAGE.search(problem))),
    RowFilter(
        "figure only",
        "what is asked stands in a drawn figure alone",
        lambda problem, gold: "[asy]" in problem.lower() and _wordless(problem),
    ),
    RowFilter(
        "missing figure",
        "the problem refers to a figure that is not in the text",
        lambda problem, gold: (
            bool(_NOUN.search(problem)) and bool(_FIGURE.search(problem)) and not _DRAWN.search(problem)
        ),
    ),
    RowFilter(
        "proof",
        "it asks for a proof, which no final answer can check",
        lambda problem, gold: bool(_PROOF.search(problem)) and not _ASKS.search(problem),
    ),
    RowFilter(
        "several parts",
        "it asks several questions and has one gold",
        lambda problem, gold: _parts(problem) > 1,
    ),
)


def find_unfit_reason(problem: str, gold: str) -> str | None:
    """The first of `FILTERS` that drops the row, or None.

    >>> find_unfit_reason("Prove that 2 is prime.", "proof")
    'proof'
    """
    return next((step.reason for step in FILTERS if step.drops(problem, gold)), None)


def tidy_text(text: str) -> str:
    r"""The text mended: NFC, plain spaces, line feeds, nothing invisible, none at the ends. Lone surrogates become U+FFFD.

    >>> tidy_text("x\u00a0= 1\u200b\r\n")
    'x = 1'
    """
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = _SPACES.sub(" ", unicodedata.normalize("NFC", text))
    return _INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def normalise_text(problem: str) -> str:
    """What an id is a hash of: compatibility forms, case and white space do not count.

    >>> normalise_text("  What is\\n2 + 2? ") == normalise_text("what is 2 + 2?")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", problem).casefold().split())
