"""Where a notebook runs, and where runs and NF4 checkpoints lie there: Colab with Google Drive, Kaggle, or here."""

import os
from collections.abc import Mapping
from pathlib import Path

from grpo_kit.runs.files import stat_in_time


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


def default_nf4_folder(model: str, environ: Mapping[str, str] = os.environ, filesystem: Path = Path("/")) -> Path:
    """Where the NF4 checkpoint of `model` lies by default: on the machine's own disk, never on Drive, which is slow."""
    name = model.strip("/").replace("/", "--")
    if environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return filesystem / "kaggle/working/nf4" / name
    if environ.get("COLAB_RELEASE_TAG"):
        return filesystem / "content/grpo-kit/nf4" / name
    return find_root(environ, filesystem).parent / "nf4" / name


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
