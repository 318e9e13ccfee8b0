"""Export a trained run to an engine for more GPUs: one folder that NeMo-RL, verl or TRL can train from.

The folder contains the adapter, the rows and the configuration in the engine's format, the reward if the engine takes
one, and a README with the commands and with what does not carry over. `keys.yaml` maps every key of our configuration
to the engine's key, or to nothing with the reason. The folder is filled elsewhere and moved into place when complete.
"""

import contextlib
import re
import shlex
import statistics
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grpo_kit.adapters.model_files import find_base_folder
from grpo_kit.config import MATH, RunConfig, Stage
from grpo_kit.config.checks import require_one_of
from grpo_kit.handoff import merging, nemo_gym, nemo_rl, trl, verl
from grpo_kit.handoff.bundle import Bundle, collect_bundle
from grpo_kit.nemotron import tiny
from grpo_kit.policy.model_source import base_model_name, policy_source
from grpo_kit.rewards.tools.calling import reward_names
from grpo_kit.rewards.tools.loading import fingerprint, load_reward
from grpo_kit.runs.files import follow_link, hash_of, new_folder, write_text
from grpo_kit.runs.metrics import read_metrics
from grpo_kit.runs.run import Run

ENGINES = {"nemo-rl": nemo_rl, "verl": verl, "trl": trl}
BACK = {"verl": "results/global_step_N", "trl": "trained"}  # what `grpo-kit package` reads
LAST_STEPS = 10  # of a run, over which the README averages
TABLE = Path(__file__).with_name("keys.yaml")


def export_run(
    config: RunConfig,
    run: Run,
    to: str,
    out: Path | None = None,
    merge: bool = False,
    progress: merging.Progress | None = None,
) -> Path:
    """Write the folder for an engine. After an error nothing is left behind.

    Args:
        config: the run's configuration.
        run: a trained run.
        to: the engine: `nemo-rl`, `verl` or `trl`.
        out: a folder that does not exist yet or is empty; `handoff/ENGINE` of the run by default.
        merge: also write the base model with the adapter merged into it, in bf16.
        progress: called with (number, count, name) before each shard of the merged model.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: the run is not trained, or its adapter, rows or base model are missing.
        FileExistsError: `out` is not an empty folder.
        OSError: the disk has no room for the merged model.
        ValueError: there is no such engine, the adapter is not the one that training wrote, or the engine's
            configuration cannot name `out`.

    Example:
        >>> export_run(config, run, "trl")  # doctest: +SKIP
        PosixPath('/home/ada/runs/tiny/handoff/trl')
    """
    require_one_of("--to", to, tuple(ENGINES))
    out = follow_link(out or run.path / "handoff" / to)
    _check(run, out, to)
    base = _base(config) if merge else None
    if base:
        merging.check_disk_space(base, out)
    try:
        with new_folder(out) as folder:
            bundle = collect_bundle(config, run, out, folder, merge)
            if base:
                merging.merge_adapter(base, run.result.adapter, folder / "model", progress)
            start, lost = ENGINES[to].write_files(bundle)
            write_text(folder / "README.md", make_readme(bundle, to, start, lost))
    finally:
        with contextlib.suppress(OSError):  # after an error the folder above is empty and goes too
            (run.path / "handoff").rmdir()
    return out


# Sections that no engine repeats, with what the table says instead of their values.
WHOLE_SECTIONS = {
    "sft": "its result is in adapter/",
    "dpo": "its result is in adapter/",
    "judge": "what it taught is in adapter/",
}


def read_key_table(to: str) -> dict[str, str]:
    """{key of our configuration: the engine's key, or `nothing: reason`}, for every key."""
    entries = OmegaConf.to_container(OmegaConf.load(TABLE))
    return {key: entry if isinstance(entry, str) else entry[to] for key, entry in entries.items()}


