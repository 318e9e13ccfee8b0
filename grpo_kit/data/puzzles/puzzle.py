"""What the six families share: the puzzle, the family, and how its knobs are set."""

import random
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

Knobs = dict[str, tuple[float, float]]  # name of a knob: (lowest, highest)


# Why a puzzle has no trace.
NO_RULE, AMBIGUOUS, NO_SEARCH = "no rule", "ambiguous", "no short search"


class Solution(NamedTuple):
    """What a solver makes of a prompt.

    Attributes:
        answer: the answer by the simplest or likeliest rule that agrees with the examples; None where none does, or
            where it has a symbol that the prompt does not show.
        trace: the search that finds the rule, its check on every example and its use, ending in `answer`; "" where
            there is a reason against it.
        reason: "" or why there is no trace: `NO_RULE`, `AMBIGUOUS` (rules that agree give different answers) or
            `NO_SEARCH` (finding the rule takes a search that is too long to write).
        detail: the reason in a sentence; of an ambiguous puzzle it names two rules.
    """

    answer: str | None
    trace: str = ""
    reason: str = ""
    detail: str = ""


class Puzzle(NamedTuple):
    """One puzzle.

    Attributes:
        family: name of the family.
        prompt: the problem, in the wording of the challenge.
        answer: the reference answer.
        trace: the solver's trace, which is made from the prompt alone; "" where it has none or another answer fits.
        determined: whether all rules of the family that agree with the examples give the same answer.
        difficulty: the knobs that the puzzle was drawn with.
    """

    family: str
    prompt: str
    answer: str
    trace: str
    determined: bool
    difficulty: Knobs


class Family(NamedTuple):
    """One family of puzzles.

    Attributes:
        name: the family's name.
        opening: the words with which its prompts begin.
        knobs: each knob with its range in the challenge.
        draw: takes a random generator and knobs; returns (prompt, answer, determined).
        solve: takes a prompt, damaged ones included; returns its solution.
        tolerance: how far apart, relative to the larger, two answers may be that count as equal; 0: equal texts only.
    """

    name: str
    opening: str
    knobs: Knobs
    draw: Callable[[random.Random, Knobs], tuple[str, str, bool]]
    solve: Callable[[str], Solution]
    tolerance: Decimal = Decimal(0)

    def set_knobs(self, difficulty: Knobs) -> Knobs:
        """Set some knobs.

        Args:
            difficulty: the knobs to set; the others keep their range.

        Returns:
            All knobs of the family.

        Raises:
            ValueError: the family has no such knob, or the knob does not take the value.
        """
        for name, value in difficulty.items():
            if name not in self.knobs:
                raise ValueError(
                    f"{name!r} is not a knob of {self.name}; it has {', '.join(self.knobs)}. Set one of these."
                )
            is_whole = all(isinstance(end, int) for end in self.knobs[name])
            kinds = int if is_whole else (int, float)
            least = 1 if name == "examples" else 0
            if len(value) != 2 or not all(isinstance(end, kinds) for end in value) or not least <= value[0] <= value[1]:
                raise ValueError(
                    f"{name} is {value!r}; a knob of {self.name} is (lowest, highest) in {'whole ' if is_whole else ''}"
                    f"numbers of {least} or more. Set it like {self.knobs[name]}."
                )
        return self.knobs | {name: (value[0], value[1]) for name, value in difficulty.items()}


def text_after(prompt: str, words: str) -> str:
    """The text that follows `words` on their line, stripped; "" where the prompt does not contain them."""
    return prompt.partition(words)[2].partition("\n")[0].strip()
