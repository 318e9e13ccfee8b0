"""Each generated request has calls that are paid, and no part of them, no more and no other calls are."""

import json
import random
import re
from collections import Counter
from datetime import datetime, timedelta

import pytest

from grpo_kit.environments.office.desk import MOST_CALLS
from grpo_kit.environments.office.office import Office
from grpo_kit.environments.office.requests import draw_request, make_tasks
from grpo_kit.environments.office.world import read_row
from grpo_kit.environments.task import COLUMNS

TASKS, MANY = make_tasks(100, seed=7), make_tasks(500, seed=5)


def calls_of(task):
    return [(call["name"], call["arguments"]) for call in json.loads(task.columns["gold_calls"])]


def start(task):
    office = Office()
    assert office.reset(**task.columns, prompt=task.prompt) is None
    return office


def pay(office, calls):
    office._begin(office._start, office._gold)  # what reset does once it has read the row
    for name, arguments in calls:
        getattr(office, name)(**arguments)
    return office.get_reward()


def extra_calls(task):
    """A change more, of each table."""
    state = json.loads(task.columns["state"])
    person = state["people"][0]["address"]
    gone = {(call["table"], call["id"]) for name, call in calls_of(task) if name == "delete"}
    kept = next(entry["id"] for entry in state["mail"] if ("mail", entry["id"]) not in gone)
    return [
        ("delete", {"table": "mail", "id": kept}),
        ("add_task", {"title": "Feed the cat", "person": person, "due": "2026-03-30"}),
        ("add_event", {"title": "Nap", "person": person, "start": "2026-03-30 12:00", "minutes": 5}),
        ("send_mail", {"to": person, "subject": "Hello", "body": "I did it."}),
    ]


def check_pay(tasks):
    """The names of the checks that fail, with their tasks."""
    failed = []
    for task, other in zip(tasks, tasks[1:] + tasks[:1], strict=True):
        calls = calls_of(task)
        office, more = start(task), extra_calls(task)
        looks = [("search", {"table": table}) for table in ("people", "mail", "events", "tasks")]
        replies = [("right", 1.0, [*looks, *calls]), ("another order", 1.0, calls[::-1])]
        replies += [("idle", 0.0, []), ("looking", 0.0, looks), ("another task's calls", 0.0, calls_of(other))]
        replies += [("a call left out", 0.0, calls[:place] + calls[place + 1 :]) for place in range(len(calls))]
        replies += [("a change more", 0.0, [*calls, call]) for call in more] + [
            ("a change more", 0.0, [more[1], *calls])
        ]
        failed += [(name, task) for name, wanted, calls in replies if pay(office, calls) != wanted]
    return failed


def test_the_gold_calls_are_paid_and_nothing_else_is():
    assert check_pay(TASKS[:60]) == []


@pytest.mark.slow
def test_of_two_thousand_tasks_each_is_paid_for_its_gold_calls_alone():
    assert check_pay(make_tasks(2000, seed=11)) == []


def test_a_seed_decides_the_tasks_and_more_tasks_begin_with_the_same():
    assert make_tasks(20, seed=7) == TASKS[:20] and make_tasks(20, seed=8) != TASKS[:20]
    assert all(tuple(task.columns) == COLUMNS["office"] for task in TASKS)
    assert all(len(task.prompt[0]["content"]) <= 150 for task in make_tasks(10, seed=7, longest_prompt=150))


def test_one_to_four_calls_with_every_tool():
    numbers = Counter(len(calls_of(task)) for task in MANY)
    assert set(numbers) <= set(range(1, MOST_CALLS + 1)) and {1, 2, 3} <= set(numbers) and numbers[1] < 300
    used = {(name, call.get("table", "")) for task in TASKS for name, call in calls_of(task)}
    assert used == {
        ("send_mail", ""), ("add_event", ""), ("add_task", ""), ("change", "events"), ("change", "tasks"),
        ("delete", "mail"), ("delete", "events"),
    }  # fmt: skip


def test_ids_and_addresses_are_not_in_the_prompt():
    """They have to be looked up; numbers of other things, as in "Order 12 of the pot", do not count."""
    for task in TASKS:
        prompt = task.prompt[0]["content"]
        assert "@" not in prompt and ".example" not in prompt
        for name, call in calls_of(task):
            assert name not in ("change", "delete") or not re.search(rf"\b(?:id|number) {call['id']}\b", prompt)


def test_what_a_request_names_is_there_once():
    for task in TASKS:
        state = json.loads(task.columns["state"])
        titles = [entry.get("subject", entry.get("title")) for table in state.values() for entry in table]
        firsts = [person["name"].split()[0] for person in state["people"]]
        assert len(set(firsts)) == 5 and len(titles) - 5 == len(set(titles)) - 1  # people have no title
        for title in re.findall(r'(?:mail|event|task|of|sent|wrote) "([^"]+)"', task.prompt[0]["content"]):
            assert titles.count(title) <= 1, title


def test_the_latest_mail_is_the_latest_in_the_inbox():
    found = 0
    for task in MANY:
        for who, text in re.findall(r'latest mail from (\w+)[\w ]* with "([^"]+)"', task.prompt[0]["content"]):
            state = json.loads(task.columns["state"])
            person = next(entry["address"] for entry in state["people"] if entry["name"].split()[0] == who)
            mine = [mail for mail in state["mail"] if (mail["person"], mail["folder"]) == (person, "inbox")]
            wanted = f"Re: {max(mine, key=lambda mail: mail['sent'])['subject']}"
            assert ("send_mail", {"to": person, "subject": wanted, "body": text}) in calls_of(task)
            found += 1
    assert found > 10


