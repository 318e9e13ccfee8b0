"""The file of a search, `tune/study.db`: how Optuna opens it, what is said where it is damaged or its disk full."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from grpo_kit.runs.files import write_text
from grpo_kit.runs.run import Run
from grpo_kit.runs.texts import name_functions

# What SQLite says of an error of the disk, and the operating system's number for it.
SQLITE_ERRORS = {"is full": errno.ENOSPC, "disk I/O error": errno.EIO, "readonly database": errno.EROFS}


def study_address(path: Path) -> str:
    """The file as Optuna names a storage. The run's lock keeps other processes away.

    SQLite's own locks are left out, because some mounted disks do not have them.
    """
    return f"sqlite:///file:{quote(str(path.absolute()))}?nolock=1&uri=true"


def load_study(run: Run) -> Any:
    """The run's search as an `optuna.Study`.

    Raises:
        FileNotFoundError: the run has no search.
        ValueError: the file is damaged.
    """
    import optuna

    path = run.path / "tune" / "study.db"
    if not path.is_file():
        raise FileNotFoundError(
            name_functions(f"Run {run.name!r} has no search. Run `grpo-kit tune --run {run.name}` first.")
        )
    with name_study(path):
        return optuna.load_study(study_name=run.name, storage=study_address(path))


@contextmanager
def name_study(path: Path) -> Iterator[None]:
    """Say in a sentence that the file of the search is damaged, or that its disk is full."""
    import optuna
    import sqlalchemy

    try:
        yield
    except (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError) as error:
        cause = error if isinstance(error, sqlalchemy.exc.DBAPIError) else error.__cause__
        reason = str(getattr(cause, "orig", cause))
        number = next((number for words, number in SQLITE_ERRORS.items() if words in reason), None)
        if number == errno.EIO:  # also what SQLite says of a quota
            number = _find_disk_error(path.with_name("room")) or number
        if number:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise ValueError(describe_damage(path, reason)) from error


def describe_damage(path: Path, reason: str) -> str:
    remedy = name_functions("Put back a copy of it, or start the search again with `grpo-kit tune --force`.")
    return f"{path}, which holds the trials of the search, cannot be used ({reason}). {remedy}"


def _find_disk_error(path: Path) -> int | None:
    """The number of the error with which the disk refuses a file at `path`; None where it takes one."""
    try:
        write_text(path, "0" * (1 << 16))
        path.unlink()
    except OSError as error:
        return error.errno
    return None
