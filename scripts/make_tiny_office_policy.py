"""Make the embedded policy `tiny-office`: the policy `tiny`, taught to call two tools beside its sums.

    python scripts/make_tiny_office_policy.py [FOLDER]

The script goes on from the weights of `tiny`, trains them on episodes of a teacher in the world `tiny-office`, on one
core, and saves model and tokenizer (float16, about 1 MB). Without FOLDER it replaces the policy inside the package and
prints the new sha256, which belongs into `grpo_kit/nemotron/tiny.py`. The same seed gives the same weights on the same
processor and library versions only.

Most of the teacher's episodes look the price up, note it and end. The others make one of four MISTAKES, each with a
word of its own at the beginning of a thought. So GRPO has something to improve at two places of an episode.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from grpo_kit.config import Policy
from grpo_kit.environments.office import TinyOffice
from grpo_kit.environments.tiny_tasks import Purchase, ask_purchase, draw_purchase
from grpo_kit.environments.worlds.episode import call_tool, make_episode_class
from grpo_kit.nemotron import tiny
from grpo_kit.policy.chat import encode_prompt
from grpo_kit.policy.load import load_policy
from grpo_kit.policy.tool_calls import encode_results
from grpo_kit.runs.files import hash_of
from scripts import make_tiny_policy
from scripts.make_tiny_policy import Example, save_policy, train_policy

BATCH_SIZE = 16
LEARNING_RATE = 3e-3
MISTAKES = ("stops", "guesses", "forgets", "rounds")
EPISODES = make_episode_class(TinyOffice)


class Lesson(NamedTuple):
    """A training on some turns of an episode; the shares of episodes without a mistake, and of sums among all examples.

    Copying a thing or a price is learned slowly, so that it is practised on one turn, which is a third of an episode.
    """

    steps: int
    turns: slice
    good_share: float
    sum_share: float


LESSONS = (
    Lesson(450, slice(0, 1), 1.0, 0.0),  # look a thing up
    Lesson(160, slice(1, 2), 1.0, 0.0),  # note what was found
    Lesson(140, slice(0, 3), 0.5, 0.2),
    Lesson(200, slice(0, 3), 0.7, 0.1),
)


class Turn(NamedTuple):
    """A turn of the teacher: it thinks, then calls a tool with one argument, or says something and ends."""

    thought: str
    call: tuple[str, str, str | int] | None = None  # the tool, its parameter, the value
    text: str = ""

    def write(self) -> str:
        """The turn as the policy has to write it.

        >>> print(Turn("it is 36", ("note", "price", 36)).write())
        it is 36
        </think>
        <tool_call>
        <function=note>
        <parameter=price>
        36
        </parameter>
        </function>
        </tool_call>
        <BLANKLINE>
        """
        said = self.text
        if self.call:
            name, key, value = self.call
            said = f"<function={name}>\n<parameter={key}>\n{value}\n</parameter>\n</function>"
            said = f"<tool_call>\n{said}\n</tool_call>\n"
        return f"{self.thought}\n</think>\n{said}"


def teach(purchase: Purchase, rng: random.Random, mistake: str | None) -> list[Turn]:
    """The turns of the teacher.

    >>> task = Purchase("Note the price of {}.", {"RED TEA": 36, "OLD HAT": 20}, 0)
    >>> [turn.call or turn.text for turn in teach(task, random.Random(0), None)]
    [('find', 'thing', 'RED TEA'), ('note', 'price', 36), '36 is noted.']
    """
    thing, price = list(purchase.prices.items())[purchase.asked]
    look_up = Turn(f"find {thing}", ("find", "thing", thing))
    match mistake:
        case "stops":
            return [Turn("easy", text="It is noted.")]
        case "guesses":
            guess = rng.choice([number for number in range(10, 100) if number != price])
            return [Turn(f"maybe {guess}", ("note", "price", guess)), Turn("done", text=f"{guess} is noted.")]
        case "forgets":
            return [look_up, Turn("good", text=f"It is {price}.")]
        case "rounds":
            near = price // 10 * 10 + (0 if price % 10 else 5)
            return [look_up, Turn(f"about {near}", ("note", "price", near)), Turn("done", text=f"{near} is noted.")]
    return [look_up, Turn(f"it is {price}", ("note", "price", price)), Turn("done", text=f"{price} is noted.")]


def encode_episode(tokenizer: Any, rng: random.Random, good_share: float) -> Example:
    """Draw a task; returns the token ids of its prompt, the teacher's first turn, the tool's result, and so on.

    Args:
        tokenizer: the policy's.
        rng: source of the task and of the mistake.
        good_share: probability of an episode without a mistake.
    """
    purchase = draw_purchase(rng)
    mistake = None if rng.random() < good_share else rng.choice(MISTAKES)
    task, episode = ask_purchase(purchase), EPISODES()
    episode.reset(**task.columns)
    parts = [encode_prompt(tokenizer, task.prompt, True, EPISODES.schemas)]
    for turn in teach(purchase, rng, mistake):
        parts.append(tokenizer.encode(turn.write() + "<|im_end|>", add_special_tokens=False))
        if turn.call:
            name, key, value = turn.call
            result = {"role": "tool", "name": name, "content": call_tool(episode, name, {key: value})}
            parts.append(encode_results(tokenizer, [result], True))
    return tuple(parts)


def read_lesson(lesson: Lesson) -> Callable[[Any, random.Random], Example]:
    """What draws the examples of a lesson one by one."""

    def draw_example(tokenizer: Any, rng: random.Random) -> Example:
        if lesson.sum_share and rng.random() < lesson.sum_share:
            return make_tiny_policy.encode_example(tokenizer, rng)
        return encode_episode(tokenizer, rng, lesson.good_share)[2 * lesson.turns.start : 2 * lesson.turns.stop]

    return draw_example


def make_policy(folder: Path = tiny.OFFICE_FOLDER, lessons: tuple[Lesson, ...] = LESSONS) -> None:
    """Teach the policy `tiny` the lessons and save model and tokenizer into `folder`, after each of them."""
    source = Policy()
    for lesson in lessons:
        model, tokenizer = load_policy(source)
        parts = 2 if lesson.sum_share else 1  # a sum is a seventh as long as an episode
        train_policy(model.train(), tokenizer, read_lesson(lesson), lesson.steps, BATCH_SIZE, LEARNING_RATE, parts)
        save_policy(model, make_tiny_policy.build_tokenizer(), folder, "scripts/make_tiny_office_policy.py")
        source = Policy(model=str(folder))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else tiny.OFFICE_FOLDER
    torch.set_num_threads(1)
    make_policy(target)
    print(f"{target} is written. sha256 {hash_of(target / 'model.safetensors')}")
