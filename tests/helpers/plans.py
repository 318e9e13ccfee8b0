"""Plans for tests, without the search for the largest settings, which takes most of a plan's time."""

from grpo_kit import config
from grpo_kit.planning import machines
from grpo_kit.planning.plan import plan


def plan_for(preset, device="t4", *overrides, **options):
    """The plan of a preset on a named device."""
    return plan(config.load_config([preset], list(overrides)), machines.find_device(device), **options, search=False)


def plan_shared(count, preset="t4x2", device="t4x2", *overrides, **options):
    """The plan of one of `count` processes."""
    machine = machines.with_processes(machines.find_device(device), count)
    return plan(config.load_config([preset], list(overrides)), machine, **options, search=False)


def part_bytes(plan, part, place="GPU"):
    """Bytes of one part of a plan in one place."""
    return sum(row.nbytes for row in plan.rows if row.part == part and row.place == place)
