"""The board follows a run's files, runs a training in a thread, and obeys its button and the kernel's interrupt.

Covered: a stand-in training and a real one, in this process and in a real kernel with clicks sent as a front end sends
them. `test_board_in_browser.py` drives the same in JupyterLab. Tried by hand: ipykernel 6.17.1 and
6.29.5, ipywidgets 7.7.1.
"""

import asyncio
import inspect
import json
import os
import re
import threading
import time
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from IPython.core.formatters import format_display_data
from jupyter_client.manager import KernelManager

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.display import templates
from grpo_kit.display.board import Board
from grpo_kit.display.board import time as time_board
from grpo_kit.display.kernel_messages import answer_widget_messages
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs import activity
from grpo_kit.runs.files import write_text
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from tests.helpers.settings import SMALL

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    run = find_run("r", tmp_path / "runs")
    run.path.mkdir(parents=True)
    return run


def take(run, step, **more):
    """Writes the files that a training has written after a step."""
    replies = [{"prompt": p, "completion": f"t</think>{p}{step}", "answer": "7", "rewards": {"m": 1.0}} for p in "aab"]
    for path, rows in ((run.metrics, [{"seconds": step / 10, "reward": 0.5} | more]), (run.completions, replies)):
        with path.open("a") as file:
            file.writelines(json.dumps({"step": step} | row) + "\n" for row in rows)


def until_stopped(run, should_stop, most=5000):
    """Stands in for `train.train`."""
    for step in range(1, most + 1):
        take(run, step)
        time.sleep(0.01)
        if should_stop():
            break
    return {"step": step, "thread": threading.current_thread()}


@pytest.mark.slow
def test_a_finished_run_is_shown_without_a_training(trained):
    board = Board(trained[1])
    assert "4 of 4" in board.head.value and "<img" in board.chart.value
    assert (board.step.min, board.step.value, board.step.max) == (1, 4, 4)
    assert len(board.group.options) == 4 and board.group_html.value.count('class="completion"') == 4
    assert board.stop_button.disabled


@pytest.mark.slow
def test_a_run_that_has_not_begun_is_shown_empty_and_then_fills(run):
    board = Board(run)
    assert board.chart.value == "" and "img" not in board.group_html.value
    take(run, 1)
    board.next_draw = board.next_chart = 0
    board.refresh()
    assert len(board.rows) == 1 and "<img" in board.chart.value and "a1" in board.group_html.value


def test_displaying_the_board_shows_its_widget(run, monkeypatch):
    shown = []
    monkeypatch.setattr("grpo_kit.display.board.display", shown.append)
    board = Board(run)
    format_display_data(board)
    assert shown == [board.widget] and board.stop_button in board.widget.children


def test_the_board_shows_the_expected_end_on_the_local_clock_and_only_during_a_training(run, far_east):
    write_text(run.forecast, json.dumps({"steps": 100, "seconds": 7200.0}))
    board = Board(run)
    assert "done at about" not in board.head.value  # no training runs
    done = {}

    def train(should_stop):
        done["seen"] = board.head.value
        return 1

    asyncio.run(board.during(train))
    later = datetime.now(UTC) + timedelta(hours=2)
    clock = re.search(r"training, starting, done at about (\d\d:\d\d) CST", done["seen"])[1]
    assert clock in {f"{later + timedelta(hours=8, minutes=-m):%H:%M}" for m in (0, 1)}
    assert "done at about" not in board.head.value


def test_the_browser_stays_where_the_reader_is_until_follow_is_pressed(run):
    board = Board(run)
    for step in (1, 2, 3):
        take(run, step)
        board._draw()
    assert (board.step.value, board.step.max) == (1, 3) and "a1" in board.group_html.value
    board.follow.value = True
    assert board.step.value == 3 and "a3" in board.group_html.value
    take(run, 4)
    board._draw()
    assert board.step.value == 4 and board.follow.value


def test_a_judge_is_shown_with_its_agreement_and_what_it_cannot_teach(run):
    share = {"value": 0.81, "ci95": [0.72, 0.88]}
    shares = dict.fromkeys(("agreement", "order_decides", "first_wins", "longer_wins", "longer_is_right"), share)
    record = {
        "judge": {"model": "policy", "served_model": None, "file": None}, "no_verdict": 0.0, "judged": 100,
        "pairs": {"count": 100, "source": "run r", "sha256": ""}, "words": ["It may.", "It judges <itself>."], **shares,
    }  # fmt: skip
    run.evaluation.mkdir()
    run.judge.write_text(json.dumps(record))
    board = Board(run)
    take(run, 1)
    board._draw()
    assert "agrees" not in board.head.value  # it was measured, and rewards nothing here
    take(run, 2, **{"judge/no_verdict": 0.0})
    board._draw()
    shown = "The judge policy agrees with 81% of the known winners (95 % 72% to 88%). It judges &lt;itself&gt;."
    assert shown in board.head.value


