"""Splits the text of a notebook's form field into settings, as a shell splits a command line, and joins them."""

import re
from collections.abc import Sequence
from contextlib import suppress

# A quoted text; a bracket; a gap: spaces, or a comma before the next setting; a stretch of anything else.
PIECE = re.compile(
    r""" "(?:\\.|[^"\\])*" | '(?:[^']|'')*' | [\[\](){}] | (?P<gap>\s+|,(?=\w+\.[\w.]+=)) | [^\s\[\](){}"',]+ | . """,
    re.VERBOSE | re.DOTALL,
)
CLOSING = {"[": "]", "(": ")", "{": "}"}


def split_settings(text: str) -> list[str]:
    """The settings in a form field, which are separated by spaces, line ends or commas.

    Spaces and commas between quotes or brackets belong to the value. Quotes stay, because they make a value a text in
    YAML; only those around a whole setting, which a shell would need, are taken away.

    Args:
        text: such as `grpo.max_steps=2 data.system_prompt="Be brief" grpo.reward_weights=[1.0, 0.1]`.

    Raises:
        ValueError: a quote or a bracket is not closed, or a word is not `key=value`.

    Example:
        >>> split_settings('grpo.max_steps=2, data.system_prompt="Be brief, please" lora.r=[8, 16]')
        ['grpo.max_steps=2', 'data.system_prompt="Be brief, please"', 'lora.r=[8, 16]']
    """
    words, word, is_open = [], "", []
    for match in PIECE.finditer(text):
        piece = match[0]
        if piece in CLOSING:
            is_open.append(CLOSING[piece])
        elif is_open and piece == is_open[-1]:
            is_open.pop()
        elif piece in CLOSING.values() or (piece in ('"', "'") and not re.search(r"\w$", word)):
            raise ValueError(f"{piece!r} in {text!r} has no counterpart. Close every quotation mark and bracket.")
        if match["gap"] and not is_open:
            words.append(word)
            word = ""
        else:
            word += piece
    if is_open:
        raise ValueError(f"{is_open[-1]!r} is missing in {text!r}. Close every quotation mark and bracket.")
    words = [_without_shell_quotes(word.strip(",")) for word in [*words, word] if word.strip(",")]
    for before, word in zip(["", *words], words):
        if not re.match(r"[\w.]+=", word):
            remedy = "Write each setting as key=value, such as grpo.max_steps=2, without spaces around the equals sign"
            if "=" in before:
                key, _, value = before.partition("=")
                remedy = f'Put a value with spaces into quotes: {key}="{value} {word}"'
            raise ValueError(f"{word!r} is not a setting. {remedy}.")
    return words


def _without_shell_quotes(word: str) -> str:
    """`word` without the quotes around it, if they enclose a whole setting: 'data.system_prompt=Be brief'."""
    quoted = re.fullmatch(r"""(["'])([\w.]+=.*)\1""", word, re.S)
    return quoted[2] if quoted else word


def join_settings(words: Sequence[str]) -> str:
    """The text of a form field that `split_settings` splits into these settings.

    Raises:
        ValueError: a setting has a space, and both kinds of quotation marks elsewhere.

    Example:
        >>> join_settings(["data.system_prompt=Be brief", "lora.r=8"])
        "'data.system_prompt=Be brief' lora.r=8"
    """
    return " ".join(map(_with_shell_quotes, words))


def _with_shell_quotes(word: str) -> str:
    for text in (word, f"'{word}'", f'"{word}"'):
        with suppress(ValueError):
            if split_settings(text) == [word]:
                return text
    raise ValueError(f"{word!r} cannot be written into a form field. Use one kind of quotation marks in it.")
