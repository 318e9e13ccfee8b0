"""Metrics rows become a summary; a missing value is left out, never an invented number."""

import json

import pytest

from grpo_kit.display import run_figures
from grpo_kit.display.panels import build_panels
from grpo_kit.runs.files import write_text
from grpo_kit.runs.run import find_run
from tests.helpers.metrics import NAN, rows, same


@pytest.fixture
def run(tmp_path):
    return find_run("r", tmp_path)


def test_a_report_that_changes_is_read_again(run):
    path = run.evaluation / "before.json"
    for value in (0.1, 0.2):
        write_text(
            path, json.dumps({"pass@1": value, "ci95": [0, 1], "n": 1, "sampling": {"engine": "x"}, "problems": []})
        )
        assert run_figures.read_accuracies(run)["before"]["pass@1"] == value


@pytest.mark.parametrize(
    ("row", "share"),
    [
        ({"frac_reward_zero_std": 0.25}, 0.75),  # TRL's alone
        ({"frac_reward_zero_std": 0.25, "groups/with_gradient": 0.6}, 0.6),  # ours, which knows of replaced groups
        ({}, NAN),
    ],
)
def test_the_share_of_groups_with_a_gradient(row, share):
    assert same(run_figures.gradient_shares([row]), [share])


def test_a_row_without_a_value_leaves_a_gap_in_the_curve():
    assert same(run_figures.metric_values([{"a": 1}, {}, {"a": None}], "a"), [1.0, NAN, NAN])


@pytest.mark.parametrize(
    ("metrics", "steps", "forecast", "left"),
    [
        ([], 60, {"seconds": 250.0}, 250.0),  # the probe's, before the first step
        ([], 60, {}, None),
        (rows(1), 10, {"seconds": 9.0}, 18.0),  # 9 more of 2 s
        (rows(30), 40, {}, 20.0),
        (rows(30), None, {}, None),  # the number of steps is unknown
        (rows(5), 4, {}, 0.0),  # more than asked: not less than nothing
        ([{"step": 1, "seconds": 90.0}, {"step": 2, "seconds": 3.0}], 4, {}, 6.0),  # resumed: the clock began anew
    ],
)
def test_the_remaining_time_is_estimated(metrics, steps, forecast, left):
    assert run_figures.estimate_seconds_left(metrics, steps, forecast) == left


def test_the_summary_of_a_run_shows_how_far_it_is_with_units(run):
    write_text(run.forecast, json.dumps({"steps": 40, "seconds": 7300.0}))
    assert run_figures.summarise_run(run, [], True) == {"step": "0 of 40", "time left": "at most 2.0 h"}
    assert run_figures.summarise_run(run, []) == {"step": "0 of 40"}  # it does not train
    metrics = rows(30, reward=0.5, frac_reward_zero_std=0.5, tokens_per_second=1234.0, memory_gib=3.21, skipped_steps=2)
    metrics[-1] |= {"reward": 9.5, "completions/clipped_ratio": 0.87}
    assert run_figures.summarise_run(run, metrics, is_training=True) == {
        "step": "30 of 40", "memory": "3.2 GiB", "skipped in fp16": "2 steps", "elapsed": "60 s", "time left": "20 s"
    }  # fmt: skip
    assert run_figures.average_latest(metrics) == {  # the reward: of four times 0.5 and once 9.5
        "reward": "2.30", "groups with a gradient": "50%", "cut off": "87%", "tokens a second": "1,234"
    }  # fmt: skip
    assert run_figures.average_latest([]) == {}


@pytest.mark.parametrize("count", [1, 3, 5, 30])
def test_a_tile_says_what_the_curve_of_its_name_ends_at(run, count):
    metrics = [
        {
            "step": i + 1, "seconds": i, "reward": (7 * i % 30) / 10, "groups/with_gradient": 1 - (i % 3) / 8,
            "groups/replaced": 0.75 if i == 29 else (i % 5) / 8,
        }
        for i in range(count)
    ]  # fmt: skip
    ends = {line.label or panel.title: line.ys[-1] for panel in build_panels(run, metrics) for line in panel.lines}
    tiles = run_figures.average_latest(metrics)
    assert tiles["reward"] == f"{ends['weighted sum, mean of 9 steps']:.2f}"
    assert tiles["groups with a gradient"] == f"{ends['with a gradient']:.0%}"
    assert tiles.get("after replacement") == (f"{ends['after replacement']:.0%}" if count > 1 else None)


def test_an_alarm_is_listed_once_with_its_last_step():
    metrics = [{"step": 1, "alarms": ["a"]}, {"step": 2}, {"step": 3, "alarms": ["a", "b"]}]
    assert run_figures.list_alarms(metrics) == [(3, "a"), (3, "b")]


def test_a_relief_is_listed_like_an_alarm():
    metrics = [{"step": 1, "reliefs": ["moved"], "alarms": ["a"]}, {"step": 2}]
    assert run_figures.list_alarms(metrics) == [(1, "moved"), (1, "a")]


def test_the_rows_that_go_to_the_host_stand_beside_the_experts_that_lie_there():
    metrics = [*rows(2, host_share=0.1, experts_on_host=0.3), {"step": 3, "seconds": 6.0}]
    metrics.append({"step": 4, "seconds": 8.0, "host_share": 0.16, "experts_on_host": 0.35})
    assert run_figures.average_latest(metrics)["rows to the host"] == "12% (35% of the experts)"
    assert run_figures.average_latest(rows(2, host_share=0.3))["rows to the host"] == "30%"  # an earlier version's
    assert "rows to the host" not in run_figures.average_latest(rows(2))
