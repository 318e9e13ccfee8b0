"""Metrics rows become panels, beside the figures of the summary; a missing value is a gap, never an invented number."""

import json

import pytest

from grpo_kit.display import run_figures
from grpo_kit.display.panels import build_panels, moving_average
from grpo_kit.runs.files import write_text
from grpo_kit.runs.run import find_run
from tests.helpers.metrics import NAN, rows, same


@pytest.fixture
def run(tmp_path):
    return find_run("r", tmp_path)


def titles(run, metrics):
    return [panel.title for panel in build_panels(run, metrics)]


def test_a_run_without_rows_has_no_panel_and_is_at_step_0(run):
    assert build_panels(run, []) == [] and run_figures.summarise_run(run, []) == {"step": "0"}


def test_panels_appear_with_their_figures(run):
    assert titles(run, rows(3)) == []
    assert titles(run, rows(3, reward=0.5, frac_reward_zero_std=0.25)) == ["Reward", "Groups with a gradient"]
    metrics = rows(3, reward=0.5, held_out=0.4, tokens_per_second=9.0, step_time=1.0, memory_gib=3.0, entropy=0.1)
    assert titles(run, metrics) == ["Reward", "Held-out accuracy", "Speed", "Memory in use"]
    assert [panel.unit for panel in build_panels(run, metrics)][2] == "tokens a second"
    assert titles(run, rows(3, step_time=1.0, entropy=0.1)) == ["Speed", "Entropy of the policy"]


def test_accuracies_on_the_test_split_stand_beside_those_on_validation_rows(run):
    for name, value in (("before", 0.4), ("after", 0.9)):
        report = {"pass@1": value, "ci95": [value - 0.1, value + 0.1], "n": 9, "sampling": {"engine": "x"}}
        report["problems"] = [{"id": "a", "prompt": "p", "score": 1.0, "completions": ["long"]}] * 9
        write_text(run.evaluation / f"{name}.json", json.dumps(report))
    metrics = [*rows(2), {"step": 3, "seconds": 6.0, "held_out": 0.5, "held_out_ci95": [0.4, 0.6]}]
    (panel,) = build_panels(run, metrics)
    assert [(line.label, line.xs, line.ys, line.low) for line in panel.lines] == [
        ("validation rows", [3], [0.5], [0.4]),
        ("test split, before", [0], [0.4], [pytest.approx(0.3)]),
        ("test split, after", [3], [0.9], [0.8]),
    ]
    assert run_figures.summarise_run(run, metrics)["accuracy, validation"] == "50% (40% to 60%)"
    assert "problems" not in run_figures.read_accuracies(run)["after"]


def test_reasons_for_groups_without_a_gradient_are_stacked_on_the_others(run):
    metrics = rows(
        3, **{"groups/with_gradient": 0.5, "groups/all_right": 0.3, "groups/all_wrong": 0.2, "groups/truncated": 0.0}
    )
    (panel,) = build_panels(run, metrics)
    assert [line.label for line in panel.lines] == ["with a gradient", "all right", "all wrong"]  # none was truncated
    assert panel.stacked and sum(line.ys[0] for line in panel.lines) == pytest.approx(1)


def test_replaced_groups_are_not_counted_twice(run):
    """Sampled: 1 of 8 had a gradient, 7 were all right, 3 of which were replaced. The parts are as sampled."""
    (panel,) = build_panels(
        run, rows(3, **{"groups/with_gradient": 0.5, "groups/replaced": 0.375, "groups/all_right": 0.875})
    )
    assert [(line.label, line.ys[0]) for line in panel.lines] == [
        ("with a gradient", 0.125), ("all right", 0.875), ("after replacement", 0.5)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "smooth"),
    [
        ([1.0], [1.0]),
        ([0.0, 1.0], [0.5, 0.5]),
        ([0.0] * 9 + [9.0], [0.0] * 5 + [1.0, 9 / 8, 9 / 7, 9 / 6, 9 / 5]),
        ([0.0, NAN, 1.0], [0.5, NAN, 0.5]),  # a gap is passed over, and stays
        ([NAN], [NAN]),
    ],
)
def test_smoothing_is_a_centred_mean_shorter_at_the_ends(values, smooth):
    assert same(moving_average(values), smooth)


