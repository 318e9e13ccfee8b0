"""Tiles say what they are means of; the trials of a search are on one scale; nothing becomes markup."""

import re

import pytest

from grpo_kit.display.templates import render_figures, render_trials


def row(trial, accuracy, interval, state="complete", own=False, rate="0.001"):
    settings = [f"grpo.learning_rate={rate}", "lora.r=8"]
    return {"trial": trial, "accuracy": accuracy, "ci95": interval, "state": state, "own": own, "overrides": settings,
            "step": 12, "seconds": 130.0}  # fmt: skip


def test_the_trials_are_compared_on_one_scale_with_best_and_own_marked():
    rows = [row(5, 0.8, [0.72, 0.88]), row(0, 0.6, [0.5, 0.7], own=True), row(3, 0.55, [0.45, 0.65], "pruned")]
    rows.append(row(4, None, None, "fail"))
    page = str(render_trials({"trials": rows, "best": rows[0]}))
    assert re.findall(r"<span>(\d+%)</span>", page) == ["40%", "90%"]
    # From 40 % to 90 %: 72 % lies at 64 % of the width, and 16 points are 32 % of it.
    bars = re.findall(r'class="interval" style="[^"]*left:([\d.]+)%;width:([\d.]+)%;background:(#\w+)', page)
    assert bars == [("64.0", "32.0", "#009e73"), ("20.0", "40.0", "#e69f00"), ("10.0", "40.0", "#9a9a9a")]
    assert re.findall(r"<b>(\d+)</b>(?:<div[^>]*>([^<]+))?", page) == [
        ("5", "best"), ("0", "the run&#39;s own"), ("3", "stopped early"), ("4", "out of memory"),
    ]  # fmt: skip
    assert "80.0%</b>" in page and "72.0% to 88.0%" in page and page.count("2 minutes") == 4
    assert render_trials({"trials": rows, "best": rows[0]}, 1).count("<tr") == 2


def test_a_search_without_any_measured_trial_and_one_of_equal_accuracies_can_be_shown():
    lost = row(0, None, None, "fail", own=True)
    assert "best, the run&#39;s own, out of memory" in render_trials({"trials": [lost], "best": lost})
    full = row(0, 1.0, [1.0, 1.0])
    assert "left:0.0%;width:0.0%" in render_trials({"trials": [full], "best": full})


def test_a_setting_never_becomes_markup():
    hostile = row(0, 0.5, [0.4, 0.6], rate="<script>x</script>\x1b[31m")
    page = render_trials({"trials": [hostile], "best": hostile})
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page


@pytest.mark.parametrize(
    ("count", "words"), [(0, ""), (1, "of the last step"), (3, "means of the last 3 steps"), (30, "the last 5 steps")]
)
def test_a_mean_says_over_how_many_steps_it_is_taken(count, words):
    page = str(render_figures({"step": "<b>"}, [{"step": i + 1, "reward": 0.5} for i in range(count)]))
    assert words in page and (">0.50<" in page) == (" last " in page) == bool(count) and "&lt;b&gt;" in page
