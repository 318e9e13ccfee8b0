"""The tables of notes/t4.md and README.md: what `grpo-kit plan` computes for the machines that one can rent.

Nothing here is measured. Seconds are the plan's lower bound at the bandwidths of the cards' data sheets, so a real step
takes longer. tests/test_notes.py compares the pages with today's plan.

    python benchmarks/hardware.py            # prints the tables
    python benchmarks/hardware.py --write    # puts them into the pages
"""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from grpo_kit import config
from grpo_kit.planning import machines
from grpo_kit.planning.fit import Need, Plan
from grpo_kit.planning.machines import Bandwidths
from grpo_kit.planning.memory import sampled_at_once
from grpo_kit.planning.plan import KEYS
from grpo_kit.planning.plan import plan as make_plan

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30


class Machine(NamedTuple):
    """Something to rent: the preset made for it, the plan's device, and the card's bandwidths by its data sheet."""

    name: str
    preset: str
    device: str
    sold: Bandwidths


# Memory in GB/s, PCIe in GB/s one way, dense fp16 or bf16 products in TFLOPS: NVIDIA's data sheets (T4, P100 PCIe, L4
# without sparsity, A100 SXM, H100 SXM).
MACHINES = (
    Machine("Colab T4, the 4B", "t4-4b", "t4", Bandwidths(320, 16, 65)),
    Machine("P100 16 GB, the 4B", "t4-4b", "p100", Bandwidths(732, 16, 18.7)),
    Machine("L4 24 GB, the 4B", "t4-4b", "24gb", Bandwidths(300, 32, 121)),
    Machine("Colab T4", "t4", "t4", Bandwidths(320, 16, 65)),
    Machine("Kaggle 2 x T4", "t4x2", "t4x2", Bandwidths(320, 16, 65)),
    Machine("L4 24 GB", "24gb", "24gb", Bandwidths(300, 32, 121)),
    Machine("A100 40 GB", "24gb", "40gb", Bandwidths(1555, 32, 312)),
    Machine("A100 80 GB", "80gb", "80gb", Bandwidths(2039, 32, 312)),
    Machine("H100 80 GB", "80gb", "80gb", Bandwidths(3350, 64, 989)),
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
    """The largest batch, group and length that fit, each with the others as the preset has them."""
    return [
        {"machine": machine.name} | {f"`{key}`": f"{plan.largest[key]}" for key in KEYS}
        for machine, plan in zip(MACHINES, planned)
    ]


def refused() -> Table:
    """What does not fit, in the plan's words."""
    rows = []
    for preset, device in TOO_SMALL:
        verdict = make_plan(config.load_config([preset]), machines.find_device(device)).verdict
        rows.append({"call": f"`grpo-kit plan -c {preset} --device {device}`", "says": verdict})
    return rows


def times() -> Table:
    """A step's seconds at best, computed from bandwidths as sold."""
    rows = []
    for machine in MACHINES:
        chosen, device = config.load_config([machine.preset]), machines.find_device(machine.device)
        plan = make_plan(chosen, device, bandwidths=machine.sold, search=False)
        sampling, training = plan.seconds
        rows.append({
            "machine": machine.name,
            "memory, GB/s": f"{machine.sold.vram_gb_s:g}",
            "PCIe, GB/s": f"{machine.sold.pcie_gb_s:g}",
            "TFLOPS": f"{machine.sold.matmul_tflops:g}",
            "sampling, s": f"{sampling:.1f}",
            "with every replacement, s": f"{plan.sampling_all:.1f}",
            "training, s": f"{training:.1f}",
            "a step, s, at best": f"{sampling + training:.1f}",
        })  # fmt: skip
    return rows


def short(planned: list[Plan]) -> Table:
    """The README's: one line a machine."""
    return [
        {
            "machine": row["machine"],
            "preset": setting["preset"],
            "weights": setting["weights"],
            "GPU, GiB": row["GPU, GiB"],
            "routed experts not on the GPU": row["routed experts not on the GPU"],
            "completion, tokens": setting["completion, tokens"],
        }
        for row, setting in zip(fits(planned), settings())
    ]  # fmt: skip


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
    write, planned = parser.parse_args().write, plans(search=True)
    page = ROOT / "notes" / "t4.md"
    for where, name, table in (
        (page, "fits", fits(planned)), (page, "settings", settings()), (page, "largest", largest(planned)),
        (page, "refused", refused()), (page, "times", times()), (ROOT / "README.md", "hardware", short(planned)),
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
