"""Checkpoints of a training: whole or not there, few, checked before they are trusted, and never the end of a run.

`checkpoints/step_N/` is written aside and renamed; `kept.json` in it names each file's sha256 and the settings it was made
with. The last two are kept. A disk that is full or read-only costs a checkpoint; the run goes on and says so.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_kit.runs.files import hash_of, list_differences, new_folder, write_text
from grpo_kit.runs.metrics import with_current_names

KEPT = 2
SEAL = "kept.json"


def save_checkpoint(folder: Path, step: int, settings: dict[str, Any], write: Callable[[Path], None]) -> Path | None:
    """Let `write` fill `folder/step_N`, seal it, drop all but the last KEPT; None where the disk would not have it."""
    path = folder / f"step_{step}"
    try:
        with new_folder(path) as aside:
            write(aside)
            hashes = {p.name: hash_of(p) for p in sorted(aside.iterdir())}
            write_text(aside / SEAL, json.dumps({"step": step, "settings": settings, "sha256": hashes}) + "\n")
        for old in _steps(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's word for a write that failed
        warnings.warn(
            f"No checkpoint at step {step}: {' '.join(str(error).split())[:160]}. The run goes on; make room in {folder}.",
            stacklevel=2,
        )
        return None
    return path


def find_checkpoint(folder: Path, settings: dict[str, Any]) -> tuple[int, Path] | None:
    """(step, folder) of the newest checkpoint that is what was written; damaged ones are passed over.

    Leftovers of an interrupted write are cleared away. Raises ValueError when the newest was made with other `settings`.
    """
    for left in folder.glob(".step_*"):
        shutil.rmtree(left, ignore_errors=True)
    for path in reversed(_steps(folder)):
        try:
            seal = json.loads((path / SEAL).read_text(encoding="utf-8"))
            whole = all(hash_of(path / name) == digest for name, digest in seal["sha256"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            warnings.warn(f"{path} is damaged and passed over; the one before it is taken.", stacklevel=2)
            continue
        if other := list_differences(seal["settings"], json.loads(json.dumps(settings))):
            raise ValueError(
                f"An interrupted training lies in {folder}, made otherwise ({'; '.join(other[:3])}). Ask for the same settings to "
                "go on with it, or start anew with --force (run.force=true)."
            )
        return seal["step"], path
    return None


def clear_checkpoints(folder: Path) -> None:
    """Drop all checkpoints of a training that starts anew."""
    for old in [*_steps(folder), *folder.glob(".step_*")]:
        shutil.rmtree(old, ignore_errors=True)


def drop_rows_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines of a JSON Lines file that are of later steps than `step`, or torn; returns the rows that stand."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() and step else []
    rows, kept = [], []
    for line in lines:
        try:
            row = json.loads(line)
            if row["step"] > step:
                continue
        except (ValueError, KeyError, TypeError):
            continue
        rows.append(with_current_names(row))
        kept.append(line + "\n")
    write_text(path, "".join(kept))
    return rows


def _steps(folder: Path) -> list[Path]:
    """Checkpoints by their step."""
    found = [p for p in folder.glob("step_*") if p.is_dir() and re.fullmatch(r"step_\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step_")))
