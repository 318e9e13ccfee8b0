"""Tables about machines: the check of this one, what a plan needs of one, and two ways to use several GPUs."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from grpo_kit.display.console import out

GIB = 2**30  # bytes


def print_machine_check(findings: list[tuple[str, str, bool, str]]) -> None:
    """A table of (subject, what was found, whether that is fine, the remedy if not)."""
    table = Table("what", "found", "verdict")
    table.columns[1].overflow = "fold"
    for subject, value, is_fine, remedy in findings:
        table.add_row(subject, escape(value), "[green]ok[/]" if is_fine else f"[red]{escape(remedy)}[/]")
    out.print(table)


def print_plan(plan: Any) -> None:
    """A `planning.fit.Plan`: the peak of each place, the largest settings that fit, the hours and the verdict."""
    from grpo_kit.planning.machines import SLACK
    from grpo_kit.planning.plan import describe_largest

    count, name = plan.device.processes, plan.device.name
    machine = f"{name}, one of {count} processes; host memory is that of all" if count > 1 else name
    table = Table("place", "part", "GiB", "how counted", title=escape(f"{plan.config.policy.model} on {machine}"))
    table.columns[2].justify = "right"
    for place, need in plan.needs.items():
        for row in sorted(plan.at_peak(place), key=lambda row: -row.nbytes):
            mark = "" if row.kind == "computed" else f" ({row.kind})"
            table.add_row(place, row.part, f"{row.nbytes / GIB:.2f}", escape(row.source) + mark)
        size = "unknown" if need.has is None else f"{need.has / GIB:.2f}" + " nominal" * plan.device.nominal
        size += f", {SLACK:g} kept free" if "GPU" in place else ""
        total, during = f"[bold]{need.nbytes / GIB:.2f}[/]", "" if place.startswith("disk") else f" in {need.phase}"
        table.add_row(place, f"[bold]sum{during}[/]", total, f"available: {size}", end_section=True)
    out.print(table)
    for key, value in plan.largest.items():
        out.print(describe_largest(plan.config, key, value))
    print_times(plan)
    if plan.storage.download:
        out.print(f"to download: {plan.storage.download / GIB:.1f} GiB")
    out.print(escape(plan.verdict))


def print_times(plan: Any) -> None:
    """How long a plan's run takes: sampling, training and evaluation, and what of them fits a session."""
    from grpo_kit.planning.sessions import describe_run, format_range

    times, steps = plan.times, plan.config.grpo.max_steps
    if times is None:
        if plan.fits:
            out.print(f"time: no bandwidth of {escape(plan.device.name)} was measured")
        return
    table = Table("time", "GPU" if plan.device.gpu else "products", "host", "together", "in all")
    for column in table.columns[1:]:
        column.justify = "right"
    for field, name, count in (
        ("sampling", "sampling, a step", steps),
        ("sampling_all", "with every replacement", steps),
        ("training", "training, a step", steps),
        ("evaluation", "evaluation, one of two", 2),
    ):
        device, host, least, most = (
            getattr(seconds, field) for seconds in (times.device, times.host, times.least, times.most)
        )
        if not most or (field == "sampling_all" and most == times.most.sampling):
            continue
        table.add_row(
            name, format_range(device, device), format_range(host, host) if host else "",
            format_range(least, most), format_range(count * least, count * most) if count > 0 else "",
        )  # fmt: skip
    out.print(table)
    out.print(escape(f"{_describe_speeds(plan)}\n{describe_run(plan)}".strip()))


def _describe_speeds(plan: Any) -> str:
    """Where the figures of the times come from."""
    vram, pcie_speed, tflops, host = plan.bandwidths
    pcie = f"{pcie_speed:.1f} GB/s over PCIe, " if plan.device.gpu else ""
    how = "computed from the data sheet" if plan.device.nominal else "measured here"
    speeds = f"{vram:.0f} GB/s of memory, {pcie}{tflops:.2g} TFLOPS, {how}"
    return f"{speeds}; the host's seconds {host.source}." if host else f"{speeds}."


def print_two_gpus(layouts: list[Any]) -> None:
    """Each `two_gpus.GpuLayout` of a machine with several GPUs: whether it fits, its limit and its step time."""
    table = Table("way", "fits", "limited by", "in words", title="two ways to use these GPUs", show_lines=True)
    for layout in layouts:
        seconds = layout.plan.seconds if layout.plan else None
        best = f"\nA step takes {sum(seconds):.1f} s at best." if seconds else ""
        table.add_row(layout.name, "yes" if layout.fits else "no", layout.limit, escape(layout.verdict) + best)
    if layouts:
        out.print(table)
