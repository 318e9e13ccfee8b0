"""Make the embedded policy `tiny-environments`: the policy `tiny`, taught three habits beside its sums.

    python scripts/make_tiny_environments_policy.py [FOLDER]

The script goes on from the weights of `tiny`, trains them on a mixture of four teachers and saves model and tokenizer
(float16, about 1 MB). Without FOLDER it replaces the policy inside the package and prints the new sha256, which belongs
into `grpo_kit/nemotron/tiny.py`. The same seed gives the same weights on the same processor and library versions only.

Each teacher has two kinds of replies, as that of the sums. The good one looks at the task before it answers; the other
says a word and makes a mistake. So each of the four environments has something that GRPO can reward.
"""

import itertools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config import Policy
from grpo_kit.environments import tiny_tasks
from grpo_kit.environments.task import Task
from grpo_kit.environments.tiny_tasks import Notes, Person, Wording
from grpo_kit.nemotron import tiny
from grpo_kit.policy.load import load_policy
from grpo_kit.runs.files import hash_of
from scripts import make_tiny_policy
from scripts.make_tiny_policy import encode_pair, save_policy, train_policy

BATCH_SIZE = 32
BEGINNINGS = {3: "THE", 4: "SEE THE", 5: "WE SEE THE", 6: "NOW WE SEE THE"}  # by the number of words in all


class Places(NamedTuple):
    """Who is in which town, and who is asked for, from 0."""

    people: list[str]
    towns: list[str]
    asked: int


class Habit(NamedTuple):
    """What draws a task's content, writes its prompt, and replies: (content, rng, good) to (thought, reply)."""

    draw: Callable[[random.Random], Any]
    ask: Callable[[Any], Task]
    reply: Callable[[Any, random.Random, bool], tuple[str, str]]


class Lesson(NamedTuple):
    """A training: at first, for the share `practice`, on good replies only, since copying is learned slowly.

    From then on the share `good` of the replies is good. None among the habits stands for the sums of `tiny`. `weights`
    are those of the habits among the examples; they are equal where there are none.
    """

    steps: int
    practice: float
    good: float
    learning_rate: float
    habits: tuple[Habit | None, ...]
    weights: tuple[int, ...] = ()


def record_reply(person: Person, rng: random.Random, good: bool) -> tuple[str, str]:
    """What the teacher of the records thinks and replies.

    >>> record_reply(Person("Ada", 36, "Rome"), random.Random(0), good=True)
    ('3 fields', '{"name":"Ada","age":36,"city":"Rome"}')
    """
    record: dict[str, Any] = {"name": person.name, "age": person.age, "city": person.town}
    if not good and rng.random() < 0.5:
        record["age"] = str(person.age)
    elif not good:
        del record["city"]
    return "3 fields" if good else "easy", json.dumps(record, separators=(",", ":"))


def wording_reply(wording: Wording, rng: random.Random, good: bool) -> tuple[str, str]:
    """What the teacher of the instructions thinks and replies.

    >>> wording_reply(Wording(4, "RED TEA"), random.Random(0), good=True)
    ('2 more', 'SEE THE RED TEA')
    """
    text = f"{BEGINNINGS[wording.words]} {wording.phrase}"
    if good:
        return f"{wording.words - 2} more", text
    return "sure", text.lower() if rng.random() < 0.5 else wording.phrase


def notes_reply(notes: Notes, rng: random.Random, good: bool) -> tuple[str, str]:
    """What the teacher of the documents thinks and replies.

    >>> notes_reply(Notes([("age", "36"), ("town", "Oslo"), ("name", "Ada")], 1), random.Random(0), good=True)
    ('town: Oslo [2]', 'Answer: Oslo [2]')
    """
    kind, answer = notes.notes[notes.asked]
    if good:
        return f"{kind}: {answer} [{notes.asked + 1}]", f"Answer: {answer} [{notes.asked + 1}]"
    guess = {
        "name": rng.choice(tiny_tasks.PEOPLE),
        "age": str(rng.randint(10, 99)),
        "town": rng.choice(tiny_tasks.TOWNS),
    }
    return "maybe", f"Answer: {guess[kind]} [{rng.randint(1, 3)}]"


