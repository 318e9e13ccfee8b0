"""The tables of notes/t4.md and README.md: what `grpo-kit plan` computes for the machines that one can rent.

Nothing here is measured on these machines. A GPU's seconds are computed from the bandwidths of its data sheet; the
host's were recorded on a core of another machine. tests/test_notes.py compares the pages with today's plan.

    python benchmarks/hardware.py            # prints the tables
    python benchmarks/hardware.py --write    # puts them into the pages
    python benchmarks/hardware.py --host     # measures this host, for RECORDED in grpo_kit/planning/host_time.py
"""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from grpo_kit import config
from grpo_kit.planning import host_time, machines
from grpo_kit.planning.fit import Need, Plan
from grpo_kit.planning.host_time import recorded_host
from grpo_kit.planning.machines import Bandwidths
from grpo_kit.planning.memory import sampled_at_once
from grpo_kit.planning.model_size import Architecture
from grpo_kit.planning.plan import KEYS, changes_for
from grpo_kit.planning.plan import plan as make_plan
from grpo_kit.planning.sessions import SESSIONS, first_reply_seconds, format_range, step_seconds, steps_in_session

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30


class Machine(NamedTuple):
    """Something to rent: the preset made for it, the plan's device, and bandwidths where they are not that device's."""

    name: str
    preset: str
    device: str
    sold: Bandwidths | None = None


MACHINES = (
    Machine("Colab T4, the 4B", "t4-4b", "t4"),
    Machine("P100 16 GB, the 4B", "t4-4b", "p100"),
    Machine("L4 24 GB, the 4B", "t4-4b", "24gb"),
    Machine("Colab T4", "t4", "t4"),
    Machine("Kaggle 2 x T4", "t4x2", "t4x2"),
    Machine("L4 24 GB", "24gb", "24gb"),
    Machine("A100 40 GB", "24gb", "40gb"),
    Machine("A100 80 GB", "80gb", "80gb"),
    Machine("H100 80 GB", "80gb", "80gb", Bandwidths(3350, 64, 989)),
)

# Of README.md: model and card.
SHORT = (
    ("30B", Machine("T4", "t4", "t4")),
    ("30B", Machine("2 x T4", "t4x2", "t4x2")),
    ("30B", Machine("L4", "24gb", "24gb")),
    ("30B", Machine("A100 40 GB", "24gb", "40gb")),
    ("30B", Machine("A100 80 GB", "80gb", "80gb")),
    ("4B", Machine("T4", "t4-4b", "t4")),
    ("4B", Machine("2 x T4", "t4-4b", "t4x2")),
    ("4B", Machine("L4", "t4-4b", "24gb")),
    ("4B", Machine("A100 40 GB", "t4-4b", "40gb")),
    ("tiny", Machine("T4", "tiny", "t4")),
)
TOO_SMALL = (("24gb", "t4"), ("80gb", "24gb"), ("80gb", "40gb"))  # preset, device: pairs that do not fit

Table = list[dict[str, str]]


def plans(search: bool) -> list[Plan]:
    """The plan of each machine; with `search` the largest settings are looked for too, ten times as long."""
    made: dict[tuple[str, str], Plan] = {}
    for machine in MACHINES:
        key = (machine.preset, machine.device)
        if key not in made:
            made[key] = make_plan(
                config.load_config([machine.preset]), machines.find_device(machine.device), search=search
            )
    return [made[machine.preset, machine.device] for machine in MACHINES]


def fits(planned: list[Plan]) -> Table:
    """What each machine's GPU, host and disk must hold, and where the routed experts lie."""
    rows = []
    for machine, plan in zip(MACHINES, planned):
        gpu = plan.needs["GPU"]
        away = [f"{n:,} on the {place}" for place, n in plan.experts.items() if place != "GPU"]
        rows.append({
            "machine": machine.name,
            "call": f"`grpo-kit plan -c {machine.preset} --device {machine.device}`",
            "fits": "yes" if plan.fits else "no",
            "GPU, GiB": f"{gpu.nbytes / GIB:.2f} of {gpu.has / GIB:.2f}",
            "fullest in": gpu.phase,
            "routed experts not on the GPU": ", ".join(away) or "none",
            "host, GiB": _of(plan.needs["host"]),
            "disk, GiB": f"{plan.needs['disk'].nbytes / GIB:.2f}",
        })  # fmt: skip
    return rows


