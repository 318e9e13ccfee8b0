"""What a stage is doing before it has something to count, such as loading: said where it happens, shown elsewhere.

Bytes that are downloaded, quantised or copied are counted in one bar, `count_bytes`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

GIB = 2**30
# A context variable, because a thread started by `asyncio.to_thread` takes it along.
_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def announce(activity: str) -> None:
    """Say what this stage is doing now, such as "loading the policy", to whoever listens."""
    if listener := _listener.get():
        listener(activity)


def is_heard() -> bool:
    """Whether somebody listens."""
    return _listener.get() is not None


@contextmanager
def listen(listener: Callable[[str], None]) -> Iterator[None]:
    """Call `listener` with each activity that is announced while the block runs."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def count_bytes(doing: str) -> Iterator[Callable[[float, float, str], None]]:
    """Show one bar for long work that is counted in bytes, with the time left.

    Where somebody listens, who shows progress in a way of their own, the same is announced in words.

    Args:
        doing: what is done, such as "quantising".

    Yields:
        A function of (bytes done, bytes in all, where the work stands, such as "part 3 of 13"). What was done before
        its first call does not count for the speed.
    """
    from tqdm.auto import tqdm

    with ExitStack() as stack:
        bar, start, last = None, (0.0, 0.0), ""

        def show(done: float, total: float, place: str) -> None:
            nonlocal bar, start, last
            if bar is None:
                start = (time.monotonic(), done)
                options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "smoothing": 0, "miniters": 1}
                words = {"desc": f"{doing}, {place}", "total": total, "initial": done, "disable": is_heard()}
                bar = stack.enter_context(tqdm(**words, **options))
            bar.set_description_str(f"{doing}, {place}", refresh=False)
            bar.update(done - bar.n)
            seconds, covered = time.monotonic() - start[0], done - start[1]
            left = f", {_in_words(seconds / covered * (total - done))} left" if covered > 0 and seconds >= 5 else ""
            text = f"{doing}, {place}: {done / GIB:.1f} of {total / GIB:.1f} GiB{left}"
            if text != last:
                last = text
                announce(text)

        yield show


def _in_words(seconds: float) -> str:
    """A duration, rounded up: "40 s", "12 min", "2 h 5 min"."""
    minutes = -(-int(seconds) // 60)
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
