"""Results of the slow steps, each in a file, so that a preparation that was killed goes on after the last one."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from grpo_kit.runs.files import write_lines
from grpo_kit.runs.reading import read_lines


class FinishedSteps:
    """Results of the steps that earlier attempts with the same settings and inputs have finished, one file for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, results: Iterable[Any]) -> list[Any]:
        """Results of a step: read from its file, or else computed and written to it.

        Args:
            name: the step's name, which is the file's name.
            results: a lazy iterable of values that JSON can hold; it is left alone where the file exists.
        """
        path = self.folder / f"{name}.jsonl"
        if path.is_file():
            return [line["result"] for line in read_lines(path)]
        results = list(results)
        write_lines(path, ({"result": result} for result in results))
        return results


@contextlib.contextmanager
def keep_finished_steps(folder: Path, key: dict[str, Any]) -> Iterator[FinishedSteps]:
    """Keep the results of steps in `folder` while the block runs, for exactly the settings and inputs in `key`.

    The folder is removed when the block succeeds or raises ValueError (then the input is at fault, and a repetition
    would fail too); after any other exception it stays, so that the next attempt finds it.
    """
    try:
        yield FinishedSteps(folder / digest_json(key)[:16])
    except ValueError:
        _remove_folder(folder)
        raise
    _remove_folder(folder)


def _remove_folder(folder: Path) -> None:
    """Remove the folder, and the two folders above it if they are empty: a run that failed at once leaves no trace."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in list(folder.parents)[:2]:
        with contextlib.suppress(OSError):
            parent.rmdir()


def digest_json(value: Any) -> str:
    """sha256 of a value that JSON can hold; the order of keys makes no difference."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
