"""The same run on several processes, one per GPU: which is the first, how work is divided and results exchanged.

`accelerate launch` (or `torchrun`) starts the processes and sets environment variables that say how many there are. A
single process exchanges nothing. Every process computes random numbers and choices from the same seed. The work is
divided, results are gathered in the order in which one process would have made them, and only the first process writes.

Images and other libraries leave the launcher's variables behind, also empty or 0. A process is one of several only if
`WORLD_SIZE` is a number above 1.
"""

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from grpo_kit.runs import interrupts

T = TypeVar("T")
# What a launcher sets. accelerate counts processes in the last three too.
VARIABLES = (
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE",
)  # fmt: skip
PATIENCE = 60.0  # seconds that a start waits for the other processes; it says so after SILENCE
SILENCE = 5.0


def process_count() -> int:
    """How many processes run this, 1 or more."""
    return max(1, _read_number("WORLD_SIZE"))


def process_rank() -> int:
    """Which of the processes this is, from 0."""
    return _read_number("RANK") if process_count() > 1 else 0


def _read_number(name: str) -> int:
    text = os.environ.get(name, "").strip()
    return int(text) if text.isdecimal() else 0


def forget_launcher() -> None:
    """Remove a launcher's variables from the environment: this process works alone, and no library reads them."""
    for name in VARIABLES:
        os.environ.pop(name, None)


def check_launcher() -> None:
    """Forget a launcher's variables where this process is alone; check them where it is one of several.

    Raises:
        ConnectionError: `WORLD_SIZE` is above 1, and another variable is missing or impossible.
    """
    count = process_count()
    if count == 1:
        forget_launcher()
        return
    possible = {"RANK": range(count), "LOCAL_RANK": range(count), "MASTER_PORT": range(1, 2**16)}
    texts = {name: os.environ.get(name, "").strip() for name in (*possible, "MASTER_ADDR")}
    for name, text in texts.items():
        if not text or (name in possible and not (text.isdecimal() and int(text) in possible[name])):
            raise ConnectionError(
                f"WORLD_SIZE is {count}, so {count} processes should share this run, but {name} is {text!r}: no "
                f"launcher started this process. {_remedy(count)}"
            )


def _remedy(count: int) -> str:
    return (
        "Remove WORLD_SIZE from the environment to train with one process, or start all of them with "
        f"`grpo-kit train --num-processes {count}`."
    )


def process_device() -> str:
    """Where this process computes: `cuda:N`, its own GPU, or `cpu`."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{_read_number('LOCAL_RANK') if process_count() > 1 else 0}"


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return process_rank() == 0


def local_slice(size: int) -> slice:
    """This process's part of `size` things in order; the number of processes must divide `size`."""
    each = size // process_count()
    return slice(process_rank() * each, (process_rank() + 1) * each)


