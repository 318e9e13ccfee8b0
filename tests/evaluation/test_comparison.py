"""What is said of a difference agrees with the test that was made, and the test with what is known of chance."""

import random

import pytest

from grpo_kit.evaluation.comparison import compare, in_words


def scores(*values):
    return {str(number): value for number, value in enumerate(values)}


def single(gained, lost, same):
    return (
        scores(*[0.0] * gained, *[1.0] * lost, *[1.0] * same),
        scores(*[1.0] * gained, *[0.0] * lost, *[1.0] * same),
    )


@pytest.mark.parametrize(
    ("gained", "lost", "same", "real"),
    [
        (30, 2, 68, True),
        (2, 30, 68, True),  # a loss is as real
        (9, 2, 89, False),  # p = 0.065
        (10, 2, 88, True),  # p = 0.039
        (0, 0, 100, False),
    ],
)
def test_one_sample_a_problem_is_decided_by_mcnemar(gained, lost, same, real):
    found = compare(*single(gained, lost, same))
    assert (found["real"], found["gained"], found["lost"], found["n"]) == (real, gained, lost, 100)
    assert found["difference"] == pytest.approx((gained - lost) / 100)
    assert found["words"].startswith("The difference is real" if real else "No difference is shown")


def test_shares_are_decided_by_the_interval():
    rng = random.Random(1)
    before = scores(*[rng.choice([0.0, 0.25, 0.5]) for _ in range(200)])
    raised = {key: value + 0.25 for key, value in before.items()}
    found = compare(before, raised)
    assert found["real"] and found["p_value"] is None and "leaves out zero" in found["words"]
    shuffled = dict(zip(before, rng.sample(list(before.values()), 200), strict=True))
    found = compare(before, shuffled)
    assert not found["real"] and "holds zero" in found["words"]


def test_nothing_changed_is_found_real_about_once_in_twenty_at_most():
    rng, real = random.Random(3), 0
    for _ in range(400):
        before, after = (scores(*[float(rng.random() < 0.5) for _ in range(100)]) for _ in range(2))
        real += compare(before, after)["real"]
    assert real <= 26  # 5 % of 400 is 20; an exact test errs on the safe side


def test_only_problems_with_a_score_in_both_count():
    found = compare(scores(0.0, None, 1.0, 0.0), {"0": 1.0, "1": 1.0, "2": 1.0, "9": 0.0})
    assert (found["n"], found["difference"]) == (2, 0.5)


def test_nothing_in_common_is_an_error():
    with pytest.raises(ValueError, match="before training and after training"):
        compare({"a": 1.0}, {"b": 1.0})


def test_the_sentence_names_the_two_and_the_direction():
    words = compare(*single(2, 30, 68), names=("with the preset", "with trial 3"))["words"]
    assert (
        "28.0 points less are solved with trial 3 than with the preset" in words
        and "less than once in a thousand" in words
    )
    assert "as many are solved after training as before training" in compare(*single(4, 4, 2))["words"]


def test_a_report_in_words_has_each_accuracy_with_its_interval_and_the_change_in_points():
    sides = {
        "before": {"pass@1": 0.42, "n": 50, "ci95": [0.38, 0.46]},
        "after": {"pass@1": 0.98, "n": 50, "ci95": [0.96, 0.99]},
    }
    said = in_words(
        sides | {"difference": 0.56, "difference_ci95": [0.51, 0.605], "words": "It is real: so; by chance."}
    ).splitlines()
    assert said == [
        "Before: 42.0% of 50 held-out problems solved;",
        "  with 95 % confidence the true rate lies between 38.0% and 46.0%.",
        "After: 98.0% of 50 held-out problems solved;",
        "  with 95 % confidence the true rate lies between 96.0% and 99.0%.",
        "Training changed it by +56.0 points;",
        "  with 95 % confidence the true change lies between +51.0 and +60.5 points.",
        "It is real: so;",
        "  by chance.",
    ]
