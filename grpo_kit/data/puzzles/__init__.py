"""The six puzzle families of the Nemotron challenge: a generator and a solver for each.

make_puzzle("gravity", seed=7, index=0)      one puzzle; the same arguments always give the same puzzle
make_rows(100, seed=7)                       rows with prompt and answer, the families in turn
classify_prompt(prompt), solve_prompt(prompt)    for these and for the challenge's own prompts
traces.solver_traces(rows, count_tokens)         puzzles as texts to learn from
"""

from grpo_kit.data.puzzles.families import (
    FAMILIES,
    TINY,
    VERSION,
    classify_prompt,
    make_puzzle,
    make_rows,
    solve_prompt,
)
from grpo_kit.data.puzzles.puzzle import Family, Puzzle, Solution

__all__ = [
    "FAMILIES",
    "TINY",
    "VERSION",
    "Family",
    "Puzzle",
    "Solution",
    "classify_prompt",
    "make_puzzle",
    "make_rows",
    "solve_prompt",
]
