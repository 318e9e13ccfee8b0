"""Requests to an office by seed: one to four calls that lead to a known end, often after a look-up.

Every person, mail, event and task that a request names is the only one it can mean, and no two parts of a request are
about the same entry, so their order does not matter. The calls that look something up are not among the gold calls:
they change nothing.
"""

import json
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from grpo_kit.environments import names
from grpo_kit.environments.office import firm
from grpo_kit.environments.office.tables import Entry, write_state
from grpo_kit.environments.task import Task, collect_tasks, make_task

VERSION = 1
MOST_CALLS = 4  # gold calls of a request
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_TODAY = (
    "Today is Monday, 2 March 2026, 08:30.", "It is Monday, 2 March 2026, half past eight in the morning.",
    "Date: 2026-03-02 (Monday), 08:30.",
)  # fmt: skip
_BEGINNINGS = ("", "", "Please do this in the office: ", "Here is what I need. ", "Could you see to this? ")
_NEXT = (" ", " Also: ", " And then: ", "\n")


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


def reply_to_mail(desk: Desk) -> Part | None:
    taken = desk.take("mail", lambda entry: entry["folder"] == "inbox")
    if taken is None:
        return None
    key, mail = taken
    who, subject, text = desk.call(mail["person"]), mail["subject"], firm.draw_text(desk.rng)
    wordings = [
        f'Reply to the mail "{subject}" with "{text}"', f'{who} wrote about "{subject}". Write back: "{text}"',
        f'Answer {who}\'s mail "{subject}": "{text}"',
    ]  # fmt: skip
    latest = max(
        (entry["sent"], other)
        for other, entry in desk.state["mail"].items()
        if (entry["person"], entry["folder"]) == (mail["person"], "inbox")
    )
    if latest[1] == key:
        wordings += [f'Reply to the latest mail from {who} with "{text}"', f'Answer what {who} wrote last: "{text}"']
    call = {"to": mail["person"], "subject": f"Re: {subject}", "body": text}
    return Part(desk.rng.choice(wordings), [("send_mail", call)])


def write_mail(desk: Desk) -> Part:
    address, who = desk.describe_person()
    subject, text = desk.draw_new(firm.draw_subject), firm.draw_text(desk.rng)
    wordings = (
        f'Write to {who}, with the subject "{subject}": "{text}"',
        f'Send a mail to {who}. Subject: "{subject}". Text: "{text}"',
        f'Mail "{text}" to {who}; the subject is "{subject}".',
    )
    return Part(desk.rng.choice(wordings), [("send_mail", {"to": address, "subject": subject, "body": text})])


def forward_mail(desk: Desk) -> Part | None:
    taken = desk.take("mail", lambda entry: entry["folder"] == "inbox")
    if taken is None:
        return None
    address, who = desk.describe_person()
    _, mail = taken
    wordings = (
        f'Pass the mail "{mail["subject"]}" on to {who}, word for word.',
        f'Send {who} the text of the mail "{mail["subject"]}", with the same subject.',
    )
    call = {"to": address, "subject": f"Fw: {mail['subject']}", "body": mail["body"]}
    return Part(desk.rng.choice(wordings), [("send_mail", call)])


def delete_mail(desk: Desk) -> Part | None:
    taken = desk.take("mail")
    if taken is None:
        return None
    key, mail = taken
    wordings = (f'Delete the mail "{mail["subject"]}".', f'The mail "{mail["subject"]}" can be deleted.')
    return Part(desk.rng.choice(wordings), [("delete", {"table": "mail", "id": key})])


def add_event(desk: Desk) -> Part:
    address, who = desk.describe_person()
    title, start, minutes = (
        desk.draw_new(firm.draw_event),
        firm.draw_start(desk.rng),
        desk.rng.choice((20, 30, 45, 60, 90)),
    )
    when = spell_moment(desk.rng, start)
    wordings = (
        f'Put "{title}" with {who} into the calendar, {when}, for {minutes} minutes.',
        f'I meet {who} {when} for {minutes} minutes; call the event "{title}".',
        f'Plan {minutes} minutes with {who} {when} under the title "{title}".',
    )
    call = {"title": title, "person": address, "start": start, "minutes": minutes}
    return Part(desk.rng.choice(wordings), [("add_event", call)])


