"""The chart places every trial, and a setting is reported to change the accuracy only when it did."""

import random

import pytest

from grpo_kit.tuning import report, space

LR = "grpo.learning_rate=log(1e-4,1e-1)"


def test_the_chart_has_a_mark_per_trial_and_choices_by_name_in_their_order():
    axes, _ = space.parse_search(["lora.r=[4,8,16]", LR])

    def row(r, rate, accuracy, state="complete", own=False):
        overrides = [f"lora.r={r}", f"grpo.learning_rate={rate}"]
        return {"overrides": overrides, "accuracy": accuracy, "state": state, "own": own, "curve": [(4, accuracy)]}

    rows = [row(16, 1e-2, 0.9), row(4, 1e-3, 0.5, own=True), row(16, 1e-4, 0.1, "pruned"), row(8, 1, None, "fail")]
    curves, ranks, rates = report.draw_trials({"trials": rows, "best": rows[0]}, axes).axes
    assert [label.get_text() for label in ranks.get_xticklabels()] == ["4", "8", "16"] and rates.get_xscale() == "log"
    marks = [(*line.get_xdata(), *line.get_ydata(), line.get_marker()) for line in ranks.lines]
    assert marks == [(2, 0.1, "x"), (0, 0.5, "o"), (2, 0.9, "o")]  # 16 is the third of the choices; the best is on top
    labels = [text.get_text() for text in curves.get_legend().get_texts()]
    assert labels == ["the run's own values", "best", "stopped early"]
    rates.figure.draw_without_rendering()
    assert "0.001" in [label.get_text() for label in rates.get_xticklabels()]  # a number, not a formula


@pytest.mark.slow
def test_optunas_pictures_show_a_search_and_leave_the_style_of_the_process(recwarn):
    import matplotlib
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    assert report.draw_optuna(study) == []
    style = dict(matplotlib.rcParams)
    study.enqueue_trial({"lora.r": 4})
    study.optimize(lambda trial: 0.1 * trial.suggest_categorical("lora.r", (4, 8)), n_trials=1)
    pictures = report.draw_optuna(study)
    assert len(pictures) == 2 and all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert dict(matplotlib.rcParams) == style
    assert [str(warning.message) for warning in recwarn.list] == []


def result_of(count, accuracy, state="complete", **values):
    """A search's result whose trial i has values[key](i) and accuracy(i)."""
    return {"trials": [
        {
            "state": state, "curve": [(4, accuracy(i))],
            "overrides": [f"{key}={value(i)}" for key, value in values.items()],
        }
        for i in range(count)
    ]}  # fmt: skip


def test_a_setting_with_an_effect_is_distinguished_from_one_without():
    result = result_of(8, lambda i: i / 10, rate=lambda i: 10.0**-i, rank=lambda i: (4, 8)[i % 2])
    rate, rank = report.describe_effects(result)
    assert rate == "rate: accuracy falls with it (rank correlation -1.00 over 8 trials at step 4, p = 0.001)."
    assert rank.startswith("rank: no effect is shown (rank correlation +0.22 over 8 trials at step 4, p = 0.")


def test_trials_stopped_early_are_compared_at_equal_steps():
    result = result_of(8, lambda i: i / 10, rate=lambda i: i)
    for trial in result["trials"][4:]:  # the good ones went on; their later accuracy is not compared
        trial["curve"].append((8, 0.1))
    for trial in result["trials"][:4]:
        trial["state"] = "pruned"
    assert report.describe_effects(result)[0].startswith(
        "rate: accuracy rises with it (rank correlation +1.00 over 8 trials at step 4,"
    )


def test_trials_that_were_never_measured_do_not_count():
    result = result_of(8, lambda i: i / 10, rate=lambda i: i)
    result["trials"].append({"state": "fail", "curve": [], "overrides": ["rate=9"]})
    assert "over 8 trials" in report.describe_effects(result)[0]
    assert report.describe_effects({"trials": result["trials"][-1:]}) == []


def test_trials_without_a_step_in_common_are_not_compared():
    result = result_of(8, lambda i: i / 10, rate=lambda i: i)
    result["trials"][0]["curve"] = [(2, 0.1)]
    assert report.describe_effects(result) == []


def test_a_categorical_setting_is_compared_by_its_values():
    result = result_of(10, lambda i: i / 10, kind=lambda i: '"a"' if i < 5 else '"b"')
    (kind,) = report.describe_effects(result)
    assert kind.startswith("kind: accuracy differs with it (H 6.82 over 10 trials at step 4, p = 0.0")


@pytest.mark.parametrize(
    "result",
    [
        result_of(3, lambda i: i / 10, rate=lambda i: i),  # three points in a row come by chance once in three times
        result_of(8, lambda i: 0.5, rate=lambda i: i),  # equal accuracies
        result_of(8, lambda i: i / 10, rate=lambda i: 3),  # one value
    ],
)
def test_few_or_equal_trials_show_no_effect(result):
    sentences = report.describe_effects(result)
    assert len(sentences) == 1
    assert "no effect is shown" in sentences[0] or "they show nothing" in sentences[0]


def test_one_trial_is_not_spoken_of_as_several():
    assert report.describe_effects(result_of(1, lambda i: 0.5, rate=lambda i: 3)) == [
        "rate: a single trial shows nothing."
    ]


def test_random_trials_show_an_effect_at_most_once_in_twenty():
    draw = random.Random(7)
    sentences = [report.describe_effects(result_of(8, lambda i: draw.random(), rate=lambda i: i))[0] for _ in range(40)]
    assert sum("no effect" not in text for text in sentences) <= 6  # 2 expected; seven or more come once in 200 times
