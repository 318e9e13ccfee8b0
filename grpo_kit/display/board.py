"""The live board of a run in a notebook: figures, charts and completions, during a training and afterwards.

The board reads the run's files, so it also shows a run of another kernel or an old run. The training runs in a thread
while the cell awaits it, so that the kernel can answer clicks meanwhile.
"""

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from grpo_kit.config.checks import require_one_of
from grpo_kit.display import completions, run_figures, templates
from grpo_kit.display.kernel_messages import answer_widget_messages
from grpo_kit.display.notebook_words import reword
from grpo_kit.display.panels import build_panels
from grpo_kit.runs import activity, interrupts
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_run
from grpo_kit.runs.texts import format_time, show_controls
from grpo_kit.runs.trained import TRAINING

LOOK_EVERY = 0.2  # seconds between looks at the files
DRAW_EVERY = 1.0  # seconds between drawings at least
# The board waits DRAW_SHARE times as long as the last drawing took, so that drawing takes at most 1 % of one core. It
# waits CHART_SHARE times as long after a chart (5 % of one core), but at most CHART_EVERY seconds, because the first
# chart in a process also loads matplotlib.
DRAW_SHARE, CHART_SHARE, CHART_EVERY = 100, 20, 10.0


async def work_in_thread(
    work: Callable[[], Any], look: Callable[[], None], stop: Callable[[], None]
) -> tuple[asyncio.Future[Any], BaseException | None]:
    """Call `work` in a thread, and `look` again and again until it ends, while the kernel answers clicks.

    Args:
        work: the work; it is interrupted as `runs.interrupts` says.
        look: draws what is new.
        stop: called when the kernel is interrupted.

    Returns:
        The work as a future that is done, and the interrupt that came or that ended it; None without one.
    """
    interrupts_seen: list[BaseException] = []

    def work_until_interrupted() -> Any:
        try:
            return work()
        except (KeyboardInterrupt, interrupts.Terminated) as error:  # which would end the kernel's event loop
            interrupts_seen.insert(0, error)

    future = asyncio.ensure_future(asyncio.to_thread(work_until_interrupted))
    while not future.done():
        try:
            await asyncio.wait({future}, timeout=LOOK_EVERY)
            await answer_widget_messages()
            look()
        except (asyncio.CancelledError, KeyboardInterrupt):  # how ipykernel interrupts a cell that awaits
            interrupts_seen.append(KeyboardInterrupt())
            interrupts.interrupt()  # a step can take minutes
            stop()
    return future, interrupts_seen[0] if interrupts_seen else None