@pytest.mark.parametrize("move", ["step", "group"])
def test_the_browser_no_longer_follows_when_the_reader_picks_something(run, move):
    board = Board(run)
    for step in (1, 2):
        take(run, step)
        board._draw()
    board.follow.value = True
    if move == "step":
        board.step.value = 1
    else:
        board.group.value = 1
    shown = board.group_html.value
    assert not board.follow.value and ("a1" if move == "step" else "b2") in shown
    take(run, 3)
    board._draw()
    assert board.step.max == 3 and board.step.value < 3 and board.group_html.value == shown


@pytest.mark.slow
def test_the_board_says_what_a_training_does_before_its_first_step(run):
    board, seen = Board(run), []

    def train(should_stop):
        for text in ("loading <tiny>", "sampling step 1"):
            activity.announce(text)
            time.sleep(0.5)
            board.next_draw = 0
            board.refresh()
            seen.append(board.head.value)
        take(run, 1)
        board.next_draw = 0
        board.refresh()
        seen.append(board.head.value)

    asyncio.run(board.during(train))
    assert "training, loading &lt;tiny&gt;<" in seen[0] and "training, sampling step 1<" in seen[1]
    assert "sampling" not in seen[2] and "sampling" not in board.head.value


def test_a_stopped_training_shows_no_time_left_and_no_warning(run, recwarn):
    write_text(run.forecast, json.dumps({"steps": 100, "seconds": 7200.0}))
    board, seen = Board(run), []

    def train(should_stop):
        take(run, 1)
        board.next_draw = 0
        board.refresh()
        seen.append(board.head.value)
        board.stop()
        seen.append(board.head.value)

    asyncio.run(board.during(train))
    assert "time left" in seen[0] and "done at about" in seen[0]
    assert all("time left" not in text and "done at about" not in text for text in (seen[1], board.head.value))
    assert "stopped and saved" in board.head.value and not recwarn.list


def test_a_restarted_run_is_shown_from_its_start(run):
    take(run, 1)
    take(run, 2)
    board = Board(run)
    run.metrics.write_text("")
    run.completions.write_text("")
    board._draw()
    assert board.rows == [] and board.completions.steps == []
    take(run, 1)
    board._draw()
    assert len(board.rows) == 1


def test_drawing_happens_at_most_once_a_second_and_takes_a_hundredth_of_the_time(run, monkeypatch):
    board = Board(run)
    clock = [1000.0]
    monkeypatch.setattr(time_board, "monotonic", lambda: clock[0])
    draws = []

    def draw(cost=0.05):
        draws.append(clock[0])
        clock[0] += cost

    monkeypatch.setattr(board, "_draw", draw)
    board.next_draw = 0.0
    for _ in range(200):
        board.refresh()
        clock[0] += 0.1
    assert draws == pytest.approx([1000.0, 1005.1, 1010.15, 1015.2], abs=0.2)


@pytest.mark.parametrize(
    ("seconds", "between"),
    [(0.2, 4.2), (0.4, 8.4), (3.0, 13.0)],  # 20 times what one drawing takes, but never more than 10 s
)
def test_slow_charts_are_drawn_less_often_while_figures_keep_updating(run, monkeypatch, seconds, between):
    board = Board(run)
    clock, drawn, seen = [1000.0], [], []
    monkeypatch.setattr(time_board, "monotonic", lambda: clock[0])

    def render_chart(panels):
        drawn.append(clock[0])
        clock[0] += seconds
        return ""

    monkeypatch.setattr(templates, "render_chart", render_chart)
    board.next_draw = board.next_chart = 0.0
    for step in range(1, 251):
        take(run, step)
        board.refresh()
        seen.append(len(board.rows))
        clock[0] += 0.1
    gaps = [later - earlier for earlier, later in zip(drawn, drawn[1:])]
    assert len(gaps) >= 2 and gaps == pytest.approx([between] * len(gaps), abs=1.1)  # figures are drawn once a second
    assert len(set(seen)) >= 20


def test_the_last_chart_shows_the_whole_training(run, monkeypatch):
    board = Board(run)
    shown = []
    monkeypatch.setattr(templates, "render_chart", lambda panels: shown.append(panels[0].lines[0].xs[-1:]) or "")
    asyncio.run(board.during(until_stopped_soon, run))
    assert shown[-1] == [5]


