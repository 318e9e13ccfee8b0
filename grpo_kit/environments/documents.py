"""Generates questions over several documents: the answer stands in one of them, or in two that lead to each other.

Each document tells a few facts of one thing (`facts.py`). A question asks for a fact of a thing ("How many pages has
...?"), or of the thing that it leads to ("Where was the author of ... born?"), for which two documents are needed. The
other documents tell facts of the same kind of things with near names. No two documents of a task hold the same value,
so an answer stands nowhere but in the documents of `supporting`.
"""

import random
from collections.abc import Callable

from grpo_kit.environments import names
from grpo_kit.environments.facts import THINGS, Relation
from grpo_kit.environments.task import Task, collect_tasks, count_characters, make_task

VERSION = 1  # goes up whenever a seed and number give another task than before
MOST_DOCUMENTS = 8
_STARTS = ("firm", "book", "ship", "person", "town")
_ENDINGS = (
    'Answer in one line of the form "Answer: ... [n]": the answer in as few words as possible, then the number of each '
    "document that you needed, in square brackets of its own, and of no other.",
    "End with a line that begins with Answer: and gives nothing but the answer and, in square brackets, the numbers of "
    "the documents that it follows from, for example [7] or [7] [9].",
    'Reply with a JSON object: {"answer": "...", "supporting": [...]}. The list holds the numbers of the documents '
    "that are needed for the answer, and no others.",
    "First line: Answer: the shortest answer, followed by the documents that support it as [number]. Name all that are "
    "needed, also those that only lead to the answer, and none besides.",
)


