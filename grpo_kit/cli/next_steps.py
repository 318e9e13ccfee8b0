"""The command to type after one that has ended, with the run's name and the presets that were given."""

import sys
from collections.abc import Sequence

from grpo_kit.display import console
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import load_run_config
from grpo_kit.runs.trained import MEASURED


def show_next(
    run: Run, sources: Sequence[str] | None = None, overrides: Sequence[str] | None = None, name: str | None = None
) -> None:
    """Print the command for the stage that a run still lacks, or the check of its zip.

    Args:
        run: the run.
        sources: the presets and YAML files that were given.
        overrides: the settings that were given; they are repeated only with presets, because without presets the next
            command reads them from the run.
        name: the run's name, if it was given.
    """
    stages = run.stages()
    given = [word for source in sources or () for word in ("-c", source)]
    if name or not (sources or run.name == "tiny"):
        given += ["--run", run.name]
    given += overrides or () if sources else ()
    if "data" not in stages:
        console.print_next(["data", *given])
    elif stages.get("prefer", {}).get("out_of_time"):
        console.print_next(["prefer", *given])
    elif "prefer" not in stages and ("train" not in stages or stages["train"].get("out_of_time")):
        command = "sft" if stages.get("sft", {}).get("out_of_time") else "train"
        console.print_next([command, *given])
    elif outdated := run.outdated_stage():
        console.print_next([outdated[1], *given, "--force"])
    elif not {"before", MEASURED[run.trained_stages()[-1]]} <= stages.keys() and _has_accuracy(run):
        console.print_next(["evaluate", *given])
    elif "package" not in stages or stages["package"]["finished"] < stages[run.trained_stages()[-1]]["finished"]:
        console.print_next(["package", *given])
    else:
        console.print_next(["check", str(run.submission), "--run", run.name])


def _has_accuracy(run: Run) -> bool:
    """Whether a trained run can be measured: not where judges reward all of its rows."""
    if "judge" not in run.stages().get("train", {}).get("settings", {}):
        return True
    from grpo_kit.evaluation.problem_sets import is_only_judged

    return not is_only_judged(load_run_config(run), run)


def show_again(*without: str) -> None:
    """Print the command that was typed, without these options of it.

    Args:
        without: options that take no value, such as `--dry-run`.
    """
    console.print_next([word for word in sys.argv[1:] if word not in without])
