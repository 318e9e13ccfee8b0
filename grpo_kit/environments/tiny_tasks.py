"""Tasks that the embedded policy `tiny-environments` can learn: a line or three of text, a reply of some 40 letters.

tiny-records        "Ada is 36 and lives in Rome." as a JSON record
tiny-instructions   so many words, in capitals, ending in a phrase
tiny-documents      a question over three documents of one line
tiny-office         a price to look up with one tool and to note with another

The columns of the first three are those of the environments `structured`, `instructions` and `documents`, and so are
their rewards; `tiny-office` is an environment of its own, because a world's class decides which tools there are.
"""

import json
import random
from collections.abc import Callable
from typing import NamedTuple

from grpo_kit.environments.task import Task, collect_tasks, make_task

# No two words of a list begin with the same letter: the policy then learns in minutes to copy them.
PEOPLE = (
    "Ada", "Bela", "Carla", "Dora", "Emil", "Flora", "Greta", "Hugo", "Ida", "Jana", "Karl", "Lena", "Mara", "Nils",
    "Otto", "Petra", "Rosa", "Sven",
)  # fmt: skip
TOWNS = (
    "Athens", "Bern", "Cork", "Delft", "Essen", "Graz", "Kiel", "Lyon", "Metz", "Nice", "Oslo", "Pisa", "Riga", "Turku",
    "Ulm", "York",
)  # fmt: skip
COLOURS = (
    "BLUE", "COLD", "DARK", "FINE", "GREY", "LONG", "NEW", "OLD", "PINK", "RED", "SOFT", "TALL", "WARM",
)  # fmt: skip
THINGS = (
    "ARM", "BOAT", "CUP", "DOOR", "FLAG", "HAT", "KEY", "LAMP", "MOON", "NEST", "OAK", "ROSE", "SEA", "TEA", "WOLF",
)  # fmt: skip
PURCHASES = ("Note the price of {}.", "How much is {}? Note it.", "Price of {}, noted.", "What does {} cost? Note it.")
ROWS = 600  # tasks that are made without `data.limit`; of tiny-instructions and tiny-office there are 780
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
        "required": ["name", "age", "city"],
    }
)


class Person(NamedTuple):
    """Who is how old and lives where."""

    name: str
    age: int
    town: str


class Wording(NamedTuple):
    """A text of `words` words that ends in `phrase`, which has two."""

    words: int
    phrase: str


class Notes(NamedTuple):
    """What is noted, one document for each (kind, what), and which of them is asked for, from 0."""

    notes: list[tuple[str, str]]
    asked: int


def draw_person(rng: random.Random) -> Person:
    """Draw what a record holds."""
    return Person(rng.choice(PEOPLE), rng.randint(10, 99), rng.choice(TOWNS))


def draw_wording(rng: random.Random) -> Wording:
    """Draw what an instruction asks for: three to six words."""
    return Wording(rng.randint(3, 6), f"{rng.choice(COLOURS)} {rng.choice(THINGS)}")


def draw_notes(rng: random.Random) -> Notes:
    """Draw three documents in any order and a question."""
    person = draw_person(rng)
    notes = [("name", person.name), ("age", str(person.age)), ("town", person.town)]
    return Notes(rng.sample(notes, 3), rng.randrange(3))


class Purchase(NamedTuple):
    """A wording, the things that have a price, and which of them is asked for, from 0."""

    wording: str
    prices: dict[str, int]
    asked: int


def draw_purchase(rng: random.Random) -> Purchase:
    """Draw three things with prices."""
    prices: dict[str, int] = {}
    while len(prices) < 3:
        prices[f"{rng.choice(COLOURS)} {rng.choice(THINGS)}"] = rng.randint(10, 99)
    return Purchase(rng.choice(PURCHASES), prices, rng.randrange(3))


