"""How a stage ends early: SIGTERM and SIGINT raise an exception in the thread that works, wherever it is.

Python runs signal handlers in the main thread, but a notebook trains in another one, so the exception is sent to the
thread that works. While an optimiser's step is half done, the exception waits until the step is complete.
"""

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

HANDLED = ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler))  # with Python's own handlers


class Terminated(SystemExit):
    """SIGTERM: the process ends with the status that a shell gives for it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@dataclass
class _Work:
    """The work that is interrupted: its thread, the exception that came, and whether that has to wait."""

    thread: int | None = None
    pending: type[BaseException] | None = None
    held: bool = False


_work = _Work()
_lock = threading.RLock()  # a handler may run while its own thread holds it


@contextmanager
def listen() -> Iterator[None]:
    """Let SIGTERM and SIGINT interrupt the work, while the block runs in the main thread; elsewhere nothing changes.

    Handlers of the application stay. A notebook's kernel ends after the block if SIGTERM came.
    """
    is_main = threading.current_thread() is threading.main_thread()
    usual = [number for number, handler in HANDLED if is_main and signal.getsignal(number) == handler]
    previous, terminated = {number: signal.signal(number, _handle) for number in usual}, False
    try:
        yield
    except Terminated:
        terminated = True
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if terminated and signal.SIGTERM in previous and _is_kernel():
            signal.raise_signal(signal.SIGTERM)  # a kernel shows exceptions and lives on


def _is_kernel() -> bool:
    """Whether this process is a notebook's kernel, and has not only imported ipykernel."""
    application = getattr(sys.modules.get("ipykernel.kernelapp"), "IPKernelApp", None)
    return application is not None and application.initialized()


def _handle(number: int, frame: Any) -> None:
    kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
    if not interrupt(kind):
        raise kind


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGINT interrupt the block."""
    with listen(), working():
        yield


@contextmanager
def working() -> Iterator[None]:
    """Let interrupts reach this thread while the block runs; one that had to wait is raised at its end."""
    global _work
    before, _work = _work, _Work(threading.get_ident())
    try:
        yield
        release()
    finally:
        _work = before


def interrupt(kind: type[BaseException] = KeyboardInterrupt) -> bool:
    """Raise an exception of this type in the thread that works, now or when it no longer has to wait.

    Returns:
        Whether there is work to interrupt.
    """
    with _lock:
        if _work.thread is None:
            return False
        _work.pending = _work.pending or kind
        if _work.held:
            return True
        if _work.thread != threading.get_ident():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(_work.thread), ctypes.py_object(_work.pending))
            return True
    raise _work.pending


def pending() -> type[BaseException] | None:
    """The type of the interrupt that came, None where none did; it stays after the exception was raised."""
    return _work.pending


def check() -> None:
    """Raise the interrupt again if it was lost, for example in a destructor, where Python ignores exceptions."""
    if _work.pending and not _work.held and _work.thread == threading.get_ident():
        raise _work.pending


def hold() -> None:
    """Let interrupts wait from here on, because what follows must not be left half done."""
    with _lock:
        _work.held = True


def release() -> None:
    """Let interrupts no longer wait, and raise the one that did."""
    with _lock:
        _work.held = False
    check()
