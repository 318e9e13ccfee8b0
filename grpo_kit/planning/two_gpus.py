"""Two layouts for several GPUs: one process with experts on a second GPU, or one process per GPU.

The first layout trains on one GPU and needs the host's memory once. The second divides each step between copies of the
policy; the host then holds everything that a process keeps there once per process, experts that do not fit on its GPU
included. The plan says which layout fits.
"""

from typing import NamedTuple

import torch

from grpo_kit.planning import machines
from grpo_kit.planning.fit import Plan
from grpo_kit.planning.plan import plan


class GpuLayout(NamedTuple):
    """One layout.

    Attributes:
        name: what the layout is, and the option that chooses it.
        fits: whether it fits.
        verdict: the plan's sentence.
        limit: the place that limits it, and what that place holds in GiB when it is fullest.
        plan: its plan, or None where the processes cannot share the step.
    """

    name: str
    fits: bool
    verdict: str
    limit: str
    plan: Plan | None


def compare_layouts(base: Plan, hits: torch.Tensor | None = None) -> list[GpuLayout]:
    """The plans of both layouts of `base.config` on the GPUs of `base.device`; an empty list for a single GPU.

    `hits` as for `plan.plan`. Neither layout is searched for its largest settings.
    """
    gpus = base.device.gpus
    return [_layout(count, base, hits) for count in (1, gpus)] if gpus > 1 and base.device.gpu else []


def _layout(count: int, base: Plan, hits: torch.Tensor | None) -> GpuLayout:
    device = machines.with_processes(base.device, count)
    name = f"one copy each, --num-processes {count}"
    try:
        planned = plan(base.config, device, base.prompt_tokens, base.bandwidths, hits, search=False)
    except ValueError as error:  # the processes do not divide the step
        return GpuLayout(name, False, str(error), "the step", None)
    if count == 1:
        used = f"experts on {' and '.join(planned.experts)}" if planned.share_off_gpu else "the other GPUs idle"
        name = f"one process, {used}"
    return GpuLayout(name, planned.fits, planned.verdict, _limit(planned), planned)


def _limit(planned: Plan) -> str:
    """The place that is short, else the one that takes what the GPU has no room for, else the GPU."""
    short = [place for place, need in planned.needs.items() if need.has is not None and need.nbytes > need.has]
    away = [place for place in planned.experts if place != "GPU"]
    place = [*short, *away, "GPU"][0]
    need, count = planned.needs[place], planned.device.processes
    needed = f"{need.nbytes / machines.GIB:.1f}"
    has = "unknown" if need.has is None else f"{need.has / machines.GIB:.1f}"
    if short:
        has, needed = machines.distinct_gib(need.has, need.nbytes)
    of_all = f" for {count} processes" if place == "host" and count > 1 else ""
    return f"{place}: {needed} of {has} GiB{of_all}"
