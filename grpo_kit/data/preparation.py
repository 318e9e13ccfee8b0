"""Preparation of a run's data: from any sets of problems to clean, split, traceable rows.

The run then has `data/{train,val,test}/data.jsonl`, `data/dropped.jsonl` with every dropped row and its reason, and
`data/manifest.json`, which counts what each step did. The same inputs, seed and versions give the same bytes.
"""

import contextlib
import difflib
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit import __version__
from grpo_kit.config import MATH, Data, RunConfig, to_yaml
from grpo_kit.config.environments import KNOWN, Environment
from grpo_kit.data import gold_answers, recipes, sources
from grpo_kit.data.columns import SourceRow
from grpo_kit.data.hub import check_hub_reachable, is_offline
from grpo_kit.data.splits import SPLITS, check_mix, format_splits, split_environments, write_splits
from grpo_kit.data.steps.finished import digest_json, keep_finished_steps
from grpo_kit.data.steps.pipeline import Pipeline, Progress
from grpo_kit.environments.worlds.loading import load_worlds
from grpo_kit.nemotron import tiny
from grpo_kit.policy.chat import Messages, build_messages, check_chat_template
from grpo_kit.rewards.tools.loading import fingerprint, load_reward, resolve_reward
from grpo_kit.runs.files import hash_of, new_folder, write_lines
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_config_and_run

PACKAGES = ("datasets", "numpy", "pyarrow")  # their versions are recorded, because they can change the rows


class HeldOutSet(NamedTuple):
    """An evaluation set that the training rows are kept apart from; `rows` are read once."""

    source: sources.Source
    rows: Iterator[SourceRow]


