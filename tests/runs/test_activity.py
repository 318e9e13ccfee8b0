"""What a stage announces reaches whoever listens, also from a thread, and nobody else."""

import asyncio
from types import SimpleNamespace

import pytest

from grpo_kit.runs import activity


def test_an_announcement_reaches_the_innermost_listener_while_it_listens():
    outer, inner = [], []
    activity.announce("nobody hears this")
    assert not activity.is_heard()
    with activity.listen(outer.append):
        activity.announce("a")
        with activity.listen(inner.append):
            activity.announce("b")
        assert activity.is_heard()
        activity.announce("c")
    activity.announce("d")
    assert (outer, inner) == (["a", "c"], ["b"])


def test_an_announcement_in_a_thread_of_asyncio_is_heard():
    heard = []

    async def work():
        with activity.listen(heard.append):
            await asyncio.to_thread(activity.announce, "loading")

    asyncio.run(work())
    assert heard == ["loading"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets, in seconds."""
    times = [0.0]
    monkeypatch.setattr(activity, "time", SimpleNamespace(monotonic=lambda: times[0]))
    return times


def test_bytes_are_announced_with_the_time_left_and_what_was_done_before_does_not_count(clock):
    heard, gib = [], 2**30
    with activity.listen(heard.append), activity.count_bytes("quantising") as show:
        for seconds, done, part in (
            (0, 20, 3),
            (1, 20.5, 3),
            (60, 22, 3),
            (60, 22.01, 3),
            (3600, 40, 5),
            (7000, 58, 9),
        ):
            clock[0] = seconds
            show(done * gib, 58.8 * gib, f"part {part} of 9")
    assert heard == [
        "quantising, part 3 of 9: 20.0 of 58.8 GiB",
        "quantising, part 3 of 9: 20.5 of 58.8 GiB",  # after five seconds the speed is known
        "quantising, part 3 of 9: 22.0 of 58.8 GiB, 19 min left",
        "quantising, part 5 of 9: 40.0 of 58.8 GiB, 57 min left",
        "quantising, part 9 of 9: 58.0 of 58.8 GiB, 3 min left",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (59, "59 s"), (61, "2 min"), (3541, "1 h 0 min"), (7500, "2 h 5 min")]
)
def test_durations_in_words(clock, seconds, words):
    heard = []
    with activity.listen(heard.append), activity.count_bytes("copying") as show:
        show(0, 2, "half")
        clock[0] = seconds if seconds > 5 else 5.0
        show(2 / (1 + seconds / clock[0]), 2, "half")
    assert heard[-1] == f"copying, half: 0.0 of 0.0 GiB, {words} left"


def test_where_nobody_listens_a_bar_says_the_part_the_bytes_and_the_time_left(capsys):
    with activity.count_bytes("quantising") as show:
        show(2**29, 2**30, "part 3 of 4")
        show(2**30, 2**30, "part 4 of 4")
    drawn = capsys.readouterr().err.split("\r")
    assert drawn[1].startswith("quantising, part 3 of 4:  50%") and "512M/1.00G" in drawn[1]
    assert drawn[-1].startswith("quantising, part 4 of 4: 100%") and drawn[-1].endswith("B/s]\n")


def test_work_that_is_done_already_draws_no_bar(capsys):
    with activity.count_bytes("quantising"):
        pass
    assert capsys.readouterr().err == ""
