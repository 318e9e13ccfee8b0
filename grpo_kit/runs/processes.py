"""The same run on several processes, one per GPU: which is the first, how work is divided and results exchanged.

`accelerate launch` (or `torchrun`) starts the processes and sets environment variables that say how many there are. A
single process exchanges nothing. Every process computes random numbers and choices from the same seed. The work is
divided, results are gathered in the order in which one process would have made them, and only the first process writes.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def process_count() -> int:
    """How many processes run this, 1 or more."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Which of the processes this is, from 0."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def process_device() -> str:
    """Where this process computes: `cuda:N`, its own GPU, or `cpu`."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0') if process_count() > 1 else 0}"


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
    from accelerate import PartialState
    from accelerate.utils import gather_object

    PartialState(cpu=process_device() == "cpu")  # connects the processes, unless that was done before
    return gather_object(list(values))


def broadcast_from_first(work: Callable[[], T]) -> T:
    """Do `work` in the first process and return its result in all of them; an error is raised in all of them too."""
    if process_count() == 1:
        return work()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=process_device() == "cpu")
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
    import torch

    split_batch(grpo, processes)
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
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, f"--num_processes={processes}"]
    command += ["-m", "grpo_kit", "train", *kept]
    return subprocess.run(command, env=os.environ | ({} if gpus else {"ACCELERATE_USE_CPU": "true"})).returncode


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
