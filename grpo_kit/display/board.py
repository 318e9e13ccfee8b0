"""A run's board in a notebook: its figures, charts and completions, alive while it trains and the same afterwards.

The board reads the run's files, so it shows a run of this cell, of another kernel or of last week alike. Training goes
on in a thread and the cell awaits it, so that the kernel can answer clicks meanwhile.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

import ipywidgets as widgets

from grpo_kit.display import charts, completions, html_report, run_figures
from grpo_kit.runs.run import Run

LOOK = 0.2  # seconds between looks at the files
DRAW = 1.0  # at most one drawing in so many seconds, and none before this many times what the last one took
SHARE = 100


class Board(widgets.VBox):
    """The board of a run: display it, and pass the training through `during` to keep it alive. ipywidgets 7.7 to 8.

    >>> board = Board(run)                                                  # doctest: +SKIP
    >>> last = await board.during(train.train, config, run, rewards)        # doctest: +SKIP
    """

    def __init__(self, run: Run) -> None:
        self.run, self.tail = run, completions.Tail(run.metrics)
        self.completions = completions.Completions(run.completions)
        self.rows: list[dict[str, Any]] = []
        self.stopping, self.lock = threading.Event(), threading.RLock()  # JupyterLab answers clicks in another thread
        self.state, self.next_draw = "", 0.0
        self.head, self.chart, self.group_html = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.stop_button = widgets.Button(description="Stop and save", icon="stop", disabled=True)
        self.stop_button.on_click(lambda _: self.stop())
        self.step = widgets.IntSlider(description="step", min=0, max=0, continuous_update=False)
        self.group = widgets.Dropdown(description="group")
        self.step.observe(self._show_step, "value")
        self.group.observe(self._show_group, "value")
        picked = widgets.HBox([self.step, self.group])
        super().__init__([self.head, self.stop_button, self.chart, picked, self.group_html])
        self.refresh()

    async def during(self, train: Callable[..., Any], *args: Any) -> Any:
        """What `train(*args, should_stop=...)` returns; it runs in a thread, and the board follows it.

        "Stop and save" makes `should_stop()` true, and the training's own return ends the wait. So does interrupting the
        kernel, which raises KeyboardInterrupt once the training has saved. An exception of the training is raised here.
        """
        self.stopping.clear()
        self._state("training", stoppable=True)
        interrupted = False
        work = asyncio.ensure_future(asyncio.to_thread(train, *args, should_stop=self.stopping.is_set))
        while not work.done():
            try:
                await asyncio.wait({work}, timeout=LOOK)
                await answer_clicks()
                self.refresh()
            except (asyncio.CancelledError, KeyboardInterrupt):  # how ipykernel interrupts a cell that awaits
                interrupted = True
                self.stop()
        failed = work.exception()
        self._state(f"failed: {failed}" if failed else "stopped and saved" if self.stopping.is_set() else "finished")
        if interrupted and not failed:
            raise KeyboardInterrupt
        return work.result()

    def stop(self) -> None:
        """Ask the training to end after the step it is in, and to save what it has."""
        self.stopping.set()
        self._state("stopping after this step")

    def refresh(self) -> None:
        """Look at the run's files, and draw what is new: at most once a second and 1 % of the time."""
        if time.monotonic() < self.next_draw:
            return
        started = time.monotonic()
        try:
            with self.lock:
                self._draw()
        except Exception as error:  # a chart that fails must not end a training that does not
            self.head.value = f"the board cannot be drawn ({escape(repr(error))}); the training goes on"
        self.next_draw = time.monotonic() + max(DRAW, SHARE * (time.monotonic() - started))

    def _state(self, state: str, stoppable: bool = False) -> None:
        self.state, self.next_draw = state, 0.0
        self.stop_button.disabled = not stoppable
        self.refresh()

    def _draw(self) -> None:
        new = [row for _, _, row in self.tail.new()]
        if self.tail.rewound:
            self.rows = []
        self.rows += new
        state = f"<b>run {escape(self.run.name)}</b> {escape(self.state)}{self._finish()}"
        found = html_report.figures_html(run_figures.summary(self.run, self.rows))
        self.head.value = f"{state}{found}{html_report.alarms_html(self.rows, most=3)}"
        if new or self.tail.rewound or not self.chart.value:
            panels = run_figures.panels(self.run, self.rows)
            self.chart.value = charts.svg(panels) if panels else ""
        self.completions.refresh()
        if steps := self.completions.steps:
            newest, following = steps[-1], self.step.value == self.step.max
            if newest != self.step.max:
                self.step.max, self.step.min = newest, steps[0]
            if following:
                self.step.value = newest

    def _finish(self) -> str:
        """When a training that is under way will be done, once something is known of it."""
        forecast = run_figures.read(self.run.forecast) or {}
        left = run_figures.seconds_left(self.rows, forecast.get("steps"), forecast)
        if self.stop_button.disabled or not left:
            return ""
        return f", done at about {datetime.now(UTC) + timedelta(seconds=left):%H:%M} UTC"

    def _show_step(self, _: Any) -> None:
        with self.lock:
            groups = self.completions.groups(self.step.value)
            self.group.options = [(f"{i + 1}: {group[0]['prompt'][:60]}", i) for i, group in enumerate(groups)]
            self.group.value = 0 if groups else None  # ipywidgets 7 picks the first by itself, 8 does not
            self._show_group(None)

    def _show_group(self, _: Any) -> None:
        with self.lock:
            groups = self.completions.groups(self.step.value)
            if self.group.value is not None and self.group.value < len(groups):
                self.group_html.value = completions.group_html(groups[self.group.value])


async def answer_clicks() -> None:
    """Let a kernel of ipykernel 6 (Colab, Kaggle) answer clicks while a cell awaits; 7 does so by itself.

    Only widget messages are taken out of its queue: the cells that "Run all" has put there wait for their turn.
    Checked with ipykernel 6.17.1 and 6.29.5.
    """
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    queue = getattr(kernel, "msg_queue", None)
    if queue is None:
        return
    waiting = [queue.get_nowait() for _ in range(queue.qsize())]
    ident, parent = kernel._parent_ident.get("shell"), kernel.get_parent("shell")
    for item in waiting:
        _, dispatch, args = item
        _, frames = kernel.session.feed_identities(args[0], copy=False)
        if kernel.session.unpack(frames[1].bytes)["msg_type"].startswith("comm_"):
            await dispatch(*args)
        else:
            queue.put_nowait(item)
    if waiting:
        kernel.set_parent(ident, parent, "shell")
