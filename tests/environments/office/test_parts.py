"""Days and times of a request are said in words that mean them."""

import random

from grpo_kit.environments.office.parts import spell_day, spell_moment


def test_days_and_times_are_said_in_words_that_mean_them():
    rng = random.Random(0)
    assert {spell_day(rng, "2026-03-03") for _ in range(99)} == {
        "on 3 March", "on Tuesday, 3 March", "on 2026-03-03", "tomorrow", "this Tuesday",
    }  # fmt: skip
    assert "this Tuesday" not in {spell_day(rng, "2026-03-10") for _ in range(99)}
    moments = {spell_moment(rng, "2026-03-12 14:30") for _ in range(99)}
    assert {"on 12 March at 14:30", "on Thursday, 12 March at 2:30 pm"} <= moments
    assert {spell_moment(rng, "2026-03-12 12:00", is_bare=True).split(" at ")[1] for _ in range(99)} == {
        "12:00",
        "12 pm",
    }
    assert "9 March at 9 am" in {spell_moment(rng, "2026-03-09 09:00", is_bare=True) for _ in range(99)}
