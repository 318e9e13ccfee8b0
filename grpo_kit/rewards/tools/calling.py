"""Call rewards of any kind, and read what they return: one number or None for each completion.

Training, evaluation, screening, the choice of golds and `grpo-kit rewards audit` all call rewards through here, so that
a reward means the same everywhere.
"""

import asyncio
import functools
import inspect
import itertools
import math
import os
import reprlib
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from typing import Any

Reward = Callable[..., Any]
MOST = 3.4028234663852886e38  # a training holds rewards in float32, where more is infinite


def call_reward(reward: Reward, **batch: Any) -> list[float | None]:
    """What a reward pays for the completions of a batch; `call_rewards` with one reward."""
    return call_rewards([reward], **batch)[0]


def call_rewards(rewards: Sequence[Reward], **batch: Any) -> list[list[float | None]]:
    """What each reward pays for each completion of a batch.

    A reward is whatever can be called: a function, a method, a `functools.partial`, an object with `__call__`. Any of
    them may be async; these run side by side, and beside the others.

    Args:
        rewards: are called by keyword, as TRL calls them.
        **batch: `completions`, and the columns of the data as lists of the same length.

    Returns:
        For each reward one number, or None, for each completion, as `read_rewards` reads them.

    Raises:
        ValueError: a reward takes other arguments, or returns something else.
        RuntimeError: a reward calls `sys.exit`.
        Exception: whatever a reward raises.

    Example:
        >>> async def short_reward(completions, **columns):
        ...     return (len(text) < 3 for text in completions)
        >>> call_rewards([short_reward], completions=["4", "four"])
        [[1.0, 0.0]]
    """
    returned = [_start(reward, batch) for reward in rewards]
    count = len(batch["completions"])
    return [
        read_rewards(reward_name(reward), value() if callable(value) else value, count)
        for reward, value in zip(rewards, returned, strict=True)
    ]


def read_rewards(name: str, returned: Any, count: int) -> list[float | None]:
    """The rewards in what a reward function returned.

    Args:
        name: the reward's, for the message.
        returned: a list, tuple, generator, NumPy array, PyTorch tensor (on any device) or any other sequence of
            numbers, each of which may be a Python, NumPy or PyTorch number, a bool, or None.
        count: how many completions there were.

    Returns:
        One float for each completion; None, which means "not judged", for None, NaN and what is not finite in float32.

    Raises:
        ValueError: `returned` is not a sequence of `count` such entries.

    Example:
        >>> read_rewards("math_reward", (True, 0.5, float("nan")), 3)
        [1.0, 0.5, None]
    """
    remedy = f"Return a list with one number, or None, for each of the {count} completions."
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping | Set):
        what = "nothing (None)" if returned is None else f"{reprlib.repr(returned)}, which is not a list"
        raise ValueError(f"The reward {name} returned {what}. {remedy}")
    values = list(itertools.islice(values, count + 1))  # an endless generator would fill the memory
    if len(values) != count:
        number = f"more than {count}" if len(values) > count else len(values)
        raise ValueError(f"The reward {name} returned {number} values for {count} completions. {remedy}")
    rewards = [_read_number(name, value, i, remedy) for i, value in enumerate(values, 1)]
    infinite = [reward is not None and abs(reward) > MOST for reward in rewards]
    if any(infinite):
        first = reprlib.repr(values[infinite.index(True)])
        warnings.warn(
            f"The reward {name} returned {first}. A reward must be finite; completions with such a reward count as not "
            "judged (None).",
            stacklevel=2,
        )
    return [None if beyond else reward for reward, beyond in zip(rewards, infinite, strict=True)]


def reward_name(reward: Reward) -> str:
    """A reward's own name, that of the function inside a `functools.partial`, or that of an object's class.

    Example:
        >>> reward_name(functools.partial(functools.partial(max, 1), 2))
        'max'
    """
    while isinstance(reward, functools.partial) and not hasattr(reward, "__name__"):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


def reward_names(rewards: Iterable[Reward]) -> list[str]:
    """The names of several rewards, all different: a repeated one gets its number.

    Example:
        >>> reward_names([max, min, max])
        ['max', 'min', 'max_2']
    """
    names: list[str] = []
    for reward in rewards:
        name, number = reward_name(reward), 1
        while (unique := name if number == 1 else f"{name}_{number}") in names:
            number += 1
        names.append(unique)
    return names


def _start(reward: Reward, batch: Mapping[str, Any]) -> Any:
    """What a reward returns; of an async one a function that waits for it."""
    try:
        returned = reward(**batch)
    except TypeError as error:
        try:
            signature = inspect.signature(reward)
            signature.bind(**batch)
        except TypeError as mismatch:
            if "completion" in signature.parameters and "completions" not in signature.parameters:
                raise ValueError(
                    f"The reward {reward_name(reward)} takes one `completion`. TRL passes many at once, as the list "
                    "`completions`, and each column as a list. Let it take these lists and `**kwargs`, and return a "
                    "list of numbers."
                ) from None
            raise ValueError(
                f"The reward {reward_name(reward)} cannot be called as TRL calls it: {mismatch}. Let it take "
                "`completions`, the columns that it needs, and `**kwargs`."
            ) from None
        except ValueError:  # a callable without a signature
            pass
        raise error
    except SystemExit as exit:
        raise RuntimeError(
            f"The reward {reward_name(reward)} ended the program ({exit.code!r}). Let it return a number for each "
            "completion, and raise an error where it cannot."
        ) from exit
    if inspect.isawaitable(returned):
        return asyncio.run_coroutine_threadsafe(_wait_for(returned), _event_loop(os.getpid())).result
    return returned


async def _wait_for(returned: Awaitable[Any]) -> Any:
    return await returned


@functools.cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """The one event loop of a process, which a forked process does not inherit.

    It runs in a thread of its own, because a notebook's loop is busy, and lives on, because a client that an async
    reward keeps between its calls belongs to the loop that it was first used in.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"async rewards of {process}", daemon=True).start()
    return loop


def _read_number(name: str, value: Any, place: int, remedy: str) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = float(value.detach() if hasattr(value, "detach") else value)
    except OverflowError:  # a whole number beyond all floats
        return math.inf
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        raise ValueError(
            f"The reward {name} returned {reprlib.repr(value)} for completion {place}, which is not a number. {remedy}"
        ) from None
    return None if math.isnan(number) else number