def ask_purchase(purchase: Purchase) -> Task:
    """The task of noting a price, which has to be looked up first.

    >>> task = ask_purchase(Purchase("Note the price of {}.", {"RED TEA": 36, "OLD HAT": 20}, 0))
    >>> task.prompt[0]["content"], task.columns["gold_calls"]
    ('Note the price of RED TEA.', '[{"name": "note", "arguments": {"price": 36}}]')
    """
    thing, price = list(purchase.prices.items())[purchase.asked]
    entries = [{"id": n, "thing": name, "price": cost} for n, (name, cost) in enumerate(purchase.prices.items(), 1)]
    gold = [{"name": "note", "arguments": {"price": price}}]
    return make_task(
        "tiny-office", _say(purchase.wording.format(thing)), state=json.dumps({"prices": entries}),
        gold_calls=json.dumps(gold),
    )  # fmt: skip


def ask_record(person: Person) -> Task:
    """The task of writing a person as a record.

    >>> ask_record(Person("Ada", 36, "Rome")).prompt[0]["content"]
    'Ada is 36 and lives in Rome.\\nAs JSON:'
    """
    text = f"{person.name} is {person.age} and lives in {person.town}.\nAs JSON:"
    known = json.dumps({"name": person.name, "age": person.age, "city": person.town})
    return make_task("structured", _say(text), schema_str=SCHEMA, schema_type="json", expected=known)


def ask_wording(wording: Wording) -> Task:
    """The task of writing so many words.

    >>> ask_wording(Wording(4, "RED TEA")).prompt[0]["content"]
    'Write 4 words in capitals, ending in RED TEA.'
    """
    kinds = (
        ("length_constraints:number_words", {"num_words": wording.words, "relation": "at least"}),
        ("length_constraints:number_words", {"num_words": wording.words + 1, "relation": "less than"}),
        ("change_case:capital_word_frequency", {"capital_frequency": wording.words, "capital_relation": "at least"}),
        ("startend:end_checker", {"end_phrase": wording.phrase}),
    )
    text = f"Write {wording.words} words in capitals, ending in {wording.phrase}."
    return make_task(
        "instructions", _say(text), instruction_id_list=[name for name, _ in kinds],
        kwargs=json.dumps([arguments for _, arguments in kinds]), grading_mode="binary",
    )  # fmt: skip


def ask_notes(notes: Notes) -> Task:
    """A question over three documents.

    >>> print(ask_notes(Notes([("age", "36"), ("town", "Oslo"), ("name", "Ada")], 1)).prompt[0]["content"])
    age: 36 [1]
    town: Oslo [2]
    name: Ada [3]
    Which town?
    """
    documents = [f"{kind}: {what}" for kind, what in notes.notes]
    kind, answer = notes.notes[notes.asked]
    lines = [f"{document} [{number}]" for number, document in enumerate(documents, start=1)]
    prompt = _say("\n".join([*lines, f"Which {kind}?"]))
    return make_task("documents", prompt, answer=answer, documents=documents, supporting=[notes.asked + 1])


def make_tasks(source: str, count: int, seed: int, longest_prompt: int | None = None) -> list[Task]:
    """Make tasks with different prompts.

    Args:
        source: a name of `SOURCES`.
        count: number of tasks; of tiny-instructions and tiny-office there are 780.
        seed: decides the tasks; a larger count begins with the tasks of a smaller one.
        longest_prompt: largest number of characters of a prompt; None for any.

    Returns:
        Tasks with the columns of the source's environment.

    Raises:
        ValueError: the count is below 1, or there are too few tasks.

    Example:
        >>> make_tasks("tiny-records", 2, seed=7)[:1] == make_tasks("tiny-records", 1, seed=7)
        True
    """
    draw = SOURCES[source].draw
    return collect_tasks(lambda number: draw(random.Random(f"{source} {seed} {number}")), count, longest_prompt)


class TinySource(NamedTuple):
    """The environment of a source, and what draws one of its tasks."""

    environment: str
    draw: Callable[[random.Random], Task]


SOURCES = {
    "tiny-records": TinySource("structured", lambda rng: ask_record(draw_person(rng))),
    "tiny-instructions": TinySource("instructions", lambda rng: ask_wording(draw_wording(rng))),
    "tiny-documents": TinySource("documents", lambda rng: ask_notes(draw_notes(rng))),
    "tiny-office": TinySource("tiny-office", lambda rng: ask_purchase(draw_purchase(rng))),
}


def _say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
