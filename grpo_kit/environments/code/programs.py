"""Generates tasks that ask for a program or a function: one to three steps over numbers, words or results.

The right answers are computed by the functions of `steps.py`. Every step matters: without it at least one test would
have another answer. So a program that skips one is wrong, and so is the program of another task.
"""

import json
import random
from typing import Any, NamedTuple

from grpo_kit.environments.code.asking import ask_for_function, ask_for_program
from grpo_kit.environments.code.steps import NUMBERS, RECORDS, SHAPES, Shape, Step
from grpo_kit.environments.names import FIRST, PLAIN_WORDS
from grpo_kit.environments.task import Task, collect_tasks, make_task

VERSION = 1  # goes up whenever a seed and number give another task than before
TESTS = 10
_NAMES = ("solve", "answer", "process", "evaluate", "compute", "transform", "reduce_list", "work_out", "follow_steps")
_LEADS = (
    "Do this, in this order:",
    "Take these steps, one after the other:",
    "Carry out the following, each step on what the one before it left:",
)


class Program(NamedTuple):
    """A task and what it was made of: the shape of its input, its steps with their numbers, the function's name.

    The last step gives the answer. `name` is "" where the program reads standard input.
    """

    task: Task
    shape: Shape
    steps: list[tuple[Step, int]]
    name: str


def make_tasks(count: int, seed: int, longest_prompt: int | None = None) -> list[Task]:
    """Make tasks with different prompts.

    Args:
        count: number of tasks.
        seed: decides the tasks; a larger count begins with the tasks of a smaller one.
        longest_prompt: largest number of characters of a prompt; None for any.

    Returns:
        Tasks with the column `tests`.

    Raises:
        ValueError: the count is below 1, or too few tasks are so short.

    Example:
        >>> task = make_tasks(1, seed=7)[0]
        >>> len(json.loads(task.columns["tests"])["inputs"])
        10
    """
    return collect_tasks(lambda number: draw_program(seed, number).task, count, longest_prompt)


def draw_program(seed: int, number: int) -> Program:
    """Draw the program with a number."""
    rng = random.Random(f"{VERSION} programs {seed} {number}")
    while True:
        shape, name = rng.choice(SHAPES), rng.choice(("", rng.choice(_NAMES)))
        chosen = [*rng.sample(shape.steps, rng.randint(1, 3)), rng.choice(shape.ends)]
        steps = [(step, rng.randint(*step.draws)) for step in chosen]
        inputs = _draw_inputs(shape, rng)
        if _each_matters(steps, inputs):
            outputs = [run_steps(steps, values) for values in inputs]
            prompt, tests = _ask(shape, steps, name, inputs, outputs, rng)
            return Program(make_task("code", prompt, tests=tests), shape, steps, name)


def run_steps(steps: list[tuple[Step, int]], values: Any) -> Any:
    """What the steps make of the values."""
    for step, k in steps:
        values = step.function(values, k)
    return values


def _each_matters(steps: list[tuple[Step, int]], inputs: list[Any]) -> bool:
    outputs = [run_steps(steps, values) for values in inputs]
    shorter = (steps[:place] + steps[place + 1 :] for place in range(len(steps) - 1))
    changes = all([run_steps(fewer, values) for values in inputs] != outputs for fewer in shorter)
    return changes and len({str(output) for output in outputs}) >= TESTS // 2


def _draw_inputs(shape: Shape, rng: random.Random) -> list[Any]:
    """Lists of different lengths; the first is empty, so that a program must not fail on it."""
    lengths = [0, 1, *(rng.randint(4, 16) for _ in range(TESTS - 2))]
    return [_draw_values(shape, length, rng) for length in lengths]


def _draw_values(shape: Shape, length: int, rng: random.Random) -> list[Any]:
    if shape is NUMBERS:
        return [rng.randint(-20, 99) for _ in range(length)]
    few = rng.sample(FIRST if shape is RECORDS else PLAIN_WORDS, max(1, length * 2 // 3))  # so that some are repeated
    if shape is RECORDS:
        return [[rng.choice(few), rng.randint(0, 99)] for _ in range(length)]
    return [rng.choice(few) for _ in range(length)]


def _ask(
    shape: Shape, steps: list[tuple[Step, int]], name: str, inputs: list[Any], outputs: list[Any], rng: random.Random
) -> tuple[list[dict[str, str]], str]:
    """The prompt, and the tests as the column holds them."""
    rules = "\n".join(f"{place}. {step.sentence.format(k=k)}" for place, (step, k) in enumerate(steps, start=1))
    given = f"Given is {shape.what}. {rng.choice(_LEADS)}\n{rules}"
    if name:
        tests = {"kind": "function", "name": name, "inputs": [[values] for values in inputs], "outputs": outputs}
        shown = f"{name}({json.dumps(inputs[2])}) returns {json.dumps(outputs[2])}"
        statement, starter = f"{given}\n\nExample: {shown}", f"def {name}({shape.argument}):\n    ..."
        prompt = ask_for_function(statement, name, starter)
    else:
        texts = [_write_input(shape, values) for values in inputs], [write_answer(output) for output in outputs]
        tests = {"kind": "stdin", "inputs": texts[0], "outputs": texts[1]}
        lists = " Print a list with spaces between its parts, on one line." if isinstance(outputs[0], list) else ""
        shown = f"Input:\n{texts[0][2]}Output:\n{texts[1][2]}"
        prompt = ask_for_program(f"{given}\n\n{shape.lines}{lists}\n\nExample.\n{shown}")
    return prompt, json.dumps(tests, ensure_ascii=False)


def _write_input(shape: Shape, values: list[Any]) -> str:
    if shape is RECORDS:
        return "".join(f"{line}\n" for line in (len(values), *(f"{name} {points}" for name, points in values)))
    line = " ".join(map(str, values))
    return f"{len(values)}\n{line}\n" if shape is NUMBERS else f"{line}\n"


def write_answer(answer: Any) -> str:
    """An answer as a program prints it.

    >>> write_answer([3, 4])
    '3 4\\n'
    """
    return (" ".join(map(str, answer)) if isinstance(answer, list) else str(answer)) + "\n"
