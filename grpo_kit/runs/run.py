"""One run, one folder: where it lies, what each stage wrote into it, and whether that is still up to date.

A stage (`data`, `before`, `sft`, `screen`, `train`, `after`, `prefer`, `package`) writes to temporary files and renames
them into place. Then it records in `run.json` its settings, the files it read and the files it wrote, with their
sha256. A stage whose record still holds is skipped. A finished stage is not replaced without `force` when its settings
or inputs have changed, because overwriting an adapter that took a night to train is the worst thing that a kit can do.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpo_kit.config import MATH
from grpo_kit.runs import interrupts, processes
from grpo_kit.runs.files import (
    clean_leftovers,
    hash_of,
    require_folder,
    stat_in_time,
    to_json,
    write_text,
)
from grpo_kit.runs.lock import hold_lock, is_locked
from grpo_kit.runs.places import copy_earlier_run, find_root
from grpo_kit.runs.reading import GROWING, check_file, read_json, remedy_for
from grpo_kit.runs.records import Files, describe_environment, hash_each, not_written_by, refuse_differences
from grpo_kit.runs.texts import name_functions
from grpo_kit.runs.trained import TRAINING, StageFiles, files_below

RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


def find_run(name: str, root: str | Path | None = None, filesystem: Path = Path("/")) -> "Run":
    """The run called `name`, without its configuration; its folder is not created.

    On Kaggle a run that an earlier kernel left under /kaggle/input is first copied to the output folder.

    Raises:
        ValueError: if `name` is not a plain folder name.
        NotADirectoryError: if a file stands where the run's folder, or one above it, should be.
    """
    if not re.fullmatch(RUN_NAME, name):
        raise ValueError(
            f"Invalid run name {name!r}. Use at most 100 letters, digits, '.', '_' and '-', "
            "starting with a letter or digit."
        )
    run = Run(Path(root) if root else find_root(filesystem=filesystem), name)
    try:
        stat_in_time(run.notes)
    except TimeoutError as error:
        raise OSError(
            f"{run.root}, the folder of the runs, does not answer ({error.strerror}). Mount its disk again (in Colab, "
            "run the cell that opens the run), or set GRPO_KIT_ROOT to a folder on another disk."
        ) from None
    except OSError:  # it is not there yet, or the next line says what is wrong with it
        pass
    require_folder(run.path, "Set run.root to the folder that is to hold the runs.")
    copy_earlier_run(run.path, filesystem=filesystem)
    if run.path.is_dir() and not is_locked(run.path):
        clean_leftovers(run.path)
    return run


class Run:
    """The folder of one run and the records of its stages. Making a Run creates nothing on the disk."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name, self.path = root, name, root / name
        self._seen: dict[str, Any] = {}  # the record of each stage when `is_done` was last asked
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
        self.routing = self.evaluation / "routing.json"
        self.judge = self.evaluation / "judge.json"  # how good a judge of answers is
        self.verdicts = self.path / "judge.jsonl"  # of a judge at an address
        self.picture, self.page = self.path / "report.png", self.path / "report.html"
        # A Kaggle kernel submits what lies at the top of its output.
        kaggle = bool(os.environ.get("KAGGLE_KERNEL_RUN_TYPE"))
        self.submission = root.parent / ("submission.zip" if kaggle else "submission/submission.zip")

    def data_file(self, split: str) -> Path:
        """The path of the rows of `train`, `val` or `test`."""
        return self.path / "data" / split / "data.jsonl"

    def environments(self) -> list[str]:
        """The environments of the run's rows, math first; runs of earlier versions have math only.

        Raises:
            FileNotFoundError: the data is not prepared.
        """
        return list(read_json(self.manifest).get("environments", [MATH]))

    def stages(self) -> dict[str, dict[str, Any]]:
        """{stage: its record in `run.json`} for each finished stage; empty for a run that has none.

        Raises:
            ValueError: `run.json` is damaged.
        """
        try:
            return read_json(self.notes)["stages"]
        except FileNotFoundError:
            if self.adapter.exists():  # a new training would replace it
                raise ValueError(
                    f"{self.notes} is gone, and {self.adapter} is there. {remedy_for(self.notes)}"
                ) from None
            return {}

    def stage_files(self, stage: str) -> StageFiles:
        """Where a stage that trains keeps its files; those of `train` lie at the top of the run.

        Args:
            stage: `sft`, `train` or `prefer`.
        """
        if stage != "train":
            return files_below(self.path / stage)
        files = (self.adapter, self.probe, self.metrics, self.completions, self.forecast)
        return StageFiles(self.path, *files, self.path / "checkpoints")

    def trained_stages(self) -> list[str]:
        """The finished stages that train, in their order."""
        records = self.stages()
        return [stage for stage in TRAINING if stage in records]

    def stages_after(self, stage: str) -> list[str]:
        """The finished stages that train after `stage`; none where that is no stage that trains."""
        return [name for name in self.trained_stages() if stage in TRAINING[: TRAINING.index(name)]]

    def stage_before(self, stage: str) -> str | None:
        """The finished stage whose adapter `stage` goes on from; None where it begins with a fresh LoRA.

        Args:
            stage: `sft`, `train` or `prefer`.
        """
        earlier = TRAINING[: TRAINING.index(stage)]
        return next((name for name in reversed(earlier) if name in self.stages()), None)

    def require_trained(self) -> str:
        """The last finished stage that trains, whose adapter is the run's result.

        Raises:
            FileNotFoundError: no stage has trained the run, or a file of the last one is gone.
            ValueError: a file of it is damaged; or a stage before it was repeated since, so it goes on from nothing.
        """
        trained = self.trained_stages() or ["train"]
        self.require_stage(trained[-1], f"grpo-kit {trained[-1]}")
        if outdated := self.outdated_stage():
            before, stage = outdated
            raise ValueError(
                f"Stage {stage!r} of run {self.name!r} went on from another adapter than the one that stage "
                f"{before!r} has written since. Make stage {stage!r} again with --force (run.force=true)."
            )
        return trained[-1]

    def outdated_stage(self) -> tuple[str, str] | None:
        """(a stage that trains, the one after it) where the second went on from what the first has replaced since."""
        records, trained = self.stages(), self.trained_stages()
        for before, stage in zip(trained, trained[1:]):
            adapter = self.stage_files(before).adapter.relative_to(self.path).as_posix()
            if records[stage]["read"].get(adapter) != records[before]["wrote"].get(adapter):
                return before, stage
        return None

    @property
    def result(self) -> StageFiles:
        """The files of the last finished stage that trains; raises as `require_trained` does."""
        return self.stage_files(self.require_trained())

    def config_digest(self) -> str | None:
        """The sha256 of `config.yaml` as the run wrote it; None if it is not known, as in runs of version 0.2.0."""
        return read_json(self.notes).get("config") if self.notes.exists() else None

    @contextmanager
    def lock(self, stage: str) -> Iterator[None]:
        """Be the only one that writes the run while the block runs; SIGTERM and SIGINT end the block at once.

        The processes of one training share the lock, which the first of them holds.

        Raises:
            RuntimeError: another process writes the run, or has finished this stage since `is_done` was asked.
        """
        with hold_lock(self.path, f"Run {self.name!r}", stage) if processes.is_first() else interrupts.interruptible():
            if stage in self._seen and self.stages().get(stage) != self._seen[stage]:
                raise RuntimeError(
                    f"Another process has just finished stage {stage!r} of run {self.name!r}. Call again."
                )
            yield

    def is_done(
        self, stage: str, settings: dict[str, Any], reads: Files, force: bool = False, derived: bool = False
    ) -> bool:
        """Whether `stage` is up to date: made with these settings from these files, with its own files intact.

        Args:
            stage: the stage's name.
            settings: what the stage would be made with now.
            reads: the files that it would read now, or {path: sha256} where the caller has hashed them already.
            force: whether to make it again although it is up to date.
            derived: whether the stage may be made again when its inputs changed, because that is cheap.

        Raises:
            ValueError: if the stage finished with different settings or inputs, and neither `force` nor (for inputs)
                `derived` is set; or if one of its files is damaged, which is not written over.
        """
        record = self._seen[stage] = self.stages().get(stage)
        if record is None or force:
            return False
        if not all((self.path / name).exists() for name in record["wrote"]):
            return False  # deleted by hand: make it again
        for path in self._find_changed(record):
            if path.is_relative_to(self.path) and path.name not in GROWING:
                raise ValueError(f"{path} {not_written_by(stage)} {remedy_for(path)}")
            return False  # an interrupted repetition, or another run's zip: make it again
        digests = set(record["read"].values())  # by content, so that a file may have moved
        changed = [path for path, digest in hash_each(reads).items() if digest not in digests]
        if changed and derived:
            return False
        refuse_differences(self.name, stage, record, settings, changed)
        return True

    def require_stage(self, stage: str, command: str) -> None:
        """Check that `stage` is done and its files are there.

        Args:
            stage: the stage's name.
            command: the command that makes the stage; the message names it as the remedy.

        Raises:
            FileNotFoundError: if the stage is not done or one of its files is missing.
            ValueError: if one of its files is damaged.
        """
        stages = self.stages()
        record = stages.get(stage)
        missing = [name for name in (record["wrote"] if record else []) if not (self.path / name).exists()]
        if missing:
            remedy = f"Run `{command}` to make it again."
            if later := self.stages_after(stage):  # without --force the command would be refused
                remedy = (
                    f"Put back a copy of it; or make it again by `{command}` with --force (run.force=true), and then "
                    f"stage {later[0]!r}, which goes on from it."
                )
            raise FileNotFoundError(
                f"{self.path / missing[0]}, written by stage {stage!r}, is gone. {name_functions(remedy)}"
            )
        if record is None:
            runs = sorted(path.parent.name for path in self.root.glob("*/run.json"))
            runs = [name for name in runs if re.fullmatch(RUN_NAME, name)]  # others cannot be opened
            others = f" Runs in {self.root}: {', '.join(runs)}." if runs and self.name not in runs else ""
            before = "" if stage == "data" or "data" in stages else "`grpo-kit data` and then "
            raise FileNotFoundError(
                f"Run {self.name!r} has no finished stage {stage!r} in {self.path}. "
                + name_functions(f"Run {before}`{command}` first.")
                + others
            )
        for path in self._find_changed(record):
            if path.is_relative_to(self.path) and path.name not in GROWING:
                remedy = remedy_for(path, name_functions(f"run `{command}`, which makes it anew."))
                raise ValueError(f"{path} {not_written_by(stage)} {remedy}")

    def _find_changed(self, record: dict[str, Any]) -> Iterator[Path]:
        """The files of a stage that are not as it wrote them. Raises ValueError for one that cannot be read."""
        for name, digest in record["wrote"].items():
            if hash_of(path := self.path / name) != digest:
                if path.is_relative_to(self.path):
                    check_file(path)
                yield path

    def record_stage(
        self,
        stage: str,
        settings: dict[str, Any],
        reads: Files,
        wrote: list[Path],
        seconds: float,
        config_yaml: str,
        earlier: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Record a finished stage and `more` about it; `run.json` and `config.yaml` are each replaced in one step.

        `earlier` are the records, under names of their own, of what this stage went on from; others whose names begin
        with "STAGE to " are dropped.
        """
        record = read_json(self.notes) if self.notes.exists() else {"run": self.name, "stages": {}}
        former = [name for name in record["stages"] if f"{name} to ".startswith(f"{stage} to ")]
        for name in former:
            del record["stages"][name]
        record["stages"] |= earlier or {}
        record["stages"][stage] = {
            "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": round(seconds, 2),
            "settings": settings,
            "read": self._hash_files(reads),
            "wrote": self._hash_files(wrote),
            "environment": describe_environment(),
            **more,
        }
        write_text(self.config, config_yaml)
        record["config"] = hash_of(self.config)
        write_text(self.notes, to_json(record, indent=2) + "\n")

    def _hash_files(self, paths: Files) -> dict[str, str | None]:
        """{name: sha256}; names are relative to the run folder inside it, absolute outside."""
        names = {p: p.relative_to(self.path) if p.is_relative_to(self.path) else p.absolute() for p in paths}
        return {names[path].as_posix(): digest for path, digest in hash_each(paths).items()}
