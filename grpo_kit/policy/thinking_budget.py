r"""A budget of thinking that is kept by force: a thought of so many tokens is closed, and the answer is sampled.

The client of Nemotron's model card does the same with two requests. Here the tokens that close a thought are put into
the reply while it is sampled: a row whose first N tokens have no </think> gets, from there on, what the chat template
writes between a thought and an answer, `\n</think>\n`. These forced tokens are no choice of the policy: the sampler
gives them the log-probability 0, and training leaves them out of the loss. Which tokens were forced can be seen in the
reply itself (`find_forced`), so nothing needs to be remembered.

The line break before </think> is not counted, neither here nor in `rewards/token_budget.py`: a thought of N tokens is
one that the template writes as N tokens between `<think>\n` and `\n</think>`. Where the policy has just written a line
break of its own, none is added. So the reply of a policy that ends its thought within its budget stays as it is.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor

from grpo_kit.config.checks import require

TAGS = ("<think>", "</think>")
NEVER = 2**62  # a step that no reply reaches


class Closing(NamedTuple):
    """How a thought ends, in token ids: `ids` from its last token to the answer, with the tags' own ids."""

    ids: list[int]
    start_tag: int
    end_tag: int

    @property
    def line_break(self) -> int:
        """Tokens of `ids` before </think>."""
        return self.ids.index(self.end_tag)

    def cut(self, turn: Sequence[int], budget: int) -> list[int]:
        """What a turn must go on with behind its first `budget` tokens; [] if it has not so many, or has closed."""
        if len(turn) < budget or self.end_tag in turn[:budget]:
            return []
        count = self.line_break
        return self.ids[count if count and list(turn[max(0, budget - count) : budget]) == self.ids[:count] else 0 :]


class Limits(NamedTuple):
    """The budgets of a batch: how a thought is closed, and for each row its tokens of thinking, None for no budget."""

    closing: Closing
    budgets: list[int | None]


def find_closing(tokenizer: Any) -> Closing | None:
    """How the tokenizer's chat template closes a thought; None where it opens none in the prompt, or closes it else."""
    turns = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "reasoning_content": "THOUGHT", "content": "REPLY"},
    ]
    render = functools.partial(tokenizer.apply_chat_template, tokenize=False, enable_thinking=True)
    text, prompt = render(turns), render(turns[:1], add_generation_prompt=True)
    between = re.search(r"THOUGHT(\s*</think>\s*)REPLY", text)
    start_tag, end_tag = (tokenizer.get_vocab().get(tag) for tag in TAGS)
    ids = tokenizer.encode(between[1], add_special_tokens=False) if between else []
    opens = prompt.rfind(TAGS[0]) > prompt.rfind(TAGS[1])
    return Closing(ids, start_tag, end_tag) if opens and start_tag is not None and ids.count(end_tag) == 1 else None


def read_closing(tokenizer: Any) -> Closing:
    """`find_closing`, or ValueError where a thought cannot be cut."""
    closing = find_closing(tokenizer)
    require(
        closing is not None,
        "A budget of thinking closes a thought that the prompt has opened, and this policy's chat template does not "
        "open <think> in the prompt and close it with </think>, each a token of its own. Leave policy.thinking_budget "
        "out, or take a policy whose template does.",
    )
    return closing


def make_limits(
    tokenizer: Any, prompt_ids: Sequence[Sequence[int]], budgets: Iterable[int | None] | None
) -> Limits | None:
    """The limits of the rows whose prompts end in an open thought; None where no row has one.

    Args:
        tokenizer: the policy's.
        prompt_ids: token ids of each row's prompt, with the turns before where there are such.
        budgets: tokens of thinking of each row, at least 1, None for a row without a budget; None: none has one.

    Raises:
        ValueError: as `read_closing`.
    """
    budgets = list(budgets or ())
    if not any(budgets):
        return None
    closing = read_closing(tokenizer)
    own = [b if is_open(closing, ids) else None for b, ids in zip(budgets, prompt_ids, strict=True)]
    return Limits(closing, own) if any(own) else None


def require_room(tokenizer: Any, budgets: Iterable[int | None], limit: int, name: str) -> None:
    """Raise ValueError where a cut thought leaves no token for the answer.

    Args:
        tokenizer: the policy's.
        budgets: tokens of thinking, or None for no budget.
        limit: the largest number of tokens of a completion.
        name: of the setting that limits it.
    """
    most = max(filter(None, budgets), default=0)
    if most and most + len(read_closing(tokenizer).ids) >= limit:
        raise ValueError(
            f"The budget of thinking is {most} tokens and {name} is {limit}; closing a thought takes "
            f"{len(read_closing(tokenizer).ids)} more, which leaves none for the answer. Set {name} higher, or "
            "policy.thinking_budget lower."
        )


