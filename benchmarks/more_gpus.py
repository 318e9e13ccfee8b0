"""The tables of notes/scale.md: steps on 2, 8 and 64 GPUs, from the plan, data sheets, and one measured figure.

All of it is computed. A step is the sampling and training of one process (`grpo_kit/planning/step_time.py`) and the
exchange. That is the LoRA gradients summed around a ring, 2 (N - 1) / N times their bytes over the slowest link
(Patarasuk and Yuan, 2009), and the waiting in a step that benchmarks/scale.py measured with two processes.
tests/test_notes.py compares the page with today's plan.

    python benchmarks/more_gpus.py            # prints the tables
    python benchmarks/more_gpus.py --write    # puts them into the page
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import hardware
import report

from grpo_kit import config
from grpo_kit.planning import machines, two_gpus
from grpo_kit.planning.fit import Plan
from grpo_kit.planning.host_time import recorded_host
from grpo_kit.planning.model_size import Architecture
from grpo_kit.planning.plan import plan as make_plan

PAGE = hardware.ROOT / "notes" / "scale.md"
COUNTS = (1, 2, 8, 64)
IN_ONE = 8  # GPUs in a machine
# GB/s one way, by NVIDIA's data sheets: PCIe 3 x16 of a T4; NVLink 4 within a machine of 8 H100; 400 Gb/s a GPU
# between two machines.
PCIE, NVLINK, NETWORK = 16.0, 450.0, 50.0
QUESTIONS = 7473  # GSM8K's training split
H100 = next(machine.sold for machine in hardware.MACHINES if machine.name == "H100 80 GB")


def waited() -> float:
    """Seconds of a step that each of two CPU processes waited for the other, by the last row of notes/benchmarks.md."""
    last = report.NOTES.read_text(encoding="utf-8").split("\n### scale, ")[-1]
    head, two = (re.search(rf"^\| {name} \|.*$", last, re.M)[0].split(" | ") for name in ("processes", "two"))
    row = dict(zip(head, two))
    shares = (float(row[name].rstrip("%")) / 100 for name in ("waiting in it", "in training"))
    return float(row["median step, ms"]) / 1e3 * sum(shares)


def exchange(plan: Plan, link: float) -> float:
    """Seconds that a step's exchanges take: its gradients around the ring, and the waiting; 0 for a process alone."""
    n = plan.device.processes
    gradients = sum(row.nbytes for row in plan.rows if row.part == "LoRA gradients")
    return 2 * (n - 1) / n * gradients / (link * 1e9) + waited() if n > 1 else 0.0


def seconds(plan: Plan, link: float) -> tuple[float, float, float]:
    """(sampling, training, exchange) of a step at best."""
    return (*plan.seconds, exchange(plan, link))


def step_cells(parts: tuple[float, float, float]) -> dict[str, str]:
    names = ("sampling, s", "training, s", "exchange, s", "a step, s")
    return {name: f"{value:.2f}" for name, value in zip(names, (*parts, sum(parts)))}


def two_t4() -> hardware.Table:
    """Both layouts for Kaggle's two T4."""
    planned_for_one = make_plan(config.load_config(["t4x2"]), machines.find_device("t4x2"), search=False)
    return [
        {"way": way.name, "fits": "yes" if way.fits else "no", "limited by": way.limit}
        | step_cells(seconds(way.plan, PCIE))
        for way in two_gpus.compare_layouts(planned_for_one)
    ]


def planned(count: int, times: int) -> Plan:
    """Preset 80gb on `count` H100, with `times` its prompts a step."""
    accumulated = times * config.load_config(["80gb"]).grpo.gradient_accumulation_steps
    chosen = config.load_config(["80gb"], [f"grpo.gradient_accumulation_steps={accumulated}"])
    speeds = H100._replace(host=recorded_host(Architecture.of(chosen.policy), chosen))
    return make_plan(
        chosen, machines.with_processes(machines.find_device("80gb"), count), bandwidths=speeds, search=False
    )


def scaled(grows: bool) -> hardware.Table:
    """H100 by COUNTS: the preset's own step shared out, or (`grows`) as many prompts more as there are GPUs more."""
    rows, alone = [], 0.0
    for count in COUNTS:
        try:
            plan = planned(count, count if grows else 1)
        except ValueError:  # a step that so many do not divide; the page says what the command says
            continue
        grpo, gpu = plan.config.grpo, plan.needs["GPU"]
        completions = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps
        parts = seconds(plan, NVLINK if count <= IN_ONE else NETWORK)
        hours = QUESTIONS * grpo.num_generations / completions * sum(parts) / 3600
        alone = alone or hours
        rows.append({
            "GPUs": f"{count}",
            "completions, each": f"{completions:,}, {completions // count}",
            "GPU, GiB": f"{gpu.nbytes / machines.GIB:.2f} of {gpu.has / machines.GIB:.2f}",
            "host of a machine, GiB": f"{plan.needs['host'].nbytes / count * min(count, IN_ONE) / machines.GIB:.0f}",
            **step_cells(parts),
            "GSM8K once, h": f"{hours:.2f}",
            "times one GPU": f"{alone / hours:.1f}",
        })  # fmt: skip
    return rows


TABLES = {"two T4": two_t4, "same step": lambda: scaled(grows=False), "more prompts": lambda: scaled(grows=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into notes/scale.md")
    write = parser.parse_args().write
    for name, table in TABLES.items():
        made = table()
        print(f"{name}\n{hardware.markdown(made)}\n")
        if write:
            hardware.put(PAGE, name, made)


if __name__ == "__main__":
    main()
