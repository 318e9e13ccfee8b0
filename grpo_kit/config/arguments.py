"""Arguments of the public functions: the short forms they accept, and one sentence for a value of the wrong type."""

import os
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

OneOrMore = str | Path | Iterable[str | Path]


def as_path(name: str, value: str | Path) -> Path:
    """A path that was given as text or as a path.

    Args:
        name: the argument's name, for the message.
        value: the path.

    Raises:
        TypeError: the value is neither.

    Example:
        >>> as_path("out", "submission.zip").suffix
        '.zip'
    """
    require_type(name, value, (str, os.PathLike), "a path", "Give it as text or as a pathlib.Path.")
    return Path(value)


def as_texts(name: str, value: OneOrMore, example: str) -> list[str]:
    """The items of a list of texts or paths, as texts; a single item counts as a list of one.

    Args:
        name: the argument's name, for the message.
        value: the list, or a single item.
        example: a list that would be right, as one writes it.

    Raises:
        TypeError: the value, or one of its items, is neither a text nor a path.

    Example:
        >>> as_texts("sources", "tiny", '["tiny"]')
        ['tiny']
    """
    is_list = isinstance(value, Iterable) and not isinstance(value, str | os.PathLike | Mapping)
    items = list(value) if is_list else [value]
    place = f"An item of {name}" if is_list else name
    for item in items:
        rule = "a text" if is_list else "a text or a list of texts"
        require_type(place, item, (str, os.PathLike), rule, f"Write {name}={example}.")
    return [os.fspath(item) for item in items]


def require_type(name: str, value: Any, types: type | tuple[type, ...], rule: str, remedy: str) -> None:
    """Raise TypeError unless a value has one of the types.

    Args:
        name: the argument's name.
        value: the argument.
        types: the types that it may have.
        rule: what it must be, such as "a path".
        remedy: a sentence that says what to write instead.
    """
    if not isinstance(value, types):
        plain = value is None or isinstance(value, str | bytes | int | float | list | tuple | dict)
        text = reprlib.repr(value) if plain else f"of type {type(value).__name__}"
        raise TypeError(f"{name} is {text}; it must be {rule}. {remedy}")
