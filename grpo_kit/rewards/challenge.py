r"""The Nemotron Model Reasoning Challenge's own scorer, as a reward: 1.0 where Kaggle would count
it, else 0.0.

Paste this file into a notebook cell as it is; it needs nothing but the standard library. It
restates the published metric (kernel metric/nvidia-nemotron-metric) in its three versions, quirks
included, so that a reward of 1.0 here is a point there:
  launch  the first days: a box ends at its first `}`; every gold is tried as a number
  v14     from 28 March 2026: golds made of 0 and 1 alone are compared as strings ("01" is not "1")
  v15     from May 2026, final: a box ends at the last `}` before the next box
Covered: extraction and comparison. Not covered, because the scorer has none: LaTeX, units, commas,
inner spaces, and the split at </think>; the whole completion is scanned, thinking that is closed or
not included. Write nothing with a `}` after the box: under v15 it joins it.
"""

import math
import re
from collections.abc import Sequence

VERSIONS = ("launch", "v14", "v15")
NOT_FOUND = "NOT_FOUND"
# In this order; of one phrase the last match counts. The answer may be on the line after the colon.
_PHRASES = [
    re.compile(phrase + r"\s*([^\n]+)", re.IGNORECASE)
    for phrase in ("The final answer is:", "Final answer is:", r"Final answer\s*[:：]")
]


def challenge_reward(completions: Sequence, answer: Sequence, version: str = "v15", **kwargs) -> list[float | None]:
    r"""1.0 where the challenge's scorer accepts the completion, 0.0 where not, None for an empty gold.

    Args:
        completions: texts or message lists; of several turns the last one of the assistant is scored, its thinking
            included.
        answer: the `answer` column of the challenge's train.csv, as strings (a reader that turns "00110100" into a
            number has lost the gold).
        version: one of VERSIONS, or a column of them.
        kwargs: other columns, which are ignored.

    Returns:
        One reward for each completion.

    Raises:
        ValueError: the lengths differ, or the version is unknown.

    Example:
        >>> challenge_reward([r"... </think> \boxed{17/}", r"\boxed{1}"], answer=["17/", "01"])
        [1.0, 0.0]
    """
    if len(completions) != len(answer):
        raise ValueError(
            f"challenge_reward got {len(completions)} completions and {len(answer)} answers; each "
            "completion needs its own gold. Pass the answer column repeated once per completion."
        )
    versions = [version] * len(answer) if isinstance(version, str) else version
    return [
        None if gold is None or not str(gold).strip() else challenge_score(gold, _join_contents(completion), chosen)
        for completion, gold, chosen in zip(completions, answer, versions, strict=True)
    ]


def challenge_score(gold: object, completion: str | None, version: str = "v15") -> float:
    """1.0 if the scorer of that version counts the completion as right, else 0.0.

    Raises ValueError for an unknown version.
    """
    if version not in VERSIONS:
        raise ValueError(f"version is {version!r}; the scorer has {', '.join(VERSIONS)}. Take the last.")
    told, gold = extract_answer(completion, version).strip(), str(gold).strip()
    if version != "launch" and re.fullmatch("[01]+", gold):
        return float(told.lower() == gold.lower())
    try:
        return float(math.isclose(float(gold), float(told), rel_tol=1e-2, abs_tol=1e-5))
    except (ValueError, OverflowError):
        return float(told.lower() == gold.lower())


def final_answer(completion: str | list | None, version: str = "v15", **kwargs) -> str | None:
    r"""What the scorer reads as the answer, in lower case, None for an empty completion: a vote.

    Where several reward files are pasted, the name means the last one's reader; `challenge_reward.final_answer` stays
    this one, and the rewards themselves call neither.

    >>> final_answer(r"\boxed{XLVII}")
    'xlvii'
    """
    told = extract_answer(_join_contents(completion), version).strip().lower()
    return None if told in ("", NOT_FOUND.lower()) else told


challenge_reward.final_answer = final_answer


def extract_answer(completion: str | None, version: str = "v15") -> str:
    r"""The text that the scorer reads as the answer; "NOT_FOUND" for an empty completion.

    >>> extract_answer(r"\boxed{7} then \boxed{}"), extract_answer("1,234")
    ('7', '234')
    """
    if completion is None:
        return NOT_FOUND
    if boxes := [box.strip() for box in _boxes(completion, version)]:
        return next((box for box in reversed(boxes) if box), "")
    for phrase in _PHRASES:
        if found := phrase.findall(completion):
            return found[-1].strip()
    if numbers := re.findall(r"-?\d+(?:\.\d+)?", completion):
        return numbers[-1]
    lines = [line.strip() for line in completion.splitlines() if line.strip()]
    return lines[-1] if lines else NOT_FOUND


def _boxes(text: str, version: str) -> list[str]:
    if version != "v15":
        return re.findall(r"\\boxed\{([^}]*)(?:\}|$)", text)
    segments = text.split(r"\boxed{")[1:]
    return [segment[: segment.rfind("}")] if "}" in segment else segment for segment in segments]


def _join_contents(completion: str | list | dict | None) -> str:
    """The last assistant turn as the model wrote it; thinking that TRL has taken off stands before </think> again."""
    if completion is None or isinstance(completion, str):
        return completion or ""
    turns = [completion] if isinstance(completion, dict) else completion
    turn = next((turn for turn in reversed(turns) if turn.get("role", "assistant") == "assistant"), {})
    content = turn.get("content") or ""
    if not isinstance(content, str):
        content = "".join(block if isinstance(block, str) else str(block.get("text") or "") for block in content)
    thinking = turn.get("reasoning_content", turn.get("thinking"))
    return content if thinking is None else f"{thinking}</think>{content}"
