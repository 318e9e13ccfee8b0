"""A world pays the end state of its gold calls, whatever the way to it; bad calls change nothing and say why."""

import inspect
import json

import pytest

from grpo_kit.environments.office.office import Office
from grpo_kit.environments.office.world import World, read_row
from grpo_kit.environments.reading import Refused

ADA, BO = "ada@x.example", "bo@x.example"


def put(table, id, field, value):
    return "change", {"table": table, "id": id, "field": field, "value": value}


def give(title, person, due):
    return "add_task", {"title": title, "person": person, "due": due}


STATE = {
    "people": [{"id": 1, "name": "Ada Berg", "address": ADA}, {"id": 2, "name": "Bo Lund", "address": BO}],
    "mail": [
        {"id": n, "folder": "inbox", "person": ADA, "subject": "Plan", "sent": "2026-02-27 09:00", "body": f"No. {n}"}
        for n in range(21, 28)
    ],
    "events": [{"id": 31, "title": "Review", "person": BO, "start": "2026-03-04 10:00", "minutes": 30}],
    "tasks": [
        {"id": 41, "title": "Write", "person": ADA, "due": "2026-03-04", "list": "to do"},
        {"id": 42, "title": "Print", "person": BO, "due": "2026-03-06", "list": "doing"},
    ],
}
GOLD = [
    put("tasks", 41, "list", "done"),
    ("send_mail", {"to": ADA, "subject": "Re: Plan", "body": "It is done."}),
    give("Read", BO, "2026-03-09"),
]


def calls(*pairs):
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in pairs])


def make(*gold, state=STATE):
    office = Office()
    office.reset(state=json.dumps(state), gold_calls=calls(*(gold or GOLD)), prompt=[], id="x", pass_rate=None)
    return office


def act(office, *pairs):
    return [json.loads(getattr(office, name)(**arguments)) for name, arguments in pairs]


def test_the_gold_calls_are_paid_and_parts_of_them_are_not():
    office = make()
    paid = [office.get_reward()]
    for pair in GOLD:
        act(office, pair)
        paid.append(office.get_reward())
    assert paid == [0.0, 0.0, 0.0, 1.0]


def test_another_order_other_wordings_and_looking_around_are_paid():
    office = make()
    act(
        office,
        ("search", {"table": "people", "text": "ada"}),
        give("read", "Bo@x.example", "2026-3-9"),
        ("search", {"table": "tasks", "text": "", "page": 1}),
        ("send_mail", {"to": ADA, "subject": "plan", "body": "it is done"}),
        put("tasks", 41, "list", "DONE"),
        ("search", {"table": "mail", "text": "nothing like it"}),
    )
    assert office.get_reward() == 1.0
    assert office._figures() == {
        "calls": 6.0, "bad_arguments": 0.0, "unknown_calls": 0.0, "malformed_calls": 0.0, "wrong_changes": 0.0,
        "missing": 0.0, "extra": 0.0,
    }  # fmt: skip


def test_new_entries_may_come_in_any_order_and_with_any_id():
    first, second = give("A", ADA, "2026-03-09"), give("B", BO, "2026-03-09")
    office = make(first, second)
    assert act(office, second) == [{"id": 43}]
    act(office, ("delete", {"table": "tasks", "id": 43}), second, first)
    assert sorted(office._state["tasks"]) == [41, 42, 44, 45] and office.get_reward() == 1.0


MORE = [
    ("delete", {"table": "mail", "id": 21}),
    put("tasks", 42, "title", "Paint"),
    ("send_mail", {"to": ADA, "subject": "Re: Plan", "body": "It is done."}),
    ("add_event", {"title": "Tea", "person": ADA, "start": "2026-03-05 16:00", "minutes": 30}),
    put("tasks", 41, "list", "doing"),
]


@pytest.mark.parametrize("more", MORE)
def test_one_change_more_is_not_paid_and_is_counted(more):
    office = make()
    act(office, *GOLD, more)
    assert office.get_reward() == 0.0
    assert office._figures()["wrong_changes"] == 1 and office._figures()["extra"] == 1


def test_calls_behind_a_wrong_one_are_not_counted_with_it():
    office = make()
    act(office, MORE[0], *GOLD, ("search", {"table": "tasks"}))
    assert office.get_reward() == 0.0 and office._figures()["wrong_changes"] == 1


