"""Checks of single settings: the valid values pass, and every other one is refused with the rule and the remedy."""

import pytest

from grpo_kit.config import load_config
from grpo_kit.config.checks import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h30m", 12600), ("45m", 2700), ("90s", 90), ("1d", 86400), ("1.5h", 5400), ("1h1m1s", 3661)]
)
def test_durations_are_parsed_to_seconds(text, seconds):
    assert parse_duration("run.time_limit", text) == seconds


@pytest.mark.parametrize("text", ["", "3", "3 h", "h", "3h30", "-1h", "3x", "1h,30m", "0h", "0.0h0s"])
def test_an_invalid_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"^run.time_limit is '.*above 0.* like 3h30m"):
        parse_duration("run.time_limit", text)


def test_a_run_with_an_invalid_time_limit_is_refused_when_it_is_loaded():
    assert load_config(["tiny"], ["run.time_limit=3h30m"]).run.time_limit == "3h30m"
    with pytest.raises(ValueError, match="run.time_limit is '0h'"):
        load_config(["tiny"], ["run.time_limit=0h"])
