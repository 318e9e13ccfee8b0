"""A firm by seed: its people, and what lies in their mail, calendar and tasks in one week of March 2026."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta

from grpo_kit.environments import names
from grpo_kit.environments.office.office import LISTS
from grpo_kit.environments.office.tables import Entry, State

_SUBJECTS = (
    "Order {code}", "Visit to {town}", "Contract with {firm}", "Samples of the {product}", "Course in {subject}",
    "Invoice {code}", "Trip to {town}", "Offer from {firm}", "Broken {product}", "Notes on {subject}",
    "Room in {town}", "New {product}", "Delay at {firm}", "Prices in {town}",
)  # fmt: skip
_BODIES = (
    "The papers for {firm} are ready. Can we talk about them this week?",
    "I still need the numbers from {town}. Please tell me who has them.",
    "There were questions about the {product}. I answered what I could.",
    "Everything is prepared. I only wait for a word from {firm}.",
    "Could you look at the {product} before we send it to {town}?",
    "It took longer than we thought. I am back from {town} on Friday.",
)
_EVENTS = (
    "{firm} call", "{subject} workshop", "Talk about {town}", "{product} review", "Lunch with {firm}",
    "{town} planning", "{product} demonstration", "Interview for {town}", "{firm} contract", "{subject} lecture",
)  # fmt: skip
_TASKS = (
    "Order {n} of the {product}", "Print {n} leaflets on {subject}", "Book a room in {town}", "Repair the {product}",
    "Call {firm}", "Pay invoice {code}", "Translate the {subject} notes", "Draw a map of {town}", "Test the {product}",
    "Write to {firm}", "Collect order {code}", "Count the {product}s",
)  # fmt: skip
_TEXTS = (
    "I will be in {town} on {n} March.", "Please send me {n} of the {product}.", "Yes, {firm} may have it.",
    "No, not before the visit to {town}.", "Thank you, the {product} has arrived.", "Ask {firm} about it first.",
    "Let us meet in {town} instead.", "We need {n} more for {firm}.", "The {product} is too dear.",
    "Please read the notes on {subject}.", "Invoice {code} is paid.", "I agree with {firm}.",
)  # fmt: skip
NOW = "2026-03-02 08:30"  # a Monday
_DOMAINS = ("office", "mail", "post", "team", "work")


def draw_phrase(rng: random.Random, templates: tuple[str, ...]) -> str:
    """A phrase of one of the templates, with invented names and numbers."""
    return rng.choice(templates).format(
        code=names.draw_code(rng),
        town=rng.choice(names.TOWNS),
        firm=draw_firm(rng),
        product=rng.choice(names.PRODUCTS),
        subject=rng.choice(names.SUBJECTS),
        n=rng.randint(2, 31),
    )


def draw_firm(rng: random.Random) -> str:
    """The name of a firm."""
    return f"{rng.choice(names.FIRM_HEADS)} {rng.choice(names.FIRM_TAILS)}"


def draw_subject(rng: random.Random) -> str:
    """What a mail is about."""
    return draw_phrase(rng, _SUBJECTS)


def draw_event(rng: random.Random) -> str:
    """The title of an event."""
    title = draw_phrase(rng, _EVENTS)
    return title[0].upper() + title[1:]


def draw_task(rng: random.Random) -> str:
    """The title of a task."""
    return draw_phrase(rng, _TASKS)


def draw_text(rng: random.Random) -> str:
    """A sentence that somebody wants to be written."""
    return draw_phrase(rng, _TEXTS)


def draw_start(rng: random.Random) -> str:
    """A half hour of a working day of this week or the next, from tomorrow on."""
    day = datetime.fromisoformat(NOW[:10]) + timedelta(days=rng.choice((1, 2, 3, 4, 7, 8, 9, 10, 11)))
    return (day + timedelta(minutes=30 * rng.randint(18, 33))).strftime("%Y-%m-%d %H:%M")


def draw_state(rng: random.Random) -> State:
    """Draw a firm of five people.

    No first name, subject or title is there twice. The ids and the second half of the addresses cannot be guessed, so
    an agent has to look them up.
    """
    firm = f"{draw_firm(rng).replace(' ', '-')}-{rng.choice(_DOMAINS)}.example".lower()
    people = [
        {"name": f"{first} {last}", "address": f"{first}.{last}@{firm}".lower()}
        for first, last in zip(rng.sample(names.FIRST, 5), rng.sample(names.LAST, 5), strict=True)
    ]
    addresses = [person["address"] for person in people]
    sent = sorted(rng.sample(range(1, 4000), 7))  # minutes before now, all different
    mail = [
        {
            "folder": "outbox" if number == 6 else "inbox",
            "person": rng.choice(addresses),
            "subject": subject,
            "sent": (datetime.fromisoformat(NOW) - timedelta(minutes=sent[6 - number])).strftime("%Y-%m-%d %H:%M"),
            "body": draw_phrase(rng, _BODIES),
        }
        for number, subject in enumerate(_draw_different(rng, draw_subject, 7))
    ]
    events = [
        {
            "title": title,
            "person": rng.choice(addresses),
            "start": draw_start(rng),
            "minutes": rng.choice((30, 45, 60, 90)),
        }
        for title in _draw_different(rng, draw_event, 5)
    ]
    tasks = [
        {"title": title, "person": rng.choice(addresses), "due": draw_start(rng)[:10], "list": rng.choice(LISTS[:2])}
        for title in _draw_different(rng, draw_task, 6)
    ]
    return {
        name: _number(rng, entries)
        for name, entries in (("people", people), ("mail", mail), ("events", events), ("tasks", tasks))
    }


def _draw_different(rng: random.Random, draw: Callable[[random.Random], str], count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw(rng)] = None
    return list(found)


def _number(rng: random.Random, entries: list[Entry]) -> dict[int, Entry]:
    return dict(zip(sorted(rng.sample(range(10, 1000), len(entries))), entries, strict=True))
