"""Pick a run up where it stands: the configuration it is to go on with, and its folder.

The command line and the notebooks open a run the same way, so that what one has done the other finds.
"""

from collections.abc import Sequence
from dataclasses import replace

from grpo_kit import config as configuration
from grpo_kit.runs.run import Run, find_run

STAGES = ("data", "screen", "before", "train", "after", "package")
# Which finished stages a stage builds on: what those were made with stands.
BUILDS_ON = {
    "data": (), "screen": ("data",), "train": ("data", "screen"), "evaluate": ("data", "train"), "package": ("data", "train"),
}  # fmt: skip


def open_run(
    sources: Sequence[str] = (), overrides: Sequence[str] = (), name: str | None = None, stage: str | None = None, force: bool = False
) -> tuple[configuration.RunConfig, Run]:  # fmt: skip
    """(configuration, run) to go on with, for `stage`: `data`, `screen`, `train`, `evaluate`, `package`, or None for whatever is next.

    `sources`: presets and YAML files; without any, an existing run's own config.yaml, else the preset `tiny`.
    `name`: the run's, else `run.name`. The sections that finished earlier stages were made with stand (all finished
    stages, without `stage`), save where an override names another value. Nothing is created. Raises what `load_config` and `find_run` raise.
    """
    asked = configuration.load_config(sources or ["tiny"], overrides)
    run = find_run(name or asked.run.name, asked.run.root)
    if not sources and run.config.is_file():
        asked = configuration.load_config([str(run.config)], overrides)
    stands = BUILDS_ON[stage] if stage else STAGES
    finished = [run.stages()[done]["settings"] for done in stands if done in run.stages()]
    asked = configuration.keep_finished_settings(asked, finished, overrides)
    return replace(asked, run=replace(asked.run, name=run.name, force=force or asked.run.force)), run


def describe_run(run: Run) -> str:
    """Where the run stands, in lines to print: its folder, and each stage with the time it was done; `screen`, which a run can do without, only then."""
    done = run.stages()
    lines = [f"run {run.name!r} in {run.path.absolute()}"]
    for stage in STAGES:
        note = done.get(stage)
        if stage == "screen" and not note:
            continue
        lines.append(
            f"  {stage:<8} " + (f"done {note['finished'][:16]} UTC in {note['seconds']:.0f} s" if note else "not yet")
        )
    return "\n".join(lines)
