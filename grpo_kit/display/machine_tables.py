"""Tables about machines: the check of this one, what a plan needs of one, and two ways to use several GPUs."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from grpo_kit.display.console import out


def print_machine_check(findings: list[tuple[str, str, bool, str]]) -> None:
    """A table of (subject, what was found, whether that is fine, the remedy if not)."""
    table = Table("what", "found", "verdict")
    table.columns[1].overflow = "fold"
    for subject, value, is_fine, remedy in findings:
        table.add_row(subject, escape(value), "[green]ok[/]" if is_fine else f"[red]{escape(remedy)}[/]")
    out.print(table)


def print_plan(plan: Any) -> None:
    """A `planning.fit.Plan`: the peak of each place, the largest settings that fit, step time and verdict."""
    count, name = plan.device.processes, plan.device.name
    machine = f"{name}, one of {count} processes; host memory is that of all" if count > 1 else name
    table = Table("place", "part", "GiB", "how counted", title=escape(f"{plan.config.policy.model} on {machine}"))
    table.columns[2].justify = "right"
    for place, need in plan.needs.items():
        for row in sorted(plan.at_peak(place), key=lambda row: -row.nbytes):
            mark = "" if row.kind == "computed" else f" ({row.kind})"
            table.add_row(place, row.part, f"{row.nbytes / 2**30:.2f}", escape(row.source) + mark)
        size = "unknown" if need.has is None else f"{need.has / 2**30:.2f}" + " nominal" * plan.device.nominal
        total = f"[bold]{need.nbytes / 2**30:.2f}[/]"
        table.add_row(place, f"[bold]sum in {need.phase}[/]", total, f"available: {size}", end_section=True)
    out.print(table)
    for key, value in plan.largest.items():
        out.print(f"largest grpo.{key} that fits, other settings unchanged: {value or 'none'}")
    out.print(escape(f"step time: {_describe_step_time(plan)}\n{plan.verdict}"))


def _describe_step_time(plan: Any) -> str:
    if plan.bandwidths is None:
        return (
            f"not estimated, no bandwidth of {plan.device.name} was measured; run this on that machine without --device"
        )
    (sampling, training), most = plan.seconds, plan.sampling_all
    first, every, last = (f"{n:.1f}" if n >= 10 else f"{n:.2g}" for n in (sampling, most, training))
    more = f" ({every} s with every replacement, sampled at once)" if most > sampling else ""
    pcie = f"{plan.bandwidths.pcie_gb_s:.1f} GB/s over PCIe, " if plan.device.gpu else ""
    measured = f"{plan.bandwidths.vram_gb_s:.0f} GB/s of memory, {pcie}{plan.bandwidths.matmul_tflops:.2f} TFLOPS"
    return f"sampling {first} s{more}, training {last} s, at best; measured here: {measured}"


def print_two_gpus(layouts: list[Any]) -> None:
    """Each `two_gpus.GpuLayout` of a machine with several GPUs: whether it fits, its limit and its step time."""
    table = Table("way", "fits", "limited by", "in words", title="two ways to use these GPUs", show_lines=True)
    for layout in layouts:
        seconds = layout.plan.seconds if layout.plan else None
        best = f"\nA step takes {sum(seconds):.1f} s at best." if seconds else ""
        table.add_row(layout.name, "yes" if layout.fits else "no", layout.limit, escape(layout.verdict) + best)
    if layouts:
        out.print(table)