def settings() -> Table:
    """What the presets set, by machine."""
    rows = []
    for machine in MACHINES:
        c = config.load_config([machine.preset])
        rows.append({
            "machine": machine.name,
            "preset": f"`{machine.preset}`",
            "weights": f"{'NF4 and ' if c.policy.load_in_4bit else ''}{c.policy.dtype}",
            "completions a step": f"{c.grpo.per_device_train_batch_size} x {c.grpo.gradient_accumulation_steps}",
            "group": str(c.grpo.num_generations),
            "replaced": f"up to {sampled_at_once(c.grpo) // c.grpo.num_generations - _groups(c)}",
            "completion, tokens": str(c.grpo.max_completion_length),
            "LoRA": f"r {c.lora.r}",
        })  # fmt: skip
    return rows


def largest(planned: list[Plan]) -> Table:
    """The largest batch, group and length that fit; with batch and group the completions of such a step."""
    rows = []
    for machine, plan in zip(MACHINES, planned):
        row = {"machine": machine.name}
        for key in KEYS:
            value, grpo = plan.largest[key], plan.config.grpo
            changed = replace(grpo, **changes_for(plan.config, key, value))
            step = f"{changed.per_device_train_batch_size} x {changed.gradient_accumulation_steps}"
            row[f"`{key}`"] = f"{value}" if key == "max_completion_length" else f"{value} ({step})"
        rows.append(row)
    return rows


def refused() -> Table:
    """What does not fit, in the plan's words."""
    rows = []
    for preset, device in TOO_SMALL:
        verdict = make_plan(config.load_config([preset]), machines.find_device(device)).verdict
        rows.append({"call": f"`grpo-kit plan -c {preset} --device {device}`", "says": verdict})
    return rows


def times() -> Table:
    """The seconds of a step, by the GPU's bandwidths and by the host's own work."""
    rows = []
    for machine in MACHINES:
        plan = plan_of(machine)
        device, host = plan.times.device, plan.times.host
        least, most = plan.times.least, plan.times.most
        step = [seconds.sampling + seconds.training for seconds in (least, most)]
        rows.append({
            "machine": machine.name,
            "memory, GB/s": f"{plan.bandwidths.vram_gb_s:g}",
            "PCIe, GB/s": f"{plan.bandwidths.pcie_gb_s:g}",
            "TFLOPS": f"{plan.bandwidths.matmul_tflops:g}",
            "sampling, s: GPU": f"{device.sampling:.1f}",
            "host": f"{host.sampling:.0f}",
            "training, s: GPU": f"{device.training:.1f}",
            "and host": f"{host.training:.1f}",
            "a step, s": f"{step[0]:.0f} to {step[1]:.0f}",
            "with every replacement, s": f"{least.sampling_all + least.training:.0f} to {step_seconds(plan)[1]:.0f}",
        })  # fmt: skip
    return rows


def hours() -> Table:
    """A whole run: what the preset trains and evaluates, and what of it fits into a session."""
    rows = []
    for machine in MACHINES:
        plan, c = plan_of(machine), config.load_config([machine.preset])
        steps, first = [c.grpo.max_steps * seconds for seconds in step_seconds(plan)], first_reply_seconds(plan)
        evaluations = [2 * seconds.evaluation for seconds in (plan.times.least, plan.times.most)]
        session = SESSIONS.get(plan.device.place)
        rows.append({
            "machine": machine.name,
            "steps": str(c.grpo.max_steps),
            "download, conversion, loading": format_range(first, first),
            "all steps": format_range(*steps),
            "evaluations before and after": format_range(*evaluations),
            "first session": "" if session is None else f"{session.name}, {session.hours:g} h: "
            f"{steps_in_session(plan, session)} steps",
        })  # fmt: skip
    return rows