def test_what_was_undone_is_paid_and_stays_counted():
    office = make()
    act(office, *GOLD, MORE[1], put("tasks", 42, "title", "Print"))
    assert office.get_reward() == 1.0 and office._figures()["wrong_changes"] == 1
    act(office, ("delete", {"table": "tasks", "id": 41}))
    assert office.get_reward() == 0.0 and office._figures()["missing"] == 1


def test_a_new_entry_can_be_changed_where_its_table_was_empty():
    state = {"people": STATE["people"]}
    office = make(give("Read", BO, "2026-03-09"), put("tasks", 1, "list", "doing"), state=state)
    act(office, give("Read", BO, "2026-03-09"), put("tasks", 1, "list", "doing"))
    assert office.get_reward() == 1.0


def test_missing_and_extra_changes_are_figures():
    office = make()
    assert office._figures()["missing"] == 3 and office._figures()["extra"] == 0
    act(office, GOLD[0], ("send_mail", {"to": BO, "subject": "Plan", "body": "It is done."}))
    assert office._figures() == {
        "calls": 2.0, "bad_arguments": 0.0, "unknown_calls": 0.0, "malformed_calls": 0.0, "wrong_changes": 1.0,
        "missing": 2.0, "extra": 1.0,
    }  # fmt: skip


def test_a_search_shows_five_entries_at_once_and_how_many_there_are():
    office = make()
    first, second, third, none, two = act(
        office,
        ("search", {"table": "mail"}),
        ("search", {"table": "mail", "page": 2}),
        ("search", {"table": "mail", "page": 3}),
        ("search", {"table": "mail", "text": "plan zebra"}),
        ("search", {"table": "people", "text": "LUND bo"}),
    )
    assert [entry["id"] for entry in first["entries"]] == [21, 22, 23, 24, 25] and first["found"] == 7
    assert [entry["id"] for entry in second["entries"]] == [26, 27] and third["entries"] == []
    assert none == {"found": 0, "entries": []} and two["entries"] == [STATE["people"][1]]


