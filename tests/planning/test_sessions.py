"""The hours of a whole run, and what of it fits into a session of Colab or Kaggle."""

from dataclasses import replace

import pytest

from grpo_kit.planning import sessions
from grpo_kit.planning.fit import Seconds, StepTimes
from tests.helpers.plans import plan_for

NOTHING = Seconds(0, 0, 0, 0)
COLAB = sessions.SESSIONS["colab"]


def plan_of(sampling, training, evaluation, host=NOTHING, place="kaggle", steps=200, replaced=1, start=0, sets="test"):
    """A plan whose step and evaluation take these seconds; `replaced` times the sampling with every replacement.

    The first reply comes after `start` seconds.
    """
    planned = plan_for("tiny", "t4", f"grpo.max_steps={steps}", f"evaluation.sets=[{sets}]")
    times = StepTimes(Seconds(sampling, replaced * sampling, training, evaluation), host, True)
    storage = planned.storage._replace(download=start * sessions.DOWNLOAD_RATE)
    return replace(planned, times=times, storage=storage, device=replace(planned.device, place=place))


# place, steps; seconds of a step's sampling and training, and of an evaluation; the sentence
@pytest.mark.parametrize(
    ("place", "steps", "seconds", "sentence"),
    [
        ("kaggle", 200, (100, 62, 0), "200 steps take 9 h: one session of Kaggle (12 h, 30 h a week)."),
        ("colab", 200, (100, 62, 1800), "200 steps take 9 h, the evaluations before and after 60 min: one "
         "session of Colab (12 h, free of charge at most, often less)."),
        # 12 h less the first evaluation's 0.5 h are 41,400 s: 142 steps of 290 s
        ("kaggle", 200, (200, 90, 1800), "200 steps take 16 h, the evaluations before and after 60 min: up to 142 "
         "of 200 steps in the first session of Kaggle (12 h, 30 h a week), 2 sessions in all."),
        ("kaggle", 500, (200, 90, 1800), "500 steps take 40 h, the evaluations before and after 60 min: up to 142 "
         "of 500 steps in the first session of Kaggle (12 h, 30 h a week), 4 sessions in all, more than the hours of a "
         "week."),
        ("colab", 500, (200, 90, 50_000), "500 steps take 40 h, the evaluations before and after 28 h: up to 0 of "
         "500 steps in the first session of Colab (12 h, free of charge at most, often less), 6 sessions in all."),
        ("", 200, (200, 90, 0), "200 steps take 16 h."),
    ],
)  # fmt: skip
def test_a_run_is_hours_and_a_share_of_a_session(place, steps, seconds, sentence):
    assert sessions.describe_run(plan_of(*seconds, place=place, steps=steps)) == sentence


def test_hours_reach_from_working_together_to_taking_turns_and_the_session_is_counted_with_the_latter():
    planned = plan_of(100, 20, 0, host=Seconds(50, 50, 40, 0))
    assert planned.times.least == (100, 100, 40, 0) and planned.times.most == (150, 150, 60, 0)
    assert sessions.describe_run(planned).startswith("200 steps take 7.8 to 12 h: one session")
    slower = plan_of(100, 20, 0, host=Seconds(60, 60, 40, 0))  # 12.2 h
    assert "7.8 to 12 h: up to 196 of 200 steps" in sessions.describe_run(slower)
    one = replace(planned, times=planned.times._replace(beside=False))  # without a GPU one processor does both
    assert one.times.least == one.times.most == (150, 150, 60, 0)


def test_download_conversion_and_loading_take_their_share_of_each_session():
    """By hand: 200 steps of 250 s are 50,000 s; 43,200 s less 7,200 s in each session: 144 steps in the first of 2."""
    planned = plan_of(200, 50, 0, place="colab", start=7200)
    assert sessions.first_reply_seconds(planned) == 7200 and sessions.steps_in_session(planned, COLAB) == 144
    assert sessions.describe_run(planned) == (
        "200 steps take 14 h, download, conversion and loading 2 h: up to 144 of 200 steps in the first session of "
        "Colab (12 h, free of charge at most, often less), 2 sessions in all."
    )
    assert "one session of Colab" in sessions.describe_run(plan_of(150, 30, 0, place="colab", start=7199))  # 10 + 2 h
    assert "2 sessions in all" in sessions.describe_run(plan_of(150, 30, 0, place="colab", start=7201))
    late = sessions.describe_run(plan_of(150, 30, 0, place="colab", start=43_200))
    assert late.endswith("12 h: no step in a session of Colab (12 h, free of charge at most, often less).")
    # 3 sessions for 30 h of steps fit a week of 30 h, and not with half an hour before each
    assert "week of" not in sessions.describe_run(plan_of(400, 140, 0))
    assert ", more than the hours of a week" in sessions.describe_run(plan_of(400, 140, 0, start=1800))


def test_a_session_is_counted_with_every_replacement():
    """By hand: sampling for 100 s becomes 200 s; with 62 s of training, 200 take 9 to 14.6 h, of them 164 in 12 h."""
    planned = plan_of(100, 62, 0, replaced=2)
    assert sessions.step_seconds(planned) == (162, 262) and sessions.steps_in_session(planned, COLAB) == 164
    assert sessions.describe_run(planned).startswith(
        "200 steps take 9 to 15 h (the larger with every replacement): up to 164 of 200 steps in the first session"
    )


@pytest.mark.slow
def test_the_steps_of_the_first_session_fit_into_its_hours():
    """Of the presets, in seconds: what comes before the steps, the steps, and one step more."""
    for preset, device in (("t4", "t4"), ("t4x2", "t4x2"), ("t4-4b", "t4")):
        planned = plan_for(preset, device, "grpo.max_steps=10000")
        before = sessions.first_reply_seconds(planned) + planned.times.most.evaluation
        count, step = sessions.steps_in_session(planned, COLAB), sessions.step_seconds(planned)[1]
        assert before + count * step <= 12 * 3600 < before + (count + 1) * step, preset
        assert step == planned.times.most.sampling_all + planned.times.most.training > sum(planned.seconds)


def test_one_step_takes_and_two_steps_take():
    assert sessions.describe_run(plan_of(100, 62, 0, steps=1)).startswith("1 step takes 2.7 min: one")
    assert sessions.describe_run(plan_of(100, 62, 0, steps=2)).startswith("2 steps take 5.4 min: one")


def test_a_set_of_unknown_size_is_named_and_not_counted():
    said = sessions.describe_run(plan_of(100, 62, 0, sets="own/er,aime2024,gone.jsonl"))
    assert said.startswith(
        "200 steps take 9 h (without evaluating own/er, gone.jsonl: set evaluation.num_problems, its size is "
        "unknown): one"
    )


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
