"""What a stage is doing before it has something to count, such as loading: said where it happens, shown elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
