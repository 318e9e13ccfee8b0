"""Parts of a request: a sentence of each kind, and the calls that do what it says.

A part that finds no entry which it could name is None. The calls that look something up are not among a part's calls:
they change nothing.
"""

import random
from datetime import datetime, timedelta

from grpo_kit.environments import names
from grpo_kit.environments.office import firm
from grpo_kit.environments.office.desk import Desk, Part

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


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
