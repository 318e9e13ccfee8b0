"""One intent, one submission: whatever breaks, and however often it is called, Kaggle sees one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from grpo_kit.kaggle import credentials, submission_note
from grpo_kit.kaggle.submit import send_once
from grpo_kit.kaggle.submit import wait_for_score as score
from tests.helpers.fake_kaggle import KEY, USER


@pytest.fixture
def client(loopback):
    from grpo_kit.kaggle.client import Client

    return Client(credentials.Credentials("the test", USER, KEY))


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "submission.zip"
    made.write_bytes(os.urandom(5000))
    return made


def submit(client, path, message="words"):
    said = []
    return send_once(client, path, message, said.append), " | ".join(said)


def grow_old(intent, seconds=700):
    note = replace(intent.read(), at=(datetime.now(UTC) - timedelta(seconds=seconds)).isoformat())
    intent.path.write_text(json.dumps(vars(note)))


def test_a_zip_is_submitted_noted_and_scored(client, loopback, path):
    intent, said = submit(client, path)
    assert "submitted as 1000: words [grpo-kit " in said and intent.read().state == "sent"
    said = []
    loopback.outcomes = ["PENDING", "PENDING", "COMPLETE"]
    assert score(client, intent, said.append) == "0.86"
    assert [line.split()[0] for line in said] == ["pending", "complete"] and len(loopback.slept) == 2
    assert intent.read() == replace(intent.read(), state="scored", ref=1000, score="0.86")


def test_the_same_zip_is_never_sent_twice(client, loopback, path, tmp_path):
    submit(client, path)
    assert "not sent twice" in submit(client, path, "other words")[1]
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    (elsewhere / "submission.zip").write_bytes(path.read_bytes())  # another machine: no note, but Kaggle's list
    intent, said = submit(client, elsewhere / "submission.zip")
    assert "Kaggle has this zip already, as 1000" in said and intent.read().ref == 1000
    assert loopback.count("CreateSubmission") == 1


def test_another_zip_is_another_intent(client, loopback, path):
    submit(client, path)
    path.write_bytes(b"repacked")
    submit(client, path)
    assert loopback.count("CreateSubmission") == 2


@pytest.mark.parametrize("fault", ["cut after", "half", "html"])
def test_an_answer_that_was_lost_is_looked_for_in_the_list(client, loopback, path, fault):
    """`html`: the fake does nothing then, so it is put into the list by hand, as if it had."""
    loopback.faults["CreateSubmission"] = [fault]
    if fault == "html":
        loopback.submissions = [
            {"ref": 1000, "description": f"words {submission_note.Intent(path).tag}", "status": "PENDING"}
        ]
        loopback.listed_after = 1
    else:
        loopback.listed_after = 3  # the first look, before sending, and two after
    intent, said = submit(client, path)
    assert "not sent twice" in said and intent.read() == replace(intent.read(), state="sent", ref=1000)
    assert loopback.count("CreateSubmission") == 1 == len(loopback.submissions)


def test_an_open_outcome_stays_open_until_the_list_shows_it(client, loopback, path):
    loopback.faults["CreateSubmission"], loopback.listed_after = ["cut after"], 99
    with pytest.raises(
        ConnectionError, match="open.*Run the same command again in 10 minutes: it looks before it sends"
    ):
        submit(client, path)
    assert loopback.slept == [5, 10, 20, 40, 80] and submission_note.Intent(path).read().state == "sending"
    with pytest.raises(ConnectionError, match="without an answer.*looks before it sends"):  # too early to tell
        submit(client, path)
    loopback.listed_after = 0
    assert "not sent twice" in submit(client, path)[1]
    assert loopback.count("CreateSubmission") == 1


def test_a_submission_that_kaggle_makes_after_the_line_broke_is_found_by_the_next_call(client, loopback, path):
    loopback.faults["CreateSubmission"] = ["late"]
    with pytest.raises(ConnectionError):
        submit(client, path)
    while not loopback.submissions:
        time.sleep(0.05)
    assert "not sent twice" in submit(client, path)[1] and loopback.count("CreateSubmission") == 1


def test_what_never_arrived_is_sent_when_the_list_has_had_its_time(client, loopback, path):
    loopback.faults["CreateSubmission"] = ["cut"]
    with pytest.raises(ConnectionError):
        submit(client, path)
    with pytest.raises(ConnectionError):
        submit(client, path)
    assert loopback.count("CreateSubmission") == 1
    grow_old(submission_note.Intent(path))
    assert "never reached" in submit(client, path)[1]
    assert loopback.count("CreateSubmission") == 2 and len(loopback.submissions) == 1


def test_the_list_out_of_reach_after_a_lost_answer_sends_nothing_again(client, loopback, path):
    loopback.faults["CreateSubmission"] = ["cut after"]
    send = client.submit

    def submit_then_lose_the_list(*words):
        try:
            return send(*words)
        finally:
            loopback.faults["ListSubmissions"] = [503] * 6

    client.submit = submit_then_lose_the_list
    with pytest.raises(ConnectionError):
        submit(client, path)
    assert submission_note.Intent(path).read().state == "sending"
    assert "not sent twice" in submit(client, path)[1]
    assert loopback.count("CreateSubmission") == 1


@pytest.mark.parametrize(
    ("fault", "error"), [(400, RuntimeError), (401, PermissionError), (403, PermissionError), (404, FileNotFoundError)]
)
def test_a_refusal_leaves_no_note_so_that_it_can_be_sent_later(client, loopback, path, fault, error):
    loopback.faults["CreateSubmission"] = [fault]
    with pytest.raises(error):
        submit(client, path)
    assert submission_note.Intent(path).read() is None and loopback.submissions == []
    assert "submitted as 1000" in submit(client, path)[1]


def test_a_day_that_is_used_up_is_said_before_anything_is_uploaded(client, loopback, path):
    loopback.allowed, loopback.today = 0, 5
    with pytest.raises(RuntimeError, match=r"5 submissions were made today.*\(5 a day\).*after midnight UTC"):
        submit(client, path)
    assert loopback.uploads == {}


def test_a_day_used_up_meanwhile_is_refused_with_kaggles_words_and_the_limit(client, loopback, path):
    loopback.allowed, loopback.today = 0, 0  # what Kaggle says of a team that has none yet
    with pytest.raises(RuntimeError, match="daily submission allowance.*Kaggle allows 5 submissions a day"):
        submit(client, path)
    assert submission_note.Intent(path).read() is None


def test_an_upload_that_fails_leaves_no_note(client, loopback, path):
    loopback.faults["upload"] = [400]
    with pytest.raises(RuntimeError, match="nothing was submitted"):
        submit(client, path)
    assert submission_note.Intent(path).read() is None


def test_a_second_process_that_was_faster_is_left_its_note(client, loopback, path):
    intent = submission_note.Intent(path)
    send = client.submit

    def late(where, message, slug, before):
        intent.begin("the other process")
        return send(where, message, slug, before)

    client.submit = late
    with pytest.raises(FileExistsError, match="another process"):
        submit(client, path)
    assert intent.read().message == "the other process" and loopback.count("CreateSubmission") == 0


def test_where_the_note_cannot_be_written_nothing_is_sent(client, loopback, path, monkeypatch):
    monkeypatch.setattr(
        submission_note.Intent, "begin", lambda *_: (_ for _ in ()).throw(PermissionError(13, "read-only"))
    )
    with pytest.raises(PermissionError):
        submit(client, path)
    assert loopback.count("CreateSubmission") == 0


@pytest.mark.parametrize("moment", ["uploading", "creating"])
def test_a_process_killed_in_the_middle_has_submitted_once_at_most(client, loopback, path, moment):
    code = f"""
