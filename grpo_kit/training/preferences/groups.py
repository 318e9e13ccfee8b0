"""The judged completions of a run, group by group: what is right, what is wrong, what calls a tool that nobody offered.

Only GRPO keeps its completions with their rewards (`completions.jsonl`). They are of training rows, so no held-out row
comes in. `screening.jsonl` keeps how many were right, not what they said.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from grpo_kit.config import MATH
from grpo_kit.environments.worlds.loading import Worlds
from grpo_kit.policy.chat import Messages, completion_text
from grpo_kit.policy.tool_calls import declares_tools, has_call
from grpo_kit.rewards.tools.verdicts import is_right
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run
from grpo_kit.training.sft.right_completions import find_verifiers

CUT, TOOLS, UNKNOWN, AMBIGUOUS = (
    "cut at the longest length",
    "the row declares tools",
    "not of a training row",
    "of several training rows",
)
RIGHT, WRONG, CALL = "right", "wrong", "call"


class Reply(NamedTuple):
    """A judged completion.

    Attributes:
        text: as the policy wrote it, without the token that ends it.
        verdict: RIGHT, WRONG, or CALL for one that calls a tool, right or not.
        tokens: its length, the token that ends it included.
    """

    text: str
    verdict: str
    tokens: int


class Group(NamedTuple):
    """The different replies that one step of GRPO drew for a training row, in their order."""

    row: dict[str, Any]
    step: int
    replies: list[Reply]

    @property
    def chosen(self) -> list[Reply]:
        """Those that a pair may prefer."""
        return [reply for reply in self.replies if reply.verdict == RIGHT]

    @property
    def rejected(self) -> list[Reply]:
        """Those that a pair may reject."""
        return [reply for reply in self.replies if reply.verdict != RIGHT]


def read_groups(run: Run, worlds: Worlds, count_tokens: Callable[[str], int]) -> tuple[list[Group], dict[str, int]]:
    """Read the groups of a trained run.

    A completion that was cut at the longest length has no end that could be learned, so it is left out, and so are one
    that the verifier could not judge and one of a row that declares tools.

    Args:
        run: a run that GRPO has trained.
        worlds: of the run; the rows of an environment with a world declare its tools.
        count_tokens: the length of a completion's text in tokens.

    Returns:
        The groups in the order in which they were drawn, and how many completions were left out, by reason.

    Raises:
        FileNotFoundError: the run has no completions.
        ValueError: a file is damaged.
    """
    rows = _rows_by_question(run)
    verifiers, lengths = find_verifiers(run), _lengths_of(run)
    groups: dict[tuple[int, str, str], Group] = {}
    left_out: Counter[str] = Counter()
    for line in read_lines(run.completions):
        question = _question(line["prompt"], line["answer"])
        own = rows.get(question, [])
        if len(own) != 1:
            left_out[AMBIGUOUS if own else UNKNOWN] += 1
        elif line.get("turns") or declares_tools(own[0]["prompt"], worlds.tools_of(own[0])):
            left_out[TOOLS] += 1
        else:
            text, paid = line["completion"], line["rewards"].get(verifiers[line.get("environment", MATH)])
            tokens = count_tokens(text)
            calls = has_call(text)
            if tokens in lengths or tokens > max(lengths):
                left_out[CUT] += 1
            elif paid is None and not calls:
                left_out["not judged"] += 1
            else:
                group = groups.setdefault((line["step"], *question), Group(own[0], line["step"], []))
                if all(text != reply.text for reply in group.replies):
                    verdict = CALL if calls else RIGHT if is_right(paid) else WRONG
                    group.replies.append(Reply(text, verdict, tokens + 1))
    return list(groups.values()), dict(left_out)


def _lengths_of(run: Run) -> set[int]:
    """The lengths in tokens at which GRPO cut completions."""
    grpo = run.stages()["train"]["settings"]["grpo"]
    return {stage["max_completion_length"] for stage in grpo["stages"] or [grpo]}


def _rows_by_question(run: Run) -> dict[tuple[str, str], list[dict[str, Any]]]:
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in read_lines(run.data_file("train")):
        rows.setdefault(_question(_last_text(row["prompt"]), row.get("answer")), []).append(row)
    return rows


def _last_text(prompt: Messages) -> str:
    return completion_text(prompt[-1:])


def _question(text: str, answer: Any) -> tuple[str, str]:
    return text, str(answer)
