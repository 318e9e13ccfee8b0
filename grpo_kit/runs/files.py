"""Files and folders that are complete or absent, never half written; hashes, and settings compared."""

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

# `.NAME.PID.partial` is being written, `.NAME.PID.old` is being replaced. Version 0.2.0 left the number out of some.
LEFTOVER = re.compile(r"\.(?P<name>.+?)(?:\.(?P<pid>\d+))?\.(?P<kind>partial|old)")

ANSWERS_WITHIN = 20.0  # seconds; Google Drive takes some after it was mounted


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


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; it becomes `path` in one step when the block succeeds and is deleted when it fails.

    Raises:
        FileExistsError: a device, a pipe or a socket is there, which the renaming would remove.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(errno.EEXIST, "it is a device or a pipe, and no file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    clean_leftovers(path.parent, path.name)
    aside = _path_aside(path, "partial")
    try:
        with name_place(path, aside):
            yield aside
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            aside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def name_place(path: Path, aside: Path | None = None) -> Iterator[None]:
    """Let an error of the disk in the block name `path`, also where a library reports it in its own way.

    Args:
        path: what is being written.
        aside: the temporary path that it is written to, which the error should not name.

    Raises:
        OSError: of the same number, with the path as its `filename`.
    """
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None) or _find_errno(str(error))  # shutil lists what failed, without a number
        named = [name for key in ("filename", "filename2") if (name := getattr(error, key, None)) is not None]
        if number is None or (named and not any(aside and str(name).startswith(str(aside)) for name in named)):
            raise  # filename2 is what a copy writes to
        raise OSError(number, os.strerror(number), str(path)) from error


def append_lines(path: Path, text: str) -> None:
    """Add whole lines to a file and wait until the disk has them. A last line that was cut short is left to readers."""
    with name_place(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _find_errno(text: str) -> int | None:
    """The number of the operating system's error that a library names in its message."""
    match = re.search(r"\bos error (\d+)\b|\[Errno (\d+)\]", text)
    return int(match[1] or match[2]) if match else None


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Replace `path` in one step: a reader sees the old text or the new one, never a part. Pieces are joined."""
    with new_file(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines([text] if isinstance(text, str) else text)


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as JSON Lines in one step, keys in the order given; only one row at a time is held in memory."""
    write_text(path, (to_json(row, ensure_ascii=False) + "\n" for row in rows))


def to_json(value: Any, **options: Any) -> str:
    """A value as JSON of the standard, which has neither NaN nor Infinity; both become null.

    Numbers and arrays of NumPy and PyTorch become plain ones. `options` are those of `json.dumps`.

    >>> to_json({"reward": float("nan"), "steps": [1, float("inf")]})
    '{"reward": null, "steps": [1, null]}'
    """
    try:
        return json.dumps(value, allow_nan=False, default=_to_plain, **options)
    except ValueError:
        return json.dumps(drop_nonfinite(value), allow_nan=False, **options)


def drop_nonfinite(value: Any) -> Any:
    """A value of JSON with None for each number in it that is NaN or infinite."""
    if isinstance(value, dict):
        return {key: drop_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [drop_nonfinite(item) for item in value]
    if hasattr(value, "tolist"):
        return drop_nonfinite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON.")


def stat_in_time(path: Path) -> os.stat_result:
    """`path.stat()`, for a disk of a network whose process may hang: then every call would wait for ever.

    The call that waits is left behind in a thread that does not keep this process alive.

    Raises:
        TimeoutError: there was no answer within ANSWERS_WITHIN seconds.
        OSError: as `path.stat()` raises it.
    """
    answers: list[os.stat_result | OSError] = []

    def ask() -> None:
        try:
            answers.append(path.stat())
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWERS_WITHIN)
    if not answers:
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {ANSWERS_WITHIN:.0f} s", str(path))
    if isinstance(answers[0], OSError):
        raise answers[0]
    return answers[0]


def require_folder(path: Path, remedy: str) -> None:
    """Raise NotADirectoryError, which ends with `remedy`, where `path` or a folder above it is a file."""
    absolute = path.absolute()
    nearest = next(place for place in (absolute, *absolute.parents) if place.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{path} cannot be a folder, because {nearest} is a file. {remedy}")


def follow_link(path: Path) -> Path:
    """The absolute path of what `path` leads to if it is a link, else its own.

    A person links a folder to another disk that has room. What replaces the folder must be written there, because
    `new_folder` writes beside its path and would replace the link itself.
    """
    return Path(os.path.realpath(path)) if path.is_symlink() else path.absolute()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill; it becomes `path` when the block succeeds and is deleted when the block fails.

    It is written beside `path`. A link there is replaced, and what it leads to stays as it is (see `follow_link`).

    Raises:
        OSError: a disk is mounted at `path`, which cannot be renamed (EBUSY); raised before the block.
    """
    if path.is_mount():
        raise OSError(errno.EBUSY, "a disk is mounted there, and only a folder on it can be replaced", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    clean_leftovers(path.parent, path.name)
    aside, old = _path_aside(path, "partial"), _path_aside(path, "old")
    for leftover in (old, aside):  # of an earlier block of this process
        _undo(leftover)
    try:
        with name_place(path, aside):
            aside.mkdir()
            yield aside
            if os.path.lexists(path):
                path.replace(old)
            aside.replace(path)
    finally:
        for leftover in (old, aside):
            _undo(leftover)


def _path_aside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


def clean_leftovers(folder: Path, name: str | None = None) -> None:
    """Undo what killed processes left in `folder`, which `new_file` and `new_folder` write.

    Half-written files and folders are removed. Where a kill came between the two renames of `new_folder`, the folder
    that was to be replaced is put back, because the records still describe that one. What a running process writes
    stays, and so does what cannot be removed.

    Args:
        folder: is searched with all its folders, unless there is a name.
        name: of the one file or folder, directly in `folder`, whose leftovers are cleaned.
    """
    pattern = "**/.*" if name is None else f".{glob.escape(name)}.*"
    with contextlib.suppress(OSError):  # a folder that cannot be listed
        paths = [path for path in folder.glob(pattern) if _is_leftover(path, name)]
        for path in sorted(paths, key=lambda path: path.suffix):  # `.old` before `.partial`
            _undo(path)


def _undo(leftover: Path) -> None:
    """Remove a leftover, or put it back where nothing has replaced it."""
    target = leftover.with_name(LEFTOVER.fullmatch(leftover.name)["name"])
    with contextlib.suppress(OSError):
        if leftover.suffix == ".old" and os.path.lexists(leftover) and not os.path.lexists(target):
            leftover.replace(target)
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_leftover(path: Path, name: str | None) -> bool:
    match = LEFTOVER.fullmatch(path.name)
    if match is None or name not in (None, match["name"]):
        return False
    # A process that began after the leftover was written only has the number of the dead one, as in containers.
    return match["pid"] is None or not is_running(int(match["pid"]), path.lstat().st_mtime)


def is_running(pid: int, since: float) -> bool:
    """Whether a process with this number runs on this machine, and ran at `since`, in seconds of `time.time()`."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= since + 1
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # another user's
        return True