class Board:
    """The live board of a run in a notebook. Works with ipywidgets 7.7 to 8; `widget` is what is displayed.

    Args:
        run: the run to show, as `open_run` returns it; it may not have started yet.
        stage: which of its trainings: `sft`, `train` (GRPO) or `prefer`.

    Raises:
        TypeError: `run` is not a run.
        ValueError: `stage` is none of these.

    Example:
        >>> from grpo_kit import Board, open_run, train
        >>> config, run = open_run(name="first")
        >>> board = Board(run)
        >>> display(board)  # doctest: +SKIP
        >>> last = await board.during(train, config, run, config.grpo.reward_funcs)  # doctest: +SKIP
    """

    def __init__(self, run: Run, stage: str = "train") -> None:
        require_run(run)
        require_one_of("stage", stage, TRAINING)
        files = run.stage_files(stage)
        self.run, self.stage, self.tail = run, stage, completions.Tail(files.metrics)
        self.completions = completions.Completions(files.completions)
        self.rows: list[dict[str, Any]] = []
        self.stopping, self.lock = threading.Event(), threading.RLock()  # JupyterLab answers clicks in another thread
        self.state, self.next_draw, self.next_chart, self.chart_is_old = "", 0.0, 0.0, True
        self.activity, self.before, self.is_moving = "", 0, False  # before: rows when the training began
        self.head, self.chart, self.group_html = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.stop_button = widgets.Button(description="Stop and save", icon="stop", disabled=True)
        self.stop_button.on_click(lambda _: self.stop())
        self.step = widgets.IntSlider(description="step", min=0, max=0, continuous_update=False)
        self.group = widgets.Dropdown(description="group")
        self.step.observe(self._show_step, "value")
        self.group.observe(self._show_group, "value")
        self.follow = widgets.ToggleButton(description="follow", tooltip="always show the newest step")
        self.follow.observe(self._follow, "value")
        selection = widgets.HBox([self.step, self.group, self.follow])
        self.widget = widgets.VBox([self.head, self.stop_button, self.chart, selection, self.group_html])
        self.refresh()

    def _ipython_display_(self) -> None:
        display(self.widget)

    async def during(self, train: Callable[..., Any], *args: Any) -> Any:
        """Run a training in a thread and keep the board up to date until it ends.

        "Stop and save" makes `should_stop()` true, and the wait ends when the training returns. Interrupting the kernel
        does not wait for the end of the step: the training keeps a checkpoint and ends within seconds.

        Args:
            train: called as `train(*args, should_stop=...)`.
            args: its arguments.

        Returns:
            What `train` returns.

        Raises:
            KeyboardInterrupt: the kernel was interrupted, and the training has saved.
            Exception: whatever `train` raises.
        """
        self.stopping.clear()
        self.next_chart = 0.0  # the first step shows at once
        self.activity, self.before = "starting", len(self.rows)
        self._set_state("training", stoppable=True)
        work = functools.partial(train, *args, should_stop=self.stopping.is_set)
        with interrupts.listen(), activity.listen(self._note_activity):
            ended, interrupt = await work_in_thread(work, self.refresh, self.stop)
            error = ended.exception()
            self.next_chart = 0.0  # the last chart shows all steps
            self.activity, failed = "", f"failed: {reword(str(error))}"
            stopped = self.stopping.is_set() or interrupt
            self._set_state(failed if error else "stopped and saved" if stopped else "finished")
            if interrupt and not error:
                raise interrupt
            return ended.result()

    def stop(self) -> None:
        """Ask the training to end after the step it is in, and to save what it has."""
        self.stopping.set()
        self._set_state("stopping after this step")

    def _note_activity(self, text: str) -> None:
        self.activity = text  # drawn with the next look

    def refresh(self) -> None:
        """Read the run's files and draw what is new: figures at most once a second, charts every few seconds."""
        if time.monotonic() < self.next_draw:
            return
        started = time.monotonic()
        try:
            with self.lock:
                self._draw()
            self.next_draw = time.monotonic() + max(DRAW_EVERY, DRAW_SHARE * (time.monotonic() - started))
            with self.lock:
                self._draw_chart()
        except Exception as error:  # a chart that fails must not end a training that does not
            self.head.value = self._describe_error(error)
            self.next_draw = time.monotonic() + DRAW_EVERY

    def _describe_error(self, error: Exception) -> str:
        """Why nothing can be drawn: the kit's own sentence about a damaged file, or else what Python says."""
        reason = reword(str(error)) if isinstance(error, ValueError | OSError) and str(error) else repr(error)
        training = "" if self.stop_button.disabled else " The training goes on."
        return f"<b>The board cannot be drawn.</b> {escape(show_controls(reason))}{training}"

    def _set_state(self, state: str, stoppable: bool = False) -> None:
        self.state, self.next_draw = state, 0.0
        self.stop_button.disabled = not stoppable
        self.refresh()

    def _draw(self) -> None:
        new = [row for _, _, row in self.tail.new()]
        if self.tail.rewound:
            self.rows = []
        self.chart_is_old = self.chart_is_old or bool(new) or self.tail.rewound
        self.rows += new
        is_training = not self.stop_button.disabled
        summary = run_figures.summarise_run(self.run, self.rows, is_training, self.stage)
        figures = templates.render_figures(summary, self.rows)
        alarms = templates.render_alarms(self.rows, most=3, word=reword)
        notes = f"{figures}{self._describe_judge()}{alarms}"
        self.head.value = f"<b>run {escape(self.run.name)}</b> {self._describe_state()}{notes}"
        self.completions.refresh()
        if steps := self.completions.steps:
            is_first = self.step.max == 0
            if steps[-1] != self.step.max:
                with self._moving():
                    self.step.max, self.step.min = steps[-1], steps[0]
            if is_first or self.follow.value:
                self._move_to(steps[-1])

    def _describe_state(self) -> str:
        """The state, with what a training does before its first step, or when it will end."""
        state = show_controls(self.state)
        if self.activity and (len(self.rows) <= self.before or self.stopping.is_set()):
            state += f", {self.activity}"
        return escape(state) + self._end_time()

    def _describe_judge(self) -> str:
        """What the run's judge is worth, as a paragraph, where one rewards this training; else nothing."""
        if not any("judge/no_verdict" in row for row in self.rows) or not self.run.judge.exists():
            return ""
        report = read_json(self.run.judge)
        name, (low, high) = report["judge"]["model"], report["agreement"]["ci95"]
        text = f"The judge {name} agrees with {report['agreement']['value']:.0%} of the known winners (95 % "
        text += f"{low:.0%} to {high:.0%}).{' ' + report['words'][-1] if name == 'policy' else ''}"
        return f"<p>{escape(show_controls(text))}</p>"

    def _draw_chart(self) -> None:
        started = time.monotonic()
        if self.chart_is_old and started >= self.next_chart:
            self.chart.value = str(templates.render_chart(build_panels(self.run, self.rows, self.stage)))
            self.chart_is_old = False
            now = time.monotonic()
            self.next_chart = now + min(CHART_EVERY, CHART_SHARE * (now - started))

    def _end_time(self) -> str:
        """When a training in progress will be done, as far as it is known."""
        forecast = run_figures.read_report(self.run.stage_files(self.stage).forecast) or {}
        left = run_figures.estimate_seconds_left(self.rows, forecast.get("steps"), forecast)
        if self.stop_button.disabled or not left:
            return ""
        return f", done at about {format_time(datetime.now(UTC) + timedelta(seconds=left), '%H:%M %Z')}"

    @contextlib.contextmanager
    def _moving(self) -> Iterator[None]:
        """What changes within the block is the board's doing and not the reader's."""
        before, self.is_moving = self.is_moving, True
        try:
            yield
        finally:
            self.is_moving = before

    def _move_to(self, step: int) -> None:
        with self._moving():
            self.step.value = step

    def _follow(self, _: Any) -> None:
        with self.lock:
            if self.follow.value and self.completions.steps:
                self._move_to(self.completions.steps[-1])

    def _read_groups(self) -> list[list[dict[str, Any]]]:
        """The groups of the step that is shown; none, and the reason in their place, where the file is damaged."""
        try:
            return self.completions.groups(self.step.value)
        except (OSError, ValueError) as error:
            self.group_html.value = self._describe_error(error)
            return []

    def _show_step(self, _: Any) -> None:
        with self.lock:
            self.follow.value = self.follow.value and self.is_moving  # the reader moved, and stays there
            groups = self._read_groups()
            with self._moving():
                prompts = [" ".join(show_controls(group[0]["prompt"]).split())[:60] for group in groups]
                self.group.options = [(f"{i + 1}: {prompt}", i) for i, prompt in enumerate(prompts)]
                self.group.value = 0 if groups else None  # ipywidgets 7 picks the first by itself, 8 does not
            self._show_group(None)

    def _show_group(self, change: Any) -> None:
        with self.lock:
            self.follow.value = self.follow.value and (change is None or self.is_moving)
            groups = self._read_groups()
            if self.group.value is not None and self.group.value < len(groups):
                self.group_html.value = str(templates.render_group(groups[self.group.value]))
