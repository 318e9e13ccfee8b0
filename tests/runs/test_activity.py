"""What a stage announces reaches whoever listens, also from a thread, and nobody else."""

import asyncio

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
