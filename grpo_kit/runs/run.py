"""One run, one folder: where it lies, what each stage wrote into it, and whether that still stands.

A stage (`data`, `screen`, `before`, `train`, `after`, `package`) writes its files aside and renames them into place, then
notes in `run.json` what it was told (`settings`), what it read and what it wrote (sha256). Repeating a stage whose
note still holds is skipped; one that was told or would read something else now is refused, because silently
overwriting an adapter that took a night is the worst thing a kit can do.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from grpo_kit.runs.files import differences, hash_of, new_folder, write_text

PACKAGES = ("grpo-kit", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "numpy")

Reads = Sequence[Path] | Mapping[Path, str | None]  # files, or files with their sha256


def find_root(environ: Mapping[str, str] = os.environ, filesystem: Path = Path("/")) -> Path:
    """The folder that holds all runs: Drive on Colab when mounted, /kaggle/working on Kaggle, ./runs elsewhere."""
    if environ.get("GRPO_KIT_ROOT"):
        return Path(environ["GRPO_KIT_ROOT"])
    if environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return filesystem / "kaggle/working/runs"
    drive = filesystem / "content/drive/MyDrive"
    if environ.get("COLAB_RELEASE_TAG"):
        return (drive if drive.is_dir() else filesystem / "content") / "grpo-kit/runs"
    return Path("runs")


def nf4_folder(model: str, environ: Mapping[str, str] = os.environ, filesystem: Path = Path("/")) -> Path:
    """Where the NF4 checkpoint made of `model` lies unless told otherwise: on the machine's own disk, never on Drive."""
    name = model.strip("/").replace("/", "--")
    if environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return filesystem / "kaggle/working/nf4" / name
    if environ.get("COLAB_RELEASE_TAG"):
        return filesystem / "content/grpo-kit/nf4" / name
    return find_root(environ, filesystem).parent / "nf4" / name