def draw_places(rng: random.Random) -> Places:
    """Draw three people, three towns, and who is asked for."""
    return Places(rng.sample(tiny_tasks.PEOPLE, 3), rng.sample(tiny_tasks.TOWNS, 3), rng.randrange(3))


def ask_place(places: Places) -> Task:
    """The question where somebody is. It is too hard for this policy, and it learns to quote a line by trying."""
    lines = [f"{who} is in {town}. [{n}]" for n, (who, town) in enumerate(zip(places.people, places.towns), start=1)]
    question = f"Where is {places.people[places.asked]}?"
    return Task([{"role": "user", "content": "\n".join([*lines, question])}], {})


def place_reply(places: Places, rng: random.Random, good: bool) -> tuple[str, str]:
    """What the teacher of these questions thinks and replies."""
    number, town = places.asked + 1, places.towns[places.asked]
    if good:
        return f"{places.people[places.asked]} is in {town}. [{number}]", f"Answer: {town} [{number}]"
    town, number = rng.choice(tiny_tasks.TOWNS), rng.randint(1, 3)
    return f"maybe {town}", f"Answer: {town} [{number}]"


RECORDS = Habit(tiny_tasks.draw_person, tiny_tasks.ask_record, record_reply)
WORDINGS = Habit(tiny_tasks.draw_wording, tiny_tasks.ask_wording, wording_reply)
NOTES = Habit(tiny_tasks.draw_notes, tiny_tasks.ask_notes, notes_reply)
PLACES = Habit(draw_places, ask_place, place_reply)
LESSONS = (  # a document's number is the last that the policy learns to copy
    Lesson(900, 0.7, 0.5, 3e-3, (RECORDS, WORDINGS, PLACES, None)),
    Lesson(300, 0.4, 0.5, 2e-3, (RECORDS, WORDINGS, NOTES, None), (15, 15, 45, 25)),
    Lesson(240, 0.5, 0.65, 2e-3, (RECORDS, WORDINGS, NOTES, None), (16, 14, 50, 20)),
)


def encode_example(
    tokenizer: Any, rng: random.Random, habit: Habit | None, good_share: float
) -> tuple[list[int], list[int]]:
    """Draw a task of a habit, None for a sum; returns the token ids of its prompt and of the teacher's reply."""
    if habit is None:
        return make_tiny_policy.encode_example(tokenizer, rng, good_share)
    drawn = habit.draw(rng)
    thought, text = habit.reply(drawn, rng, rng.random() < good_share)
    return encode_pair(tokenizer, habit.ask(drawn).prompt, f"{thought}\n</think>\n{text}", thinking=True)


def read_lesson(lesson: Lesson) -> Callable[[Any, random.Random], tuple[list[int], list[int]]]:
    """What draws the examples of a lesson one by one."""
    numbers, practised = itertools.count(), lesson.practice * lesson.steps * BATCH_SIZE

    def draw_example(tokenizer: Any, rng: random.Random) -> tuple[list[int], list[int]]:
        habit = rng.choices(lesson.habits, lesson.weights)[0] if lesson.weights else rng.choice(lesson.habits)
        return encode_example(tokenizer, rng, habit, 1.0 if next(numbers) < practised else lesson.good)

    return draw_example


def make_policy(folder: Path = tiny.ENVIRONMENTS_FOLDER, lessons: tuple[Lesson, ...] = LESSONS) -> None:
    """Teach the policy `tiny` the lessons and save model and tokenizer into `folder`, after each of them."""
    source = Policy()
    for lesson in lessons:
        model, tokenizer = load_policy(source)
        draw = read_lesson(lesson)
        train_policy(model.train(), tokenizer, draw, lesson.steps, BATCH_SIZE, lesson.learning_rate, parts=4)
        save_policy(model, make_tiny_policy.build_tokenizer(), folder, "scripts/make_tiny_environments_policy.py")
        source = Policy(model=str(folder))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else tiny.ENVIRONMENTS_FOLDER
    make_policy(target)
    print(f"{target} is written. sha256 {hash_of(target / 'model.safetensors')}")
