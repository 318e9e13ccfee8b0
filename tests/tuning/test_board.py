"""The board of a search reads its file, counts trials and time, and stops it by its button or by an interrupt.

The search is a stand-in that writes `tune/tune.json`; `tests/notebooks` runs the notebook with a real one.
"""

import asyncio
import json
import threading
import time

import pytest
from IPython.core.formatters import format_display_data

from grpo_kit.runs import activity
from grpo_kit.runs.files import write_text
from grpo_kit.runs.run import find_run
from grpo_kit.tuning import board as boards
from grpo_kit.tuning.board import SearchBoard


@pytest.fixture
def run(tmp_path):
    return find_run("r", tmp_path / "runs")


def save(run, count):
    """What a search has written after `count` trials of a minute each; the last is the best."""
    rows = [
        {"trial": n, "accuracy": n / 10, "ci95": [n / 10, n / 10 + 0.1], "state": "complete", "own": n == 0,
         "overrides": [f"lora.r={n + 1}"], "step": 4, "seconds": 60.0}
        for n in reversed(range(count))
    ]  # fmt: skip
    write_text(run.path / "tune/tune.json", json.dumps({"trials": rows, "best": rows[0], "words": ""}))
    return rows


def look(board):
    board.next_draw = 0
    board.refresh()
    return board.head.value


def test_a_board_shows_its_widget_and_an_old_search_without_time_left(run, monkeypatch):
    shown = []
    monkeypatch.setattr(boards, "display", shown.append)
    format_display_data(board := SearchBoard(run, 4))
    assert shown == [board.widget] and board.stop_button in board.widget.children
    assert "0 of 4" in board.head.value and "search of run r<" in board.head.value and board.table.value == ""
    save(run, 6)
    assert "6 of 6" in look(board) and "50.0%" in board.head.value and "time left" not in board.head.value
    assert board.table.value.count("<tr") == 4  # the head and the three best


def test_a_search_is_counted_and_timed_while_it_runs(run):
    board, seen = SearchBoard(run, 4), []

    def tune(*args, on_trial, should_stop):
        assert args == ("config", run) and not should_stop()
        activity.announce("trial 0, step 3 of <12>")
        seen.append(look(board))
        for done in (1, 2):
            save(run, done)
            on_trial(done, 5, "")  # a grid has another number of trials
            seen.append(look(board))
        return "result"

    assert asyncio.run(board.during(tune, "config", run)) == "result"
    assert "searching, trial 0, step 3 of &lt;12&gt;" in seen[0] and "time left" not in seen[0]
    assert "1 of 5" in seen[1] and ">4 minutes<" in seen[1]
    assert "2 of 5" in seen[2] and ">3 minutes<" in seen[2] and "10.0%" in seen[2] and "done at about" in seen[2]
    assert "finished" in board.head.value and "time left" not in board.head.value and board.stop_button.disabled


def test_the_button_stops_the_search_and_its_trials_are_kept(run):
    board = SearchBoard(run, 4)

    def tune(on_trial, should_stop):
        save(run, 2)
        board.stop_button.click()
        assert should_stop() and "stopping after this step" in board.head.value and board.stop_button.disabled
        return 2

    assert asyncio.run(board.during(tune)) == 2
    assert "stopped, trials kept" in board.head.value and "2 of 4" in board.head.value
    assert asyncio.run(board.during(lambda on_trial, should_stop: should_stop())) is False  # and it can go on


def test_an_interrupt_of_the_kernel_stops_the_search_and_is_raised(run):
    board = SearchBoard(run, 4)

    def tune(on_trial, should_stop):
        deadline = time.monotonic() + 20
        while not should_stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert should_stop()

    async def cell():
        task = asyncio.ensure_future(board.during(tune))
        await asyncio.sleep(0.05)
        task.cancel()  # as ipykernel does
        await task

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(cell())
    assert "stopped, trials kept" in board.head.value


def test_a_search_that_fails_says_why_and_a_damaged_file_does_not_end_one(run):
    board = SearchBoard(run, 4)

    def tune(on_trial, should_stop):
        write_text(run.path / "tune/tune.json", "{")
        seen.append(look(board))
        raise ValueError("lora.r is <64>.")

    seen = []
    with pytest.raises(ValueError, match="lora.r is <64>"):
        asyncio.run(board.during(tune))
    assert "The board cannot be drawn." in seen[0]
    save(run, 1)
    assert "failed: lora.r is &lt;64&gt;." in look(board) and threading.active_count() < 50


def test_a_board_needs_a_run():
    with pytest.raises(TypeError, match="run"):
        SearchBoard("tiny", 4)
