"""Draw the prompts of each step, preferring those whose completions are likely to be partly right.

A group whose completions are all right or all wrong has no gradient. With pass rate p that happens with probability
p^n + (1 - p)^n; a prompt is drawn in proportion to the rest, the probability of a mixed group. Pass rates come from a
screening before the run and from the run's own groups, of which older ones count less because the policy has changed. A
prompt that was never sampled is expected to pass as often as others did at their first visit.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

KINDS = ("useful", "shuffled", "in_order")
FLOOR = 0.02  # least weight of a prompt, so that solved and hopeless prompts come back, but rarely
DECAY = 0.5  # by this factor an earlier visit counts less at each new visit
RECENT = 0.97  # by this factor a group counts less with each new group, so that about the last thirty count
PRIOR = 1.0  # completions; the weight of the mean of first visits
SHARPNESS = 3.0  # power of the weight when a prompt replaces another; recently mixed prompts come first
SCREENED = 16.0  # completions; the weight of a screened pass rate


class PromptSampler:
    """The pass rate of each training prompt so far, and the draw of the next prompts.

    The same seed, pass rates and calls give the same draws; `state` and `restore` carry it over an interruption.

    Args:
        pass_rates: for each prompt its pass rate in [0, 1] from screening, None where there is none.
        num_generations: completions per group.
        seed: of the draw.
        kind: `useful` draws by the probability of a mixed group; `shuffled` each prompt once per round in random
            order; `in_order` as the rows lie, which is the curriculum that screening wrote.

    Example:
        >>> sampler = PromptSampler([0.5, 1.0, 0.0], num_generations=8, seed=0)
        >>> draws = [sampler.draw(1)[0] for _ in range(100)]
        >>> max(range(3), key=draws.count)  # the prompt that was right half the time
        0
    """

    def __init__(self, pass_rates: list[float | None], num_generations: int, seed: int, kind: str = "useful") -> None:
        self.num_generations, self.seed, self.kind, self.size = num_generations, seed, kind, len(pass_rates)
        screened = np.array([np.nan if rate is None else rate for rate in pass_rates], dtype=float)
        self.tried = np.where(np.isnan(screened), 0.0, SCREENED)
        self.right = np.nan_to_num(screened) * self.tried
        self.draws = self.more = 0  # prompts drawn so far, and in place of others
        self.first = [0.0, 0.0]  # right and tried over first visits
        self.teaching = [1.0, 1.0]  # recent groups with a gradient, and recent groups

    def rates(self) -> np.ndarray:
        """The pass rate expected of each prompt, `(prompts,)` in (0, 1)."""
        mean = (self.first[0] + 1) / (self.first[1] + 2)
        return (self.right + PRIOR * mean) / (self.tried + PRIOR)

    def draw(self, count: int) -> list[int]:
        """Numbers of `count` prompts, different ones where there are enough."""
        if self.kind == "useful":
            chosen = self._draw_weighted(count)
        else:
            chosen = [self._prompt_at(self.draws + i) for i in range(count)]
        self.draws += count
        return chosen

    def draw_more(self, count: int, replaced: Sequence[int] = ()) -> list[int]:
        """Numbers of `count` further prompts for this step, in place of some whose groups had no gradient.

        Which prompts are `replaced` makes a difference to an `EnvironmentSampler` only.
        `in_order` draws them by weight as well, and goes on afterwards where it was.
        """
        if self.kind == "shuffled":
            return self.draw(count)
        chosen = self._draw_weighted(count, SHARPNESS)
        self.more += count
        return chosen

    def choose(self, prompts: Sequence[int], flat: Sequence[bool], groups: int) -> list[int]:
        """Which of the sampled groups are trained on: those with a gradient, then the others, as they were drawn.

        Args:
            prompts: of each sampled group its prompt.
            flat: of each, whether it has no gradient.
            groups: how many are trained on.

        Returns:
            Their places among the sampled groups.
        """
        return sorted(range(len(prompts)), key=lambda place: flat[place])[:groups]

    def learn(self, prompt: int, right: float, tried: int) -> None:
        """Note a visit: `right` of `tried` completions passed, in [0, tried]."""
        if not self.tried[prompt]:
            self.first = [RECENT * self.first[0] + right, RECENT * self.first[1] + tried]
        self.teaching = [RECENT * self.teaching[0] + (0 < right < tried), RECENT * self.teaching[1] + 1]
        self.right[prompt] = DECAY * self.right[prompt] + right
        self.tried[prompt] = DECAY * self.tried[prompt] + tried

    def mixed_share(self) -> float:
        """Share of the recent groups whose completions were partly right, in (0, 1]."""
        return max(self.teaching[0] / self.teaching[1], FLOOR)

    def state(self) -> dict[str, Any]:
        """All that changes, as JSON."""
        seen = np.flatnonzero(self.tried).tolist()
        return {
            "draws": self.draws,
            "more": self.more,
            "first": self.first,
            "teaching": self.teaching,
            "size": self.size,
            "seen": {str(i): [float(self.right[i]), float(self.tried[i])] for i in seen},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; rows may have been added at the end. Raises ValueError when it is of other rows."""
        if state["size"] > self.size:
            raise ValueError(
                f"The checkpoint knows {state['size']} prompts and the run has {self.size}, so it was made with other "
                "data. Train from the start with --force."
            )
        self.draws, self.more, self.first = state["draws"], state["more"], list(state["first"])
        self.teaching = list(state["teaching"])
        self.right, self.tried = np.zeros(self.size), np.zeros(self.size)
        for i, (right, tried) in state["seen"].items():
            self.right[int(i)], self.tried[int(i)] = right, tried

    def _draw_weighted(self, count: int, sharpness: float = 1.0) -> list[int]:
        """Without replacement, by the probability of a mixed group to the power `sharpness`.

        Gumbel's trick: the largest of log weight + Gumbel noise are such a draw.
        """
        p, n = self.rates(), self.num_generations
        weight = np.maximum(1 - p**n - (1 - p) ** n, FLOOR)
        noise = np.random.default_rng([self.seed, self.draws, self.more]).gumbel(size=self.size)
        order = np.argsort(-(sharpness * np.log(weight) + noise), kind="stable").tolist()
        return (order * math.ceil(count / self.size))[:count]

    def _prompt_at(self, position: int) -> int:
        round_number, place = divmod(position, self.size)
        if self.kind == "in_order":
            return place
        return int(np.random.default_rng([self.seed, round_number]).permutation(self.size)[place])
