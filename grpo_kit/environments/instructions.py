"""Generates tasks of instruction following: a small text to write, and one to four instructions that hold together.

`instruction_kinds.EXCLUDED` says which kinds are never asked for together, and why. All instructions are stated in the
prompt, after the task, before it, or in the system message, in the order of `instruction_id_list`.
"""

import json
import random
from typing import Any

from grpo_kit.environments.instruction_kinds import KINDS, Draws, exclude
from grpo_kit.environments.task import Task, collect_tasks, make_task

VERSION = 1  # goes up whenever a seed and number give another task than before
_FORMS = (
    "a short letter", "a diary entry", "a friendly message", "a note for the notice board", "a short speech",
    "an advertisement", "a product description", "a piece of advice", "a short story", "a review", "an invitation",
    "a radio announcement", "a paragraph for a school newspaper", "a thank-you card", "a blog entry", "an apology",
)  # fmt: skip
_SUBJECTS = (
    "a lost umbrella", "the first snow of the year", "a broken lift", "a new bakery around the corner", "a noisy party",
    "a trip by night train", "learning to cook", "a cat that visits every evening", "a move to another town",
    "a bicycle that was repaired", "a street market", "growing tomatoes on a balcony", "an exam that went well",
    "a neighbour who plays the drums", "a walk in the rain", "the closing of an old cinema", "a job interview",
    "a birthday without cake", "a museum for children", "a power cut", "the last day of school", "saving electricity",
    "a book that everybody should read", "a football match that was lost", "a delayed parcel", "an allotment",
    "working from home", "a visit to grandparents", "a choir that looks for singers", "a beach after a storm",
    "a stolen sandwich", "a family recipe", "the smell of fresh paint", "a town without cars", "a robot that cleans",
    "the best place for a nap", "a chess club", "the night sky", "waiting at the dentist", "an unexpected guest",
)  # fmt: skip
_READERS = (
    "", "", " for a friend", " for children", " for your colleagues", " for somebody in a hurry", " for a newcomer",
    " for people who do not know you", " for an old teacher", " for the whole village",
)  # fmt: skip
_ASKS = ("Write {form} about {subject}{reader}.", "Please write {form}{reader} about {subject}.",
         "I need {form} about {subject}{reader}. Can you write it?")  # fmt: skip
_LEADS = ("Follow these rules:", "Your reply must obey all of these:", "Requirements:", "Keep to the following.")


def make_tasks(count: int, seed: int, longest_prompt: int | None = None) -> list[Task]:
    """Make tasks with different prompts.

    Args:
        count: number of tasks.
        seed: decides the tasks; a larger count begins with the tasks of a smaller one.
        longest_prompt: largest number of characters of a prompt; None for any.

    Returns:
        Tasks with the columns `instruction_id_list`, `kwargs` and `grading_mode`, which is "binary".

    Raises:
        ValueError: the count is below 1, or too few tasks are so short.

    Example:
        >>> task = make_tasks(1, seed=7)[0]
        >>> len(task.columns["instruction_id_list"]) == len(json.loads(task.columns["kwargs"]))
        True
    """
    return collect_tasks(
        lambda number: draw_task(random.Random(f"{VERSION} instructions {seed} {number}")), count, longest_prompt
    )


def draw_task(rng: random.Random) -> Task:
    """Draw one task."""
    draws, chosen, left = Draws(rng), [], list(KINDS)
    for _ in range(rng.randint(1, 4)):
        if left:
            chosen.append(rng.choice(left))
            left = [name for name in left if name not in exclude(chosen[-1])]
    arguments = [KINDS[name].draw(draws) for name in chosen]
    sentences = [state_instruction(name, values, rng) for name, values in zip(chosen, arguments, strict=True)]
    ask = rng.choice(_ASKS).format(form=rng.choice(_FORMS), subject=rng.choice(_SUBJECTS), reader=rng.choice(_READERS))
    prompt = _lay_out(ask, sentences, rng)
    kwargs = json.dumps(arguments)
    return make_task("instructions", prompt, instruction_id_list=chosen, kwargs=kwargs, grading_mode="binary")


def state_instruction(name: str, arguments: dict[str, Any], rng: random.Random) -> str:
    """The instruction in one of its wordings.

    >>> state_instruction("paragraphs:paragraphs", {}, random.Random(0))
    'Write two paragraphs with the divider *** between them.'
    """
    words = {
        key: ", ".join(f'"{word}"' for word in value) if isinstance(value, list) else value
        for key, value in arguments.items()
    }
    fewer = {key: "fewer than" for key, value in arguments.items() if value == "less than"}
    return rng.choice(KINDS[name].wordings).format(**words | fewer)


def _lay_out(ask: str, sentences: list[str], rng: random.Random) -> list[dict[str, str]]:
    numbered = "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))
    dashed = "\n".join(f"- {sentence}" for sentence in sentences)
    rules = rng.choice((" ".join(sentences), f"{rng.choice(_LEADS)}\n{numbered}", f"{rng.choice(_LEADS)}\n{dashed}"))
    place = rng.choices(("behind", "front", "system"), (70, 20, 10))[0]
    if place == "system":
        return [{"role": "system", "content": rules}, {"role": "user", "content": ask}]
    parts = [ask, rules] if place == "behind" else [rules, ask]
    return [{"role": "user", "content": "\n\n".join(parts)}]
