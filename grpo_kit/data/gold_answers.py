r"""Reference answers (golds): taken out of a worked solution, written without delimiters, and compared by a verifier."""

import re
from collections.abc import Callable, Iterable, Sequence

Reward = Callable[..., list[float | None]]


def extract_gold(answer: str) -> str:
    """The final answer in an answer column: what follows the last line-opening `#### ` (GSM8K's mark), else all of it.

    >>> extract_gold("48/2 = <<48/2=24>>24\\n#### 1,072")
    '1,072'
    """
    marked = re.findall(r"^#### (.+)$", answer, flags=re.MULTILINE)
    return (marked[-1] if marked else answer).strip()


def extract_last_box(solution: str) -> str:
    r"""What the last `\boxed{}` (or `\fbox{}`) of a worked solution holds; "" without one that is closed.

    >>> extract_last_box(r"so \boxed{1}, no: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    opened: list[int | None] = []  # where the content of each open box begins; None for any other brace
    last, found = -1, ""
    for mark in re.finditer(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", solution, re.S):
        if mark.group().endswith("{") and mark.group() != "\\{":
            opened.append(mark.end() if len(mark.group()) > 1 else None)
        elif mark.group() == "}" and opened:
            begin = opened.pop()
            if begin is not None and begin > last:
                last, found = begin, solution[begin : mark.start()]
    return found.strip()


def strip_delimiters(gold: str) -> str:
    r"""A gold without the dollar signs or `\( \)` around it, as NeMo-RL wants it (it boxes what it is given).

    >>> strip_delimiters(r"$\frac{1}{2}$"), strip_delimiters(r"\(x\)"), strip_delimiters("$5")
    ('\\frac{1}{2}', 'x', '$5')
    """
    found = re.fullmatch(r"\$([^$]+)\$|\\\(((?:(?!\\\)).)+)\\\)|\$\$([^$]+)\$\$", gold, re.S)
    return next(part for part in found.groups() if part).strip() if found else gold


def find_unusable_golds(golds: Iterable[str], verifier: Reward) -> set[str]:
    r"""The golds for which `verifier` pays a reply that boxes the very gold not 1.0: None (it cannot use them) or less."""
    different = list(dict.fromkeys(golds))
    paid = _judged(different, different, verifier)
    return {gold for gold, reward in zip(different, paid, strict=True) if reward != 1.0}


def make_gold_comparison(verifier: Reward | None) -> Callable[[str, str], bool]:
    """Whether two golds are one answer: spelled alike, or accepted for each other by the run's verifier."""

    def same(one: str, other: str) -> bool:
        if "".join(one.split()).casefold() == "".join(other.split()).casefold():
            return True
        return verifier is not None and 1.0 in _judged([one, other], [other, one], verifier)

    return same


def _judged(replies: Sequence[str], golds: Sequence[str], verifier: Reward) -> list[float | None]:
    """What the verifier, called as TRL calls a reward, pays replies that are nothing but a box."""
    boxed = [f"\\boxed{{{reply}}}" for reply in replies]
    return verifier(prompts=[""] * len(boxed), completions=boxed, answer=list(golds))