def test_each_environment_has_a_curve_and_a_line_in_the_summary(run):
    figures = {"right": 0.25, "with_gradient": 0.5, "length": 31.0, "clipped": 0.0}
    metrics = rows(
        3, **{f"environments/{name}/{key}": value for name in ("math", "json") for key, value in figures.items()}
    )
    del metrics[1]["environments/json/right"]  # its share was no group of this step
    panels = build_panels(run, metrics)
    assert [panel.title for panel in panels] == ["Right", "With a gradient"]
    assert [line.label for line in panels[0].lines] == ["math", "json"]
    assert same(panels[0].lines[1].ys, [0.25, NAN, 0.25]) and panels[0].percent
    summary = run_figures.average_latest(metrics)
    assert summary["environment json"] == "25% right, 50% with a gradient, 31 tokens, 0% cut off"
    assert not any("environment" in name for name in run_figures.average_latest(rows(3, reward=0.5)))
    acting = {"turns": 2.0, "calls": 3.25, "failed_calls": 1.0, "unknown_calls": 0.0, "malformed_calls": 0.5}
    summary = run_figures.average_latest(rows(3, **{f"environments/shop/{key}": acting[key] for key in acting}))
    told = "2.0 turns, 3.2 calls, 1.0 of them failed, 0.0 of unknown tools, 0.5 unreadable"
    assert summary["environment shop"] == told


def test_each_mode_of_thinking_has_a_curve_and_a_line_in_the_summary(run):
    figures = {"on": {"right": 0.5, "thinking": 900.0}, "off": {"right": 0.25, "thinking": 0.0},
               "128": {"right": 0.4, "thinking": 140.0, "within": 0.75, "cut": 0.125}}  # fmt: skip
    metrics = rows(3, **{f"modes/{name}/{key}": own[key] for name, own in figures.items() for key in own})
    panels = {panel.title: panel for panel in build_panels(run, metrics)}
    assert list(panels) == ["Thinking", "Within the budget"]
    assert [line.label for line in panels["Thinking"].lines] == ["on", "off", "128"]
    assert [line.label for line in panels["Within the budget"].lines] == ["128"]
    assert panels["Within the budget"].percent and not panels["Thinking"].percent
    summary = run_figures.average_latest(metrics)
    assert summary["thinking 128"] == ("40% right, 140 tokens of thinking, 75% within the budget, 12% closed by force")
    assert summary["thinking off"] == "25% right, 0 tokens of thinking"
    side = {"pass@1": 0.5, "thinking": 12.4}
    report = {"words": "", "before": {}, "after": {}}
    report["modes"] = {"cut64": {"before": side, "after": side | {"thinking": 9}}}
    write_text(run.evaluation / "report.json", json.dumps(report))
    summary = run_figures.summarise_run(run, [])
    assert summary["test, thinking cut64"] == "50% before, 50% after; 12 and 9 tokens of thinking"


@pytest.mark.parametrize("stage, steps", [("sft", [0, 3, 3]), ("train", [0, 0, 3]), ("prefer", [0, 0, 0])])
def test_the_accuracies_of_earlier_stages_stand_where_a_stage_begins(run, stage, steps):
    report = {"pass@1": 0.5, "ci95": [0.4, 0.6], "n": 9, "sampling": {"engine": "x"}, "problems": []}
    for name in ("before", "after_sft", "after"):
        write_text(run.evaluation / f"{name}.json", json.dumps(report))
    (panel,) = build_panels(run, rows(3), stage)
    assert [line.xs for line in panel.lines] == [[step] for step in steps]


def test_rows_of_preferences_show_both_sides_of_their_pairs(run):
    metrics = [
        {"step": step, "seconds": step, "rewards/chosen": 0.1 * step, "rewards/rejected": -0.2 * step,
         "rewards/margins": 0.3 * step, "rewards/accuracies": 0.75, "logps/chosen": -5.0, "logps/rejected": -9.0}
        for step in (1, 2, 3)
    ]  # fmt: skip
    panels = {panel.title: panel for panel in build_panels(run, metrics)}
    assert list(panels) == ["Rewards of pairs", "Log-prob of pairs", "Pairs learned"]
    assert [(line.label, line.ys[1]) for line in panels["Rewards of pairs"].lines] == [
        ("chosen", pytest.approx(0.2)), ("rejected", pytest.approx(-0.4)),
    ]  # fmt: skip
    assert panels["Pairs learned"].percent and not panels["Rewards of pairs"].percent
    figures = run_figures.average_latest(metrics)
    assert (figures["pairs learned"], figures["margin"]) == ("75%", "+0.60")


def test_a_training_on_texts_has_a_loss_and_right_tokens_and_no_reward(run):
    rows = [
        {
            "step": i + 1,
            "seconds": i,
            "loss": 2 - i / 10,
            "mean_token_accuracy": 0.5 + i / 100,
            "tokens_per_second": 900,
        }
        for i in range(10)
    ]
    assert titles(run, rows) == ["Loss of the texts", "Right tokens", "Speed"]
    figures = run_figures.average_latest(rows)
    assert figures["loss"] == "1.300" and figures["right tokens"] == "57.0%" and "reward" not in figures
    grpo = run_figures.average_latest([{"step": 1, "seconds": 1, "loss": 0.0, "reward": 0.5}])
    assert "loss" not in grpo and grpo["reward"] == "0.50"
