"""Checkpoints of a training: each is complete or absent, the last two are kept, and files are checked before use.

`checkpoints/step_N/` is written aside and renamed. Its `kept.json` names each file's sha256 and the settings of the
training. If the disk is full or read-only, the run warns and goes on without a checkpoint.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_kit.runs.files import hash_of, new_folder, to_json, write_text
from grpo_kit.runs.metrics import with_current_names
from grpo_kit.runs.reading import parse_json
from grpo_kit.runs.records import list_changed_settings

KEPT = 2
SEAL = "kept.json"


def save_checkpoint(folder: Path, step: int, settings: dict[str, Any], write: Callable[[Path], None]) -> Path | None:
    """Let `write` fill `folder/step_N`, add `kept.json`, and remove all checkpoints but the last KEPT.

    Returns its path, or None when it could not be written.
    """
    path = folder / f"step_{step}"
    try:
        with new_folder(path) as aside:
            write(aside)
            hashes = {p.name: hash_of(p) for p in sorted(aside.iterdir())}
            write_text(aside / SEAL, to_json({"step": step, "settings": settings, "sha256": hashes}) + "\n")
        for old in _steps(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a write that failed
        warnings.warn(
            f"No checkpoint at step {step}: {' '.join(str(error).split())[:160]}. The run goes on; "
            f"make room in {folder}.",
            stacklevel=2,
        )
        return None
    return path


def find_checkpoint(
    folder: Path,
    settings: dict[str, Any],
    adapt: Callable[..., dict[str, Any]] | None = None,
) -> tuple[int, Path] | None:
    """(step, folder) of the newest checkpoint with all its files as written; damaged ones are skipped with a warning.

    Leftovers of an interrupted write are removed. Raises ValueError when the newest was made with other `settings`;
    they are compared as `adapt(its settings, settings)` returns them.
    """
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in reversed(_steps(folder)):
        try:
            seal = json.loads((path / SEAL).read_text(encoding="utf-8"))
            intact = all(hash_of(path / name) == digest for name, digest in seal["sha256"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            intact = False
        if not intact:
            warnings.warn(f"The checkpoint {path} is damaged and is skipped; the one before it is used.", stacklevel=2)
            continue
        wanted = adapt(seal["settings"], settings) if adapt else settings
        if changes := list_changed_settings(seal["settings"], json.loads(to_json(wanted))):
            raise ValueError(
                f"{folder} holds an interrupted training with different settings ({'; '.join(changes[:3])}). Use the "
                "same settings to resume it, or --force (run.force=true) to start again."
            )
        return seal["step"], path
    return None


def clear_checkpoints(folder: Path) -> None:
    """Remove all checkpoints, for a training that starts again."""
    for old in [*_steps(folder), *folder.glob(".step_*")]:
        shutil.rmtree(old, ignore_errors=True)


def drop_rows_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove the lines of a JSON Lines file that are of steps after `step` or incomplete; return the rows that remain.

    The file itself keeps the names that an earlier version wrote; the rows have today's.

    Raises:
        ValueError: a line of the steps up to `step` is damaged or missing; the file is then left as it is.
    """
    rows, kept, damage = [], [], None
    exists = bool(step) and path.exists()
    for number, line in enumerate(path.read_bytes().split(b"\n") if exists else (), start=1):
        try:
            row = parse_json(path, line, number) if line else None
        except ValueError as error:  # the last lines may have been interrupted, or lost with the power
            damage = damage or error
            continue
        if row is None or row["step"] > step:
            continue
        if damage:
            raise damage
        rows.append(with_current_names(row))
        kept.append(line.decode("utf-8") + "\n")
    last = rows[-1]["step"] if rows else 0
    # A signal may end a training between a step and its row. Completions are not written at every step.
    if exists and (last == 0 or (path.name == "metrics.jsonl" and last < step - (damage is None))):
        raise damage or ValueError(
            f"{path} ends at step {last}, and the checkpoint is of step {step}. Put back a copy of it, or move it "
            "away, and the training goes on without its earlier rows."
        )
    write_text(path, "".join(kept))
    return rows


def _steps(folder: Path) -> list[Path]:
    """Folders of checkpoints, by step."""
    folders = [p for p in folder.glob("step_*") if p.is_dir() and re.fullmatch(r"step_\d+", p.name)]
    return sorted(folders, key=lambda p: int(p.name.removeprefix("step_")))