def forced_token(closing: Closing, drawn: Sequence[int], budget: int | None) -> int | None:
    """The token that must come next in a reply; None where the policy chooses.

    Args:
        closing: how a thought is closed.
        drawn: the reply so far, behind a prompt that has opened a thought.
        budget: tokens of thinking; None for no budget.
    """
    if budget is None or not budget <= len(drawn) < budget + len(closing.ids):
        return None
    return dict(enumerate(closing.cut(drawn, budget), budget)).get(len(drawn))


def find_forced(
    closing: Closing, prompt_ids: Sequence[int], reply: Sequence[int], budget: int | None, own: Sequence[int] = ()
) -> list[bool]:
    """Which tokens of a reply the policy did not choose, because its thought was cut.

    Args:
        closing: how a thought is closed.
        prompt_ids: the prompt.
        reply: what stands behind it, of several turns with what stands between them.
        budget: tokens of thinking in each turn; None for no budget.
        own: of each token of the reply whether it belongs to a turn of the policy; () for one turn.

    Example:
        >>> closing = Closing([5, 13, 5], start_tag=12, end_tag=13)
        >>> find_forced(closing, [1, 12, 5], [7, 7, 5, 13, 5, 8], budget=2)
        [False, False, True, True, True, False]
    """
    forced, start = [False] * len(reply), 0
    while budget is not None and start < len(reply):
        end = start
        while end < len(reply) and (not own or own[end]):
            end += 1
        count = len(closing.cut(reply[start:end], budget))
        if count and is_open(closing, [*prompt_ids, *reply[:start]]):
            last = min(end, start + budget + count)
            forced[start + budget : last] = [True] * (last - start - budget)
        start = end + 1
    return forced


def count_thinking(closing: Closing, reply: Sequence[int], opened: bool) -> int:
    """Tokens of thinking in a reply, as `rewards/token_budget.py` counts them; a thought that never ends counts whole.

    Args:
        closing: how a thought is closed.
        reply: token ids.
        opened: whether the prompt ends in an open thought.

    Example:
        >>> count_thinking(Closing([5, 13, 5], start_tag=12, end_tag=13), [7, 7, 5, 13, 5, 8], True)
        2
    """
    start, closed, tokens = -1 if opened else None, None, 0
    for place, token in enumerate(reply):
        if token == closing.end_tag:
            start, closed = -1 if start is None else start, place
        elif token == closing.start_tag and (start is None or closed is not None):
            tokens += 0 if closed is None else max(0, closed - start - 1 - closing.line_break)
            start, closed = place, None
    if start is None:
        return tokens
    return tokens + max(0, len(reply) - start - 1 if closed is None else closed - start - 1 - closing.line_break)


class CutThoughts(LogitsProcessor):
    """Closes the thoughts of rows that have used up their budgets. Good for one call of `generate`.

    It computes at the few steps at which a token may be forced and nothing at others, and copies nothing from the GPU.
    A forced token takes the row's place among the random numbers as any other, so the other rows draw what they would.

    Args:
        limits: of the rows of the batch.
    """

    def __init__(self, limits: Limits) -> None:
        self.closing, self.width = limits.closing, None
        self.budgets = torch.tensor([NEVER if budget is None else budget for budget in limits.budgets])
        self.ids, length = torch.tensor(limits.closing.ids), len(limits.closing.ids)
        self.steps = {budget + step for budget in limits.budgets if budget is not None for step in range(length)}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores, (rows, vocabulary), in which a forced token has 0 and every other one minus infinity."""
        if self.width is None:
            self.width, self.budgets, self.ids = (
                input_ids.shape[1],
                *(value.to(scores.device) for value in (self.budgets, self.ids)),
            )
        step = input_ids.shape[1] - self.width
        if step not in self.steps:
            return scores
        is_within = torch.arange(step, device=scores.device) < self.budgets[:, None]
        closed = ((input_ids[:, self.width :] == self.closing.end_tag) & is_within).any(1)
        place = step - self.budgets + self._line_breaks(input_ids)
        forced = (self.budgets <= step) & (place < len(self.ids)) & ~closed
        tokens = self.ids[place.clamp(0, len(self.ids) - 1)]
        own = torch.where(forced, 0.0, scores.gather(1, tokens[:, None])[:, 0])
        return scores.masked_fill(forced[:, None], -torch.inf).scatter_(1, tokens[:, None], own[:, None])

    def _line_breaks(self, input_ids: torch.Tensor) -> torch.Tensor | int:
        """(rows,) the tokens of the line break where a row has one at the end of its budget already, else 0."""
        if not (count := self.closing.line_break):
            return 0
        places = self.budgets[:, None] + torch.arange(-count, 0, device=input_ids.device)
        last = input_ids.gather(1, (self.width + places).clamp(0, input_ids.shape[1] - 1))
        return count * ((last == self.ids[:count]) & (places >= 0)).all(1)


def is_open(closing: Closing, prompt_ids: Sequence[int]) -> bool:
    """Whether a thought is open at the end of a prompt."""
    tags = [token for token in prompt_ids if token in (closing.start_tag, closing.end_tag)]
    return tags[-1:] == [closing.start_tag]
