"""The six families, and functions for all of them: make a puzzle, make rows, classify a prompt, solve it.

Prompts have the wording of the challenge's train.csv, and answers have its formats (leading zeros, `}`, decimals). If
the examples of a drawn puzzle do not determine its answer, the puzzle is drawn again; with `determined_only=False` it
is kept and marked.
"""

import random
from collections.abc import Sequence

from grpo_kit.data.puzzles import bits, cipher, equations, numerals, physics
from grpo_kit.data.puzzles.puzzle import NO_RULE, Family, Knobs, Puzzle, Solution

VERSION = 2  # goes up whenever a seed and index give another puzzle than before
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (bits.BITS, physics.GRAVITY, physics.UNIT, cipher.CIPHER, numerals.NUMERALS, equations.EQUATIONS)
}
# Two families in numbers so small that the embedded policies can learn them.
TINY: dict[str, Knobs] = {
    "numeral system": {"numbers": (1, 39), "examples": (1, 1)},
    "unit conversion": {
        "metres": (2.0, 9.0), "decimals": (0, 0), "factor": (2.0, 9.0), "factor_decimals": (0, 0), "examples": (1, 1),
    },
}  # fmt: skip
_DRAWS = 1000  # attempts at a puzzle whose examples determine the answer


def make_puzzle(
    family: str, seed: int, index: int, difficulty: Knobs | None = None, determined_only: bool = True
) -> Puzzle:
    """Make one puzzle.

    Args:
        family: a name in `FAMILIES`.
        seed: together with the index and the knobs, decides the puzzle, whatever was made before.
        index: number of the puzzle, from 0.
        difficulty: knobs of the family as (lowest, highest); the others stay as in the challenge.
        determined_only: draw again until the examples determine the answer; False keeps the first draw and marks it.

    Returns:
        The puzzle.

    Raises:
        ValueError: the family or a knob is unknown, or 1,000 draws gave no determined puzzle.

    Example:
        >>> make_puzzle("numeral system", seed=1, index=0, difficulty={"numbers": (90, 95), "examples": (1, 1)}).answer
        'XCV'
    """
    if family not in FAMILIES:
        raise ValueError(f"{family!r} is not a puzzle family; there are {', '.join(FAMILIES)}. Name one of them.")
    knobs = FAMILIES[family].set_knobs(difficulty or {})
    rng = random.Random(f"{VERSION} {family} {seed} {index}")
    for _ in range(_DRAWS):
        prompt, answer, determined = FAMILIES[family].draw(rng, knobs)
        if determined or not determined_only:
            trace = FAMILIES[family].solve(prompt).trace if determined else ""
            return Puzzle(family, prompt, answer, trace, determined, knobs)
    raise ValueError(
        f"{_DRAWS} draws of {family} with {knobs} gave no puzzle that its examples determine. Show more examples."
    )


def make_rows(
    count: int, seed: int, families: Sequence[str] = tuple(FAMILIES), difficulty: dict[str, Knobs] | None = None
) -> list[dict[str, str]]:
    """Make rows with different prompts; the families take turns.

    Args:
        count: number of rows.
        seed: decides the rows; a larger count begins with the rows of a smaller one.
        families: names in `FAMILIES`.
        difficulty: knobs by the name of the family.

    Returns:
        Rows with `id`, `prompt`, `answer`, `family` and `trace`.

    Raises:
        ValueError: a family is unknown, none is named, the count is below 1, or the knobs allow too few puzzles.

    Example:
        >>> [row["id"] for row in make_rows(2, seed=7)]
        ['bit-manipulation-2-7-0', 'gravity-2-7-1']
    """
    if count < 1 or not families:
        raise ValueError(
            f"Cannot make {count} rows of {len(families)} families; both numbers must be at least 1. "
            "Set data.limit to 1 or more."
        )
    rows: dict[str, dict[str, str]] = {}
    index = 0
    while len(rows) < count:
        family = families[index % len(families)]
        puzzle = make_puzzle(family, seed, index, (difficulty or {}).get(family))
        name = f"{family.replace(' ', '-')}-{VERSION}-{seed}-{index}"
        row = {"id": name, "prompt": puzzle.prompt, "answer": puzzle.answer, "family": family, "trace": puzzle.trace}
        rows.setdefault(puzzle.prompt, row)
        index += 1
        if index > 10 * count + 1000:
            raise ValueError(
                f"{index} draws gave only {len(rows)} different puzzles of {count}. "
                "Widen the knobs, or make fewer rows."
            )
    return list(rows.values())


def classify_prompt(prompt: str) -> str | None:
    """Name the family of a prompt by the words it begins with; None for any other prompt.

    >>> classify_prompt("In Alice's Wonderland, the gravitational constant has been secretly changed. Here are")
    'gravity'
    """
    return next((name for name, family in FAMILIES.items() if prompt.lstrip().startswith(family.opening)), None)


def solve_prompt(prompt: str) -> Solution:
    """Solve a puzzle of any family from its prompt alone.

    Args:
        prompt: a prompt of ours or of the challenge, damaged ones included.

    Returns:
        The solution; its answer is None for another prompt, or where no rule agrees with the examples.

    Example:
        >>> puzzle = make_puzzle("numeral system", 1, 0, {"numbers": (90, 95), "examples": (1, 1)})
        >>> print(solve_prompt(puzzle.prompt).trace)
        Roman numerals, digit by digit.
        90 = 90: XC -> XC, shown XC: equal
        95 = 90 + 5: XC V -> XCV
    """
    family = classify_prompt(prompt)
    if family is None:
        return Solution(None, reason=NO_RULE, detail="The prompt begins like that of no family.")
    return FAMILIES[family].solve(prompt)
