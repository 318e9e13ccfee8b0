"""The embedded policy `tiny`: where its files are, and the sums and differences it was trained on.

It is a Nemotron-H with every part of Nemotron-3-Nano (Mamba-2, attention, routed experts with a shared one, an untied
head, a chat template that opens `<think>`) in half a million parameters, so the whole workflow runs on a laptop's CPU.
`scripts/make_tiny_policy.py` makes the weights and says what they were taught.
"""

import random
import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).with_name("tiny_policy")
ENVIRONMENTS_FOLDER = Path(__file__).with_name("tiny_environments_policy")
OFFICE_FOLDER = Path(__file__).with_name("tiny_office_policy")
FOLDERS = {"tiny": FOLDER, "tiny-environments": ENVIRONMENTS_FOLDER, "tiny-office": OFFICE_FOLDER}  # by policy.model
SHA256 = {  # of each folder's model.safetensors
    "tiny": "622214988c50d5b6004e6864f8d62bbd4dbaceaf4607fb5582b7ab91cd2bd872",
    "tiny-environments": "f5104a6ea0a44ef051dddf418a67715765b464554e1b5925315391d9adce2606",
    "tiny-office": "72b2fe295043a576eaf259b7ea544bc47d48debe8c2e2f8d6fd828113577dfa2",
}
ROW_COUNT = 12_195  # distinct problems: 8,100 sums and 4,095 ordered differences


class Problem(NamedTuple):
    """One sum or difference: `left` and `right` in 10..99, `sign` "+" or "-", never with a negative result."""

    left: int
    sign: str
    right: int

    @property
    def question(self) -> str:
        return f"What is {self.left} {self.sign} {self.right}?"

    @property
    def answer(self) -> int:
        return self.left + self.right if self.sign == "+" else self.left - self.right

    @property
    def working(self) -> str:
        """The calculation digit by digit, ones first, with carry or borrow written out.

        >>> Problem(47, "+", 38).working
        '7+8=15 4+3+1=8'
        """
        (tens, ones), (right_tens, right_ones) = divmod(self.left, 10), divmod(self.right, 10)
        if self.sign == "+":
            carry = (ones + right_ones) // 10
            tens_sum = f"{tens}+{right_tens}" + ("+1" if carry else "")
            return f"{ones}+{right_ones}={ones + right_ones} {tens_sum}={tens + right_tens + carry}"
        borrow = int(ones < right_ones)
        ones += 10 * borrow
        tens_difference = f"{tens}-{right_tens}" + ("-1" if borrow else "")
        return f"{ones}-{right_ones}={ones - right_ones} {tens_difference}={tens - right_tens - borrow}"


def read_problem(question: str) -> Problem | None:
    """The problem that a question asks; None for any other text.

    >>> read_problem("What is 84 - 37?")
    Problem(left=84, sign='-', right=37)
    """
    found = re.fullmatch(r"What is ([1-9][0-9]) ([+-]) ([1-9][0-9])\?", question.strip())
    problem = Problem(int(found[1]), found[2], int(found[3])) if found else None
    return problem if problem and problem.answer >= 0 else None


def draw_problem(rng: random.Random) -> Problem:
    """Draw a problem; a difference takes the larger number first, so that the result is 0 or more."""
    left, sign, right = rng.randint(10, 99), rng.choice("+-"), rng.randint(10, 99)
    return Problem(max(left, right), sign, min(left, right)) if sign == "-" else Problem(left, sign, right)


def draw_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Draw distinct problems as data rows; the same count and seed give the same rows.

    Args:
        count: how many rows, 1 to 12,195.
        seed: seed of the draw.

    Returns:
        Rows with a `prompt` (the question) and an `answer` (the result as text).

    Raises:
        ValueError: `count` is below 1 or above the number of distinct problems.

    Example:
        >>> draw_rows(1, seed=0)
        [{'prompt': 'What is 36 - 20?', 'answer': '16'}]
    """
    if not 1 <= count <= ROW_COUNT:
        raise ValueError(
            f"data.limit is {count}; tiny-sums has 1 to {ROW_COUNT} distinct rows. Set data.limit in that range."
        )
    rng, rows = random.Random(f"sums {seed}"), {}
    while len(rows) < count:
        problem = draw_problem(rng)
        rows[problem.question] = {"prompt": problem.question, "answer": str(problem.answer)}
    return list(rows.values())
