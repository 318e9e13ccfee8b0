"""Waiting: longer each time, as long as was asked for, and not for ever."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from grpo_kit.kaggle import retry


def run(*answers, tries=6):
    """(the answer given back, what was waited) when each try gives the next of `answers`, a number meaning `wait so long`."""
    left, slept = list(answers), []
    found = retry.until_settled(
        lambda: left.pop(0), lambda x: x if isinstance(x, float) else None, tries, sleep=slept.append
    )
    return found, slept, len(answers) - len(left)


def test_what_stands_is_given_back_at_once():
    assert run("fine") == ("fine", [], 1)


def test_pauses_double_and_stay_within_a_quarter_of_it():
    found, slept, tries = run(0.0, 0.0, 0.0, 0.0, 0.0, "late")
    assert (found, tries) == ("late", 6)
    assert all(due <= pause <= 1.25 * due for pause, due in zip(slept, [1, 2, 4, 8, 16]))


def test_a_server_is_waited_for_as_long_as_it_asks():
    _, slept, _ = run(30.0, "fine")
    assert 30 <= slept[0] <= 37.5


def test_a_server_that_asks_for_more_than_we_have_patience_for_gets_its_say_instead():
    assert run(301.0, "never asked") == (301.0, [], 1)


def test_the_last_try_is_given_back_whatever_it_is():
    assert run(0.0, 0.0, 0.0, tries=3)[0] == 0.0 and run(0.0, 0.0, 0.0, tries=3)[2] == 3


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7),
        (" 7 ", 7),
        ("soon", None),
        ("-3", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(header, seconds):
    assert retry.asked_to_wait(header) == seconds


def test_retry_after_in_a_minute():
    header = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 <= retry.asked_to_wait(header) <= 60
