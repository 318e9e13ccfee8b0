"""Texts as a person reads them: times on the local clock, and text from outside without control characters."""

import re
from datetime import datetime

# Control characters but line end and tab, and the marks that turn the direction of the text that follows.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")


def format_time(time: str | datetime, form: str = "%Y-%m-%d %H:%M %Z") -> str:
    """A time on the clock of this machine, with the name of its zone.

    Args:
        time: with its zone, as a `datetime` or as ISO 8601.
        form: as `strftime` takes it.

    Example:
        >>> format_time("2026-11-29T13:05:00+00:00")  # in Berlin    # doctest: +SKIP
        '2026-11-29 14:05 CET'
    """
    moment = datetime.fromisoformat(time) if isinstance(time, str) else time
    return moment.astimezone().strftime(form)


def show_controls(text: str) -> str:
    r"""`text` with every control character written as its code, so that a terminal does not obey it.

    >>> print(show_controls("\x1b[31mred\r\n\a"))
    \x1b[31mred
    \x07
    """
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))
