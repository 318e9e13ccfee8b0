"""A finding: one thing seen in a submission, what the challenge's scorer would do with it, and the remedy."""

from typing import NamedTuple

FATAL, WARNING, OK = "fatal", "warning", "ok"


class Finding(NamedTuple):
    """`code` names the kind; `severity` is FATAL (do not submit), WARNING (it loads, but look at it) or OK."""

    code: str
    severity: str
    what: str
    scorer: str = ""
    remedy: str = ""


class Refused(ValueError):
    """What was read cannot be gone on with; carries the finding that says so."""

    def __init__(self, code: str, what: str, scorer: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.finding = Finding(code, FATAL, what, scorer, remedy)


def shown(text: object, length: int = 90) -> str:
    """A name from outside as it may be printed: plain ASCII without control characters, cut to `length` in the middle."""
    try:
        plain = ascii(text)[1:-1] if isinstance(text, str) else ascii(text)
    except RecursionError:
        plain = "something nested deeply"
    return plain if len(plain) <= length else f"{plain[: length // 2 - 2]}...{plain[-length // 2 + 1 :]}"


def listed(names: list[str], most: int = 3) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more