class Firm:
    """A task's firm, read from its row: what a person means who says a name or a title."""

    def __init__(self, task):
        self.tables = json.loads(task.columns["state"])

    def entry(self, table, title):
        (found,) = [entry for entry in self.tables[table] if title in (entry.get("title"), entry.get("subject"))]
        return found

    def address(self, who):
        (found,) = [
            person["address"] for person in self.tables["people"] if who in (person["name"], person["name"].split()[0])
        ]
        return found

    def put(self, table, title, field, value):
        return "change", {"table": table, "id": self.entry(table, title)["id"], "field": field, "value": value}

    def shift(self, title, **time):
        start = datetime.fromisoformat(self.entry("events", title)["start"]) + timedelta(**time)
        return self.put("events", title, "start", start.strftime("%Y-%m-%d %H:%M"))

    def ids(self, table, **fields):
        return [entry["id"] for entry in self.tables[table] if fields.items() <= entry.items()]


MEANINGS = [  # words of a request, and the calls that they mean
    (r'"([^"]+)"(?: has to be moved)? (\d) hours? later', lambda firm, title, n: [firm.shift(title, hours=int(n))]),
    (r'"([^"]+)"(?: has to be moved)? one day later', lambda firm, title: [firm.shift(title, days=1)]),
    (r'"([^"]+)"(?: has to be moved)? one week later', lambda firm, title: [firm.shift(title, days=7)]),
    (r'Move the event "([^"]+)" to (\d{4}-\d\d-\d\d) at (\d\d:\d\d)\.',
     lambda firm, title, *start: [firm.put("events", title, "start", " ".join(start))]),
    (r'event "([^"]+)" takes (\d+) minutes more', lambda firm, title, more: [
        firm.put("events", title, "minutes", str(firm.entry("events", title)["minutes"] + int(more)))]),
    (r'Let "([^"]+)" take (\d+) minutes', lambda firm, title, n: [firm.put("events", title, "minutes", n)]),
    (r'(?:Cancel|Take the event) "([^"]+)"',
     lambda firm, title: [("delete", {"table": "events", "id": firm.entry("events", title)["id"]})]),
    (r'(?:Delete the|The) mail "([^"]+)"(?:\.| can be deleted)',
     lambda firm, title: [("delete", {"table": "mail", "id": firm.entry("mail", title)["id"]})]),
    (r'is done with "([^"]+)"', lambda firm, title: [firm.put("tasks", title, "list", "done")]),
    (r'task "([^"]+)" is finished', lambda firm, title: [firm.put("tasks", title, "list", "done")]),
    (r'task "([^"]+)" goes to (\w+)(?: \w+)? now', lambda firm, title, who: [
        firm.put("tasks", title, "person", firm.address(who))] if who != "the" and who != "whoever" else []),
    (r'Mail "([^"]+)" to (?:the person who wrote|whoever sent the mail) "([^"]+)"; the subject is "([^"]+)"',
     lambda firm, text, mail, title: [
         ("send_mail", {"to": firm.entry("mail", mail)["person"], "subject": title, "body": text})]),
    (r'Mail "([^"]+)" to (?:the person who has the task|whoever is to do) "([^"]+)"; the subject is "([^"]+)"',
     lambda firm, text, task, title: [
         ("send_mail", {"to": firm.entry("tasks", task)["person"], "subject": title, "body": text})]),
    (r'"([^"]+)" is now due on (\d{4}-\d\d-\d\d)', lambda firm, title, day: [firm.put("tasks", title, "due", day)]),
    (r'Reply to the mail "([^"]+)" with "([^"]+)"', lambda firm, title, text: [
        ("send_mail", {"to": firm.entry("mail", title)["person"], "subject": f"Re: {title}", "body": text})]),
    (r'Pass the mail "([^"]+)" on to (\w+)(?: \w+)?, word', lambda firm, title, who: [("send_mail", {
        "to": firm.address(who), "subject": f"Fw: {title}", "body": firm.entry("mail", title)["body"]})]),
    (r'all events with (\w+)', lambda firm, who: [
        ("delete", {"table": "events", "id": id}) for id in firm.ids("events", person=firm.address(who))]),
    (r'Everything that (\w+)(?: \w+)? has on the list "([^"]+)"', lambda firm, who, which: [
        ("change", {"table": "tasks", "id": id, "field": "list", "value": "done"})
        for id in firm.ids("tasks", person=firm.address(who), list=which)]),
]  # fmt: skip


def test_the_gold_calls_do_what_the_words_mean():
    found = Counter()
    for task in MANY:
        assert read_row(Office, **task.columns)[1].total() == len(calls_of(task))
        for words, meaning in MEANINGS:
            for match in re.finditer(words, task.prompt[0]["content"]):
                for call in (meant := meaning(Firm(task), *match.groups())):
                    assert call in calls_of(task), (match[0], call)
                found[words] += bool(meant)
    assert {words for words, _ in MEANINGS} == set(found), Counter(found).most_common()


def test_too_few_short_prompts_are_refused():
    with pytest.raises(ValueError, match="at most 30 characters"):
        make_tasks(1, seed=1, longest_prompt=30)


def test_a_task_is_json_and_readable_by_the_world():
    task = draw_request(random.Random(3))
    assert json.loads(json.dumps(task.columns)) == task.columns and pay(start(task), calls_of(task)) == 1.0