def list_settings(config: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every setting of a configuration; a key of `grpo.stages` has a list with one value per stage.

    A section of WHOLE_SECTIONS is one entry.
    """
    for field in fields(config):
        name, value = f"{above}{field.name}", getattr(config, field.name)
        if name in WHOLE_SECTIONS:
            yield name, WHOLE_SECTIONS[name]
            continue
        if is_dataclass(value):
            yield from list_settings(value, f"{name}.")
            continue
        yield name, value
        if name == "grpo.stages":
            yield from (
                (f"{name}.{part.name}", [getattr(stage, part.name) for stage in value]) for part in fields(Stage)
            )


def make_readme(bundle: Bundle, to: str, start: str, lost: list[str]) -> str:
    """The folder's README: how to start, what does not carry over, and the table of all keys with this run's values."""
    note, keys = bundle.run.stages()["train"], read_key_table(to)
    model = bundle.config.policy.model
    base = model if model in tiny.FOLDERS else bundle.base_model
    progress = f"{note['steps']} of {bundle.config.grpo.max_steps} steps" if "steps" in note else "trained"
    others = [stage for stage in bundle.run.trained_stages() if stage != "train"]
    progress += f", and the stages {' and '.join(others)}" if others else ""
    rows = ", ".join(f"{len(of)} {split}" for split, of in bundle.rows.items())
    if to == "nemo-rl":
        adapters, about_adapters = nemo_rl.way_back(bundle)
    else:
        adapters, about_adapters = f"--adapter {shlex.quote(f'{bundle.out}/{BACK[to]}')}", ""
    lines = [
        f"# Run {bundle.config.run.name!r} for {to}",
        "",
        f"Base `{base_model_name(bundle.config.policy)}`; {progress}; rows: {rows}. adapter/ is the run's own "
        f"(sha256 of its tensors {hash_of(bundle.folder / 'adapter' / 'adapter_model.safetensors')}).",
        "The paths in these files point to this place. After moving the folder, write it again with --out."
        if to != "trl"
        else "The folder may be moved.",
        "",
        "## Start",
        start,
        "## Back to the kit",
        f"The adapter of a step as a zip, which `grpo-kit check` examines. {about_adapters}".rstrip(),
        "",
        f"    grpo-kit package {adapters} "  # one line with the next
        f"policy.model={shlex.quote(base)}",
        "",
        *_left_to_learn(bundle),
        "## What does not carry over",
        *(f"- {sentence}" for sentence in [*lost, *_changed_rewards(bundle, note)]),
        "",
        "## Every key",
        "What carries over is listed with its name in the engine, the rest with the reason.",
        "",
        "| grpo-kit | value | engine |",
        "|---|---|---|",
        *(f"| {key} | {_cell(value)} | {_cell(keys[key])} |" for key, value in list_settings(bundle.config)),
        "",
    ]
    return "\n".join(lines)


def _left_to_learn(bundle: Bundle) -> list[str]:
    """How many groups of the run's last steps had equal rewards, as Markdown lines; empty where it is not recorded."""
    rows = [row for row in read_metrics(bundle.run.metrics) if "groups/all_right" in row][-LAST_STEPS:]
    if not rows:
        return []
    right, wrong = (
        statistics.fmean(row[f"groups/{kind}"] or 0.0 for row in rows) for kind in ("all_right", "all_wrong")
    )
    lines = [
        "## What is left to learn",
        f"In the run's last {len(rows)} steps {right:.0%} of the groups were right throughout and {wrong:.0%} wrong "
        "throughout. A policy learns nothing from such a group, and the engine does not replace it, as the run did.",
    ]
    if right + wrong > 0.5:
        change = "harder" if right > wrong else "easier"
        lines.append(f"**Most of each step would be lost.** Export a run with {change} problems.")
    return [*lines, ""]


def _check(run: Run, out: Path, to: str) -> None:
    """Raise unless the run is trained, its adapter is the one that training wrote, and `out` is free and can be named.

    verl and NeMo-RL read their settings by OmegaConf, for which `${` begins a reference.
    """
    if to != "trl" and re.search(r"\$\{|\n", str(out)):
        raise ValueError(
            f"{str(out)!r} has '${{' or a line end, which settings of {to} cannot hold. Name another folder with --out."
        )
    run.require_stage("data", "grpo-kit data")
    if "train" not in run.stages():  # its settings are handed over; its adapter only where no later stage trained it
        run.require_stage("train", "grpo-kit train")
    run.require_trained()
    others = [name for name in run.environments() if name != MATH]
    if unknown := [name for name in others if name not in nemo_gym.SERVERS]:
        raise ValueError(
            f"The run trains on the environment {unknown[0]!r}, which no engine can judge: NeMo-Gym has servers for "
            f"{', '.join(nemo_gym.SERVERS)}, and the others have none. Train a run without its rows for the handoff."
        )
    if others and to != "nemo-rl":
        raise ValueError(
            f"The run trains on {', '.join(others)} beside math, and its bundle for {to} would have one reward for all "
            "rows. Write it for nemo-rl, whose NeMo-Gym has a server for each environment."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} exists and is not an empty folder; the export needs a new one. Move it, or name another with --out."
        )


def _base(config: RunConfig) -> Path:
    """The folder of the base model's published safetensors; for an NF4 checkpoint, of those it was made from."""
    is_embedded = config.policy.model in tiny.FOLDERS
    name = policy_source(config.policy) if is_embedded else base_model_name(config.policy)
    return find_base_folder(name, config.policy.revision)


def _changed_rewards(bundle: Bundle, note: dict[str, Any]) -> list[str]:
    """A sentence for each reward that is not the one the run was trained with."""
    fingerprints = note["settings"]["rewards"]
    sentences = []
    rewards = [load_reward(spec) for spec in bundle.config.grpo.reward_funcs]
    for name, reward in zip(reward_names(rewards), rewards, strict=True):
        if fingerprints.get(name) != fingerprint(reward):
            sentences.append(
                f"The reward {name} is not the one that the run was trained with: its file has changed, or "
                "the run had another one."
            )
    return sentences


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|") if value != "" else '""'
