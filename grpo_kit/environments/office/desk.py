"""What a request is drawn from: a firm, and which of its entries were named so far."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from grpo_kit.environments.office import firm
from grpo_kit.environments.office.tables import Entry

MOST_CALLS = 4  # gold calls of a request


class Part(NamedTuple):
    """A sentence of a request, and the calls that do what it says."""

    sentence: str
    calls: list[tuple[str, dict[str, Any]]]


class Desk:
    """A firm, and which of its entries the parts of a request have named so far."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.state = rng, firm.draw_state(rng)
        self.named: set[tuple[str, int]] = set()
        entries = [entry for table in self.state.values() for entry in table.values()]
        self.titles = {str(entry.get("subject") or entry.get("title")) for entry in entries}
        self.names = {entry["address"]: str(entry["name"]) for entry in self.state["people"].values()}

    def take(self, table: str, fits: Callable[[Entry], bool] = lambda entry: True) -> tuple[int, Entry] | None:
        """Draw an entry that no part has named."""
        free = [k for k, entry in self.state[table].items() if (table, k) not in self.named and fits(entry)]
        if not free:
            return None
        key = self.rng.choice(free)
        self.named.add((table, key))
        return key, self.state[table][key]

    def take_all(self, table: str, fits: Callable[[Entry], bool]) -> list[int]:
        """The ids of all entries that fit, at most MOST_CALLS; [] where there are more or none."""
        keys = [key for key, entry in self.state[table].items() if fits(entry)]
        self.named.update((table, key) for key in keys)
        return keys if len(keys) <= MOST_CALLS else []

    def draw_new(self, draw: Callable[[random.Random], str]) -> str:
        """A subject or title that nothing in the firm has."""
        while (title := draw(self.rng)) in self.titles:
            pass
        self.titles.add(title)
        return title

    def draw_person(self) -> str:
        return self.rng.choice(list(self.names))

    def call(self, address: str | int) -> str:
        """A person as somebody in the firm would say it."""
        name = self.names[str(address)]
        return name if self.rng.random() < 0.4 else name.split()[0]

    def describe_person(self) -> tuple[str, str]:
        """A person's address, and the person in words: by name, or by a mail, an event or a task."""
        table = self.rng.choice(("people", "people", "people", "mail", "events", "tasks"))
        taken = self.take(table, lambda entry: entry.get("folder") != "outbox") if table != "people" else None
        if taken is None:
            address = self.draw_person()
            return address, self.call(address)
        _, entry = taken
        words = {
            "mail": ('the person who wrote "{}"', 'whoever sent the mail "{}"'),
            "events": ('the person of the event "{}"', 'whoever the event "{}" is with'),
            "tasks": ('the person who has the task "{}"', 'whoever is to do "{}"'),
        }
        title = entry.get("subject") or entry["title"]
        return str(entry["person"]), self.rng.choice(words[table]).format(title)