HUGE = "a" * 1_000_000
HOSTILE = [  # tool, arguments, a part of the sentence
    (*put("tasks", "seven", "list", "done"), "id is 'seven'; it must be a whole number."),
    (*put("tasks", "41", "list", "done"), "whole number"),
    (*put("tasks", True, "list", "done"), "id is True"),
    (*put("tasks", 41.0, "list", "done"), "id is 41.0"),
    (*put("tasks", float("nan"), "list", "done"), "id is nan"),
    (*put("tasks", float("inf"), "list", "done"), "id is inf"),
    (*put("tasks", 10**5000, "list", "done"), "whole number"),
    (*put("tasks", -41, "list", "done"), "no entry with the id -41"),
    (*put("tasks", 99, "list", "done"), "no entry with the id 99; search for it."),
    (*put("tasks", None, "list", "done"), "id is None"),
    (*put("tasks", [41], "list", "done"), "id is [41]"),
    (*put("tasks", [[[[41]]]], "list", "done"), "whole number"),
    (*put("tasks", 41, "list", "later"), "one of to do, doing, done"),
    (*put("tasks", 41, "list", ["done"]), "value is ['done']; it must be a text."),
    (*put("tasks", 41, "list", 1), "it must be a text"),
    (*put("tasks", 41, "id", "43"), "an entry of tasks has title, person, due, list"),
    (*put("tasks", 41, "__class__", "x"), "an entry of tasks has"),
    (*put("tasks", 41, "due", "2026-02-30"), "a day as YYYY-MM-DD"),
    (*put("tasks", 41, "person", "eve@x.example"), "nobody here has this address"),
    (*put("tasks", 41, "title", ""), "title is empty"),
    (*put("tasks", 41, "title", HUGE), "value has 1,000,000 characters"),
    (*put("events", 31, "minutes", "half an hour"), "whole number"),
    (*put("events", 31, "minutes", "-30"), "whole number"),
    (*put("events", 31, "minutes", "٣٠"), "whole number"),
    (*put("events", 31, "minutes", "0"), "1 to 1440"),
    (*put("events", 31, "start", "2026-03-04"), "YYYY-MM-DD HH:MM"),
    (*put("mail", 21, "body", "x"), "Entries of mail cannot be changed."),
    (*put("people", 1, "name", "x"), "Entries of people cannot be changed."),
    (*put("Tasks", 41, "list", "done"), "the tables are people, mail, events, tasks"),
    (*put(HUGE, 41, "list", "done"), "table has 1,000,000 characters"),
    ("change", {"id": 41}, "change needs table, field, value"),
    ("change", {}, "change needs table, id, field, value"),
    ("delete", {"table": "people", "id": 1}, "Entries of people cannot be deleted."),
    ("delete", {"table": "tasks"}, "delete needs id"),
    ("delete", {"table": "tasks", "id": 41, "force": True}, "delete has no argument 'force'; it takes table, id."),
    ("delete", {"table": "tasks", "id": 41, "self": 1}, "delete has no argument 'self'"),
    ("delete", {"table": "tasks", "id": 41, HUGE: 1}, "delete has no argument 'aaa"),
    ("delete", {"table": {"a": 1}, "id": 41}, "table is {'a': 1}"),
    ("send_mail", {"to": "Ada Berg", "subject": "s", "body": "b"}, "it must be an address"),
    ("send_mail", {"to": f"{ADA}, {BO}", "subject": "s", "body": "b"}, "it must be an address"),
    ("send_mail", {"to": "\u202eada@x.example", "subject": "s", "body": "b"}, "nobody here"),
    ("send_mail", {"to": ADA, "subject": " ", "body": "b"}, "subject is empty"),
    ("send_mail", {"to": ADA, "subject": "s", "body": HUGE}, "body has 1,000,000 characters; it may have 2,000."),
    ("send_mail", {"to": ADA, "subject": "s", "body": "\ud800"}, "half of a character"),
    ("send_mail", {"to": ADA, "subject": "s"}, "send_mail needs body"),
    ("add_event", {"title": "t", "person": ADA, "start": "2026-03-04 10:00", "minutes": -5}, "1 to 1440"),
    ("add_event", {"title": "t", "person": ADA, "start": "2026-03-04 10:00", "minutes": False}, "minutes is False"),
    ("add_event", {"title": "t", "person": ADA, "start": "noon", "minutes": 30}, "start is 'noon'"),
    ("add_event", {"title": "t", "person": ADA, "start": "2026-03-04 10:00"}, "add_event needs minutes"),
    ("add_task", {"title": "t", "person": ADA, "due": "Friday"}, "due is 'Friday'"),
    ("add_task", {"title": ["t"] * 1000, "person": ADA, "due": "2026-03-04"}, "it must be a text"),
    ("search", {"table": "cars"}, "the tables are"),
    ("search", {"table": "tasks", "page": 0}, "page is 0"),
    ("search", {"table": "tasks", "page": -1}, "page is -1"),
    ("search", {"table": "tasks", "text": None}, "text is None"),
    ("search", {"text": "x"}, "search needs table"),
]  # fmt: skip


def test_hostile_arguments_change_nothing_and_are_answered_with_a_sentence():
    office = make()
    before = json.dumps(office._state)
    for number, (name, arguments, part) in enumerate(HOSTILE, start=1):
        answer = getattr(office, name)(**arguments)
        assert part in json.loads(answer)["error"] and len(answer) < 300, (name, part, answer)
        assert json.dumps(office._state) == before and office._figures()["bad_arguments"] == number
    assert office.get_reward() == 0.0 and office._figures()["calls"] == len(HOSTILE)
    act(office, *GOLD)
    assert office.get_reward() == 1.0


def test_unknown_and_malformed_calls_are_answered_and_counted():
    office = make()
    assert json.loads(office._unknown_call("rm")) == {
        "error": "There is no tool 'rm'; the tools are add_event, add_task, change, delete, search, send_mail."
    }
    assert (
        len(office._unknown_call(HUGE)) < 300 and "could not be read" in json.loads(office._malformed_call())["error"]
    )
    figures = office._figures()
    assert (figures["calls"], figures["unknown_calls"], figures["malformed_calls"]) == (3, 2, 1)
    act(office, *GOLD)
    assert office.get_reward() == 1.0


