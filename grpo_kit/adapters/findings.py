"""Findings about an adapter: what was seen, what the challenge's scorer (vLLM) does with it, and the remedy.

`fatal` is the one place that decides which findings stop which use of an adapter.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

FATAL, WARNING, OK = "fatal", "warning", "ok"

# An adapter with one of these is not a LoRA whose update is scale * B A on the published base, or its config cannot be
# understood: it can be neither packed nor attached nor merged, whatever the scorer would do with it.
NOT_PLAIN_LORA = frozenset(
    {
        "too-large",
        "config-unreadable",
        "not-safetensors",
        "too-many-tensors",
        "peft-type",
        "rank",
        "alpha",
        "rank-pattern-invalid",
        "alpha-pattern-invalid",
        "pattern-expression",
        "target-parameters-invalid",
        "bias",
        "dora",
        "layer-replication",
        "not-plain-lora",
        "init-changes-base",
    }
)
# The codes that stop each use. A fatal finding of any code also stops "submit" and "send".
EXTRA_CODES = {
    "submit": frozenset(),
    "send": frozenset({"base-tiny", "base-other"}),  # the zip is sound, but a try on Kaggle would be lost
    "pack": NOT_PLAIN_LORA,
    "attach": NOT_PLAIN_LORA | {"targets", "targets-regex"},  # an expression from outside is never evaluated
}


class Finding(NamedTuple):
    """One thing seen in an adapter or a submission.

    Attributes:
        code: the kind of finding, such as `rank-too-high`.
        severity: FATAL (the submission would fail or score something else), WARNING (it loads, but look at it) or OK.
        what: one sentence on what was seen.
        scorer: one sentence on what the challenge's scorer does with it.
        remedy: one sentence on what to do.
    """

    code: str
    severity: str
    what: str
    scorer: str = ""
    remedy: str = ""


class Refused(ValueError):
    """Raised for a file that cannot be read any further; `finding` says why."""

    def __init__(self, code: str, what: str, scorer: str = "", remedy: str = "") -> None:
        super().__init__(f"{what} {remedy}".strip())
        self.finding = Finding(code, FATAL, what, scorer, remedy)


def fatal(findings: Iterable[Finding], use: str = "submit") -> list[Finding]:
    """The findings that forbid a use of the adapter.

    Args:
        findings: any findings.
        use: `submit` (the zip is fit for the scorer), `send` (it is also worth a try on Kaggle), `pack` (it can be
            converted and packed), or `attach` (it can be put on a model).

    Example:
        >>> fatal([Finding("rank-too-high", FATAL, "r is 64."), Finding("rslora", WARNING, "use_rslora is set.")])
        [Finding(code='rank-too-high', severity='fatal', what='r is 64.', scorer='', remedy='')]
        >>> fatal([Finding("rank-too-high", FATAL, "r is 64.")], "pack")  # packing reduces the rank
        []
    """
    by_severity = use in ("submit", "send")
    return [
        finding
        for finding in findings
        if finding.code in EXTRA_CODES[use] or (by_severity and finding.severity == FATAL)
    ]


def raise_fatal(findings: Iterable[Finding], use: str, path: Path) -> None:
    """Raise ValueError with the first finding that forbids this use of the file at `path` (see `fatal`)."""
    for finding in fatal(findings, use):
        raise ValueError(f"{path}: {finding.what} {finding.remedy}")


def printable(text: object, length: int = 90) -> str:
    """A name from outside as plain ASCII without control characters, cut to `length` characters in the middle.

    Example:
        >>> printable("a\\x1b[31m"), printable("x" * 100, 11)
        ('a\\\\x1b[31m', 'xxx...xxxxx')
    """
    try:
        plain = ascii(text)[1:-1] if isinstance(text, str) else ascii(text)
    except RecursionError:
        plain = "something nested deeply"
    return plain if len(plain) <= length else f"{plain[: length // 2 - 2]}...{plain[-length // 2 + 1 :]}"


def printable_list(names: list[str], most: int = 3) -> str:
    """The first few of `names` as `printable` text, and how many more there are.

    Example:
        >>> printable_list(["a", "b", "c", "d"])
        'a, b, c and 1 more'
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more