def move_event(desk: Desk) -> Part | None:
    taken = desk.take("events")
    if taken is None:
        return None
    key, event = taken
    old = datetime.fromisoformat(str(event["start"]))
    hours, days = desk.rng.choice((1, 2)), desk.rng.choice((1, 7))
    choices = [
        (f"{hours} hour{'s' * (hours > 1)} later", old + timedelta(hours=hours)),
        ("one day later, at the same time" if days == 1 else "one week later, at the same time", old + timedelta(days)),
    ]
    new = firm.draw_start(desk.rng)
    if new != event["start"]:
        moved = datetime.fromisoformat(new)
        choices += [(f"to {spell_moment(desk.rng, new, is_bare=True)}", moved)] * 3
    words, start = desk.rng.choice(choices)
    wordings = (f'Move the event "{event["title"]}" {words}.', f'"{event["title"]}" has to be moved {words}.')
    call = {"table": "events", "id": key, "field": "start", "value": start.strftime("%Y-%m-%d %H:%M")}
    return Part(desk.rng.choice(wordings), [("change", call)])


def lengthen_event(desk: Desk) -> Part | None:
    taken = desk.take("events")
    if taken is None:
        return None
    key, event = taken
    more = desk.rng.choice((15, 30))
    minutes = int(event["minutes"]) + more
    wordings = (
        f'The event "{event["title"]}" takes {more} minutes more than planned.',
        f'Let "{event["title"]}" take {minutes} minutes.',
    )
    call = {"table": "events", "id": key, "field": "minutes", "value": str(minutes)}
    return Part(desk.rng.choice(wordings), [("change", call)])


def cancel_event(desk: Desk) -> Part | None:
    taken = desk.take("events")
    if taken is None:
        return None
    key, event = taken
    wordings = (f'Cancel "{event["title"]}".', f'Take the event "{event["title"]}" out of the calendar.')
    return Part(desk.rng.choice(wordings), [("delete", {"table": "events", "id": key})])


def add_task(desk: Desk) -> Part:
    address, who = desk.describe_person()
    title, due = desk.draw_new(firm.draw_task), firm.draw_start(desk.rng)[:10]
    day = spell_day(desk.rng, due)
    wordings = (
        f'Give {who} the task "{title}", due {day}.',
        f'A new task for {who}: "{title}". It is due {day}.',
        f'Add the task "{title}" for {who}, to be done by {day.removeprefix("on ")}.',
    )
    return Part(desk.rng.choice(wordings), [("add_task", {"title": title, "person": address, "due": due})])


def finish_task(desk: Desk) -> Part | None:
    taken = desk.take("tasks")
    if taken is None:
        return None
    key, task = taken
    who = desk.call(task["person"])
    wordings = (f'{who} is done with "{task["title"]}".', f'The task "{task["title"]}" is finished; mark it as done.')
    call = {"table": "tasks", "id": key, "field": "list", "value": "done"}
    return Part(desk.rng.choice(wordings), [("change", call)])


def reassign_task(desk: Desk) -> Part | None:
    taken = desk.take("tasks")
    if taken is None:
        return None
    key, task = taken
    address, who = desk.describe_person()
    if address == task["person"]:
        return None
    wordings = (f'Let {who} take over the task "{task["title"]}".', f'The task "{task["title"]}" goes to {who} now.')
    call = {"table": "tasks", "id": key, "field": "person", "value": address}
    return Part(desk.rng.choice(wordings), [("change", call)])


def postpone_task(desk: Desk) -> Part | None:
    taken, due = desk.take("tasks"), firm.draw_start(desk.rng)[:10]
    if taken is None or taken[1]["due"] == due:
        return None
    key, task = taken
    day = spell_day(desk.rng, due)
    wordings = (f'"{task["title"]}" is now due {day}.', f'Make the task "{task["title"]}" due {day}.')
    call = {"table": "tasks", "id": key, "field": "due", "value": due}
    return Part(desk.rng.choice(wordings), [("change", call)])


def finish_all(desk: Desk) -> Part | None:
    """Every task that a person has on a list."""
    address, which = desk.draw_person(), desk.rng.choice(("to do", "doing"))
    keys = desk.take_all("tasks", lambda task: (task["person"], task["list"]) == (address, which))
    if not keys:
        return None
    who = desk.call(address)
    wordings = (
        f'Everything that {who} has on the list "{which}" is done.',
        f'Move all tasks of {who} from "{which}" to "done".',
    )
    calls = [("change", {"table": "tasks", "id": key, "field": "list", "value": "done"}) for key in keys]
    return Part(desk.rng.choice(wordings), calls)


