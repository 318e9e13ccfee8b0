"""Disks that are full, read-only, gone or without locks: one sentence with the place, what was kept and the remedy.

The full disks are real: a tmpfs where the tests may mount one, and a limit on the size of a file, which needs no
rights. What a stage could not write is absent or whole, and with room the run ends with the same bytes.
"""

import contextlib
import errno
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import traceback
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grpo_kit.cli.main import app
from tests.helpers.settings import ROOT

KEPT = "Finished stages, checkpoints and answered batches are kept; the same command continues from there."
FULL = f"Free space there, or set run.root to a folder on another disk. {KEPT}"
GONE = f"The disk does not answer: mount it again (in Colab, run the cell that opens the run). {KEPT}"
READ_ONLY = "Set run.root (or GRPO_KIT_ROOT) to a folder that can be written; copy the run there to continue it."
NO_LOCKS = (
    "This disk has no file locks. Set GRPO_KIT_ROOT (for runs) or HF_HOME (for models) to the machine's own disk."
)
REMEDIES = {
    errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EFBIG: FULL, errno.EIO: GONE, errno.ESTALE: GONE,
    errno.EROFS: READ_ONLY, errno.ENOLCK: NO_LOCKS,
}  # fmt: skip
FEW_ROWS = ["data.limit=40", "data.test_size=4", "data.val_size=4"]
SETTINGS = [
    "data.limit=36", "data.test_size=12", "data.val_size=8", "data.pass_rate=[0.0,1.0]", "evaluation.batch_size=8",
    "screening.num_generations=4", "grpo.num_generations=4", "grpo.per_device_train_batch_size=8",
    "grpo.resample_budget=0", "grpo.save_steps=1", "grpo.max_steps=2", "grpo.mask_truncated_completions=false",
]  # fmt: skip
STAGES = {
    "data": ["data", "-c", "tiny", *SETTINGS],
    "screen": ["screen"],
    "train": ["train"],
    "evaluate": ["evaluate"],
    "package": ["package"],
    "tune": ["tune", "lora.r=[4,8]", "--trials", "2", "--steps", "1"],
}


