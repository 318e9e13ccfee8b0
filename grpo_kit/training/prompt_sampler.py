"""Which prompts to ask next: those whose answers are likely to differ, by all that is known of their pass rates.

A group whose completions are all right or all wrong has no gradient. With pass rate p that happens with probability
p^n + (1 - p)^n; a prompt is drawn in proportion to the rest. What is known: a screening before the run, the run's own
groups, older ones counting less because the policy has changed, and for prompts never asked the mean of first visits.
"""

import math
from typing import Any

import numpy as np

KINDS = ("useful", "shuffled", "in_order")
FLOOR = 0.02  # of a sure prompt's weight: solved and hopeless ones come back, rarely
DECAY = 0.5  # what an earlier visit counts at the next one
RECENT = 0.97  # what a group's outcome counts after the next one: some thirty groups say how the policy stands now
PRIOR = 1.0  # completions that the mean of first visits counts as
SHARP = 3.0  # power of that likelihood where a prompt replaces another: those that were mixed of late come first
SCREENED = 16.0  # completions that a screened pass rate counts as


class PromptSampler:
    """What is known of each training prompt, and the draw of the next ones. The same seed, facts and calls give the same
    draws; `state` and `restore` carry it over an interruption.

    `known`: pass rates in [0, 1] from screening, None where there is none. `kind`: `useful` as above; `shuffled`, each
    once a round in random order; `in_order`, as the rows lie, which is the curriculum that screening wrote.
    """

    def __init__(self, known: list[float | None], num_generations: int, seed: int, kind: str = "useful") -> None:
        self.num_generations, self.seed, self.kind, self.size = num_generations, seed, kind, len(known)
        screened = np.array([np.nan if rate is None else rate for rate in known], dtype=float)
        self.tried = np.where(np.isnan(screened), 0.0, SCREENED)
        self.right = np.nan_to_num(screened) * self.tried
        self.draws = self.more = 0  # prompts drawn so far, and in place of others
        self.first = [0.0, 0.0]  # right and tried over first visits
        self.teaching = [1.0, 1.0]  # groups that taught, and groups

    def rates(self) -> np.ndarray:
        """The pass rate expected of each prompt, `(prompts,)` in (0, 1)."""
        mean = (self.first[0] + 1) / (self.first[1] + 2)
        return (self.right + PRIOR * mean) / (self.tried + PRIOR)

    def draw_more(self, count: int) -> list[int]:
        """`count` further prompts for this step, in place of some that taught nothing: useful ones, whatever the order;
        the order's own place stays."""
        if self.kind == "shuffled":
            return self.draw(count)
        chosen = self._weighted(count, SHARP)
        self.more += count
        return chosen

    def draw(self, count: int) -> list[int]:
        """`count` prompts' numbers, different ones where there are enough."""
        useful = self.kind == "useful"
        chosen = self._weighted(count) if useful else [self._walk(self.draws + i) for i in range(count)]
        self.draws += count
        return chosen

    def learn(self, prompt: int, right: float, tried: int) -> None:
        """Note a visit: `right` of `tried` completions passed, in [0, tried]."""
        if not self.tried[prompt]:
            self.first = [RECENT * self.first[0] + right, RECENT * self.first[1] + tried]
        self.teaching = [RECENT * self.teaching[0] + (0 < right < tried), RECENT * self.teaching[1] + 1]
        self.right[prompt] = DECAY * self.right[prompt] + right
        self.tried[prompt] = DECAY * self.tried[prompt] + tried

    def likely_useful(self) -> float:
        """Share of the last groups whose completions differed, in (0, 1]."""
        return max(self.teaching[0] / self.teaching[1], FLOOR)

    def state(self) -> dict[str, Any]:
        """All that changes, as JSON."""
        seen = np.flatnonzero(self.tried).tolist()
        return {
            "draws": self.draws, "more": self.more, "first": self.first, "teaching": self.teaching, "size": self.size,
            "seen": {str(i): [float(self.right[i]), float(self.tried[i])] for i in seen},
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises ValueError when it is of other rows."""
        if state["size"] != self.size:
            raise ValueError(
                f"The checkpoint knows {state['size']} prompts and the run has {self.size}; they are of other data. Train with --force."
            )
        self.draws, self.more, self.first = state["draws"], state["more"], list(state["first"])
        self.teaching = list(state["teaching"])
        self.right, self.tried = np.zeros(self.size), np.zeros(self.size)
        for i, (right, tried) in state["seen"].items():
            self.right[int(i)], self.tried[int(i)] = right, tried

    def _weighted(self, count: int, sharpness: float = 1.0) -> list[int]:
        """Without replacement, in proportion to how likely a prompt's group is mixed, to the power `sharpness` (Gumbel's
        trick: the largest of log w + noise)."""
        p, n = self.rates(), self.num_generations
        weight = np.maximum(1 - p**n - (1 - p) ** n, FLOOR)
        noise = np.random.default_rng([self.seed, self.draws, self.more]).gumbel(size=self.size)
        order = np.argsort(-(sharpness * np.log(weight) + noise), kind="stable").tolist()
        return (order * math.ceil(count / self.size))[:count]

    def _walk(self, position: int) -> int:
        turn, at = divmod(position, self.size)
        if self.kind == "in_order":
            return at
        return int(np.random.default_rng([self.seed, turn]).permutation(self.size)[at])