def cancel_all(desk: Desk) -> Part | None:
    """Every event with a person."""
    address = desk.draw_person()
    keys = desk.take_all("events", lambda event: event["person"] == address)
    if not keys:
        return None
    who = desk.call(address)
    wordings = (f"Cancel all events with {who}.", f"{who} is ill: take every event with {who} out of the calendar.")
    return Part(desk.rng.choice(wordings), [("delete", {"table": "events", "id": key}) for key in keys])


ON_MAIL = (reply_to_mail, reply_to_mail, write_mail, forward_mail, delete_mail)
ON_ENTRIES = (
    add_event, add_event, move_event, move_event, lengthen_event, cancel_event, add_task, add_task, finish_task,
    reassign_task, postpone_task,
)  # fmt: skip
ON_ALL = (finish_all, cancel_all)  # only beside parts about mail, since another part could add to what they mean


def spell_day(rng: random.Random, day: str) -> str:
    """A day of this week or the next, as somebody says it on 2 March 2026."""
    date = datetime.fromisoformat(day)
    name, number = _DAYS[date.weekday()], f"{date.day} {names.MONTHS[date.month - 1]}"
    words = [f"on {number}", f"on {name}, {number}", f"on {day}"]
    ahead = (date - datetime.fromisoformat(firm.NOW[:10])).days
    if ahead == 1:
        words.append("tomorrow")
    if ahead < 5:
        words.append(f"this {name}")
    return rng.choice(words)


def spell_moment(rng: random.Random, start: str, is_bare: bool = False) -> str:
    """A time as somebody says it; a bare one follows a "to"."""
    day, clock = start.split()
    hour, minute = map(int, clock.split(":"))
    half = "am" if hour < 12 else "pm"
    spoken = f"{(hour - 1) % 12 + 1}{f':{minute:02}' if minute else ''} {half}"
    words = spell_day(rng, day)
    return f"{words.removeprefix('on ') if is_bare else words} at {rng.choice((clock, spoken))}"


def draw_request(rng: random.Random) -> Task:
    """Draw a firm and a request of one to three parts, with at most MOST_CALLS gold calls."""
    desk = Desk(rng)
    kinds = rng.choice((ON_MAIL, ON_ENTRIES, ON_MAIL + ON_ENTRIES, ON_MAIL + ON_ENTRIES, ON_ALL))
    wanted, parts = rng.choice((1, 1, 1, 2, 2, 3)), []
    for _ in range(20):
        part = rng.choice(kinds)(desk)
        if part and sum(len(other.calls) for other in [*parts, part]) <= MOST_CALLS:
            parts.append(part)
            kinds = ON_MAIL if kinds is ON_ALL else kinds
        if len(parts) == wanted:
            break
    rng.shuffle(parts)
    text = rng.choice(_NEXT).join(part.sentence for part in parts)
    prompt = f"{rng.choice(_TODAY)} {rng.choice(_BEGINNINGS)}{text}"
    calls = [{"name": name, "arguments": arguments} for part in parts for name, arguments in part.calls]
    return make_task(
        "office", [{"role": "user", "content": prompt}], state=write_state(desk.state),
        gold_calls=json.dumps(calls, ensure_ascii=False),
    )  # fmt: skip


def make_tasks(count: int, seed: int, longest_prompt: int | None = None) -> list[Task]:
    """Make requests with different prompts, each to a firm of its own.

    Args:
        count: number of tasks.
        seed: decides the tasks; a larger count begins with the tasks of a smaller one.
        longest_prompt: largest number of characters of a prompt; None for any.

    Returns:
        Tasks with the columns `state` and `gold_calls`.

    Raises:
        ValueError: the count is below 1, or too few tasks are so short.

    Example:
        >>> task = make_tasks(1, seed=7)[0]
        >>> sorted(json.loads(task.columns["state"]))
        ['events', 'mail', 'people', 'tasks']
    """
    return collect_tasks(
        lambda number: draw_request(random.Random(f"{VERSION} office {seed} {number}")), count, longest_prompt
    )