def prepare(
    config: RunConfig,
    run: Run,
    verifier: gold_answers.Verifier | str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the run's data. A run whose data is already there is left as it is.

    Args:
        config: `data` says where problems come from and how they are split, `run.seed` is the seed of the split.
        run: the run whose `data/` is written.
        verifier: the reward function that decides which reference answers can be used and which are the same, or the
            path of its file; None loads `evaluation.verifier`.
        progress: called as `progress(step, steps, name)` when a step begins, and when all are done.

    Returns:
        The manifest, as in `data/manifest.json`.

    Raises:
        FileNotFoundError: a source is not available.
        ValueError: a source has no usable columns or rows, an evaluation set is named as a source, or there are too few
            rows for the splits. Nothing is left behind then. Also where the run's data was made with other settings.
        TypeError: an argument has another type.

    Example:
        >>> import tempfile
        >>> from grpo_kit import open_run, prepare_data
        >>> sizes = ["data.limit=20", "data.val_size=2", "data.test_size=6"]
        >>> config, run = open_run("tiny", [*sizes, f"run.root={tempfile.mkdtemp()}"], name="sums")
        >>> prepare_data(config, run)["rows"]
        {'train': 12, 'val': 2, 'test': 6}
    """
    require_config_and_run(config, run)
    verifier = resolve_reward("verifier", verifier or config.evaluation.verifier)
    started = time.monotonic()
    settings = _collect_settings(config, verifier)
    training, missing = _locate_training(config)
    hashes = _hash_files(training)
    recorded = run.stages().get("data", {}).get("settings", {})
    if run.is_done("data", _keep_recorded_rewards(settings, recorded), hashes, config.run.force):
        return read_json(run.manifest)
    if missing:
        raise missing
    _refuse_evaluation_sets(training)
    _check_chat_template(config, build_messages("?", config.data.prompt_suffix, config.data.system_prompt))
    held_out, not_checked = _open_held_out_sets(config, training)
    hashes |= _hash_files([held.source for held in held_out])
    key = {
        **settings,
        "read": {str(path): digest for path, digest in hashes.items()},
        "held": [held.source.name for held in held_out],
        "version": __version__,
    }
    with run.lock("data"):
        with keep_finished_steps(run.path / ".data", key) as finished:
            pipeline = Pipeline(config, finished, progress or (lambda *_: None))
            pipeline.read(training)
            for row in (next((row for row in pipeline.rows if row.system), None), *pipeline.first_tasks()):
                if row:
                    _check_chat_template(config, row.ask(config.data))
            pipeline.clean(verifier)
            leaks = pipeline.drop_leaks({held.source.name: held.rows for held in held_out})
            ties = pipeline.drop_duplicates(verifier)
            pipeline.announce("writing")
            environments = pipeline.environments()
            pipeline.refuse_emptied(environments)
            _check_rewards(config, environments)
            check_mix(config.data.mix, environments)
            named = {number: pipeline.rows[number].environment for number in pipeline.kept()}
            splits = split_environments(pipeline.kept_ids(), ties, named, config.data, config.run.seed)
            manifest = {
                "run_hash": digest_json({**settings, "read": sorted(map(str, hashes.values()))})[:16],
                "source_splits": list(dict.fromkeys(source.recipe.split for source in training)),
                "source": config.data.source,
                "sources": [_describe_source(source, hashes) | pipeline.counts[source.name] for source in training],
                "environments": environments,
                "read": len(pipeline.rows),
                "dropped": dict(Counter(reason for reason, _ in pipeline.dropped.values())),
                "funnel": pipeline.funnel(),
                "evaluation": leaks,
                "not_checked": not_checked,
                "versions": {"python": platform.python_version(), "grpo-kit": __version__}
                | {name: metadata.version(name) for name in PACKAGES},
            }
            with new_folder(run.manifest.parent) as folder:
                manifest = write_splits(folder, format_splits(splits, pipeline.rows, config), manifest)
                write_lines(folder / "dropped.jsonl", pipeline.dropped_rows())
        wrote = [run.manifest, *(run.data_file(name) for name in SPLITS), run.manifest.parent / "dropped.jsonl"]
        run.record_stage("data", settings, hashes, wrote, time.monotonic() - started, to_yaml(config))
        pipeline.announce("done")
    return manifest


def locate_sources(config: RunConfig) -> list[sources.Source]:
    """Locate the sources that `data.source` names.

    Args:
        config: gives `data`.

    Returns:
        The sources in their order; files with the same name are told apart by their folders.

    Raises:
        ValueError: a source is unknown, none is named, or one is named twice.
        FileNotFoundError: a file does not exist.

    Example:
        >>> from grpo_kit.config import load_config
        >>> [source.name for source in locate_sources(load_config(["tiny"]))]
        ['tiny-sums']
    """
    training, missing = _locate_training(config)
    if missing:
        raise missing
    return training


def _collect_settings(config: RunConfig, verifier: gold_answers.Verifier) -> dict[str, Any]:
    """What decides the rows besides the bytes that are read."""
    data = config.data.identity()
    del data["paths"]  # where a set is on this machine does not matter; the hash of its bytes is recorded
    settings = {"data": data, "seed": config.run.seed, "verifier": fingerprint(verifier)}
    if config.environments:
        settings["environments"] = {
            name: {key: value for key, value in asdict(environment).items() if value is not None}
            for name, environment in config.environments.items()
        }
    if config.data.max_prompt_tokens:  # tools are part of a prompt
        settings["tokenizer"] = config.policy.model
        kit = {name: known.environment_factory for name, known in KNOWN.items()}  # named in the settings by a training
        own = [name for name in config.environments if config.world_of(name) != kit.get(name)]
        if worlds := load_worlds(config, own).fingerprints():
            settings["worlds"] = worlds
    return settings


def _keep_recorded_rewards(settings: dict[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the recorded section `environments` where both sections choose the same rows.

    Only the first reward of each of the kit's environments chooses, since a task that it cannot judge is dropped, and
    each world, whose tools count as part of a prompt. A finished training names the rewards and weights of all
    environments, and the data is not made again for them.
    """

    def choosing(section: Mapping[str, Any]) -> dict[str, tuple[list[str], str | None]]:
        sections = {name: Environment(**section.get(name) or asdict(KNOWN[name])) for name in (*KNOWN, *section)}
        chosen = {name: (own.reward_funcs[: name in KNOWN], own.environment_factory) for name, own in sections.items()}
        return {name: choice for name, choice in chosen.items() if any(choice)}

    before = recorded.get("environments", {})
    if choosing(before) != choosing(settings.get("environments", {})):
        return settings
    others = {key: value for key, value in settings.items() if key != "environments"}
    return others | ({"environments": before} if before else {})


def _locate_training(config: RunConfig) -> tuple[list[sources.Source], FileNotFoundError | None]:
    """The sources whose files exist, and the error of a missing one; a finished run does not need its sources."""
    training, missing = [], None
    for item in _split_items(config.data.source):
        try:
            training.append(sources.locate_source(item, config.data))
        except FileNotFoundError as error:
            missing = missing or error
    return _tell_apart(training), missing


def _split_items(source: str) -> list[str]:
    """The items of `data.source`, which commas separate; the path of a file may contain a comma itself."""
    items = [source] if Path(source).is_file() else [item.strip() for item in source.split(",") if item.strip()]
    if not items or len(items) != len(set(items)):
        raise ValueError(
            f"data.source is {source!r}; it must name one source or several different ones. Write them as a,b."
        )
    return items


def _tell_apart(located: list[sources.Source]) -> list[sources.Source]:
    """The sources; where several files have the same name, their folders' names are added."""
    names = Counter(source.name for source in located)
    return [
        replace(source, name="/".join(source.files[0].parts[-2:]))
        if names[source.name] > 1 and source.files
        else source
        for source in located
    ]


def _hash_files(located: Iterable[sources.Source]) -> dict[Path, str | None]:
    return {path: hash_of(path) for source in located for path in source.files}


def _check_rewards(config: RunConfig, environments: Iterable[str]) -> None:
    """Raise an error unless each environment of the rows has rewards that load, and no setting misspells one."""
    names = list(environments)
    for spec in [spec for name in names for spec in config.rewards_of(name).reward_funcs if name != MATH]:
        load_reward(spec)
    for unused in [name for name in config.environments if name not in (*names, *KNOWN)]:
        if similar := difflib.get_close_matches(unused, names, n=1, cutoff=0.75):
            raise ValueError(
                f"environments.{unused} is set, and no row is of it; the rows are of {', '.join(names)}. Did you mean "
                f"environments.{similar[0]}?"
            )


def _refuse_evaluation_sets(training: Sequence[sources.Source]) -> None:
    for source in training:
        if source.recipe.evaluation:
            raise ValueError(
                f"data.source names {source.name}, an evaluation set; training on it makes every later accuracy "
                f"worthless. Name training sets: {', '.join(recipes.list_recipes(False, environment=None))}."
            )


def _check_chat_template(config: RunConfig, conversation: Messages) -> None:
    """Refuse a policy whose chat template cannot write a prompt.

    A tokenizer that this machine cannot load now is not an error here; training loads it and checks the template again.
    """
    with contextlib.suppress(OSError, ImportError):
        if not Path(config.policy.model).is_dir() and config.policy.model not in tiny.FOLDERS and not is_offline():
            check_hub_reachable()
        check_chat_template(config.policy, [conversation])


def _open_held_out_sets(
    config: RunConfig, training: Sequence[sources.Source]
) -> tuple[list[HeldOutSet], dict[str, str]]:
    """(evaluation sets to keep the rows apart from, {name of a set: why it cannot be checked}).

    Sets that `data.decontaminate` names must be available. Where it names none, every available set of the sources'
    environments is taken; problems that the kit makes need none.
    """
    names = config.data.decontaminate
    required = names is not None
    if not required:
        environments = {source.recipe.environment: None for source in training if not source.generated}
        names = [name for environment in environments for name in recipes.list_recipes(True, environment)]
    all_rows = Data(paths=config.data.paths)  # without the limit and the columns of the training sources
    held_out, not_checked = [], {}
    for source in (sources.locate_source(name, config.data) for name in names):
        rows = sources.read_source(source, all_rows, config.run.seed)
        try:
            if not source.files:  # only reading the first row shows whether the Hub gives the set
                rows = chain([next(rows)], rows)
            held_out.append(HeldOutSet(source, rows))
        except (FileNotFoundError, ValueError) as error:  # not available, or not the set that the recipe describes
            if required:
                raise
            not_checked[source.name] = str(error)
    return held_out, not_checked


def _describe_source(source: sources.Source, hashes: Mapping[Path, str | None]) -> dict[str, Any]:
    recipe = {key: value for key, value in asdict(source.recipe).items() if value not in (None, "", [], False)}
    return {"name": source.name, "files": {path.name: hashes[path] for path in source.files}, "recipe": recipe}