def short() -> Table:
    """The README's: model by card."""
    rows = []
    for model, machine in SHORT:
        plan, c = plan_of(machine), config.load_config([machine.preset])
        gpu, step = plan.needs["GPU"], step_seconds(plan)
        away = [f"{n:,} experts on the {place}" for place, n in plan.experts.items() if place != "GPU"]
        first = first_reply_seconds(plan)
        rows.append({
            "model, card": f"{model}, {machine.name}",
            "preset": f"`{machine.preset}`",
            "GPU, GiB": f"{gpu.nbytes / GIB:.1f} of {gpu.has / GIB:.1f}" + "".join(f"; {words}" for words in away),
            "tokens": str(c.grpo.max_completion_length),
            "download": f"{plan.storage.download / GIB:.1f} GiB" if plan.storage.download else "none",
            "first token after": format_range(first, first) if first else "seconds",
            "a step": format_range(*step),
            "100 steps": format_range(100 * step[0], 100 * step[1]),
        })  # fmt: skip
    return rows


def plan_of(machine: Machine) -> Plan:
    """The plan of one machine with its times, without a search."""
    chosen, device = config.load_config([machine.preset]), machines.find_device(machine.device)
    host = recorded_host(Architecture.of(chosen.policy), chosen)
    bandwidths = machine.sold and machine.sold._replace(host=host)
    return make_plan(chosen, device, bandwidths=bandwidths, search=False)


def measure_host(runs: int = 10) -> None:
    """Print what RECORDED holds, the median of several runs for each kind of layer."""
    for weights, preset, overrides in (
        ("4 bit, experts off the GPU", "t4", []),
        ("4 bit", "t4", ["policy.experts_on_host=0"]),
        ("4 bit, for mlp", "t4-4b", []),
        ("16 bit", "80gb", []),
    ):
        c = config.load_config([preset], overrides)
        model = Architecture.of(c.policy)
        measured = [host_time.measure_host(model, c, sampled_at_once(c.grpo), True) for _ in range(runs)]
        for part in ("token", "micro_batch"):
            each = [getattr(host, part) for host in measured]
            seconds = {kind: round(median(times[kind] for times in each), 4) for kind in each[0]}
            print(weights, part, seconds, flush=True)


def markdown(table: Table) -> str:
    lines = ["| " + " | ".join(table[0]) + " |", "|---" * len(table[0]) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in table)])


def put(page: Path, name: str, table: Table) -> None:
    """Replace the table that follows `<!-- NAME: ... -->` in `page`."""
    text = page.read_text(encoding="utf-8")
    done, count = re.subn(rf"(<!-- {name}: .*-->\n)(\|.*\n)*", lambda m: f"{m[1]}{markdown(table)}\n", text)
    if count != 1:
        raise ValueError(
            f"{page} has {count} marks named {name}; a table has one place. Put <!-- {name}: ... --> there."
        )
    page.write_text(done, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into notes/t4.md and README.md")
    parser.add_argument("--host", action="store_true", help="measure this host and print it; nothing else")
    arguments = parser.parse_args()
    if arguments.host:
        measure_host()
        return
    write, planned = arguments.write, plans(search=True)
    page = ROOT / "notes" / "t4.md"
    for where, name, table in (
        (page, "fits", fits(planned)), (page, "settings", settings()), (page, "largest", largest(planned)),
        (page, "refused", refused()), (page, "times", times()), (page, "hours", hours()),
        (ROOT / "README.md", "hardware", short()),
    ):  # fmt: skip
        print(f"{name}\n{markdown(table)}\n")
        if write:
            put(where, name, table)


def _groups(c: config.RunConfig) -> int:
    return c.grpo.per_device_train_batch_size * c.grpo.gradient_accumulation_steps // c.grpo.num_generations


def _of(need: Need) -> str:
    return f"{need.nbytes / GIB:.2f} of " + ("unknown" if need.has is None else f"{need.has / GIB:.2f}")


if __name__ == "__main__":
    main()
