"""Files and folders that are complete or absent, never half written; JSON Lines, hashes, and settings compared."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def list_differences(before: Any, now: Any, name: str = "") -> list[str]:
    """The leaves in which two nested mappings differ, in words.

    >>> list_differences({"grpo": {"max_steps": 100, "beta": 0}}, {"grpo": {"max_steps": 5, "beta": 0}})
    ['grpo.max_steps was 100, now 5']
    """
    if isinstance(before, dict) and isinstance(now, dict):
        differences = []
        for key in dict.fromkeys([*before, *now]):
            path = f"{name}.{key}" if name else str(key)
            differences += list_differences(before.get(key), now.get(key), path)
        return differences
    return [] if before == now else [f"{name} was {_shorten(before)}, now {_shorten(now)}"]


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:16]}..."


def hash_of(path: Path) -> str | None:
    """The sha256 of a file, or of a folder's files and their names; None when nothing is there."""
    if path.is_dir():
        parts = [f"{p.relative_to(path).as_posix()} {hash_of(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Replace `path` in one step: a reader sees the old text or the new one, never a part. Pieces are joined."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as JSON Lines in one step, keys in the order given; only one row at a time is held in memory."""
    write_text(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[Any]:
    """Read the rows of a JSON Lines file that the kit wrote."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file if line != "\n"]


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill; it becomes `path` when the block succeeds and is deleted when the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("partial", "old"))
    aside.mkdir()
    try:
        yield aside
        if path.exists():
            path.replace(old)
        aside.replace(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
