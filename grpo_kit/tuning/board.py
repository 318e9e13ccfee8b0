"""The live board of a search in a notebook: its trials so far, the time left, and a button that stops it."""

import functools
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from grpo_kit.display import templates
from grpo_kit.display.board import work_in_thread
from grpo_kit.display.notebook_words import reword
from grpo_kit.display.run_figures import format_duration
from grpo_kit.runs import activity, interrupts
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_run
from grpo_kit.runs.texts import format_time, show_controls

DRAW_EVERY = 1.0  # seconds between drawings at least
SHOWN = 3  # trials, the best so far


class SearchBoard:
    """The live board of a search over settings; `widget` is what is displayed. It reads `tune/tune.json` of the run.

    Args:
        run: the run that is searched, as `open_run` returns it.
        trials: number of trials in all, as `tune` takes it.

    Raises:
        TypeError: `run` is not a run.

    Example:
        >>> from grpo_kit import open_run, tune
        >>> from grpo_kit.tuning.board import SearchBoard
        >>> config, run = open_run(name="first")
        >>> board = SearchBoard(run, trials=4)
        >>> display(board)  # doctest: +SKIP
        >>> result = await board.during(tune, config, run, "lora.r=[8,16]", 4)  # doctest: +SKIP
    """

    def __init__(self, run: Run, trials: int) -> None:
        require_run(run)
        self.run, self.trials = run, trials
        self.stopping, self.state, self.activity = threading.Event(), "", ""
        self.result: dict[str, Any] | None = None
        self.began, self.next_draw = 0.0, 0.0  # began: the trial that is trained now
        self.head, self.table = widgets.HTML(), widgets.HTML()
        self.stop_button = widgets.Button(description="Stop and keep", icon="stop", disabled=True)
        self.stop_button.on_click(lambda _: self.stop())
        self.widget = widgets.VBox([self.head, self.stop_button, self.table])
        self._set_state("")

    def _ipython_display_(self) -> None:
        display(self.widget)

    async def during(self, tune: Callable[..., Any], *args: Any) -> Any:
        """Run a search in a thread and keep the board up to date until it ends.

        "Stop and keep" and an interrupt of the kernel end the search after the training step it is in. The finished
        trials are kept.

        Args:
            tune: called as `tune(*args, on_trial=..., should_stop=...)`.
            args: its arguments.

        Returns:
            What `tune` returns.

        Raises:
            KeyboardInterrupt: the kernel was interrupted.
            Exception: whatever `tune` raises.
        """
        self.stopping.clear()
        self.activity, self.began = "loading the policy", time.monotonic()
        self.stop_button.disabled = False
        self._set_state("searching")
        work = functools.partial(tune, *args, on_trial=self._begin_trial, should_stop=self.stopping.is_set)
        with interrupts.listen(), activity.listen(self._note_activity):
            ended, interrupt = await work_in_thread(work, self.refresh, self.stop)
            error = ended.exception()
            self.activity, self.stop_button.disabled = "", True
            stopped = self.stopping.is_set() or interrupt
            self._set_state(
                f"failed: {reword(str(error))}" if error else "stopped, trials kept" if stopped else "finished"
            )
            if interrupt and not error:
                raise interrupt
            return ended.result()

    def stop(self) -> None:
        """Ask the search to end after the training step it is in, and to keep the finished trials."""
        self.stopping.set()
        self.stop_button.disabled = True
        self._set_state("stopping after this step")

    def _begin_trial(self, done: int, trials: int, note: str = "") -> None:
        self.trials, self.began = trials, time.monotonic()  # with `grid` the number of trials is known only now

    def _note_activity(self, text: str) -> None:
        self.activity = text  # drawn with the next look

    def _set_state(self, state: str) -> None:
        self.state, self.next_draw = state, 0.0
        self.refresh()

    def refresh(self) -> None:
        """Read the search's result so far and draw it, at most once a second."""
        if time.monotonic() < self.next_draw:
            return
        self.next_draw = time.monotonic() + DRAW_EVERY
        path = self.run.path / "tune" / "tune.json"
        try:
            result = read_json(path) if path.is_file() else None
            figures = self._summarise(result)
            if result != self.result:
                self.table.value = str(templates.render_trials(result, SHOWN)) if result and result["trials"] else ""
            self.result = result
        except Exception as error:  # a table that cannot be drawn must not end a search
            self.head.value = f"<b>The board cannot be drawn.</b> {escape(show_controls(reword(str(error))))}"
            return
        state = escape(show_controls(", ".join(filter(None, (self.state, self.activity)))))
        self.head.value = f"<b>search of run {escape(self.run.name)}</b> {state}{templates.render_figures(figures)}"

    def _summarise(self, result: dict[str, Any] | None) -> dict[str, str]:
        """The figures of the board: trials done, the best accuracy, and the time left while a search runs."""
        rows = result["trials"] if result else []
        figures = {"trials": f"{len(rows)} of {max(self.trials, len(rows))}"}
        if rows and result["best"]["accuracy"] is not None:
            figures["best so far"] = f"{result['best']['accuracy']:.1%}"
        left = self.trials - len(rows)
        if rows and left > 0 and not self.stop_button.disabled:
            each = sum(row["seconds"] for row in rows) / len(rows)
            seconds = each * (left - 1) + max(0.0, each - (time.monotonic() - self.began))
            figures["time left"] = format_duration(seconds)
            figures["done at about"] = format_time(datetime.now(UTC) + timedelta(seconds=seconds), "%H:%M %Z")
        return figures
