"""Operations that a T4 cannot run, found on any machine: an audit for tests, for benchmarks and for a first run.

A T4 has compute capability 7.5: no bf16, no `grouped_mm`, and no Triton since Triton 3.3. Its 16 GB have no room for
all of a layer's experts in 16 bit. Where code is written all of this works; on a T4 it fails.

    with t4_audit.audit((experts, intermediate, hidden)):
        model.generate(...)

Uses two private modules of torch 2.13 (`_python_dispatch`, `_pytree`) and `JITFunction.run` of Triton 3.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grpo_kit.nemotron import expert_groups


class Audit(TorchDispatchMode):
    """Checks every operation while it is on, in forward and backward passes.

    Args:
        stack: (experts, intermediate, hidden) of the model's routed experts.

    Attributes:
        seen: The number of operations so far.
    """

    def __init__(self, stack: tuple[int, int, int]) -> None:
        super().__init__()
        count, inner, hidden = stack
        # One matrix of all experts, with its axes in either order, and with experts and rows in one axis.
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
                    f"{function} met {tuple(value.shape)} of {value.dtype}, a layer's experts side by side; a T4 has "
                    "no room for that. Use the tiered experts (policy.load_in_4bit)."
                )
        return out


@contextlib.contextmanager
def audit(stack: tuple[int, int, int]) -> Iterator[Audit]:
    """Check everything that the block runs.

    Args:
        stack: (experts, intermediate, hidden) of the model's routed experts.

    Yields:
        The audit, whose `seen` counts operations.

    Raises:
        RuntimeError: The block ran an operation that a T4 cannot run; the message names it.
    """
    form_groups = expert_groups.form_groups

    def form_small_groups(counts: list[int], tokens: int, together: int) -> list[expert_groups.Group]:
        """At full width a group holds 6 of 128 experts; a narrow layer would fit into one group."""
        return form_groups(counts, tokens, min(together, len(counts) // 4))

    with contextlib.ExitStack() as exits:
        exits.callback(setattr, expert_groups, "form_groups", form_groups)
        expert_groups.form_groups = form_small_groups
        if importlib.util.find_spec("triton"):
            exits.enter_context(_no_triton())
        yield exits.enter_context(Audit(stack))


@contextlib.contextmanager
def _no_triton() -> Iterator[None]:
    """Refuse every kernel written in Triton: all of them start in `JITFunction.run` (Triton 3)."""
    from triton.runtime.jit import JITFunction

    def refuse(kernel: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"{kernel} is a Triton kernel; Triton does not support a T4. Switch it off.")

    run, JITFunction.run = JITFunction.run, refuse
    try:
        yield
    finally:
        JITFunction.run = run
