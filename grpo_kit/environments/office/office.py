"""The office: six tools over mail, calendar and tasks of a small firm, on a fixed day."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from grpo_kit.environments.office.tables import (
    BadArgument,
    Table,
    address,
    date,
    label,
    moment,
    text,
    whole,
)
from grpo_kit.environments.office.world import World, tool

LISTS = ("to do", "doing", "done")
PAGE = 5  # entries that a search shows at once

TABLES = {
    "people": Table({"name": text, "address": address}),
    "mail": Table(
        {"folder": label, "person": address, "subject": text, "sent": text, "body": text}, can_delete=True
    ),
    "events": Table({"title": text, "person": address, "start": moment, "minutes": whole}, True, True),
    "tasks": Table({"title": text, "person": address, "due": date, "list": label, "board": label}, True, True),
    # Rows of NVIDIA's workplace have these, too (`workplace.py`).
    "customers": Table(
        {"name": text, "person": address, "email": address, "phone": text, "last_contact": text, "interest": label,
         "status": label, "follow_up": text, "notes": text},
        True, True,
    ),
}  # fmt: skip


class Office(World):
    """Mail, calendar and tasks; the first argument of most tools is a table's name."""

    _tables: ClassVar[Mapping[str, Table]] = TABLES

    @tool
    def search(self, table: str, text: str = "", page: int = 1) -> dict[str, Any]:
        """Search a table of the office. Shows five entries at once.

        Args:
            table: people, mail, events or tasks; some offices have customers.
            text: Words that an entry must contain; without them every entry is found.
            page: 1 for the first five entries, 2 for the next.
        """
        words = text.casefold().split()
        found = [
            {"id": key} | entry
            for key, entry in self._entries(table).items()
            if all(word in " ".join(map(str, entry.values())).casefold() for word in words)
        ]
        if page < 1:
            raise BadArgument(f"page is {page}; it must be 1 or more.")
        return {"found": len(found), "entries": found[PAGE * (page - 1) : PAGE * page]}

    @tool
    def send_mail(self, to: str, subject: str, body: str) -> dict[str, Any]:
        """Send a mail. A reply has the subject of the mail it answers, and so has a mail that is passed on.

        Args:
            to: The address of the person, as people or a mail has it.
            subject: The subject.
            body: The text.
        """
        person = self._find_address("to", to)
        return self._add_entry("mail", folder="outbox", person=person, subject=subject, body=body)

    @tool
    def add_event(self, title: str, person: str, start: str, minutes: int) -> dict[str, Any]:
        """Put an event into the calendar.

        Args:
            title: What it is called.
            person: The address of the person it is with.
            start: When it starts, as YYYY-MM-DD HH:MM.
            minutes: How long it takes.
        """
        person = self._find_address("person", person)
        return self._add_entry("events", title=title, person=person, start=start, minutes=_check_minutes(minutes))

    @tool
    def add_task(self, title: str, person: str, due: str) -> dict[str, Any]:
        """Give a person a task; it is put on the list "to do".

        Args:
            title: What is to be done.
            person: The address of the person.
            due: The last day for it, as YYYY-MM-DD.
        """
        person = self._find_address("person", person)
        return self._add_entry("tasks", title=title, person=person, due=due, list=LISTS[0])

    @tool
    def change(self, table: str, id: int, field: str, value: str) -> dict[str, Any]:
        """Change one field of an event or a task.

        Args:
            table: events or tasks.
            id: The id of the entry.
            field: Of an event title, person, start or minutes; of a task title, person, due or list.
            value: The new value. Lists are to do, doing and done.
        """
        entry = self._find_entry(table, id)
        if not self._tables[table].can_change:
            raise BadArgument(f"Entries of {table} cannot be changed.")
        fields = dict.fromkeys(name for other in (*self._start[table].values(), entry) for name in other)
        if field not in fields:
            raise BadArgument(f"field is {field[:60]!r}; an entry of {table} has {', '.join(fields)}.")
        kind = self._tables[table].fields[field]
        if kind is whole:
            new: Any = _check_minutes(int(value) if re.fullmatch("[0-9]{1,9}", value.strip()) else value)
        elif kind is address:
            new = self._find_address(field, value)
        elif kind is label:
            new = self._find_label(table, field, value)
        else:
            new = kind(field, value)
        self._state[table][id] = entry | {field: new}
        return {"id": id, field: new}

    @tool
    def delete(self, table: str, id: int) -> dict[str, Any]:
        """Delete a mail, an event or a task.

        Args:
            table: mail, events or tasks.
            id: The id of the entry.
        """
        self._find_entry(table, id)
        if not self._tables[table].can_delete:
            raise BadArgument(f"Entries of {table} cannot be deleted.")
        del self._state[table][id]
        return {"deleted": id}

    def _find_address(self, name: str, value: str) -> str:
        """An address that the office had at the beginning."""
        wanted = address(name, value)
        for table, entries in self._start.items():
            fields = [field for field, kind in self._tables[table].fields.items() if kind is address]
            if any(entry.get(field) == wanted for entry in entries.values() for field in fields):
                return wanted
        raise BadArgument(f"{name} is {wanted[:60]!r}, and nobody here has this address; search people for it.")

    def _find_label(self, table: str, field: str, value: str) -> str:
        """One of the words that entries had in this field at the beginning, or the name of a list."""
        known = [str(entry[field]) for entry in self._start[table].values() if field in entry]
        words = dict.fromkeys([*(LISTS if field == "list" else ()), *known])
        for word in words:
            if word.casefold() == value.strip().casefold():
                return word
        raise BadArgument(f"{field} is {value[:60]!r}; it must be one of {', '.join(words)[:200]}.")


def _check_minutes(value: Any) -> int:
    if not 1 <= whole("minutes", value) <= 1440:
        raise BadArgument(f"minutes is {value}; an event takes 1 to 1440 minutes.")
    return value
