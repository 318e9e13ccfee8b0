"""What a T4 has not, caught where it happens: an audit for tests, benchmarks, and one's own first run.

A T4 is of compute capability 7.5: no bf16, no `grouped_mm`, no Triton since its version 3.3. And 16 GB have no room for a
layer's experts in 16 bit side by side. All of these work on the machines where code is written, and fail where it runs.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Audit(TorchDispatchMode):
    """Looks at every operation while it is on, forward and backward; `seen` counts them.

    `stack` is (experts, intermediate, hidden) of the model's routed experts.
    """

    def __init__(self, stack: tuple[int, int, int]) -> None:
        super().__init__()
        count, inner, hidden = stack
        # One projection of all experts, in each order of its axes, and with experts and rows in one axis.
        self.stacks = {(count, inner, hidden), (count, hidden, inner), (count * inner, hidden), (count * hidden, inner)}
        self.seen = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.seen += 1
        if "grouped_mm" in str(function):
            raise RuntimeError(f"{function} ran; a T4 has no grouped_mm. Use the tiered experts (policy.load_in_4bit).")
        for value in tree_leaves((args, kwargs, out)):
            if not isinstance(value, torch.Tensor) or value.is_meta:  # shapes without memory
                continue
            if value.dtype == torch.bfloat16:
                raise RuntimeError(f"{function} met a bf16 tensor {tuple(value.shape)}; a T4 has fp16. Set the dtype.")
            if value.is_floating_point() and tuple(value.shape) in self.stacks:
                raise RuntimeError(
                    f"{function} met {tuple(value.shape)} of {value.dtype}, a layer's experts side by side; a T4 has no room "
                    "for that. Use the tiered experts (policy.load_in_4bit)."
                )
        return out


@contextlib.contextmanager
def audit(stack: tuple[int, int, int]) -> Iterator[Audit]:
    """Raise RuntimeError, naming the operation, as soon as the block does what a T4 cannot."""
    with contextlib.ExitStack() as exits:
        if importlib.util.find_spec("triton"):
            exits.enter_context(_no_triton())
        yield exits.enter_context(Audit(stack))


@contextlib.contextmanager
def _no_triton() -> Iterator[None]:
    """Every kernel written in Triton starts in `JITFunction.run` (Triton 3)."""
    from triton.runtime.jit import JITFunction

    def refuse(kernel: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"{kernel} is a Triton kernel; Triton does not support a T4. Switch it off.")

    run, JITFunction.run = JITFunction.run, refuse
    try:
        yield
    finally:
        JITFunction.run = run
