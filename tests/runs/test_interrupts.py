"""SIGTERM and SIGINT end the work at once, wherever it runs, except where it must not be left half done."""

import contextlib
import os
import signal
import threading
import time

import pytest

from grpo_kit.runs import interrupts
from grpo_kit.runs.interrupts import Terminated

KINDS = [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(60)  # the exception ends this


@pytest.mark.parametrize("number, kind", KINDS)
def test_a_signal_ends_the_work_at_once_and_the_handlers_come_back(number, kind):
    before = signal.getsignal(number)
    with pytest.raises(kind) as error, interrupts.interruptible():
        send(number)
    assert signal.getsignal(number) == before
    assert getattr(error.value, "code", 143) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number, kind", KINDS)
def test_a_signal_waits_while_something_is_half_done(number, kind):
    done = []
    with pytest.raises(kind), interrupts.interruptible():
        interrupts.hold()
        os.kill(os.getpid(), number)
        done.append(1)
        interrupts.check()
        done.append(2)
        assert interrupts.pending() is kind
        interrupts.release()
        done.append(3)
    assert done == [1, 2]
    with pytest.raises(kind), interrupts.interruptible():
        interrupts.hold()
        os.kill(os.getpid(), number)  # at the end of the work at the latest
    assert interrupts.pending() is None


def test_an_interrupt_that_was_lost_is_raised_at_the_next_check():
    with pytest.raises(KeyboardInterrupt), interrupts.interruptible():
        with contextlib.suppress(KeyboardInterrupt):  # as Python does in a destructor
            send(signal.SIGINT)
        interrupts.check()


@pytest.mark.parametrize("number, kind", KINDS)
def test_work_in_another_thread_is_interrupted_there(number, kind):
    """A notebook trains in a thread, and the signal comes to the main one."""
    started, ended = threading.Event(), []

    def work():
        try:
            with interrupts.interruptible():
                started.set()
                while True:
                    time.sleep(0.01)
        except BaseException as error:
            ended.append(type(error))

    with interrupts.listen():
        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        os.kill(os.getpid(), number)
        thread.join(60)
    assert ended == [kind]


@pytest.mark.parametrize("number, kind", KINDS)
def test_without_work_the_signal_ends_what_listens(number, kind):
    with pytest.raises(kind), interrupts.listen():
        send(number)
    assert interrupts.interrupt() is False


def test_the_handlers_of_an_application_stay():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with interrupts.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [1]
    finally:
        signal.signal(signal.SIGTERM, before)
