"""Texts as a person reads them: local times, changes, counts, no control characters, commands as functions."""

import re
from datetime import datetime

# Control characters but line end and tab, and the marks that turn the direction of the text that follows.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")
DIGITS = 9  # after the point: what is less is rounding, which a computer's sums leave behind

# {command: the public function that does the same}
FUNCTIONS = {
    "data": "prepare_data(config, run)",
    "screen": "screen(config, run)",
    "sft": "sft(config, run)",
    "train": "train(config, run, config.grpo.reward_funcs)",
    "prefer": "prefer(config, run)",
    "evaluate": "measure(config, run, stage)",
    "package": "package(config, run)",
    "check": "check(zip_path, config.policy)",
    "tune": "tune(config, run, axes)",
}


def name_functions(sentence: str) -> str:
    """A sentence that recommends commands, with the public functions that do the same for a caller in Python.

    >>> name_functions("Make it again with `grpo-kit data --force`.")
    'Make it again with `grpo-kit data --force` (in Python: `prepare_data(config, run)` with run.force=true).'
    """
    names = [f"`{FUNCTIONS[name]}`" for name in re.findall(r"`grpo-kit (\w+)", sentence) if name in FUNCTIONS]
    if not names:
        return sentence
    force = " with run.force=true" if "--force`" in sentence else ""
    return f"{sentence.removesuffix('.')} (in Python: {', then '.join(names)}{force})."


def drop_functions(message: str) -> str:
    """A message without what `name_functions` added, for a reader who types commands or runs cells."""
    return re.sub(r" \(in Python: (?:`[^`]*`|[^`)])*\)", "", message)


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


def format_change(change: float, digits: int = 1) -> str:
    """A change, or an end of its interval, with its sign. Only what is zero is written as zero, and that as +0.

    An end of +0.04 that is written as +0.0 would say that the change may be none.

    Args:
        change: in any unit, such as percentage points.
        digits: after the point; more where these would all be 0.

    Example:
        >>> [format_change(points) for points in (12.34, 0.04, -0.0003, -1e-17)]
        ['+12.3', '+0.04', '-0.0003', '+0.0']
        >>> [format_change(tokens, 0) for tokens in (1234.5, -0.3)]
        ['+1,234', '-0.3']
    """
    for precise in range(digits, DIGITS + 1):
        text = f"{change:+,.{precise}f}"
        if float(text.replace(",", "")):
            return text
    return f"{0:+.{digits}f}"


def format_count(count: int, noun: str) -> str:
    """A number of things, with the noun in its form for it.

    >>> format_count(1, "problem"), format_count(0, "problem")
    ('1 problem', '0 problems')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def show_controls(text: str) -> str:
    r"""`text` with every control character written as its code, so that a terminal does not obey it.

    >>> print(show_controls("\x1b[31mred\r\n\a"))
    \x1b[31mred
    \x07
    """
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))
