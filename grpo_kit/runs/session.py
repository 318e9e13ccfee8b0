"""Open a run: its folder, and the configuration that it goes on with.

The command line and the notebooks open a run in the same way, so each continues what the other has done.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_kit import config as configuration
from grpo_kit.config.arguments import OneOrMore, as_texts, require_type
from grpo_kit.config.checks import require_one_of
from grpo_kit.runs import processes
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.run import Run, find_run
from grpo_kit.runs.texts import format_time
from grpo_kit.runs.trained import TRAINING

OPEN = 'Write config, run = open_run("tiny", name="first").'  # the remedy for an argument that is neither
STAGES = ("data", "before", "sft", "after_sft", "screen", "train", "after", "prefer", "after_prefer", "package")
OPTIONAL = ("sft", "after_sft", "screen", "prefer", "after_prefer")  # shown only where they are done
# For each command, the finished stages it builds on; their settings stay what they were.
BUILDS_ON = {
    "data": (),
    "sft": ("data",),
    "screen": ("data", "sft"),
    "train": ("data", "sft", "screen"),
    "prefer": ("data", "sft", "train"),
    "evaluate": ("data", "sft", "train", "prefer"),
    "package": ("data", "sft", "train", "prefer"),
}


def open_run(
    sources: OneOrMore = (),
    overrides: str | Iterable[str] = (),
    name: str | None = None,
    stage: str | None = None,
    force: bool = False,
) -> tuple[configuration.RunConfig, Run]:
    """Open a run, a new one or one that exists, with the configuration it goes on with. Nothing is created on the disk.

    The sections that finished stages were made with keep their values, except where an override names another one. So
    do those of an interrupted training where `stage` trains and no source is given.

    Args:
        sources: a preset, the path of a YAML file, or a list of these; without any, the run's own config.yaml, or the
            preset `tiny` for a new run.
        overrides: a setting such as `"grpo.max_steps=200"`, or a list of settings.
        name: the run's name, by default `run.name` of the configuration. Its folder lies where `find_root` says.
        stage: what is to be done next: `data`, `sft`, `screen`, `train`, `prefer`, `evaluate` or `package`. Only the
            stages that it builds on keep their settings; without it, all finished stages do.
        force: whether to repeat a stage that is done.

    Returns:
        The configuration and the run.

    Raises:
        ValueError: for an unknown key, preset or stage, a value out of range, or a name that is not a plain folder
            name; the run's `run.json` or `config.yaml` is damaged, or `config.yaml` is gone.
        FileNotFoundError: for a YAML file that does not exist.
        TypeError: for an argument that is not text.
        ConnectionError: for a `WORLD_SIZE` above 1 that no launcher set.

    Example:
        >>> from grpo_kit import open_run
        >>> config, run = open_run("tiny", "grpo.max_steps=5", name="first")
        >>> config.grpo.max_steps, run.name
        (5, 'first')
    """
    sources = as_texts("sources", sources, '["tiny"]')
    overrides = as_texts("overrides", overrides, '["grpo.max_steps=200"]')
    require_type("name", name, (str, type(None)), "the name of a run", 'Write name="first".')
    if stage is not None:
        require_one_of("stage", stage, tuple(BUILDS_ON))
    processes.check_launcher()
    config = configuration.load_config(sources or ["tiny"], overrides)
    run = find_run(config.run.name if name is None else name, config.run.root)
    records = run.stages()
    interrupted = None
    if not sources and (records or run.config.exists()):
        config = load_run_config(run, overrides)
        interrupted = _interrupted_training(run, stage) if stage in TRAINING else None
    finished = [records[done]["settings"] for done in (BUILDS_ON[stage] if stage else STAGES) if done in records]
    finished += [interrupted] if interrupted else []
    config = configuration.keep_finished_settings(config, finished, overrides)
    return replace(config, run=replace(config.run, name=run.name, force=force or config.run.force)), run


def _interrupted_training(run: Run, stage: str) -> dict[str, Any] | None:
    """The settings in the newest checkpoint's `kept.json`; None without one that can be read."""
    folder = run.stage_files(stage).checkpoints
    seals = sorted(folder.glob("step_*/kept.json"), key=lambda path: path.stat().st_mtime)
    with suppress(OSError, ValueError, TypeError, KeyError):
        settings = json.loads(seals[-1].read_text(encoding="utf-8"))["settings"] if seals else None
        return settings if isinstance(settings, dict) else None
    return None


def load_run_config(run: Run, overrides: Iterable[str] = ()) -> configuration.RunConfig:
    """The settings that the run goes on with, from its `config.yaml`.

    Args:
        run: a run with a finished stage.
        overrides: settings that replace those of the file.

    Raises:
        ValueError: the file is gone or damaged; it is never replaced by a preset.
    """
    remedy = (
        "Put back a copy of it, or let `grpo-kit train --dry-run -c PRESET`, with the preset or file that the run "
        f"began with, print its text anew, and save that as {run.config}."
    )
    if not run.config.is_file():
        state = "is a folder" if run.config.is_dir() else "is gone"
        raise ValueError(f"{run.config}, which has the settings of run {run.name!r}, {state}. {remedy}")
    try:
        configuration.load_config([str(run.config)])
        if hash_of(run.config) != (digest := run.config_digest()):
            missing = configuration.missing_keys(run.config)
            if missing and (digest or "run.seed" in missing):  # earlier versions had fewer keys
                raise ValueError(f"{run.config} is damaged: {missing[0]} is missing.")
    except ValueError as error:
        raise ValueError(f"{_find_place(run.config, str(error))} {remedy}") from None
    return configuration.load_config([str(run.config)], overrides)


def _find_place(path: Path, message: str) -> str:
    """The message, with the file and the line of the key that it begins with."""
    if message.startswith(str(path)):
        return message
    section, _, key = message.split(" ", 1)[0].partition(".")
    place = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        place = line.rstrip(":") if line[:1].strip() else place  # sections stand at the margin
        if place == section and line.strip().startswith(f"{key.rpartition('.')[2] or section}:"):
            return f"{path}, line {number}: {message}"
    return f"{path}: {message}"


def require_run(run: Any) -> None:
    """Raise TypeError unless `run` is a run, as `open_run` returns it."""
    require_type("run", run, Run, "the run that open_run returns", OPEN)


def require_config_and_run(config: Any, run: Any) -> None:
    """Raise TypeError unless the arguments are a configuration and a run, as `open_run` returns them."""
    require_type("config", config, configuration.RunConfig, "the configuration that open_run returns", OPEN)
    require_run(run)


def describe_run(run: Run) -> str:
    """The run's folder and, line by line, when each stage was done; those of OPTIONAL only when they were."""
    records = run.stages()
    lines = [f"run {run.name!r} in {run.path.absolute()}"]
    shown = [stage for stage in STAGES if stage in records or stage not in OPTIONAL]
    width = max(map(len, shown))
    for stage in shown:
        record = records.get(stage)
        if record:
            lines.append(f"  {stage:<{width}} done {format_time(record['finished'])} in {record['seconds']:.0f} s")
        else:
            lines.append(f"  {stage:<{width}} not yet")
    return "\n".join(lines)
