"""One intent, one submission: what was meant to be sent, written down before it is sent.

An intent is a zip's content (sha256), so that a repacked zip is another one. Its note lies beside the zip, and its tag
stands in the submission's description, where Kaggle keeps it when this machine is gone.
"""

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from grpo_kit.runs.files import hash_of, write_text


@dataclass(frozen=True)
class Note:
    """What is known of one intent. `state`: sending (no answer yet), sent, scored or failed. `at`: when, UTC, ISO 8601."""

    sha256: str
    state: str
    at: str
    message: str = ""
    ref: int = 0
    score: str = ""


class Intent:
    """The intent to submit the zip at `path`; nothing is written by naming it."""

    def __init__(self, path: Path) -> None:
        self.sha256 = hash_of(path) or ""
        self.tag = f"[grpo-kit {self.sha256[:12]}]"
        self.path = path.with_name(f"submitted-{self.sha256[:12]}.json")

    def read(self) -> Note | None:
        """The note, if there is one. Raises ValueError for one that was damaged: then nobody knows what was sent."""
        if not self.path.is_file():
            return None
        try:
            return Note(**json.loads(self.path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(
                f"{self.path} is damaged, so whether this zip was submitted is not known. Look at Kaggle's list for {self.tag}, then delete the file."
            ) from None

    def begin(self, message: str) -> None:
        """Note that it is being sent. Raises FileExistsError when someone noted so before."""
        note = Note(self.sha256, "sending", _now(), message)
        try:
            with self.path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(asdict(note), indent=2) + "\n")
        except FileExistsError:
            raise FileExistsError(f"{self.path} says that this zip is being submitted by another process. Wait for it.") from None  # fmt: skip

    def become(self, state: str, ref: int = 0, score: str = "") -> None:
        """Note what came of it."""
        known = self.read() or Note(self.sha256, state, _now())
        note = replace(known, state=state, at=_now(), ref=ref or known.ref, score=score)
        write_text(self.path, json.dumps(asdict(note), indent=2) + "\n")

    def forget(self) -> None:
        """Nothing was sent after all."""
        self.path.unlink(missing_ok=True)


def age(note: Note) -> float:
    """Seconds since the note was written."""
    return (datetime.now(UTC) - datetime.fromisoformat(note.at)).total_seconds()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
