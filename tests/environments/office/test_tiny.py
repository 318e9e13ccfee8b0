"""The embedded policy's world: a price that was looked up and noted is paid, and calls are short."""

import json

import pytest

from grpo_kit.environments.office.tiny import TinyOffice
from grpo_kit.environments.tiny_tasks import Purchase, ask_purchase, make_tasks

TASK = ask_purchase(Purchase("Note the price of {}.", {"OLD HAT": 20, "RED TEA": 36}, 1))


def start(task=TASK):
    office = TinyOffice()
    office.reset(**task.columns, prompt=task.prompt)
    return office


def test_a_price_is_looked_up_and_noted():
    office = start()
    assert TASK.prompt == [{"role": "user", "content": "Note the price of RED TEA."}]
    assert office.get_reward() == 0.0
    assert (office.find(thing="red tea"), office.get_reward()) == ("36", 0.0)
    assert (office.note(price=36), office.get_reward()) == ('"noted"', 1.0)
    assert office.note(price=20) == '"noted"' and office.get_reward() == 0.0
    assert "error" in json.loads(office.find(thing=""))  # a noted price has no thing
    assert office._tools() == ["find", "note"]


@pytest.mark.parametrize("price", [20, 63, -36, 0])
def test_another_price_is_not_paid(price):
    office = start()
    office.note(price=price)
    assert office.get_reward() == 0.0 and office._figures()["wrong_changes"] == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("note", {"price": "36"}), ("note", {"price": True}), ("note", {"price": 36.0}),
        ("note", {"price": float("nan")}), ("note", {"price": [36]}),
        ("note", {"price": 10**30}), ("note", {}), ("note", {"price": 36, "thing": "x"}),
        ("find", {"thing": "TEA"}), ("find", {"thing": ""}), ("find", {"thing": 3}), ("find", {"thing": "x" * 10**6}),
        ("find", {}), ("find", {"thing": "\u202eAET DER"}),
    ],
)  # fmt: skip
def test_hostile_arguments_change_nothing_and_are_answered_shortly(name, arguments):
    office = start()
    answer = getattr(office, name)(**arguments)
    assert "error" in json.loads(answer) and len(answer) < 100
    assert office._figures()["bad_arguments"] == 1 and office._changes == {}


def test_every_task_needs_its_look_up_and_is_paid_for_it():
    for task in make_tasks("tiny-office", 200, seed=2):
        office, state = start(task), json.loads(task.columns["state"])["prices"]
        assert len(task.prompt[0]["content"]) <= 37 and len({entry["thing"] for entry in state}) == 3
        asked = [entry["thing"] for entry in state if entry["thing"] in task.prompt[0]["content"]]
        assert len(asked) == 1 and not any(char.isdigit() for char in task.prompt[0]["content"])
        office.note(price=int(office.find(thing=asked[0])))
        assert office.get_reward() == 1.0
        (call,) = json.loads(task.columns["gold_calls"])
        assert call["name"] == "note"