def groups_to_pad(groups: int, size: int) -> int:
    """How many groups of `size` to add so that the number of processes divides all their members."""
    return -groups % (process_count() // math.gcd(size, process_count()))


def all_gather(values: Sequence[T]) -> list[T]:
    """The values of all processes in the order of the processes, which may have different numbers of them."""
    if process_count() == 1:
        return list(values)
    from accelerate.utils import gather_object

    _connect()
    return gather_object(list(values))


def broadcast_from_first(work: Callable[[], T]) -> T:
    """Do `work` in the first process and return its result in all of them; an error is raised in all of them too."""
    if process_count() == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    _connect()
    outcome: list[Any] = [None, None]  # (result, error)
    if is_first():
        try:
            outcome = [work(), None]
        except Exception as error:  # the others wait for a result, and must learn that there is none
            outcome = [None, error]
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


def _connect() -> None:
    """Connect the processes, unless that was done before.

    Raises:
        ConnectionError: the other processes did not come.
    """
    from accelerate import PartialState
    from torch import distributed

    on_cpu = process_device() == "cpu"
    if not distributed.is_initialized():
        store = _meet()
        distributed.init_process_group(
            "gloo" if on_cpu else "nccl", store=store, rank=process_rank(), world_size=process_count()
        )
    PartialState(cpu=on_cpu)


def _meet() -> Any:
    """The store that all processes have come to, at most `PATIENCE` seconds after this one."""
    from torch import distributed

    count, rank = process_count(), process_rank()
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    waiting = (
        f"Process {rank} of {count} (WORLD_SIZE={count}, RANK={rank}) waits for the others at {place}. It gives up "
        f"after {PATIENCE:.0f} s."
    )
    timer = threading.Timer(SILENCE, lambda: print(waiting, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    limit = timedelta(seconds=PATIENCE)
    try:
        if rank:
            _await_first(time.monotonic() + PATIENCE)  # torch's own attempts fill the screen with warnings
        store, _, _ = next(distributed.rendezvous("env://", timeout=limit))
        store.set(f"grpo-kit/{rank}", "here")
        store.wait([f"grpo-kit/{other}" for other in range(count)], limit)
    except (distributed.DistError, OSError) as error:
        raise ConnectionError(
            f"Process {rank} of {count} did not meet the others at {place} within {PATIENCE:.0f} s "
            f"({' '.join(str(error).split())[:100]}). {_remedy(count)}"
        ) from None
    finally:
        timer.cancel()
    store.set_timeout(distributed.distributed_c10d.default_pg_timeout)
    return store


def _await_first(deadline: float) -> None:
    """Return once somebody answers at the address where the processes meet; raise OSError if nobody has by then."""
    while True:
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), 5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def launch_training(processes: int, grpo: Any, arguments: Sequence[str]) -> int:
    """Run `python -m grpo_kit train` with `arguments` in several processes on this machine, and wait for them.

    Args:
        processes: how many, one per GPU; without a GPU they exchange over gloo.
        grpo: the run's `Grpo` section, whose step is shared out.
        arguments: the command line of `train`; its `--num-processes` is left out.

    Returns:
        The exit status.

    Raises:
        ValueError: if the processes do not divide the step, or the machine has fewer GPUs.
    """
    split_batch(grpo, processes)
    import torch  # takes seconds; a mistake is said before

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise ValueError(
            f"{processes} processes need a GPU each, but this machine has {gpus}. Use --num-processes {gpus}."
        )
    kept = []
    for i, argument in enumerate(arguments):
        before = arguments[i - 1] if i else ""
        if "--num-processes" not in (argument.split("=")[0], before):  # the option, or its value after a space
            kept.append(argument)
    options = ["--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    no_gpu = {} if gpus else {"ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, f"--num_processes={processes}"]
    command += ["-m", "grpo_kit", "train", *kept]
    with interrupts.listen(), subprocess.Popen(command, env=os.environ | no_gpu) as launcher:
        try:
            return launcher.wait()
        except (KeyboardInterrupt, interrupts.Terminated):
            launcher.terminate()  # it passes the signal on, and the first process saves
            launcher.wait()
            raise


def split_batch(grpo: Any, processes: int | None = None) -> tuple[int, int]:
    """Each process's part of a step; all parts together make the step that `grpo` describes for one process.

    Args:
        grpo: the run's `Grpo` section.
        processes: how many processes; by default those that run.

    Returns:
        (per_device_train_batch_size, gradient_accumulation_steps) of each process.

    Raises:
        ValueError: if the processes do not divide a step's completions; the message names numbers that do.
    """
    batch, n = grpo.per_device_train_batch_size, processes or process_count()
    step = batch * grpo.gradient_accumulation_steps
    if step % n:
        divisors = [str(k) for k in range(1, step + 1) if step % k == 0]
        while batch * grpo.gradient_accumulation_steps % math.lcm(n, grpo.num_generations):
            batch += 1
        raise ValueError(
            f"{n} processes do not divide the {step} completions of a step evenly. Use {', '.join(divisors[:-1])} or "
            f"{divisors[-1]} processes, or grpo.per_device_train_batch_size={batch}."
        )
    each = step // n
    micro_batch = max(k for k in range(1, batch + 1) if each % k == 0)
    return micro_batch, each // micro_batch
