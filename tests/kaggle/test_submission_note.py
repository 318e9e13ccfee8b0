"""The note of an intent: written before, by one process only, for these bytes only."""

import json
import threading

import pytest

from grpo_kit.kaggle import submission_note


@pytest.fixture
def intent(tmp_path):
    (tmp_path / "submission.zip").write_bytes(b"adapter")
    return submission_note.Intent(tmp_path / "submission.zip")


def test_naming_an_intent_writes_nothing(intent, tmp_path):
    assert intent.read() is None and [path.name for path in tmp_path.iterdir()] == ["submission.zip"]


def test_an_intent_is_the_zips_content(intent, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/other.zip").write_bytes(b"adapter")
    (tmp_path / "submission.zip").write_bytes(b"another adapter")
    assert submission_note.Intent(tmp_path / "elsewhere/other.zip").tag == intent.tag
    assert submission_note.Intent(tmp_path / "submission.zip").tag != intent.tag


def test_a_note_begins_becomes_and_is_forgotten(intent):
    intent.begin("words")
    assert intent.read().state == "sending" and submission_note.age(intent.read()) < 60
    intent.become("sent", 7)
    intent.become("scored", score="0.86")
    note = intent.read()
    assert (note.state, note.ref, note.score, note.message) == ("scored", 7, "0.86", "words")
    intent.forget()
    assert intent.read() is None


def test_of_many_who_begin_at_once_one_does(intent):
    began, gate = [], threading.Barrier(8)

    def begin():
        gate.wait()
        try:
            intent.begin("words")
            began.append(1)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert began == [1]


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"state": "sent"}), json.dumps({"sha": 1})])
def test_a_damaged_note_is_not_taken_for_none(intent, text):
    intent.path.write_text(text)
    with pytest.raises(ValueError, match="damaged.*Look at Kaggle's list for"):
        intent.read()
