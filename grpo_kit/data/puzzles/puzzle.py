"""What the six families share: the puzzle, the family, and how a knob is turned."""

import random
from collections.abc import Callable
from typing import NamedTuple

Knobs = dict[str, tuple[float, float]]


class Puzzle(NamedTuple):
    """One puzzle. `trace` works it out from what the prompt shows and ends in `answer`.

    determined: True when every rule of the family that agrees with the examples gives the same answer. difficulty: the
    knobs it was drawn with, as (lowest, highest).
    """

    family: str
    prompt: str
    answer: str
    trace: str
    determined: bool
    difficulty: Knobs


class Family(NamedTuple):
    """One family: how its prompts open, its knobs as (lowest, highest), how one is drawn and how one is solved.

    draw(rng, knobs): (prompt, answer, trace, determined). solve(prompt): the answer, None where no rule fits.
    """

    name: str
    opening: str
    knobs: Knobs
    draw: Callable[[random.Random, Knobs], tuple[str, str, str, bool]]
    solve: Callable[[str], str | None]

    def turned(self, difficulty: Knobs) -> Knobs:
        """All knobs, those in `difficulty` in place of the family's own; ValueError for one it lacks or cannot turn so."""
        for name, value in difficulty.items():
            if name not in self.knobs:
                raise ValueError(
                    f"{name!r} is no knob of {self.name}; it has {', '.join(self.knobs)}. Turn one of these."
                )
            whole = all(isinstance(end, int) for end in self.knobs[name])
            kinds = int if whole else (int, float)
            least = 1 if name == "examples" else 0
            if len(value) != 2 or not all(isinstance(end, kinds) for end in value) or not least <= value[0] <= value[1]:
                raise ValueError(
                    f"{name} is {value!r}; a knob of {self.name} is (lowest, highest) in {'whole ' if whole else ''}numbers "
                    f"of {least} or more. Set it like {self.knobs[name]}."
                )
        return self.knobs | {name: (value[0], value[1]) for name, value in difficulty.items()}


def after(prompt: str, words: str) -> str:
    """What follows `words` on their line, stripped; empty where they do not stand in the prompt."""
    return prompt.partition(words)[2].partition("\n")[0].strip()
