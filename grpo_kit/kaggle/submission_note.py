"""The note beside a zip that says what is known about its submission, however the process that sent it ended."""

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from grpo_kit.kaggle.kernel_metadata import COMPETITION
from grpo_kit.runs.files import hash_of, write_text

STATES = ("sending", "sent", "scored", "failed")
LIST_PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}/submissions"


@dataclass(frozen=True)
class Note:
    """What is known about the submission of a zip.

    Attributes:
        sha256: hash of the zip.
        state: one of `STATES`; `sending` means that there is no answer yet.
        at: when the note was written, UTC, ISO 8601.
        ref: Kaggle's number for the submission, 0 if unknown.
    """

    sha256: str
    state: str
    at: str
    message: str = ""
    ref: int = 0
    score: str = ""

    def __post_init__(self) -> None:
        texts = (self.sha256, self.state, self.at, self.message, self.score)
        if not all(isinstance(text, str) for text in texts) or type(self.ref) is not int or self.state not in STATES:
            raise ValueError("a note has another form")
        if datetime.fromisoformat(self.at).tzinfo is None:
            raise ValueError("a note's time has its zone")

    def age(self) -> float:
        """Seconds since the note was written."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.at)).total_seconds()


class Submission:
    """The submission of one zip, identified by its content, with a note in `submitted-HASH.json` beside it.

    Creating the object writes nothing.

    Args:
        path: the zip.
    """

    def __init__(self, path: Path) -> None:
        self.zip, self.sha256 = path, hash_of(path) or ""
        self.tag = f"[grpo-kit {self.sha256[:12]}]"
        self.note_path = path.with_name(f"submitted-{self.sha256[:12]}.json")

    def describe(self, message: str) -> str:
        """The description in Kaggle's list: the message and the tag."""
        return " ".join(filter(None, (message.strip(), self.tag)))

    def read_note(self) -> Note | None:
        """The note, None if there is none. Raises ValueError for a damaged one: then nobody knows what was sent."""
        if not self.note_path.exists():
            return None
        try:
            return Note(**json.loads(self.note_path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError, IsADirectoryError):
            raise ValueError(
                f"{self.note_path} is damaged, so nobody knows whether this zip was submitted. Look for {self.tag} in "
                f"Kaggle's list ({LIST_PAGE}), then delete the file."
            ) from None

    def begin(self, message: str) -> None:
        """Note that the zip is being sent. Raises FileExistsError when another process has noted that before."""
        note = Note(self.sha256, "sending", _now(), message)
        try:
            with self.note_path.open("x", encoding="utf-8") as file:
                file.write(_to_json(note))
        except FileExistsError:
            raise FileExistsError(
                f"{self.note_path} says that another process is submitting this zip. Wait for it."
            ) from None

    def update(self, state: str, ref: int = 0, score: str = "") -> None:
        """Write a new state into the note; without `ref` the old number stays."""
        note = self.read_note() or Note(self.sha256, state, _now())
        write_text(self.note_path, _to_json(replace(note, state=state, at=_now(), ref=ref or note.ref, score=score)))

    def discard_note(self) -> None:
        """Remove the note: nothing was sent."""
        self.note_path.unlink(missing_ok=True)


def _to_json(note: Note) -> str:
    return json.dumps(asdict(note), indent=2) + "\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
