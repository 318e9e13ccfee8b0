"""Times are shown on the local clock, and control characters as codes."""

import time
from datetime import UTC, datetime

import pytest

from grpo_kit.runs import texts


def test_a_time_is_shown_on_the_local_clock(monkeypatch):
    monkeypatch.setenv("TZ", "CST-8")
    time.tzset()
    shown = (
        texts.format_time("2026-11-29T19:19:25.152+00:00"),
        texts.format_time(datetime(2026, 11, 29, 19, tzinfo=UTC), "%H:%M"),
    )
    monkeypatch.undo()
    time.tzset()
    assert shown == ("2026-11-30 03:19 CST", "03:00")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nüñ→\U0001f642", "plain\ttext\nüñ→\U0001f642"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("a\rb\r\nc", "a\\rb\nc"),
        ("\x9b2J\x7f\x00", "\\x9b2J\\x7f\\x00"),
        ("\u202egnirts\u2066\u2028", "\\u202egnirts\\u2066\\u2028"),
    ],
)
def test_control_characters_are_shown_as_codes(text, shown):
    assert texts.show_controls(text) == shown