def run_command(words: list[str], root: Path) -> tuple[int, str]:
    """(exit status, the sentence or the trace) of a command on the run `trial` in `root/runs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRPO_KIT_ROOT", str(root / "runs"))
        patch.setenv("COLUMNS", "10000")
        result = CliRunner().invoke(app, [*words, "--run", "trial"])
    if result.exception and not isinstance(result.exception, SystemExit):
        return -1, "".join(traceback.format_exception(result.exception))
    return result.exit_code, "\n".join(line for line in result.output.splitlines() if line.startswith("error: "))


# Errors of the operating system, at the places where the kit writes


def fail_at(place: str, number: int, patch: pytest.MonkeyPatch) -> None:
    """Let each file of a run fail with this error when it is opened for writing, made durable, or renamed."""
    opened, renamed = Path.open, Path.replace

    def open_or_fail(path, mode="r", *rest, **options):
        if "manifest.json" in path.name and set(mode) & set("wax"):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, mode, *rest, **options)

    def rename_or_fail(path, target):
        if "data" in Path(target).name:
            raise OSError(number, os.strerror(number), str(path), None, str(target))
        return renamed(path, target)

    def sync_and_fail(descriptor):
        raise OSError(number, os.strerror(number))

    if place == "open":
        patch.setattr(Path, "open", open_or_fail)
    elif place == "rename":
        patch.setattr(Path, "replace", rename_or_fail)
    else:
        patch.setattr(os, "fsync", sync_and_fail)


@pytest.mark.slow
@pytest.mark.parametrize("number", REMEDIES, ids=errno.errorcode.get)
@pytest.mark.parametrize("place", ["open", "sync", "rename"])
def test_an_error_of_the_disk_is_one_sentence_and_nothing_is_half_written(tmp_path, place, number):
    data = ["data", "-c", "tiny", *FEW_ROWS]
    with pytest.MonkeyPatch.context() as patch:
        fail_at(place, number, patch)
        status, sentence = run_command(data, tmp_path)
    assert status == 1, sentence
    where = rf"{re.escape(str(tmp_path))}/runs/trial/\S+"
    assert re.fullmatch(
        rf"error: {where} cannot be used \({os.strerror(number)}\)\. {re.escape(REMEDIES[number])}", sentence
    ), sentence
    assert ".partial" not in sentence
    left = [path.name for path in tmp_path.rglob("*") if path.name.endswith((".partial", ".old", ".lock"))]
    assert left == [] and not (tmp_path / "runs/trial/data").exists()
    assert run_command(data, tmp_path) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN], ids=errno.errorcode.get)
def test_a_disk_that_does_not_answer_is_named_by_each_command_that_reads_the_run(tmp_path, number):
    run = tmp_path / "runs/trial"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"run": "trial", "stages": {}}))
    stat = os.stat

    def stat_or_fail(path, *rest, **options):
        if str(path).endswith("run.json"):
            raise OSError(number, os.strerror(number), str(path))
        return stat(path, *rest, **options)

    for words in (["data"], ["train"], ["evaluate"], ["package"], ["report"], ["handoff", "--to", "trl"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "stat", stat_or_fail)
            status, sentence = run_command(words, tmp_path)
        assert status == 1, (words, sentence)
        assert sentence == f"error: {run / 'run.json'} cannot be used ({os.strerror(number)}). {GONE}"


# Full disks


class Mounted:
    """A disk of its own in memory; a ballast leaves no more than 8 KiB of it free."""

    def __init__(self, folder: Path) -> None:
        self.root, self.ballast = folder / "disk", folder / "disk/ballast"
        self.root.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(self.root)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("this machine lets the tests mount no disk")

    @contextlib.contextmanager
    def full(self):
        disk = os.statvfs(self.root)
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - 8192)
        try:
            yield
        finally:
            self.ballast.unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.root)], check=True)


class Limited:
    """A folder in which no file of this process may have more than 4 KiB, as on a disk that is full from there on."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "disk"
        self.root.mkdir()

    @contextlib.contextmanager
    def full(self):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores SIGXFSZ, so a write fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def kill_trial():
    spec = importlib.util.spec_from_file_location("kill_trial", ROOT / "benchmarks/kill_trial.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, kill_trial):
    """The files of a run whose disk had room."""
    root = tmp_path_factory.mktemp("undisturbed")
    for words in STAGES.values():
        assert run_command(words, root) == (0, "")
    return read_files(kill_trial, root)


def read_files(kill_trial, root):
    files = kill_trial.read_files(root)
    return {
        name: content
        for name, content in files.items()
        if not re.search(r"\.(db|png)$|tfevents|trial_\d+/checkpoints", name)
    }


@pytest.mark.slow
@pytest.mark.parametrize("disk", [Mounted, Limited])
def test_a_full_disk_is_named_and_with_room_the_run_ends_with_the_same_bytes(tmp_path, undisturbed, kill_trial, disk):
    disk = disk(tmp_path)
    try:
        for stage, words in STAGES.items():
            with disk.full():
                status, sentence = run_command(words, disk.root)
            assert status == 1, (stage, sentence)
            assert re.match(rf"error: {disk.root}/\S+ cannot be used \(", sentence), (stage, sentence)
            assert sentence.endswith(FULL) and ".partial" not in sentence, (stage, sentence)
            left = [path for path in disk.root.rglob(".*") if path.name.endswith((".partial", ".old", ".lock"))]
            assert left == [], stage
            records = disk.root / "runs/trial/run.json"
            assert not records.exists() or stage not in json.loads(records.read_text())["stages"]
            assert run_command(words, disk.root) == (0, ""), stage
        files = read_files(kill_trial, disk.root)
        assert sorted(files) == sorted(undisturbed)
        assert [name for name in files if files[name] != undisturbed[name]] == []
    finally:
        disk.close()
