"""Draw the prompts of each step so that every environment has its share of the groups.

With useful draws alone, an environment whose groups are seldom mixed would hardly be asked, and what it has learned
could be forgotten. So each environment has a `PromptSampler` of its own, and a fixed share of the groups.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_kit.training.grpo.prompt_sampler import FLOOR, PromptSampler


class EnvironmentSampler:
    """Draws like a `PromptSampler`, from each environment its share.

    Args:
        environments: for each training prompt the name of its environment.
        mix: the share of each environment, in any unit; {} for equal shares.
        pass_rates, num_generations, seed, kind: as `PromptSampler` takes them.

    Example:
        >>> sampler = EnvironmentSampler(["math", "math", "json"], {}, [None] * 3, 8, seed=0)
        >>> [sorted(sampler.environments[prompt] for prompt in sampler.draw(3)) for _ in range(2)]
        [['json', 'math', 'math'], ['json', 'json', 'math']]
    """

    def __init__(
        self,
        environments: Sequence[str],
        mix: Mapping[str, float],
        pass_rates: Sequence[float | None],
        num_generations: int,
        seed: int,
        kind: str = "useful",
    ) -> None:
        self.environments, names = list(environments), list(dict.fromkeys(environments))
        self.shares = find_shares(names, mix)
        self.prompts = {name: [i for i, own in enumerate(environments) if own == name] for name in names}
        self.places = [0] * len(self.environments)  # of each prompt among those of its environment
        for own in self.prompts.values():
            for place, prompt in enumerate(own):
                self.places[prompt] = place
        self.samplers = {
            name: PromptSampler([pass_rates[i] for i in own], num_generations, seed + number, kind)
            for number, (name, own) in enumerate(self.prompts.items())
        }
        self.drawn = dict.fromkeys(names, 0)

    def draw(self, count: int) -> list[int]:
        """Numbers of `count` prompts. Each environment has its share to the nearest whole group, over all draws.

        What rounding takes from an environment in one draw it is given in a later one.
        """
        owed = {
            name: share * (sum(self.drawn.values()) + count) - self.drawn[name] for name, share in self.shares.items()
        }
        counts = _round_to(count, owed)
        for name, number in counts.items():
            self.drawn[name] += number
        return [self.prompts[name][place] for name in counts for place in self.samplers[name].draw(counts[name])]

    def draw_more(self, count: int, replaced: Sequence[int] = ()) -> list[int]:
        """Numbers of `count` further prompts for this step.

        Args:
            count: how many.
            replaced: the prompts that they are for: those whose groups are flat, or may be. Each environment gets its
                part of them, and more where its groups are more often flat.
        """
        parts = Counter(self.environments[prompt] for prompt in replaced) or self.shares
        flat = {name: parts[name] * (1 - self.samplers[name].mixed_share() + FLOOR) for name in self.shares}
        counts = _round_to(count, {name: count * value / sum(flat.values()) for name, value in flat.items()})
        return [self.prompts[name][place] for name in counts for place in self.samplers[name].draw_more(counts[name])]

    def choose(self, prompts: Sequence[int], flat: Sequence[bool], groups: int) -> list[int]:
        """As `PromptSampler.choose`, with as many groups of each environment as the first `groups` have."""
        names = [self.environments[prompt] for prompt in prompts]
        chosen = []
        for name in self.shares:
            own = [place for place, other in enumerate(names) if other == name]
            kept = self.samplers[name].choose(own, [flat[place] for place in own], names[:groups].count(name))
            chosen += [own[place] for place in kept]
        return chosen

    def learn(self, prompt: int, right: float, tried: int) -> None:
        """As `PromptSampler.learn`."""
        self.samplers[self.environments[prompt]].learn(self.places[prompt], right, tried)

    def mixed_share(self) -> float:
        """Share of the recent groups whose completions were partly right, in (0, 1]."""
        return sum(share * self.samplers[name].mixed_share() for name, share in self.shares.items())

    def state(self) -> dict[str, Any]:
        """All that changes, as JSON."""
        samplers = {name: sampler.state() for name, sampler in self.samplers.items()}
        return {"drawn": dict(self.drawn), "environments": samplers}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, as `PromptSampler.restore`."""
        if set(state.get("environments", ())) != set(self.samplers):
            raise ValueError(
                f"The checkpoint drew prompts of the environments {', '.join(state.get('environments', ['math']))}, "
                f"and the run has {', '.join(self.samplers)}, so it was made with other data. Train from the start "
                "with --force."
            )
        for name, sampler in self.samplers.items():
            sampler.restore(state["environments"][name])
        self.drawn = dict(state["drawn"])


def find_shares(environments: Sequence[str], mix: Mapping[str, float]) -> dict[str, float]:
    """The share of each environment, which add up to 1; equal ones without a mix.

    >>> find_shares(["math", "json"], {"math": 3, "json": 1})
    {'math': 0.75, 'json': 0.25}
    """
    parts = {name: mix[name] if mix else 1 for name in environments}
    return {name: part / sum(parts.values()) for name, part in parts.items()}


def _round_to(count: int, wanted: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that add up to `count`, each near what is wanted: the largest remainders are rounded up."""
    counts = {name: max(0, math.floor(number + 1e-9)) for name, number in wanted.items()}
    by_remainder = sorted(wanted, key=lambda name: counts[name] - wanted[name])
    for step in range(count - sum(counts.values())):
        counts[by_remainder[step % len(by_remainder)]] += 1
    while sum(counts.values()) > count:  # an environment that had too many is owed less than nothing
        most = max(counts, key=lambda name: counts[name] - wanted[name] if counts[name] else -math.inf)
        counts[most] -= 1
    return counts
