r"""Golds (reference answers): extracted from solutions, stripped of delimiters, and compared by the verifier."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from grpo_kit.rewards.tools.calling import call_reward

Verifier = Callable[..., list[float | None]]  # a reward function, called as TRL calls one


def extract_gold(answer: str) -> str:
    r"""Take the final answer out of an answer column.

    Args:
        answer: an answer, or a worked solution that ends in GSM8K's mark (a line `#### 42`).

    Returns:
        What follows the last `#### ` at the beginning of a line; without one, the whole text. Stripped.

    Example:
        >>> extract_gold("48/2 = <<48/2=24>>24\n#### 1,072")
        '1,072'
    """
    marked = re.findall(r"^#### (.+)$", answer, flags=re.MULTILINE)
    return (marked[-1] if marked else answer).strip()


def extract_last_box(solution: str) -> str:
    r"""Take the content of the last `\boxed{}` or `\fbox{}` out of a worked solution.

    Args:
        solution: LaTeX of any length; the time grows with the length only.

    Returns:
        The content, stripped; "" where no box is closed.

    Example:
        >>> extract_last_box(r"so \boxed{1}, no: \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
    """
    open_braces: list[int | None] = []  # where the content of each open box begins; None for any other brace
    last_begin, content = -1, ""
    for mark in re.finditer(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", solution, re.S):
        if mark.group().endswith("{") and mark.group() != "\\{":
            open_braces.append(mark.end() if len(mark.group()) > 1 else None)
        elif mark.group() == "}" and open_braces:
            begin = open_braces.pop()
            if begin is not None and begin > last_begin:
                last_begin, content = begin, solution[begin : mark.start()]
    return content.strip()


def extract_worked_gold(text: str) -> str:
    r"""Take the final answer out of a worked solution or of a reply.

    Args:
        text: the solution.

    Returns:
        The content of the last box; else what follows the last `#### `; else the text itself if it is one word, number
        or formula without a space; else "".

    Example:
        >>> extract_worked_gold(r"so \boxed{7}"), extract_worked_gold("7"), extract_worked_gold("It is 7.")
        ('7', '7', '')
    """
    if gold := extract_last_box(text):
        return gold
    gold = extract_gold(text)
    return gold if gold != text.strip() or len(gold.split()) == 1 else ""


def strip_delimiters(gold: str) -> str:
    r"""Remove the `$ $`, `$$ $$` or `\( \)` around a gold. NeMo-RL needs golds so, because it boxes them itself.

    Args:
        gold: a gold as the source has it.

    Returns:
        What the delimiters enclose; the gold itself where they do not enclose all of it.

    Example:
        >>> strip_delimiters(r"$\frac{1}{2}$"), strip_delimiters(r"\(x\)"), strip_delimiters("$5")
        ('\\frac{1}{2}', 'x', '$5')
    """
    match = re.fullmatch(r"\$([^$]+)\$|\\\(((?:(?!\\\)).)+)\\\)|\$\$([^$]+)\$\$", gold, re.S)
    return next(part for part in match.groups() if part).strip() if match else gold


def find_unusable_golds(golds: Iterable[str], verifier: Verifier) -> set[str]:
    r"""Find the golds that the verifier does not accept even as their own answer.

    Args:
        golds: golds, which may repeat.
        verifier: the reward function that judges replies.

    Returns:
        The golds g for which the reply `\boxed{g}` is not paid 1.0: training on them would reward nothing.
    """
    distinct = list(dict.fromkeys(golds))
    rewards = _judge_boxed(distinct, distinct, verifier)
    return {gold for gold, reward in zip(distinct, rewards, strict=True) if reward != 1.0}


def find_unusable_tasks(
    tasks: Sequence[tuple[Sequence[dict[str, str]], Mapping[str, Any]]], reward: Verifier
) -> list[int]:
    """Find the tasks beside math that their reward does not judge, whatever the reply is.

    Args:
        tasks: the messages and the reward's columns of each task.
        reward: the environment's verifier.

    Returns:
        The places of the tasks for which the reward is None.
    """
    if not tasks:
        return []
    names = dict.fromkeys(name for _, columns in tasks for name in columns)
    paid = call_reward(
        reward,
        prompts=[list(prompt) for prompt, _ in tasks],
        completions=[[{"role": "assistant", "content": "?"}] for _ in tasks],
        **{name: [columns.get(name) for _, columns in tasks] for name in names},
    )
    return [place for place, value in enumerate(paid) if value is None]


def make_gold_comparison(verifier: Verifier) -> Callable[[str, str], bool]:
    """Make the function that decides whether two golds are the same answer.

    Args:
        verifier: accepts one gold as an answer to the other.

    Returns:
        A function of two golds. Case and white space never make a difference.

    Example:
        >>> pays_nothing = lambda completions, **columns: [0.0] * len(completions)
        >>> make_gold_comparison(pays_nothing)(" A b", "ab ")
        True
    """

    def is_same(first: str, second: str) -> bool:
        if "".join(first.split()).casefold() == "".join(second.split()).casefold():
            return True
        return 1.0 in _judge_boxed([first, second], [second, first], verifier)

    return is_same


def _judge_boxed(answers: Sequence[str], golds: Sequence[str], verifier: Verifier) -> list[float | None]:
    """What the verifier pays for replies that consist of a box."""
    replies = [[{"role": "assistant", "content": f"\\boxed{{{answer}}}"}] for answer in answers]
    prompts = [[{"role": "user", "content": ""}] for _ in replies]
    return call_reward(verifier, prompts=prompts, completions=replies, answer=list(golds))
