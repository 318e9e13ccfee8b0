"""A trained run handed to an engine for more GPUs: one folder that NeMo-RL, verl or TRL takes as it is.

The folder holds the adapter, the rows as the engine reads them, its configuration, the reward where it takes one, the
commands, and a README that says what carries over: `keys.yaml` maps every key of our configuration to theirs, or to
nothing with the reason. It is filled aside and appears whole, or not at all.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grpo_kit.config import RunConfig, Stage
from grpo_kit.config.checks import require_one_of
from grpo_kit.handoff import merging, nemo_rl, trl, verl
from grpo_kit.handoff.bundle import Bundle, collect
from grpo_kit.policy.load import base_name, source_of
from grpo_kit.rewards.tools.loading import fingerprint, load_reward
from grpo_kit.runs.files import hash_of, new_folder, write_text
from grpo_kit.runs.run import Run

ENGINES = {"nemo-rl": nemo_rl, "verl": verl, "trl": trl}
TABLE = Path(__file__).with_name("keys.yaml")


def write(
    config: RunConfig, run: Run, to: str, out: Path | None = None, merge: bool = False,
    progress: merging.Progress | None = None,
) -> Path:  # fmt: skip
    """Write the folder for the engine `to` (`nemo-rl`, `verl`, `trl`) into `out`, else `handoff/<to>` of the run; returns it.

    With `merge` it holds the base with the adapter added too, in bf16; `progress(number, count, shard)` comes before each
    of its shards. Raises FileNotFoundError when the run is not trained or its adapter, rows or base are gone,
    FileExistsError when `out` is there and not empty, OSError when the disk has no room for the merged model, ValueError
    for another engine or a damaged adapter; nothing is left behind then.
    """
    require_one_of("--to", to, tuple(ENGINES))
    out = (out or run.path / "handoff" / to).absolute()
    _check(run, out)
    base = _base(config) if merge else None
    if base:
        merging.check_disk_space(base, out)
    try:
        with new_folder(out) as aside:
            bundle = collect(config, run, out, aside, merge)
            if base:
                merging.merge_adapter(base, run.adapter, aside / "model", progress)
            start, lost = ENGINES[to].write(bundle)
            write_text(aside / "README.md", readme(bundle, to, start, lost))
    finally:
        with contextlib.suppress(OSError):  # where nothing came of it the folder above is empty, and goes too
            (run.path / "handoff").rmdir()
    return out


def table(to: str) -> dict[str, str]:
    """{key of our configuration: the engine's, or `nothing: why`}, for every key there is."""
    entries = OmegaConf.to_container(OmegaConf.load(TABLE))
    return {key: told if isinstance(told, str) else told[to] for key, told in entries.items()}


def values(config: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every leaf of a configuration; the keys of `grpo.stages` have a list, one value a stage."""
    for field in fields(config):
        name, value = f"{above}{field.name}", getattr(config, field.name)
        if is_dataclass(value):
            yield from values(value, f"{name}.")
            continue
        yield name, value
        if name == "grpo.stages":
            yield from (
                (f"{name}.{part.name}", [getattr(stage, part.name) for stage in value]) for part in fields(Stage)
            )


def readme(bundle: Bundle, to: str, start: str, lost: list[str]) -> str:
    """What the folder is, how to start it, what does not carry over, and the table with this run's values."""
    note, told = bundle.run.stages()["train"], table(to)
    taken = f"{note['steps']} of {bundle.config.grpo.max_steps} steps" if "steps" in note else "trained"
    rows = ", ".join(f"{len(of)} {split}" for split, of in bundle.rows.items())
    lines = [
        f"# Run {bundle.config.run.name!r} for {to}",
        "",
        f"Base `{base_name(bundle.config.policy)}`; {taken}; rows: {rows}. adapter/ is the run's own "
        f"(sha256 of its tensors {hash_of(bundle.aside / 'adapter' / 'adapter_model.safetensors')}).",
        "Paths in these files are where the folder was written; after moving it, write it again with --out."
        if to != "trl" else "The folder may be moved.",
        "",
        "## Start",
        start,
        "## What does not carry over",
        *(f"- {sentence}" for sentence in [*lost, *_changed_rewards(bundle, note)]),
        "",
        "## Every key",
        "What carries over, by the name it has there; the rest with the reason.",
        "",
        "| here | value | there |",
        "|---|---|---|",
        *(f"| {key} | {_cell(value)} | {_cell(told[key])} |" for key, value in values(bundle.config)),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _check(run: Run, out: Path) -> None:
    """Raise unless the run is trained, its files are what was written, and `out` is free."""
    run.require_stage("data", "grpo-kit data")
    run.require_stage("train", "grpo-kit train")
    noted = run.stages()["train"]["wrote"].get(run.adapter.name)
    if hash_of(run.adapter) != noted:
        raise ValueError(
            f"{run.adapter} is not what training wrote (its sha256 differs); only that is handed over. Put it back, or train "
            "again with `grpo-kit train --force`."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} is there and not an empty folder; a bundle is written into a new one. Move it away, or name another with --out."
        )


def _base(config: RunConfig) -> Path:
    """Where the base's published safetensors lie; of an NF4 checkpoint, those it was made of."""
    tiny = config.policy.model == "tiny"
    name = source_of(config.policy) if tiny else base_name(config.policy)
    return merging.find_base_folder(name, config.policy.revision)


def _changed_rewards(bundle: Bundle, note: dict[str, Any]) -> list[str]:
    """A sentence for each reward that is not what the run learned from."""
    noted = note["settings"]["rewards"]
    found = []
    for spec in bundle.config.grpo.reward_funcs:
        reward = load_reward(spec)
        if noted.get(reward.__name__) != fingerprint(reward):
            found.append(
                f"The reward {reward.__name__} is not the one the run learned from: its file has changed since, or it was another."
            )
    return found


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|") if value != "" else '""'
