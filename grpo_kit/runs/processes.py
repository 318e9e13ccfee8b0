"""The same run on several processes, one a GPU: who is first, who takes which part, and how what they know is brought together.

`accelerate launch` (or `torchrun`) starts them and says how many in the environment; alone, everything here costs nothing.
The rule that all else follows from: what is random or chosen is computed alike everywhere from the same seed, work is
shared out, results are brought together in the order one process would have had them, and the first one writes.
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
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def process_device() -> str:
    """Where this process computes: cuda:N, its own GPU, or cpu."""
    import torch

    return (
        f"cuda:{os.environ.get('LOCAL_RANK', '0') if process_count() > 1 else 0}"
        if torch.cuda.is_available()
        else "cpu"
    )


def is_first() -> bool:
    """Whether this process is the one that writes and shows."""
    return process_rank() == 0


def local_slice(size: int) -> slice:
    """This process's part of `size` things in order, which the processes divide evenly."""
    each = size // process_count()
    return slice(process_rank() * each, (process_rank() + 1) * each)


def groups_to_pad(groups: int, size: int) -> int:
    """How many more groups of `size` it takes until the processes divide all that is in them evenly."""
    return -groups % (process_count() // math.gcd(size, process_count()))


def all_gather(values: Sequence[T]) -> list[T]:
    """The values of all processes, in their order; each may have another number of them."""
    if process_count() == 1:
        return list(values)
    from accelerate import PartialState
    from accelerate.utils import gather_object

    PartialState(cpu=process_device() == "cpu")  # joins the others, where nobody has yet
    return gather_object(list(values))


def broadcast_from_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, in all of them; an error there is raised in all of them."""
    if process_count() == 1:
        return work()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=process_device() == "cpu")
    found: list[Any] = [None, None]
    if is_first():
        try:
            found = [work(), None]
        except Exception as error:  # the others wait for an answer, and must learn that there is none
            found = [None, error]
    value, error = broadcast_object_list(found)
    if error is not None:
        raise error
    return value


def launch(processes: int, grpo: Any, words: Sequence[str]) -> int:
    """Run `python -m grpo_kit train` with `words` in so many processes on this machine; returns its exit status.

    Without a GPU they talk by gloo. Raises ValueError for a number that the step or the machine has not.
    """
    import torch

    split_batch(grpo, processes)
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise ValueError(
            f"{processes} processes were asked for and this machine has {gpus} GPUs, one a process. Use {gpus}."
        )
    told = [
        word for i, word in enumerate(words) if "--num-processes" not in (word.split("=")[0], words[i - 1] if i else "")
    ]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--mixed_precision=no",
        "--dynamo_backend=no", f"--num_processes={processes}", "-m", "grpo_kit", "train", *told,
    ]  # fmt: skip
    return subprocess.run(command, env=os.environ | ({} if gpus else {"ACCELERATE_USE_CPU": "true"})).returncode


def split_batch(grpo: Any, processes: int | None = None) -> tuple[int, int]:
    """(per_device_train_batch_size, gradient_accumulation_steps) of each process, which together make the step that `grpo`
    asks one process for; of those that run, or of `processes`.

    Raises ValueError when the processes do not divide a step's completions, naming numbers that do.
    """
    step, n = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps, processes or process_count()
    if step % n:
        fit = [str(k) for k in range(1, step + 1) if step % k == 0]
        batch = grpo.per_device_train_batch_size
        while batch * grpo.gradient_accumulation_steps % math.lcm(n, grpo.num_generations):
            batch += 1
        raise ValueError(
            f"{n} processes do not divide the {step} completions of a step evenly. Use {', '.join(fit[:-1])} or {fit[-1]} "
            f"processes, or grpo.per_device_train_batch_size={batch}."
        )
    each = step // n
    batch = max(k for k in range(1, grpo.per_device_train_batch_size + 1) if each % k == 0)
    return batch, each // batch
