r"""Multiple choice: 1.0 when the chosen option is the gold one, 0.0 when not, None when the gold
names no option.

Paste this file into a notebook cell as it is; it needs nothing but the standard library.

The choice is read after the last </think>: the last box, else the last "answer is X", else a reply
that is nothing but the choice. It may be a letter, "(C)", "C. the text", or the text of an option,
which needs the `options` column; a capital that labels an option means that option. Case never
decides: "b" and "B" are one letter, and an option is recognised by its text in any case; but two
options whose texts differ by case alone ("M" and "m") must be written exactly. Not covered: choices
of several options ("A and C" is no single choice and earns 0).
"""

import re
from collections.abc import Mapping, Sequence

_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{((?:[^{}]|\{[^{}]*\})*)(\})?")
_SAID = re.compile(r"(?i)\b(?:answer|choice|option)\b[ \t*_]{0,4}(?:is|:)[ \t*_:]{0,4}([^\n]{1,200})")
_WRAP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit)\s?\{([^{}]*)\}")
_LETTER = re.compile(r"\(?([A-Za-z])(?:\)[.:]?|[.:]|$)(.*)", re.DOTALL)


def choice_reward(
    completions: Sequence, answer: Sequence, options: Sequence | None = None, **kwargs
) -> list[float | None]:
    r"""1.0 for the gold option, 0.0 for another or none, None where the gold is not one of the
    options.

    completions: strings or message lists. answer: a letter ("C", "(C)") or the text of an option.
    options: for each question its option texts in the order A, B, C, or a mapping from letter to
    text; without it only letters count. Raises ValueError when the lengths differ.

    >>> options = [["x", "y"], ["Rome", "Paris"]]
    >>> choice_reward([r"\boxed{B}", r"\boxed{\text{Paris}}"], ["(b)", "B"], options)
    [1.0, 1.0]
    """
    listed = [None] * len(answer) if options is None else options
    if not len(completions) == len(answer) == len(listed):
        raise ValueError(
            f"choice_reward got {len(completions)} completions, {len(answer)} answers and "
            f"{len(listed)} option lists; each completion needs its own. Pass the dataset's "
            "columns repeated once per completion."
        )
    rewards: list[float | None] = []
    for completion, gold, texts in zip(completions, answer, listed):
        table = _table(texts)
        wanted = _option(str(gold or ""), table)
        told = _option(_choice(_text(completion)), table)
        rewards.append(None if wanted is None else float(wanted == told))
    return rewards


def final_answer(completion: str | list, options: Sequence | None = None, **kwargs) -> str | None:
    r"""The letter of the option that a reply chooses, None if none: a vote.

    >>> final_answer(r"\boxed{\text{Paris}}", options=["Rome", "Paris"])
    'B'
    """
    return _option(_choice(_text(completion)), _table(options))


def _choice(text: str) -> str:
    """What the reply commits to, "" if nothing; an unclosed thinking or box commits to nothing."""
    close = text.rfind("</think>")
    if text.rfind("<think>") > close:
        return ""
    text = text[close + len("</think>") :] if close >= 0 else text
    if "\\boxed" in text or "\\fbox" in text:
        start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
        box = _BOX.match(text, start)
        return box[1] if box and box[2] else ""
    said = _SAID.findall(text)
    return said[-1] if said else text[:500]


def _option(text: str, table: dict[str, str]) -> str | None:
    """The letter of the option that a text names, None if it names none."""
    text = _WRAP.sub(r"\1", text).replace("$", "").strip(" \t\n*_.")
    if text in table:
        return text
    exact = [letter for letter, option in table.items() if option == text]
    loose = [letter for letter, option in table.items() if option.casefold() == text.casefold()]
    for found in (exact, loose):
        if len(found) == 1:
            return found[0]
    named = _LETTER.match(text)
    if not named:
        return None
    letter, rest = named[1].upper(), named[2].strip(" .")
    if table and (letter not in table or (rest and rest.casefold() != table[letter].casefold())):
        return None  # the letter of one option with the text of another is no choice
    return letter


def _table(options: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    if not options:
        return {}
    pairs = options.items() if isinstance(options, Mapping) else zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", options)
    return {str(letter).upper(): str(text).strip(" .") for letter, text in pairs}


def _text(completion: str | list) -> str:
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)
