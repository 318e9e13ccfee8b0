"""The picture has every trial where it belongs, and a setting is said to have moved the accuracy only when it did."""

import random

import pytest

from grpo_kit.tuning import report, space

LR = "grpo.learning_rate=log(1e-4,1e-1)"


def test_the_picture_has_a_mark_a_trial_and_choices_by_name_in_their_order():
    axes, _ = space.parse_search(["lora.r=[4,8,16]", LR])

    def row(r, rate, accuracy, state="complete", own=False):
        overrides = [f"lora.r={r}", f"grpo.learning_rate={rate}"]
        return {"overrides": overrides, "accuracy": accuracy, "state": state, "own": own, "curve": [(4, accuracy)]}

    rows = [row(16, 1e-2, 0.9), row(4, 1e-3, 0.5, own=True), row(16, 1e-4, 0.1, "pruned"), row(8, 1, None, "fail")]
    curves, ranks, rates = report.picture({"trials": rows, "best": rows[0]}, axes).axes
    assert [label.get_text() for label in ranks.get_xticklabels()] == ["4", "8", "16"] and rates.get_xscale() == "log"
    marks = [(*line.get_xdata(), *line.get_ydata(), line.get_marker()) for line in ranks.lines]
    assert marks == [(2, 0.1, "x"), (0, 0.5, "o"), (2, 0.9, "o")]  # 16 is the third of the choices; the best is on top
    named = [text.get_text() for text in curves.get_legend().get_texts()]
    assert named == ["the run's own values", "best", "broken off"]


def told(count, accuracy, state="complete", **values):
    """A search's result whose trial i has values[key](i) and accuracy(i)."""
    return {"trials": [
        {"state": state, "curve": [(4, accuracy(i))], "overrides": [f"{key}={value(i)}" for key, value in values.items()]} for i in range(count)
    ]}  # fmt: skip


def test_what_moved_is_told_from_what_did_not():
    found = told(8, lambda i: i / 10, rate=lambda i: 10.0**-i, rank=lambda i: (4, 8)[i % 2])
    rate, rank = report.moved(found)
    assert rate == "rate: accuracy falls with it (rank correlation -1.00 over 8 trials at step 4, p = 0.001)."
    assert rank.startswith("rank: no effect is shown (rank correlation +0.22 over 8 trials at step 4, p = 0.")


def test_trials_that_were_broken_off_are_compared_after_as_much_training():
    found = told(8, lambda i: i / 10, rate=lambda i: i)
    for trial in found["trials"][4:]:  # the good ones went on; what they came to is not held against the others
        trial["curve"].append((8, 0.1))
    for trial in found["trials"][:4]:
        trial["state"] = "pruned"
    assert report.moved(found)[0].startswith(
        "rate: accuracy rises with it (rank correlation +1.00 over 8 trials at step 4,"
    )


def test_trials_that_were_never_measured_do_not_count():
    found = told(8, lambda i: i / 10, rate=lambda i: i)
    found["trials"].append({"state": "fail", "curve": [], "overrides": ["rate=9"]})
    assert "over 8 trials" in report.moved(found)[0]
    assert report.moved({"trials": found["trials"][-1:]}) == []


def test_a_choice_of_words_is_compared_by_its_kinds():
    (kind,) = report.moved(told(10, lambda i: i / 10, kind=lambda i: '"a"' if i < 5 else '"b"'))
    assert kind.startswith("kind: accuracy differs with it (H 6.82 over 10 trials at step 4, p = 0.0")


@pytest.mark.parametrize(
    "found",
    [
        told(3, lambda i: i / 10, rate=lambda i: i),  # three points in a row come by chance once in three times
        told(8, lambda i: 0.5, rate=lambda i: i),  # nothing to go with
        told(8, lambda i: i / 10, rate=lambda i: 3),  # one value
        told(1, lambda i: 0.5, rate=lambda i: 3),
    ],
)
def test_few_or_equal_trials_move_nothing(found):
    assert all("no effect is shown" in said or "nothing to tell" in said for said in report.moved(found))


def test_chance_moves_a_setting_no_more_than_once_in_twenty():
    draw = random.Random(7)
    said = [report.moved(told(8, lambda i: draw.random(), rate=lambda i: i))[0] for _ in range(40)]
    assert sum("no effect" not in text for text in said) <= 6  # 2 expected; seven or more come once in 200 times