def test_a_training_runs_in_a_thread_and_the_cell_gets_its_return_value(run):
    board = Board(run)
    last = asyncio.run(board.during(until_stopped_soon, run))
    assert last["step"] == 5 and last["thread"] is not threading.main_thread()
    assert len(board.rows) == 5 and "finished" in board.head.value and board.stop_button.disabled


def until_stopped_soon(run, should_stop):
    return until_stopped(run, should_stop, most=5)


@pytest.mark.slow
def test_the_stop_button_ends_the_training(run):
    board = Board(run)

    async def press():
        await asyncio.sleep(0.5)
        assert not board.stop_button.disabled
        board.stop_button.click()
        assert board.stop_button.disabled and "stopping after this step" in board.head.value

    async def both():
        return (await asyncio.gather(board.during(until_stopped, run), press()))[0]

    last = asyncio.run(both())
    assert 0 < last["step"] < 5000 and "stopped and saved" in board.head.value


def test_a_board_can_go_on_after_a_stop(run):
    board = Board(run)
    board.stop()
    assert asyncio.run(board.during(until_stopped_soon, run))["step"] == 5


def test_an_exception_of_the_training_is_raised_in_the_cell(run):
    def fails(should_stop):
        raise RuntimeError("the <GPU> is gone")

    board = Board(run)
    with pytest.raises(RuntimeError, match="the <GPU> is gone"):
        asyncio.run(board.during(fails))
    assert "failed: the &lt;GPU&gt; is gone" in board.head.value


def test_a_chart_that_fails_does_not_end_the_training(run, monkeypatch):
    board = Board(run)
    monkeypatch.setattr("grpo_kit.display.board.build_panels", lambda *_: 1 / 0)
    assert asyncio.run(board.during(until_stopped_soon, run))["step"] == 5
    reason = "ZeroDivisionError(&#x27;division by zero&#x27;)"
    assert board.head.value == f"<b>The board cannot be drawn.</b> {reason}"


@pytest.mark.slow
def test_a_damaged_file_is_named_on_the_board_and_during_a_training_that_goes_on(run):
    def damage_and_stop(should_stop):
        take(run, 1)
        with run.metrics.open("a") as file:
            file.write("[1, 2]\n")
        while "line 2" not in board.head.value:
            time.sleep(0.01)
        heads.append(board.head.value)
        run.metrics.unlink()
        return {"step": 1}

    board, heads = Board(run), []
    assert asyncio.run(board.during(damage_and_stop)) == {"step": 1}
    sentence = f"{run.metrics}, line 2, is damaged: it is a list, not a JSON object. Put back a copy of it, or train "
    assert heads[0].startswith(f"<b>The board cannot be drawn.</b> {sentence}")
    assert heads[0].endswith(" The training goes on.") and "finished" in board.head.value


def test_completions_that_were_damaged_since_are_named_in_their_place(run):
    take(run, 1)
    take(run, 2)
    board = Board(run)
    run.completions.write_bytes(b"\xff" * run.completions.stat().st_size)
    board.step.value = 1
    assert f"{run.completions}, line 1, is damaged: it is not UTF-8. Put back a copy" in board.group_html.value
    run.completions.unlink()
    board.step.value = 2
    assert "No such file" in board.group_html.value and str(run.completions) in board.group_html.value


@pytest.mark.slow
def test_a_real_training_stops_and_leaves_its_adapter(tmp_path, recwarn):
    """The rewards answer from the thread, the adapter is written, the stage is noted, and nothing warns of the stop."""
    chosen = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=50"])
    run = find_run("r", tmp_path / "runs")
    prepare(chosen, run)
    board, said = Board(run), []
    board._note_activity = said.append

    async def press():
        while len(board.rows) < 2:
            await asyncio.sleep(0.05)
        board.stop()

    async def both():
        rewards = [load_reward(spec) for spec in chosen.grpo.reward_funcs]
        return (await asyncio.gather(board.during(train.train, chosen, run, rewards), press()))[0]

    last = asyncio.run(both())
    assert 2 <= last["step"] < 50 and last["rewards/math_reward/mean"] > 0
    assert (run.adapter / "adapter_model.safetensors").is_file() and "train" in run.stages()
    assert not [str(warning.message) for warning in recwarn if "top" in str(warning.message)]
    assert {"loading tiny", "sampling step 1", "saving the adapter"} < set(said)


SETUP = """
import json, threading, time
from grpo_kit.display.board import Board
from grpo_kit.runs.run import find_run
{training}
run = find_run("r", {root!r})
board = Board(run)
print(board.stop_button.comm.comm_id, board.step.comm.comm_id)
"""


