"""The hours of a whole run, and what of it fits into a session of Colab or Kaggle."""

from dataclasses import replace

import pytest

from grpo_kit.planning import sessions
from grpo_kit.planning.fit import Seconds, StepTimes
from tests.helpers.plans import plan_for

NOTHING = Seconds(0, 0, 0, 0)


def plan_of(sampling, training, evaluation, host=NOTHING, place="kaggle", steps=200):
    """A plan whose step and evaluation take these seconds."""
    planned = plan_for("tiny", "t4", f"grpo.max_steps={steps}")
    times = StepTimes(Seconds(sampling, 2 * sampling, training, evaluation), host, True)
    return replace(planned, times=times, device=replace(planned.device, place=place))


# place, steps; seconds of a step's sampling and training, and of an evaluation; the sentence
@pytest.mark.parametrize(
    ("place", "steps", "seconds", "sentence"),
    [
        ("kaggle", 200, (100, 62, 0), "200 steps take 9 h: one session of Kaggle (12 h, 30 h a week)."),
        ("colab", 200, (100, 62, 1800), "200 steps take 9 h, the evaluations before and after them 60 min: one "
         "session of Colab (12 h, free of charge at most, often less)."),
        # 12 h less the first evaluation's 0.5 h are 41,400 s: 142 steps of 290 s
        ("kaggle", 200, (200, 90, 1800), "200 steps take 16 h, the evaluations before and after them 60 min: up to 142 "
         "of 200 steps in the first session of Kaggle (12 h, 30 h a week), 2 sessions in all."),
        ("kaggle", 500, (200, 90, 1800), "500 steps take 40 h, the evaluations before and after them 60 min: up to 142 "
         "of 500 steps in the first session of Kaggle (12 h, 30 h a week), 4 sessions in all, more than the hours of a "
         "week."),
        ("colab", 500, (200, 90, 50_000), "500 steps take 40 h, the evaluations before and after them 28 h: up to 0 of "
         "500 steps in the first session of Colab (12 h, free of charge at most, often less), 6 sessions in all."),
        ("", 200, (200, 90, 0), "200 steps take 16 h."),
    ],
)  # fmt: skip
def test_a_run_is_hours_and_a_share_of_a_session(place, steps, seconds, sentence):
    assert sessions.describe_run(plan_of(*seconds, place=place, steps=steps)) == sentence


def test_hours_reach_from_working_together_to_taking_turns_and_the_session_is_counted_with_the_latter():
    planned = plan_of(100, 20, 0, host=Seconds(50, 50, 40, 0))
    assert planned.times.least == (100, 200, 40, 0) and planned.times.most == (150, 250, 60, 0)
    assert sessions.describe_run(planned).startswith("200 steps take 7.8 to 12 h: one session")
    slower = plan_of(100, 20, 0, host=Seconds(60, 60, 40, 0))  # 12.2 h
    assert "7.8 to 12 h: up to 196 of 200 steps" in sessions.describe_run(slower)
    one = replace(planned, times=planned.times._replace(beside=False))  # without a GPU one processor does both
    assert one.times.least == one.times.most == (150, 250, 60, 0)


def test_without_times_there_is_nothing_to_say():
    assert sessions.describe_run(plan_for("tiny", "cpu")) == ""


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [
        (0.004, 0.004, "0.004 s"), (9.4, 9.4, "9.4 s"), (59, 110, "59 to 110 s"), (119, 130, "2 to 2.2 min"),
        (5399, 5399, "90 min"), (5400, 5400, "1.5 h"), (3600, 7200, "1 to 2 h"), (1e7, 1e7, "2,778 h"),
    ],
)  # fmt: skip
def test_durations_have_the_unit_a_person_would_choose(least, most, text):
    assert sessions.format_range(least, most) == text
