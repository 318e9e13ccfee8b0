"""Several GPUs, two ways: one process with experts on a second GPU, or one process a GPU, each with a copy of the policy.

The first way trains on one GPU and needs the host once. The second shares each step out, and what one process puts into host
memory, experts that its GPU has no room for among it, lies there once a process. Which of them fits is the plan's to say.
"""

from typing import NamedTuple

import torch

from grpo_kit.planning import machines, memory


class Way(NamedTuple):
    """One of them: what it is and how to ask for it, whether it fits, why (the plan's verdict), what limits it (a place and
    the GiB it holds when it is fullest) and its `memory.Plan`; None where the step cannot be shared out."""

    name: str
    fits: bool
    verdict: str
    limit: str
    plan: memory.Plan | None


def ways(found: memory.Plan, hits: torch.Tensor | None = None) -> list[Way]:
    """Both ways to train `found.config` on the GPUs of `found.device`, whichever of them `found` is; none for a single GPU.

    `hits` as for `memory.plan`. Neither is searched for its largest settings.
    """
    cards = found.device.gpus
    return [_way(count, found, hits) for count in (1, cards)] if cards > 1 and found.device.gpu else []


def _way(count: int, found: memory.Plan, hits: torch.Tensor | None) -> Way:
    device = machines.shared(found.device, count)
    name = f"one copy each, --num-processes {count}"
    try:
        plan = memory.plan(found.config, device, found.prompt_tokens, found.bandwidths, hits, search=False)
    except ValueError as error:  # so many do not divide the step
        return Way(name, False, str(error), "the step", None)
    if count == 1:
        used = f"experts on {' and '.join(plan.experts)}" if plan.share_off else "the other GPUs idle"
        name = f"one process, {used}"
    return Way(name, plan.fits, plan.verdict, _limit(plan), plan)


def _limit(plan: memory.Plan) -> str:
    """The place that is short, else the one that takes what the GPU has no room for, else the GPU."""
    short = [place for place, need in plan.needs.items() if need.has is not None and need.nbytes > need.has]
    away = [place for place in plan.experts if place != "GPU"]
    place = [*short, *away, "GPU"][0]
    need, count = plan.needs[place], plan.device.processes
    has = "unknown" if need.has is None else f"{need.has / machines.GIB:.1f}"
    of_all = f" for {count} processes" if place == "host" and count > 1 else ""
    return f"{place}: {need.nbytes / machines.GIB:.1f} of {has} GiB{of_all}"