def find_run(name: str, root: str | Path | None = None, filesystem: Path = Path("/")) -> "Run":
    """The run `name`; nothing is created yet. On Kaggle an earlier output under /kaggle/input is brought over first.

    Raises ValueError for a name that is not a plain folder name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"{name!r} cannot name a run; letters, digits, '.', '_' and '-' can, starting with a letter or digit. Pick such a name."
        )
    run = Run(Path(root) if root else find_root(filesystem=filesystem), name)
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") and not run.path.exists():
        earlier = sorted((filesystem / "kaggle/input").glob(f"**/runs/{name}/run.json"))
        if earlier:
            with new_folder(run.path) as aside:
                shutil.copytree(earlier[-1].parent, aside, dirs_exist_ok=True)
                for path in (aside, *aside.rglob("*")):  # inputs are mounted read-only, and their copies would stay so
                    path.chmod(path.stat().st_mode | 0o200)
    return run


class Run:
    """The folder of one run and the notes of its stages; nothing is created by naming it."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name, self.path = root, name, root / name
        self.config = self.path / "config.yaml"
        self.notes = self.path / "run.json"
        self.manifest = self.path / "data" / "manifest.json"
        self.screening = self.path / "screening.jsonl"
        self.screened, self.left_out = (self.path / "data/train" / f"{name}.jsonl" for name in ("screened", "left_out"))
        self.metrics = self.path / "metrics.jsonl"
        self.forecast = self.path / "forecast.json"
        self.completions = self.path / "completions.jsonl"
        self.adapter = self.path / "adapter"
        self.evaluation = self.path / "evaluation"
        self.probe = self.evaluation / "probe.safetensors"
        self.picture, self.page = self.path / "report.png", self.path / "report.html"
        # A Kaggle kernel submits what lies at the top of its output.
        kaggle = bool(os.environ.get("KAGGLE_KERNEL_RUN_TYPE"))
        self.submission = root.parent / ("submission.zip" if kaggle else "submission/submission.zip")

    def data_file(self, split: str) -> Path:
        """The data file of `train`, `val` or `test`."""
        return self.path / "data" / split / "data.jsonl"

    def stages(self) -> dict[str, dict[str, Any]]:
        """What `run.json` says of each finished stage; empty for a run that has none."""
        if not self.notes.is_file():
            return {}
        return json.loads(self.notes.read_text())["stages"]

    def is_done(
        self, stage: str, settings: dict[str, Any], reads: Reads, force: bool = False, derived: bool = False
    ) -> bool:  # fmt: skip
        """Whether `stage` stands as it would be made now: same settings, same files read, its own files whole.

        Raises ValueError when it stands, was made otherwise, and `force` is not set. A `derived` stage whose inputs
        were replaced meanwhile is merely out of date: it is to be made again.
        """
        note = self.stages().get(stage)
        if note is None or force:
            return False
        if any(hash_of(self.path / name) != digest for name, digest in note["wrote"].items()):
            return False  # damaged or deleted by hand: make it again
        known = set(note["read"].values())
        changed = [path for path, digest in _hash_each(reads).items() if digest not in known]
        if changed and derived:
            return False
        other = differences(note["settings"], settings) + [f"{path} changed since" for path in changed]
        if other:
            raise ValueError(
                f"Stage {stage!r} of run {self.name!r} is done and was made otherwise ({'; '.join(other[:3])}); a finished "
                "stage is not overwritten unasked. Repeat it with --force (run.force=true), or name another run with --run (run.name)."
            )
        return True

    def require_stage(self, stage: str, command: str) -> None:
        """Raise FileNotFoundError unless `stage` is done and its files are there; `command` is the remedy named."""
        note = self.stages().get(stage)
        gone = [name for name in (note["wrote"] if note else []) if not (self.path / name).exists()]
        if gone:
            raise FileNotFoundError(
                f"{self.path / gone[0]}, written by stage {stage!r}, is gone. Run `{command}` again to make it anew."
            )
        if note is None:
            known = sorted(p.name for p in self.root.glob("*") if (p / "run.json").is_file())
            there = f" Runs in {self.root}: {', '.join(known)}." if known and self.name not in known else ""
            raise FileNotFoundError(
                f"Run {self.name!r} has no finished stage {stage!r} in {self.path}. Run `{command}` first.{there}"
            )

    def record_stage(
        self,
        stage: str,
        settings: dict[str, Any],
        reads: Reads,
        wrote: list[Path],
        seconds: float,
        config_yaml: str,
        **more: Any,
    ) -> None:
        """Record a finished stage, with `more`: `run.json` and `config.yaml` are replaced in one step each."""
        whole = json.loads(self.notes.read_text()) if self.notes.is_file() else {"run": self.name, "stages": {}}
        whole["stages"][stage] = {
            "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": round(seconds, 2),
            "settings": settings,
            "read": self._names(reads),
            "wrote": self._names(wrote),
            "environment": environment(),
            **more,
        }
        write_text(self.config, config_yaml)
        write_text(self.notes, json.dumps(whole, indent=2) + "\n")

    def _names(self, paths: Reads) -> dict[str, str | None]:
        """{name: sha256}; names are relative to the run folder inside it, absolute outside."""
        names = {p: p.relative_to(self.path) if p.is_relative_to(self.path) else p.absolute() for p in paths}
        return {names[path].as_posix(): digest for path, digest in _hash_each(paths).items()}


def _hash_each(paths: Reads) -> dict[Path, str | None]:
    """{path: sha256}; a mapping has the hashes already, so that large inputs are hashed once."""
    return dict(paths) if isinstance(paths, Mapping) else {path: hash_of(path) for path in paths}


def environment() -> dict[str, Any]:
    """Versions, hardware and git commit, for lineage. A package that is missing is None; nothing is imported."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count(), "gpu": gpu,
        "packages": versions, "commit": commit,
    }  # fmt: skip