def test_a_reset_forgets_everything():
    office = make()
    act(office, *GOLD, ("search", {}))
    office.reset(state=json.dumps(STATE), gold_calls=calls(GOLD[0]))
    assert office.get_reward() == 0.0 and office._figures()["calls"] == 0
    act(office, GOLD[0])
    assert office.get_reward() == 1.0 and make()._state == state_of(STATE | {"customers": []})


def state_of(state):
    return {
        name: {entry["id"]: {k: v for k, v in entry.items() if k != "id"} for entry in state[name]} for name in state
    }


UNUSABLE = [  # state, gold calls, the reason
    (None, calls(*GOLD), "no JSON"),
    ("{", calls(*GOLD), "no JSON"),
    ("[]", calls(*GOLD), "bad state"),
    (STATE, None, "no JSON"),
    (STATE, "x", "no JSON"),
    (STATE, "[]", "bad gold"),
    (STATE, "{}", "bad gold"),
    (STATE, "[3]", "bad gold"),
    (STATE, '[{"name": "change"}]', "bad gold"),
    (STATE, '[{"name": 3, "arguments": {}}]', "bad gold"),
    (STATE, '[{"name": "change", "arguments": "x"}]', "no JSON"),
    (STATE, '[{"name": "change", "arguments": "[]"}]', "bad gold"),
    (STATE, calls(("explode", {})), "bad gold"),
    (STATE, calls(("get_reward", {})), "bad gold"),
    (STATE, calls(("reset", {})), "bad gold"),
    (STATE, calls(("_begin", {})), "bad gold"),
    (STATE, calls(("__init__", {})), "bad gold"),
    (STATE, calls(("delete", {"table": "tasks", "id": 77})), "bad gold"),
    (STATE, calls(*GOLD, ("delete", {"table": "tasks"})), "bad gold"),
    (STATE, calls(*[GOLD[0]] * 51), "bad gold"),
    (STATE, calls(("search", {"table": "tasks"})), "idle gold"),
    (STATE, calls(put("tasks", 41, "list", "to do")), "idle gold"),
    (STATE, calls(put("tasks", 41, "title", "write!")), "idle gold"),
]


@pytest.mark.parametrize(("state", "gold", "reason"), UNUSABLE)
def test_a_row_that_cannot_be_judged_is_refused_and_earns_none(state, gold, reason):
    state = json.dumps(state) if isinstance(state, dict) else state
    with pytest.raises(Refused) as refused:
        read_row(Office, state, gold)
    assert refused.value.args[0] == reason
    office = make()
    office.reset(state=state, gold_calls=gold)
    assert office.get_reward() is None
    assert "error" in json.loads(office.delete(table="tasks", id=41)) and office._figures()["missing"] == 0


def test_arguments_may_be_json_text_as_nemo_gym_writes_them():
    name, arguments = GOLD[0]
    begin, changes = read_row(
        Office, json.dumps(STATE), json.dumps([{"name": name, "arguments": json.dumps(arguments)}])
    )
    assert changes == {("tasks", 41, "list", "done"): 1} and begin["tasks"][41]["list"] == "to do"


def test_trl_sees_six_tools_that_it_can_describe():
    """What TRL 1.16 takes for a tool: a function of the class without an underscore, but for reset and get_reward."""
    from transformers.utils import get_json_schema

    names = [name for name, _ in inspect.getmembers(Office, inspect.isfunction) if not name.startswith("_")]
    tools = sorted({*names} - {"reset", "get_reward"})
    assert tools == Office._tools() == ["add_event", "add_task", "change", "delete", "search", "send_mail"]
    schemas = {name: get_json_schema(getattr(make(), name))["function"] for name in tools}
    parameters = schemas["add_event"]["parameters"]
    assert {name: kind["type"] for name, kind in parameters["properties"].items()} == {
        "title": "string", "person": "string", "start": "string", "minutes": "integer",
    }  # fmt: skip
    assert parameters["required"] == ["title", "person", "start", "minutes"]
    assert schemas["search"]["parameters"]["required"] == ["table"]
    assert schemas["search"]["return"] == {"type": "string"}


def test_a_world_before_its_first_reset_has_nothing():
    office = Office()
    assert office.get_reward() is None and "error" in json.loads(
        office.change(table="tasks", id=1, field="a", value="b")
    )
    assert World()._tools() == []
