"""Pairs of a preferred and a rejected reply to one prompt, chosen so that their lengths say nothing.

DPO that prefers the shorter reply of most pairs teaches brevity before anything else. So the lengths are balanced:

1. The latest group of a prompt comes first, because its policy is nearest to the one that will be trained.
2. Prompts are visited from the one whose possible pairs differ least in length to the one where they differ most. From
   each the pair is taken that brings the sum of all differences (chosen less rejected, in tokens) nearest to zero.
   Within a prompt no reply is used twice, and a reply with a call is rejected before one that is only wrong.
3. If the chosen replies are still shorter on average, the pairs in which they are shorter by most are left out. Where
   more than half of all pairs would have to go, all stay: a call makes a reply longer, and that is no fault of its own.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from grpo_kit.evaluation.changes import length_difference_interval
from grpo_kit.policy.chat import Messages
from grpo_kit.runs.files import to_json
from grpo_kit.runs.texts import format_change
from grpo_kit.training.preferences.groups import CALL, Group, Reply


class Pair(NamedTuple):
    """A line of `pairs.jsonl`.

    Attributes:
        id: of the training row, or the place in the user's file.
        kind: why one is rejected: `wrong`, `call` (a tool that nobody offered), or `own` in a file of the user's.
        prompt: the conversation.
        chosen: the preferred completion as the policy writes it, without the token that ends it.
        rejected: the other one.
        chosen_tokens: its length, the token that ends it included.
        rejected_tokens: the length of the other one.
        enable_thinking: the row's own setting; None where it has none.
        tools: what the prompt declares, as JSON schemas; None where it declares none.
        step: of GRPO, at which the policy wrote both; None in a file of the user's.
        rejected_ends: False for a rejected completion that was cut within its thought; no token that ends it follows.
    """

    id: str
    kind: str
    prompt: Messages
    chosen: str
    rejected: str
    chosen_tokens: int
    rejected_tokens: int
    enable_thinking: bool | None = None
    tools: list[dict[str, Any]] | None = None
    step: int | None = None
    rejected_ends: bool = True

    @property
    def difference(self) -> int:
        """Tokens by which the chosen completion is longer."""
        return self.chosen_tokens - self.rejected_tokens

    @property
    def asks(self) -> str:
        """What tells its prompt from others: the turns and the declared tools."""
        return to_json([self.prompt, self.tools])


def make_pairs(groups: Iterable[Group], pairs_per_prompt: int) -> tuple[list[Pair], int]:
    """Make balanced pairs, at most `pairs_per_prompt` of each row.

    Args:
        groups: judged completions, in the order in which they were drawn.
        pairs_per_prompt: at least 1.

    Returns:
        The pairs in the order of the rows' last groups, and how many more were left out to balance the lengths.

    Example:
        >>> right, wrong = Reply("a", "right", 9), Reply("b", "wrong", 4)
        >>> make_pairs([Group({"id": "1", "prompt": []}, 7, [right, wrong])], 1)[0][0].difference
        5
    """
    by_row: dict[str, list[Group]] = {}
    for group in groups:
        if group.chosen and group.rejected:
            by_row.setdefault(group.row["id"], []).insert(0, group)
    pairs: list[Pair] = []
    total = 0
    for own in sorted(by_row.values(), key=_spread):
        taken: set[str] = set()
        for group in own:
            while len(taken) < 2 * pairs_per_prompt:
                pair = _nearest_pair(group, total, taken)
                if pair is None:
                    break
                pairs.append(pair)
                total += pair.difference
                taken |= {pair.chosen, pair.rejected}
    place = {name: number for number, name in enumerate(by_row)}
    pairs.sort(key=lambda pair: place[pair.id])
    return _leave_out_shorter(pairs)


def _spread(groups: list[Group]) -> int:
    differences = [_difference(chosen, rejected) for each in groups for chosen, rejected in _combine(each)]
    return max(differences) - min(differences)


def _combine(group: Group) -> list[tuple[Reply, Reply]]:
    return [(chosen, rejected) for chosen in group.chosen for rejected in group.rejected]


def _difference(chosen: Reply, rejected: Reply) -> int:
    return chosen.tokens - rejected.tokens


def _nearest_pair(group: Group, total: int, taken: set[str]) -> Pair | None:
    """The pair of unused replies that brings `total` nearest to zero; those with a call go first."""
    free = [pair for pair in _combine(group) if not taken & {reply.text for reply in pair}]
    with_call = [pair for pair in free if pair[1].verdict == CALL]
    if not free:
        return None
    chosen, rejected = min(with_call or free, key=lambda pair: abs(total + _difference(*pair)))
    row = group.row
    return Pair(
        id=row["id"],
        kind=rejected.verdict,
        prompt=row["prompt"],
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_tokens=chosen.tokens,
        rejected_tokens=rejected.tokens,
        enable_thinking=row.get("enable_thinking"),
        step=group.step,
    )


def _leave_out_shorter(pairs: list[Pair]) -> tuple[list[Pair], int]:
    total = sum(pair.difference for pair in pairs)
    left_out: set[int] = set()
    for number in sorted(range(len(pairs)), key=lambda number: pairs[number].difference):
        if total >= 0:
            break
        total -= pairs[number].difference
        left_out.add(number)
    if 2 * len(left_out) > len(pairs):
        return pairs, 0
    return [pair for number, pair in enumerate(pairs) if number not in left_out], len(left_out)


def summarise_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
    """How many pairs there are of each kind and of how many prompts, and how their lengths differ.

    Args:
        pairs: at least one.

    Returns:
        `pairs`, `prompts`, `kinds` (pairs by kind), `steps` of GRPO (first and last; none where the pairs are the
        user's), `chosen_tokens` and `rejected_tokens` (means), `difference` of the two means with its 95 % interval
        `difference_ci95`.
    """
    chosen, rejected = ([getattr(pair, key) for pair in pairs] for key in ("chosen_tokens", "rejected_tokens"))
    means = [sum(lengths) / len(pairs) for lengths in (chosen, rejected)]
    steps = [pair.step for pair in pairs if pair.step is not None]
    return {
        "pairs": len(pairs),
        "prompts": len({pair.asks for pair in pairs}),
        "kinds": dict(sorted(Counter(pair.kind for pair in pairs).items())),
        "steps": [min(steps), max(steps)] if steps else [],
        "chosen_tokens": means[0],
        "rejected_tokens": means[1],
        "difference": means[0] - means[1],
        "difference_ci95": list(length_difference_interval(rejected, chosen)),
    }


def describe_pairs(summary: dict[str, Any]) -> str:
    """The summary in sentences, with what DPO would learn from lengths that differ."""
    words = {"wrong": "over a wrong reply", "call": "over a call that nobody offered", "own": "of your own"}
    kinds = ", ".join(f"{count} {words[kind]}" for kind, count in summary["kinds"].items())
    change, (low, high) = format_change(summary["difference"]), summary["difference_ci95"]
    drawn = ", written at steps {} to {} of GRPO".format(*summary["steps"]) if summary["steps"] else ""
    text = (
        f"{summary['pairs']} pairs of {summary['prompts']} prompts ({kinds}){drawn}. Chosen replies have "
        f"{summary['chosen_tokens']:.1f} tokens on average, rejected ones {summary['rejected_tokens']:.1f}: "
        f"{change} (95 % {format_change(low)} to {format_change(high)})."
    )
    if high < 0:
        text += " The chosen are shorter, so DPO will also teach brevity."
    if low > 0:
        text += " The chosen are longer, so DPO will also teach length."
    return text