import sys
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = {loopback.url!r}
from pathlib import Path
from grpo_kit import competition, credentials, kaggle_kernel
client = kaggle_kernel.Client(credentials.Credentials("x", {USER!r}, {KEY!r}))
if {moment!r} == "uploading":
    client.api.before = None
    kaggle_kernel._Api.upload_complete = lambda *_, **__: (print("now", flush=True, file=sys.__stdout__), sys.stdin.read())
else:
    import grpo_kit.intents as intents
    begin = intents.Intent.begin
    intents.Intent.begin = lambda *words: (begin(*words), print("now", flush=True, file=sys.__stdout__), sys.stdin.read())
competition.submit(client, Path({str(path)!r}), "words", lambda line: None)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    if moment == "creating":  # whether it was sent, nobody knows: look first, then wait
        with pytest.raises(ConnectionError, match="looks before it sends"):
            submit(client, path)
        assert loopback.count("CreateSubmission") == 0
        grow_old(submission_note.Intent(path))
    submit(client, path)
    assert loopback.count("CreateSubmission") == 1 == len(loopback.submissions)


def test_a_zip_that_cannot_be_scored_is_told_with_kaggles_reason(client, loopback, path):
    intent, _ = submit(client, path)
    loopback.outcomes, loopback.error = ["ERROR"], "Evaluation metric raised an unexpected error"
    with pytest.raises(RuntimeError, match="could not score the zip: Evaluation metric raised.*grpo-kit check"):
        score(client, intent, lambda line: None)
    assert intent.read().state == "failed"


def test_waiting_for_the_score_outlasts_a_bad_line_and_goes_on_when_called_again(client, loopback, path):
    intent, _ = submit(client, path)
    loopback.faults["ListSubmissions"] = [503, "cut", 429]
    assert score(client, intent, lambda line: None) == "0.86"
    loopback.faults["ListSubmissions"] = [503] * 6
    with pytest.raises(ConnectionError):
        score(client, intent, lambda line: None)
    assert score(client, intent, lambda line: None) == "0.86"


def test_a_submission_that_the_list_never_shows_ends_the_waiting(client, loopback, path):
    intent, _ = submit(client, path)
    loopback.listed_after, clock = 999, iter(range(0, 100_000, 200))
    with pytest.raises(RuntimeError, match="has not shown the submission for 10 minutes"):
        score(client, intent, lambda line: None, lambda: next(clock))