@pytest.fixture
def old_kernel(monkeypatch):
    """(a stand-in for a kernel of ipykernel 6 with four messages queued, the messages it handled, parents it set)."""
    queue, done, parents = asyncio.Queue(), [], []

    async def dispatch(frames):
        done.append(json.loads(frames[1].bytes))

    for number, kind in enumerate(["comm_msg", "execute_request", "comm_open", "execute_request"]):
        frame = types.SimpleNamespace(bytes=json.dumps({"msg_type": kind, "number": number}).encode())
        queue.put_nowait((number, dispatch, ([b"signature", frame],)))
    session = types.SimpleNamespace(feed_identities=lambda frames, copy: ([], frames), unpack=json.loads)
    kernel = types.SimpleNamespace(
        msg_queue=queue, session=session, _parent_ident={"shell": b"me"}, get_parent=lambda channel: "the cell",
        set_parent=lambda *args: parents.append(args),
    )  # fmt: skip
    monkeypatch.setattr("IPython.get_ipython", lambda: types.SimpleNamespace(kernel=kernel))
    monkeypatch.setattr("ipykernel.version_info", (6, 29, 5))
    return kernel, done, parents


def numbers(queue):
    return [queue.get_nowait()[0] for _ in range(queue.qsize())]


def test_a_kernel_of_ipykernel_6_answers_clicks_and_leaves_cells_in_its_queue(old_kernel):
    kernel, done, parents = old_kernel
    asyncio.run(answer_widget_messages())
    assert [message["number"] for message in done] == [0, 2]
    assert numbers(kernel.msg_queue) == [1, 3]  # in their order
    assert parents == [(b"me", "the cell", "shell")]  # what is printed next belongs to the cell again


def test_an_unsupported_ipykernel_is_not_patched(old_kernel, monkeypatch):
    kernel, done, parents = old_kernel
    monkeypatch.setattr("ipykernel.version_info", (7, 4, 0))
    asyncio.run(answer_widget_messages())
    monkeypatch.setattr("ipykernel.version_info", (6, 99, 0))
    del kernel._parent_ident
    asyncio.run(answer_widget_messages())
    assert not done and not parents and numbers(kernel.msg_queue) == [0, 1, 2, 3]


TRAINING = inspect.getsource(take) + inspect.getsource(until_stopped)


class Kernel:
    """A real kernel, driven with the messages of a front end."""

    def __init__(self):
        self.manager = KernelManager(kernel_name="python3")
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        env.pop("COV_CORE_SOURCE", None)
        self.manager.start_kernel(env=env, cwd=str(ROOT))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(60)

    def read_output(self, cell):
        """Returns what the cell printed or raised, once it is done."""
        text = ""
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != cell:
                continue
            content = message["content"]
            text += content.get("text", "") + content.get("ename", "")
            if content.get("execution_state") == "idle":
                return text

    def tell(self, comm, data):
        message = self.client.session.msg("comm_msg", {"comm_id": comm, "data": data})
        self.client.shell_channel.send(message)


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def begin(kernel, run):
    """(the cell that trains, the comm ids of button and slider), once some steps are taken."""
    button, slider = kernel.read_output(
        kernel.client.execute(SETUP.format(root=str(run.root), training=TRAINING))
    ).split()
    cell = kernel.client.execute("print((await board.during(until_stopped, run))['step'])")
    end = time.monotonic() + 60
    while len(read_lines(run.metrics) if run.metrics.is_file() else []) < 100:
        assert time.monotonic() < end
        time.sleep(0.05)
    return cell, button, slider


@pytest.mark.slow
def test_in_a_kernel_the_slider_and_the_button_work_while_the_cell_runs(kernel, run):
    cell, button, slider = begin(kernel, run)
    behind = kernel.client.execute("print('behind', board.step.value, 'a2' in board.group_html.value)")
    kernel.tell(slider, {"method": "update", "state": {"value": 2}, "buffer_paths": []})
    kernel.tell(button, {"method": "custom", "content": {"event": "click"}})
    assert 100 <= int(kernel.read_output(cell)) < 5000
    assert kernel.read_output(behind) == "behind 2 True\n"  # it waited for its turn


@pytest.mark.slow
def test_interrupting_the_kernel_saves_and_then_interrupts(kernel, run):
    cell, _, _ = begin(kernel, run)
    kernel.manager.interrupt_kernel()
    assert kernel.read_output(cell) == "KeyboardInterrupt"
    assert "stopped and saved" in kernel.read_output(kernel.client.execute("print(board.head.value)"))
    assert 100 <= len(read_lines(run.metrics)) < 5000
