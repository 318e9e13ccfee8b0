"""The list of the six families, and what works for all of them: make a puzzle, make rows, classify a prompt, solve it.

Prompts have the wording of the challenge's train.csv, answers its formats (leading zeros, `}`, decimals). When the
examples of a drawn puzzle do not determine its answer, the puzzle is drawn again, or, with `determined_only=False`, it
is kept and marked.
"""

import random
from collections.abc import Sequence

from grpo_kit.data.puzzles import bits, cipher, equations, numerals, physics
from grpo_kit.data.puzzles.puzzle import Family, Knobs, Puzzle

VERSION = 1  # goes up whenever a seed and index give another puzzle than before
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (bits.BITS, physics.GRAVITY, physics.UNIT, cipher.CIPHER, numerals.NUMERALS, equations.EQUATIONS)
}
_DRAWS = 1000


def make_puzzle(
    family: str, seed: int, index: int, difficulty: Knobs | None = None, determined_only: bool = True
) -> Puzzle:
    """The puzzle of a family that belongs to (seed, index, knobs), whatever was made before it.

    difficulty: knobs of the family as (lowest, highest), the others stay as in the challenge (`FAMILIES[name].knobs`).
    determined_only: draw again until the examples determine the answer; False keeps the first draw and marks it.
    Raises ValueError for an unknown family or knob, and when 1,000 draws give no determined puzzle.

    >>> make_puzzle("numeral system", seed=1, index=0, difficulty={"numbers": (90, 95), "examples": (1, 1)}).determined
    True
    """
    if family not in FAMILIES:
        raise ValueError(f"{family!r} is no puzzle family; there are {', '.join(FAMILIES)}. Name one of them.")
    knobs = FAMILIES[family].turned(difficulty or {})
    rng = random.Random(f"{VERSION} {family} {seed} {index}")
    for _ in range(_DRAWS):
        puzzle = Puzzle(family, *FAMILIES[family].draw(rng, knobs), knobs)
        if puzzle.determined or not determined_only:
            return puzzle
    raise ValueError(
        f"{_DRAWS} draws of {family} with {knobs} gave no puzzle that its examples determine. Show more examples."
    )


def make_rows(
    count: int, seed: int, families: Sequence[str] = tuple(FAMILIES), difficulty: dict[str, Knobs] | None = None
) -> list[dict[str, str]]:
    """`count` rows with different prompts: `id`, `prompt`, `answer`, `family`, `trace`; the families take turns.

    difficulty: knobs by family name. A larger count begins with the rows of a smaller one. Raises ValueError for an
    unknown family, for none, and where a family's knobs allow too few different puzzles.
    """
    if count < 1 or not families:
        raise ValueError(
            f"{count} rows of {len(families)} families were asked for; both are 1 or more. Set data.limit so."
        )
    found: dict[str, dict[str, str]] = {}
    index = 0
    while len(found) < count:
        family = families[index % len(families)]
        puzzle = make_puzzle(family, seed, index, (difficulty or {}).get(family))
        name = f"{family.replace(' ', '-')}-{VERSION}-{seed}-{index}"
        row = {"id": name, "prompt": puzzle.prompt, "answer": puzzle.answer, "family": family, "trace": puzzle.trace}
        found.setdefault(puzzle.prompt, row)
        index += 1
        if index > 10 * count + 1000:
            raise ValueError(
                f"{index} draws gave {len(found)} different puzzles of {count}. Widen the knobs, or ask for fewer."
            )
    return list(found.values())


def classify_prompt(prompt: str) -> str | None:
    """The family that a prompt opens as, None for any other prompt.

    >>> classify_prompt("What is 2 + 2?")
    """
    return next((name for name, family in FAMILIES.items() if prompt.lstrip().startswith(family.opening)), None)


def solve_prompt(prompt: str) -> str | None:
    """The answer by the simplest or likeliest rule that agrees with the examples; None for no family or no such rule."""
    family = classify_prompt(prompt)
    return FAMILIES[family].solve(prompt) if family else None
