"""A stage's record in `run.json`: the files and the machine it was made with, and whether it may stand as it is."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from grpo_kit.runs.files import hash_of, list_differences

PACKAGES = ("grpo-kit", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "numpy")
# What a record calls otherwise than the configuration does.
SETTINGS = {"seed": "run.seed", "mix": "data.mix", "precision": "grpo", "sampling": "grpo"}
WORLD_TURNS = "max_tool_calling_iterations"  # of `grpo`, which only runs with a world record
# Of these a record has the sha256, or that of each of them by name.
HASHED = {
    "rewards": "the reward {}", "verifier": "the verifier {}", "worlds": "the world of environment {}",
    "sets": "the evaluation set {}", "reads": "{}", "rows": "the file of training rows", "adapter": "the adapter",
}  # fmt: skip
Files = Sequence[Path] | Mapping[Path, str | None]  # files, or files with their sha256


def hash_each(paths: Files) -> dict[Path, str | None]:
    """{path: sha256}; a mapping has the hashes already, so that large inputs are hashed once."""
    return dict(paths) if isinstance(paths, Mapping) else {path: hash_of(path) for path in paths}


def not_written_by(stage: str) -> str:
    """What is said of a file that is not as `stage` recorded it."""
    return f"is not as stage {stage!r} wrote it: it was damaged, or changed by hand."


def list_changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what the settings of two records differ, by names that a user can write; of a file only that it changed.

    >>> list_changed_settings({"mix": {"math": 1}, "reads": {"a.csv": "3f"}}, {"mix": {"math": 2}, "reads": {}})
    ['data.mix.math was 1, now 2', 'a.csv is not there any more']
    """
    changes = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if key not in HASHED or not all(isinstance(value, dict | str | None) for value in (old, new)):
            changes += list_differences(old, new, SETTINGS.get(key, key))
            continue
        olds, news = (value if isinstance(value, dict) else {"": value} if value else {} for value in (old, new))
        for name in dict.fromkeys([*olds, *news]):
            if name == WORLD_TURNS:
                changes += list_differences(olds.get(name), news.get(name), f"grpo.{name}")
            elif olds.get(name) != news.get(name):
                state = "is new" if name not in olds else "is not there any more" if name not in news else "has changed"
                changes.append(f"{HASHED[key].format(name).strip()} {state}")
    return changes


def refuse_differences(
    run: str, stage: str, record: Mapping[str, Any], settings: dict[str, Any], changed: list[Path]
) -> None:
    """Stop where a finished stage would be made with other settings, or from other files, than it was.

    Args:
        run: the run's name.
        stage: the stage's name.
        record: what `run.json` says of it.
        settings: what it would be made with now.
        changed: files that it would read now and has not read.

    Raises:
        ValueError: something differs; the message says what, and how to keep or to replace what the stage made.
    """
    rewards = _list_changed_rewards(record["settings"], settings)
    ignored = {"verifier", "rewards"} & rewards.keys()
    before, now = ({k: v for k, v in each.items() if k not in ignored} for each in (record["settings"], settings))
    differences = list_changed_settings(before, now) + [f"{path} changed since" for path in changed]
    if rewards and not differences:
        commit = record.get("environment", {}).get("commit")
        origin = f" (the kit's own are those of commit {commit[:12]})" if commit else ""
        names = " and ".join(rewards.values())
        raise ValueError(
            f"Stage {stage!r} of run {run!r} is finished, and the file of {names} has changed since, so it "
            f"may pay other replies now. To keep what the stage made, put the file as it was then{origin} into the "
            "working folder, where it takes the place of the present one. To make the stage again with the present "
            "file, use --force (run.force=true), or --run (run.name) for a new run."
        )
    differences += [f"the file of {names} changed since" for names in rewards.values()]
    if differences:
        alternative = "--out for a second zip" if stage == "package" else "--run (run.name) for a new run"
        raise ValueError(
            f"Stage {stage!r} of run {run!r} already finished with different settings "
            f"({'; '.join(differences[:3])}). Use --force (run.force=true) to replace it, or {alternative}."
        )


def _list_changed_rewards(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """{"verifier" or "rewards": the rewards in words} for those of the same name whose file has another hash now."""
    changed = {}
    if before.get("verifier") and now.get("verifier") and before["verifier"] != now["verifier"]:
        changed["verifier"] = "the verifier (evaluation.verifier)"
    hashes, present = before.get("rewards"), now.get("rewards")
    if isinstance(hashes, dict) and isinstance(present, dict) and hashes.keys() == present.keys() and hashes != present:
        changed["rewards"] = ", ".join(name for name in hashes if hashes[name] != present[name])
    return changed


def describe_environment() -> dict[str, Any]:
    """Versions, hardware and git commit, for the record. A package that is missing is None; nothing is imported."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpu": gpu,
        "packages": versions,
        "commit": commit,
    }
