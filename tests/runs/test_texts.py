"""Times are shown on the local clock, and control characters as codes."""

import inspect
import time
from datetime import UTC, datetime

import pytest

from grpo_kit.runs import texts
from grpo_kit.runs.texts import FUNCTIONS, drop_functions, name_functions


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


def test_only_a_change_of_zero_is_written_as_zero_and_never_as_less_than_zero():
    for change, digits, shown in (
        (12.34, 1, "+12.3"),
        (-3.0, 1, "-3.0"),
        (0.05, 1, "+0.1"),  # a tenth by rounding is no zero
        (0.04, 1, "+0.04"),
        (-0.04, 1, "-0.04"),
        (0.0496, 1, "+0.05"),
        (0.0004, 3, "+0.0004"),
        (3e-5, 3, "+0.00003"),
        (-3e-8, 1, "-0.00000003"),
        (0.0, 1, "+0.0"),
        (-0.0, 3, "+0.000"),
        (-1.1e-14, 1, "+0.0"),  # what a sum leaves behind
    ):
        assert texts.format_change(change, digits) == shown


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


def test_a_command_is_named_by_its_function_too_and_one_without_a_function_is_not():
    sentence = "Run `grpo-kit data --force` and then `grpo-kit evaluate`."
    named = name_functions(sentence)
    assert named == (
        "Run `grpo-kit data --force` and then `grpo-kit evaluate` (in Python: `prepare_data(config, run)`, then "
        "`measure(config, run, stage)` with run.force=true)."
    )
    assert drop_functions(f"It is gone. {named} Then look.") == f"It is gone. {sentence} Then look."
    assert name_functions("See `grpo-kit plan`.") == "See `grpo-kit plan`."


def test_the_functions_that_messages_name_are_public():
    import grpo_kit

    names = {call.partition("(")[0] for call in FUNCTIONS.values()}
    assert names < set(grpo_kit.__all__)
    for call in FUNCTIONS.values():  # the names that the sentence uses are those of the parameters
        name, _, arguments = call.removesuffix(")").partition("(")
        parameters = list(inspect.signature(getattr(grpo_kit, name)).parameters.values())
        given = arguments.split(", ")
        assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters[len(given) :])
        assert len(given) <= len(parameters)
