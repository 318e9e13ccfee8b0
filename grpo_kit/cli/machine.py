"""`grpo-kit env` and `plan`: what this machine has, and whether a run fits it. `main` registers them."""

import typer

from grpo_kit import config as configuration
from grpo_kit.cli import options
from grpo_kit.display import console, machine_tables


def env(sources: options.Sources = None) -> None:
    """Check this machine: Python, the libraries, the GPU, where runs will lie, and the disk that the preset needs."""
    from grpo_kit.planning.machine_check import check_machine

    findings = check_machine(sources)
    machine_tables.print_machine_check(findings)
    if not all(fine for _, _, fine, _ in findings):
        raise typer.Exit(1)
    console.print_next(["demo"])


def doctor() -> None:
    """Say that the command is called `env` now."""
    raise ValueError("`grpo-kit doctor` is called `grpo-kit env` now. Run that.")


def plan(
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    device: options.DeviceName = None,
    prompt_tokens: options.PromptTokens = 256,
    num_processes: options.PlannedProcesses = 1,
) -> None:
    """Say whether a run fits a machine, part by part, computed before anything is downloaded. Status 1: it does not."""
    from grpo_kit.planning import machines, plan, step_time, text_step, two_gpus
    from grpo_kit.policy.routing_counts import read_routing_counts

    config = configuration.load_config(sources or ["tiny"], overrides or [])
    machine = machines.find_device(device) if device else machines.this_device()
    machine = machines.with_processes(machine, num_processes)
    measured = not device and plan.plan(config, machine, prompt_tokens, search=False).fits
    bandwidths = step_time.measure_speeds(config, machine) if measured else None
    hits = read_routing_counts(config.policy)
    planned = plan.plan(config, machine, prompt_tokens, bandwidths, hits)
    machine_tables.print_plan(planned)
    console.out.print(text_step.describe_texts(text_step.plan_texts(planned)))
    console.out.print(text_step.describe_pairs(text_step.plan_pairs(planned)))
    machine_tables.print_two_gpus(two_gpus.compare_layouts(planned, hits))
    if not planned.fits:
        raise typer.Exit(1)
    given = [word for source in sources or ["tiny"] for word in ("-c", source)]
    console.print_next(["data", *given, *(overrides or ())])
