"""Where a notebook runs, and where runs and NF4 checkpoints lie there: Colab with Google Drive, Kaggle, or here."""

import os
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from grpo_kit.runs.files import new_folder, stat_in_time
from grpo_kit.runs.lock import LOCK
from grpo_kit.runs.reading import read_json

# How far mounted inputs of Kaggle are searched: /kaggle/input/notebooks/USER/KERNEL/nf4/MODEL has five folders below
# the first. A folder of a million pictures takes minutes to list.
DEEPEST, MOST_ENTRIES, MOST_FOLDERS = 6, 1000, 1000


def detect_place(environ: Mapping[str, str] = os.environ) -> str:
    """Where this notebook runs: `colab`, `kaggle` or `local`."""
    if environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    return "colab" if environ.get("COLAB_RELEASE_TAG") else "local"


def find_drive(filesystem: Path = Path("/")) -> Path | None:
    """The folder of the user's files on Google Drive in Colab; None where Drive is not mounted.

    Raises:
        OSError: Drive is mounted and does not answer. Colab's mount dies now and then and stays in its place.
    """
    folder = filesystem / "content/drive/MyDrive"
    try:
        stat_in_time(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OSError(
            f"Google Drive is mounted but does not answer ({error.strerror}), and the runs are kept there. Run the "
            "notebook's cell that opens the run again: it mounts Drive anew. In a terminal, set "
            "GRPO_KIT_ROOT=/content/grpo-kit/runs to work without Drive."
        ) from None
    return folder


def find_root(environ: Mapping[str, str] = os.environ, filesystem: Path = Path("/")) -> Path:
    """The folder that holds all runs: Drive on Colab when mounted, /kaggle/working on Kaggle, ./runs elsewhere.

    Raises:
        OSError: on Colab, Drive is mounted and does not answer.
    """
    if environ.get("GRPO_KIT_ROOT"):
        return Path(environ["GRPO_KIT_ROOT"])
    if environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return filesystem / "kaggle/working/runs"
    if environ.get("COLAB_RELEASE_TAG"):
        return (find_drive(filesystem) or filesystem / "content") / "grpo-kit/runs"
    return Path("runs")


def copy_earlier_run(path: Path, environ: Mapping[str, str] = os.environ, filesystem: Path = Path("/")) -> None:
    """Copy what an earlier Kaggle kernel left of a run under /kaggle/input; nothing outside Kaggle, or if it is there.

    Where the outputs of several kernels have the run, the one that finished a stage last is copied, and of those that
    finished the same, the one with more steps. The times of mounted files do not tell.

    Args:
        path: the run's folder.
    """
    if not environ.get("KAGGLE_KERNEL_RUN_TYPE") or path.exists():
        return
    if earlier := sorted((filesystem / "kaggle/input").glob(f"**/runs/{path.name}/run.json")):
        with new_folder(path) as aside:
            ignored = shutil.ignore_patterns(LOCK, ".*.partial")
            shutil.copytree(max(earlier, key=_progress).parent, aside, dirs_exist_ok=True, ignore=ignored)
            for copy in (aside, *aside.rglob("*")):  # inputs are mounted read-only, and copies keep that mode
                copy.chmod(copy.stat().st_mode | 0o200)


def _progress(notes: Path) -> tuple[str, int]:
    """(when the run with this `run.json` last finished a stage, bytes of its steps); the least for a damaged file."""
    try:
        finished = max((record["finished"] for record in read_json(notes)["stages"].values()), default="")
        logs = [*notes.parent.glob("metrics.jsonl"), *notes.parent.glob("*/metrics.jsonl")]
        return finished, sum(log.stat().st_size for log in logs)
    except (OSError, ValueError):
        return "", 0


def default_nf4_folder(model: str, environ: Mapping[str, str] = os.environ, filesystem: Path = Path("/")) -> Path:
    """Where the NF4 checkpoint of `model` lies by default: on the machine's own disk, never on Drive, which is slow.

    On Kaggle that is /kaggle/temp, which ends with the session: /kaggle/working takes 20 GB of output in all.
    """
    if environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return filesystem / "kaggle/temp/nf4" / _folder_name(model)
    if environ.get("COLAB_RELEASE_TAG"):
        return filesystem / "content/grpo-kit/nf4" / _folder_name(model)
    return find_root(environ, filesystem).parent / "nf4" / _folder_name(model)


def kaggle_nf4_folder(model: str, environ: Mapping[str, str] = os.environ, filesystem: Path = Path("/")) -> Path | None:
    """Where an NF4 checkpoint of `model` becomes part of a Kaggle kernel's output; None outside Kaggle."""
    if environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return filesystem / "kaggle/working/nf4" / _folder_name(model)
    return None


def drive_nf4_folder(model: str, environ: Mapping[str, str] = os.environ, filesystem: Path = Path("/")) -> Path | None:
    """Where an NF4 checkpoint of `model` is kept on Google Drive; None outside Colab, or without a Drive that answers.

    It is only copied from there: Drive is too slow to load from, and none of it is needed to go on.
    """
    try:
        drive = find_drive(filesystem) if environ.get("COLAB_RELEASE_TAG") else None
    except OSError:
        return None
    return drive / "grpo-kit/nf4" / _folder_name(model) if drive else None


def _folder_name(model: str) -> str:
    return model.strip("/").replace("/", "--")


def download_folder(nf4_folder: Path, environ: Mapping[str, str] = os.environ, filesystem: Path = Path("/")) -> Path:
    """Where the shards lie from which `nf4_folder` is made: in it; on Kaggle outside its 20 GB of output."""
    if environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return filesystem / "kaggle/temp/downloads" / nf4_folder.name
    return nf4_folder / ".download"


def find_mounted_folders(
    file: str, environ: Mapping[str, str] = os.environ, filesystem: Path = Path("/")
) -> Iterator[Path]:
    """The folders under /kaggle/input that hold a file of this name, nearest ones first; none outside Kaggle."""
    level = [filesystem / "kaggle/input"] if environ.get("KAGGLE_KERNEL_RUN_TYPE") else []
    for _ in range(DEEPEST):
        below: list[Path] = []
        for folder in level[:MOST_FOLDERS]:
            try:
                with os.scandir(folder) as listing:
                    entries = list(islice(listing, MOST_ENTRIES))
            except OSError:  # not there, or not readable
                continue
            if any(entry.name == file for entry in entries):
                yield folder
            else:
                below += sorted(Path(entry.path) for entry in entries if entry.is_dir())
        level = below


def mount_drive(filesystem: Path = Path("/")) -> str:
    """Ask Colab for Google Drive unless it is mounted; return a sentence that says where runs will be kept.

    A Drive that is mounted and does not answer is mounted anew. If that fails too, `GRPO_KIT_ROOT` is set to the
    machine's own disk, so that this session goes on without Drive.
    """
    folder, own_disk = filesystem / "content/drive", str(filesystem / "content/grpo-kit/runs")
    hangs = ""
    try:
        mounted = find_drive(filesystem)
    except OSError:
        mounted, hangs = None, "Google Drive did not answer. "
    if not mounted:
        try:
            from google.colab import drive

            drive.mount(str(folder), **({"force_remount": True} if hangs else {}))
            find_drive(filesystem)
        except Exception as error:  # refused, overlooked, no browser: Colab has an error type of its own for each
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            if hangs:
                os.environ["GRPO_KIT_ROOT"] = own_disk
            return (
                f"{hangs}Google Drive is not mounted ({reason}), so the run is kept on this machine's disk and is lost "
                "when the session ends. Run this cell again to be asked again."
            )
    if os.environ.get("GRPO_KIT_ROOT") == own_disk:  # from an earlier call, when Drive did not answer
        del os.environ["GRPO_KIT_ROOT"]
    return f"{hangs}Google Drive is mounted{' anew' if hangs else ''}: the run is kept when the session ends."
