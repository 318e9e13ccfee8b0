"""Figures of a step by mode of thinking: on, off, and each budget that rows state."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from grpo_kit.policy import thinking_budget
from grpo_kit.runs import processes

Row = dict[str, Any]


def mode_of(row: Row) -> str:
    """The mode of a training row: `off` where the prompt opens no thought, the budget that it states, or else `on`."""
    if not row["prompt_opened_think"]:
        return "off"
    budget = row.get("token_budget")
    return str(budget) if type(budget) is int else "on"


class Modes:
    """The modes of a training, where it has several or cuts thoughts.

    Args:
        tokenizer: the policy's.
        rows: the training rows, as `training_rows` makes them.
        cuts_thoughts: whether thoughts are closed by force.
    """

    def __init__(self, tokenizer: Any, rows: Sequence[Row], cuts_thoughts: bool) -> None:
        self.rows, self.cuts_thoughts = rows, cuts_thoughts
        several = len(set(map(mode_of, rows))) > 1
        self.closing = thinking_budget.find_closing(tokenizer) if several or cuts_thoughts else None

    def figures(
        self,
        prompts: Sequence[int],
        num_generations: int,
        completion_ids: Sequence[Sequence[int]],
        passed: torch.Tensor,
        judged: torch.Tensor,
        budget_of: Callable[[Row], int | None],
    ) -> dict[str, float]:
        """The figures of a batch, as `modes/NAME/figure`.

        Args:
            prompts: numbers of rows, one for each group.
            num_generations: completions in a group.
            completion_ids: token ids of this process's completions.
            passed: (groups, completions) bool, which are right.
            judged: the same, which could be judged.
            budget_of: the budget after which a row's thought is closed by force.

        Returns:
            For each mode in the batch: `right`, the share of the judged completions; `thinking`, mean tokens of
            thinking; for a stated budget `within`, the share of completions whose thought ends within it; and `cut`,
            the share whose thoughts were closed by force, where thoughts are. {} for a training in one mode that cuts
            none.
        """
        if self.closing is None:
            return {}
        rows = [self.rows[prompt] for prompt in prompts for _ in range(num_generations)]
        mine = processes.local_slice(len(rows))
        own = [self._measure(*pair, budget_of) for pair in zip(rows[mine], completion_ids, strict=True)]
        measured, names = processes.all_gather(own), [mode_of(row) for row in rows]
        figures = {}
        for name in sorted(set(names), key=lambda name: (name.isdigit(), len(name), name)):
            at = [place for place, other in enumerate(names) if other == name]
            right, tried = (float(value.flatten()[at].sum()) for value in (passed, judged))
            lengths, ends, cuts = zip(*(measured[place] for place in at))
            values = {"right": right / tried if tried else float("nan"), "thinking": sum(lengths) / len(at)}
            if name.isdigit():
                values["within"] = sum(e and length <= int(name) for length, e in zip(lengths, ends)) / len(at)
            if self.cuts_thoughts:
                values["cut"] = sum(cuts) / len(at)
            figures |= {f"modes/{name}/{key}": value for key, value in values.items()}
        return figures

    def _measure(self, row: Row, ids: Sequence[int], budget_of: Callable[[Row], int | None]) -> tuple[int, bool, bool]:
        """(tokens of thinking, whether a thought ended, whether the first was closed by force) of a completion."""
        opened = row["prompt_opened_think"]
        budget = budget_of(row) if opened else None
        cut = budget is not None and len(ids) > budget and bool(self.closing.cut(ids, budget))
        return thinking_budget.count_thinking(self.closing, ids, opened), self.closing.end_tag in ids, cut
