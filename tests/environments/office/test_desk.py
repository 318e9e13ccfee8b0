"""A desk gives each entry of its firm away once."""

import random

from grpo_kit.environments.office.desk import Desk


def test_entries_are_named_once():
    desk = Desk(random.Random(1))
    taken = [desk.take("events")[0] for _ in range(5)]
    assert sorted(taken) == sorted(desk.state["events"]) and desk.take("events") is None
