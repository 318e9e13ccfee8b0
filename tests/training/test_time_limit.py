"""How long a session may last, by what was asked and where it runs."""

import time

import psutil
import pytest

from grpo_kit.training.time_limit import deadline, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h30m", 12600), ("45m", 2700), ("90s", 90), ("1d", 86400), ("1.5h", 5400), ("1h1m1s", 3661)]
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "3 h", "h", "3h30", "-1h", "3x", "1h,30m"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="written like 3h30m"):
        seconds_of(text)


def test_the_session_began_with_the_process_and_packing_has_its_time():
    began = psutil.Process().create_time()
    assert deadline("100h", 60, {}) == pytest.approx(began + 100 * 3600 - 60, abs=1)
    assert deadline(None, 60, {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}) == pytest.approx(began + 12 * 3600 - 60, abs=1)
    assert deadline(None, 60, {"COLAB_RELEASE_TAG": "x"}) is not None
    assert deadline(None, 60, {}) is None


def test_time_that_is_up_already_is_now():
    assert deadline("1s", 3600, {}) == pytest.approx(time.time(), abs=5)