class _World:
    """The names and values of one task, of which none is drawn twice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.used: set[str] = set()

    def draw(self, kind: str, near: str = "") -> str:
        """A name or value of this kind, for things one that is near another name."""
        make = _NAMES.get(kind) or _VALUES[kind]
        for attempt in range(1000):
            name = make(self.rng, near if attempt < 20 else "")
            if name not in self.used:
                self.used.add(name)
                return name
        raise AssertionError(f"there are too few names of the kind {kind}")


def _pair_words(rng: random.Random, near: str, firsts: list[str], lasts: list[str]) -> str:
    """Two words, one of them as in the near name."""
    first, last = rng.choice(firsts), rng.choice(lasts)
    if near and rng.random() < 0.5:
        first = near.split()[0]
    elif near:
        last = near.split()[1]
    return f"{first} {last}"


def _make_book(rng: random.Random, near: str) -> str:
    first, second = rng.sample(names.TITLES, 2)
    first = near.split()[1] if near else first
    return f"The {first} and the {second}" if first != second else f"The {first} of {rng.choice(names.TOWNS)}"


_Make = Callable[[random.Random, str], str]
_NAMES: dict[str, _Make] = {
    "firm": lambda rng, near: _pair_words(rng, near, names.FIRM_HEADS, names.FIRM_TAILS),
    "book": _make_book,
    "ship": lambda rng, near: _pair_words(rng, near, names.FIRM_HEADS, ["Star", "Queen", "Wind", "Gull"]),
    "person": lambda rng, near: _pair_words(rng, near, names.FIRST, names.LAST),
    "town": lambda rng, near: rng.choice(names.TOWNS),
}
_VALUES: dict[str, _Make] = {
    "year": lambda rng, near: str(rng.randint(1850, 2020)),
    "product": lambda rng, near: rng.choice(names.PRODUCTS),
    "pages": lambda rng, near: str(rng.randint(90, 990)),
    "date": lambda rng, near: names.spell_date(names.draw_date(rng, 1950, 2020)),
    "subject": lambda rng, near: rng.choice(names.SUBJECTS),
    "language": lambda rng, near: rng.choice(names.LANGUAGES),
    "river": lambda rng, near: rng.choice(names.RIVERS),
    "people": lambda rng, near: f"{rng.randint(2_000, 90_000):,}",
}


def make_tasks(count: int, seed: int, longest_prompt: int | None = None) -> list[Task]:
    """Make tasks with different prompts.

    Args:
        count: number of tasks.
        seed: decides the tasks; a larger count begins with the tasks of a smaller one.
        longest_prompt: largest number of characters of a prompt; where it is short, there are fewer documents.

    Returns:
        Tasks with the columns `answer`, `aliases`, `documents` and `supporting`.

    Raises:
        ValueError: the count is below 1, or too few tasks are so short.

    Example:
        >>> task = make_tasks(1, seed=7)[0]
        >>> 2 <= len(task.columns["documents"]) <= 8, len(task.columns["supporting"]) in (1, 2)
        (True, True)
    """
    return collect_tasks(
        lambda number: draw_task(random.Random(f"{VERSION} documents {seed} {number}"), longest_prompt),
        count,
        longest_prompt,
    )


def draw_task(rng: random.Random, longest_prompt: int | None = None) -> Task:
    """Draw one task, with as many of its distractors as `longest_prompt` leaves room for."""
    world = _World(rng)
    start = rng.choice(_STARTS)
    thing, relations = world.draw(start), THINGS[start]
    bridges = [relation for relation in relations if relation.leads]
    if rng.random() < 0.5:
        bridge = rng.choice(bridges)
        middle = world.draw(bridge.kind)
        asked, value = _choose_asked(world, bridge.kind)
        needed = [_tell(world, start, thing, bridge, middle), _tell(world, bridge.kind, middle, asked, value)]
        subject, kinds = bridge.leads.format(it=thing), [(start, thing), (bridge.kind, middle)]
    else:
        asked, value = _choose_asked(world, start)
        needed, subject, kinds = [_tell(world, start, thing, asked, value)], thing, [(start, thing)]
    question = rng.choice(asked.asks.split("|")).format(it=subject)
    others = [_tell_of_another(world, *rng.choice(kinds)) for _ in range(rng.randint(2, MOST_DOCUMENTS) - len(needed))]
    ending, is_behind = rng.choice(_ENDINGS), rng.random() < 0.5
    while True:
        documents = [*needed, *others]
        rng.shuffle(documents)
        prompt = make_prompt(question, documents, ending, is_behind)
        if longest_prompt is None or count_characters(prompt) <= longest_prompt or len(documents) <= 2:
            break
        others.pop()
    supporting = sorted(documents.index(document) + 1 for document in needed)
    aliases = _list_aliases(asked.kind, value)
    return make_task("documents", prompt, answer=value, aliases=aliases, documents=documents, supporting=supporting)


def make_prompt(
    question: str, documents: list[str], ending: str = _ENDINGS[0], is_behind: bool = True
) -> list[dict[str, str]]:
    """The messages of a question over documents, which are numbered from 1.

    Args:
        question: the question.
        documents: the documents.
        ending: how to answer and to name the documents.
        is_behind: whether the question stands behind the documents.
    """
    shelf = "\n\n".join(f"[{number}] {document}" for number, document in enumerate(documents, 1))
    parts = [f"Documents:\n\n{shelf}", f"Question: {question}"]
    return [{"role": "user", "content": "\n\n".join([*(parts if is_behind else parts[::-1]), ending])}]


def _choose_asked(world: _World, kind: str) -> tuple[Relation, str]:
    relation = world.rng.choice(THINGS[kind])
    return relation, world.draw(relation.kind)


def _tell(world: _World, kind: str, thing: str, relation: Relation, value: str) -> str:
    """A document that tells a fact, and up to two more of the same thing."""
    facts = [(relation, value)]
    rest = [other for other in THINGS[kind] if other is not relation]
    for other in world.rng.sample(rest, world.rng.randint(0, min(2, len(rest)))):
        facts.append((other, world.draw(other.kind)))
    world.rng.shuffle(facts)
    sentences = [world.rng.choice(relation.says.split("|")).format(it=thing, value=value) for relation, value in facts]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _tell_of_another(world: _World, kind: str, near: str) -> str:
    """A document about another thing of this kind, with a near name."""
    relation, value = _choose_asked(world, kind)
    return _tell(world, kind, world.draw(kind, near), relation, value)


def _list_aliases(kind: str, value: str) -> list[str] | None:
    """Other ways to write a value that are as good."""
    if kind == "date":
        day, month, year = value.split()
        number = names.MONTHS.index(month) + 1
        return [f"{month} {day}, {year}", f"{year}-{number:02}-{int(day):02}"]
    units = {"pages": f"{value} pages", "people": f"{value} inhabitants", "river": f"the river {value}"}
    return [units[kind]] if kind in units else None
