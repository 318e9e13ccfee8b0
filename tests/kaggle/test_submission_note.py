"""The note of a submission: written before it is sent, by one process only, for these bytes only."""

import json
import threading

import pytest

from grpo_kit.kaggle.submission_note import Submission


@pytest.fixture
def submission(tmp_path):
    (tmp_path / "submission.zip").write_bytes(b"adapter")
    return Submission(tmp_path / "submission.zip")


def test_creating_a_submission_writes_nothing(submission, tmp_path):
    assert submission.read_note() is None and [path.name for path in tmp_path.iterdir()] == ["submission.zip"]


def test_a_submission_is_identified_by_the_zips_content(submission, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/other.zip").write_bytes(b"adapter")
    (tmp_path / "submission.zip").write_bytes(b"another adapter")
    assert Submission(tmp_path / "elsewhere/other.zip").tag == submission.tag
    assert Submission(tmp_path / "submission.zip").tag != submission.tag


def test_a_note_is_created_updated_and_deleted(submission):
    submission.begin("words")
    assert submission.read_note().state == "sending" and submission.read_note().age() < 60
    submission.update("sent", 7)
    submission.update("scored", score="0.86")
    note = submission.read_note()
    assert (note.state, note.ref, note.score, note.message) == ("scored", 7, "0.86", "words")
    submission.discard_note()
    assert submission.read_note() is None


def test_only_one_of_many_simultaneous_submissions_begins(submission):
    began, gate = [], threading.Barrier(8)

    def begin():
        gate.wait()
        try:
            submission.begin("words")
            began.append(1)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert began == [1]


SOUND = {"sha256": "0" * 64, "state": "sent", "at": "2026-11-30T10:00:00+00:00", "message": "", "ref": 7, "score": ""}


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"state": "sent"}', '{"sha": 1}',
        *(json.dumps(SOUND | other) for other in (
            {"state": "done"}, {"state": None}, {"at": "yesterday"}, {"at": 5}, {"at": "2026-11-30T10:00:00"},
            {"ref": "7"}, {"ref": True}, {"score": 0.86}, {"message": None},
        )),
    ],
)  # fmt: skip
def test_a_damaged_note_is_not_treated_as_missing(submission, text):
    submission.note_path.write_text(text)
    with pytest.raises(ValueError, match="damaged.*Look for .grpo-kit .*in Kaggle's list"):
        submission.read_note()
