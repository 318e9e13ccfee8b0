"""A zip is submitted once: after any failure and any number of calls Kaggle has one submission."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from grpo_kit.kaggle import credentials
from grpo_kit.kaggle.submission_note import Submission
from grpo_kit.kaggle.submit import send_once, wait_for_score
from tests.helpers.fake_kaggle import KEY, USER


@pytest.fixture
def client(loopback):
    from grpo_kit.kaggle.client import KaggleClient

    return KaggleClient(credentials.Credentials("the test", USER, KEY))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "submission.zip"
    path.write_bytes(os.urandom(5000))
    return path


def submit(client, path, message="words"):
    messages, submission = [], Submission(path)
    send_once(client, submission, message, messages.append)
    return submission, " | ".join(messages)


def grow_old(submission, seconds=700):
    note = replace(submission.read_note(), at=(datetime.now(UTC) - timedelta(seconds=seconds)).isoformat())
    submission.note_path.write_text(json.dumps(vars(note)))


def test_a_zip_is_submitted_noted_and_scored(client, loopback, path):
    submission, output = submit(client, path)
    assert "submitted as 1000: words [grpo-kit " in output and submission.read_note().state == "sent"
    messages = []
    loopback.outcomes = ["PENDING", "PENDING", "COMPLETE"]
    assert wait_for_score(client, submission, messages.append) == "0.86"
    assert [line.split()[0] for line in messages] == ["pending", "complete"] and len(loopback.slept) == 2
    assert submission.read_note() == replace(submission.read_note(), state="scored", ref=1000, score="0.86")


def test_the_same_zip_is_never_sent_twice(client, loopback, path, tmp_path):
    submit(client, path)
    assert "not sent twice" in submit(client, path, "other words")[1]
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    (elsewhere / "submission.zip").write_bytes(path.read_bytes())  # another machine: no note, but Kaggle's list
    submission, output = submit(client, elsewhere / "submission.zip")
    assert "Kaggle has this zip already, as 1000" in output and submission.read_note().ref == 1000
    assert loopback.count("CreateSubmission") == 1


def test_another_zip_is_another_submission(client, loopback, path):
    submit(client, path)
    path.write_bytes(b"repacked")
    submit(client, path)
    assert loopback.count("CreateSubmission") == 2


@pytest.mark.parametrize(
    "fault",
    [
        "cut after", "half", "html", "redirect dead", "redirect foreign", "redirect plain", "redirect loop",
        b"[1]", b'"x"', b"", b"{}", b'{"a":' * 200_000,
    ],
    ids=lambda fault: str(fault)[:20],
)  # fmt: skip
def test_after_a_lost_answer_the_submission_list_is_searched(client, loopback, path, fault):
    """With `html` the fake does not submit, so the test adds the submission to the list by hand."""
    loopback.faults["CreateSubmission"] = [fault]
    if fault == "html":
        loopback.submissions = [{"ref": 1000, "description": f"words {Submission(path).tag}", "status": "PENDING"}]
        loopback.listed_after = 1
    else:
        loopback.listed_after = 3  # the first look, before sending, and two after
    submission, output = submit(client, path)
    assert "not sent twice" in output and submission.read_note() == replace(
        submission.read_note(), state="sent", ref=1000
    )
    assert loopback.count("CreateSubmission") == 1 == len(loopback.submissions)


def test_an_unknown_outcome_stays_unknown_until_the_list_shows_it(client, loopback, path):
    loopback.faults["CreateSubmission"], loopback.listed_after = ["cut after"], 99
    message = "not known whether the zip was submitted.*again in 10 minutes: it checks the list before it sends"
    with pytest.raises(ConnectionError, match=message):
        submit(client, path)
    assert loopback.slept == [5, 10, 20, 40, 80] and Submission(path).read_note().state == "sending"
    with pytest.raises(
        ConnectionError, match="without an answer.*checks the list before it sends"
    ):  # too early to tell
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


def test_a_zip_that_never_arrived_is_sent_again_after_the_waiting_time(client, loopback, path):
    loopback.faults["CreateSubmission"] = ["cut"]
    with pytest.raises(ConnectionError):
        submit(client, path)
    with pytest.raises(ConnectionError):
        submit(client, path)
    assert loopback.count("CreateSubmission") == 1
    grow_old(Submission(path))
    assert "never reached" in submit(client, path)[1]
    assert loopback.count("CreateSubmission") == 2 and len(loopback.submissions) == 1


def test_without_the_list_a_lost_answer_is_never_sent_again(client, loopback, path):
    loopback.faults["CreateSubmission"] = ["cut after"]
    send = client.submit_zip

    def submit_then_lose_the_list(*words):
        try:
            return send(*words)
        finally:
            loopback.faults["ListSubmissions"] = [503] * 6

    client.submit_zip = submit_then_lose_the_list
    with pytest.raises(ConnectionError):
        submit(client, path)
    assert Submission(path).read_note().state == "sending"
    assert "not sent twice" in submit(client, path)[1]
    assert loopback.count("CreateSubmission") == 1


@pytest.mark.parametrize(
    ("fault", "error"), [(400, RuntimeError), (401, PermissionError), (403, PermissionError), (404, FileNotFoundError)]
)
def test_a_refusal_leaves_no_note_so_that_it_can_be_sent_later(client, loopback, path, fault, error):
    loopback.faults["CreateSubmission"] = [fault]
    with pytest.raises(error):
        submit(client, path)
    assert Submission(path).read_note() is None and loopback.submissions == []
    assert "submitted as 1000" in submit(client, path)[1]


def test_a_used_up_daily_limit_is_reported_before_the_upload(client, loopback, path, far_east):
    loopback.allowed, loopback.today = 0, 5
    with pytest.raises(RuntimeError, match=r"5 submissions were made today.*\(5 a day\).*after 08:00 CST"):
        submit(client, path)
    assert loopback.uploads == {}


def test_a_daily_limit_that_kaggle_reports_at_submission_is_refused_with_its_message(client, loopback, path):
    loopback.allowed, loopback.today = 0, 0  # Kaggle's answer for a team without submissions
    with pytest.raises(RuntimeError, match="daily submission allowance.*Kaggle allows 5 submissions a day"):
        submit(client, path)
    assert Submission(path).read_note() is None


def test_an_upload_that_fails_leaves_no_note(client, loopback, path):
    loopback.faults["upload"] = [400]
    with pytest.raises(RuntimeError, match="nothing was submitted"):
        submit(client, path)
    assert Submission(path).read_note() is None


def test_a_faster_process_keeps_its_note(client, loopback, path):
    submission = Submission(path)
    send = client.submit_zip

    def late(where, message, slug, before):
        submission.begin("the other process")
        return send(where, message, slug, before)

    client.submit_zip = late
    with pytest.raises(FileExistsError, match="another process"):
        submit(client, path)
    assert submission.read_note().message == "the other process" and loopback.count("CreateSubmission") == 0


def test_where_the_note_cannot_be_written_nothing_is_sent(client, loopback, path, monkeypatch):
    monkeypatch.setattr(Submission, "begin", lambda *_: (_ for _ in ()).throw(PermissionError(13, "read-only")))
    with pytest.raises(PermissionError):
        submit(client, path)
    assert loopback.count("CreateSubmission") == 0


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["uploading", "creating"])
def test_a_process_killed_in_the_middle_has_submitted_once_at_most(client, loopback, path, moment):
    code = f"""
import sys
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = {loopback.url!r}
from pathlib import Path
from grpo_kit.kaggle import api, credentials
from grpo_kit.kaggle.client import KaggleClient
from grpo_kit.kaggle.submission_note import Submission
from grpo_kit.kaggle.submit import send_once
client = KaggleClient(credentials.Credentials("x", {USER!r}, {KEY!r}))
def wait_to_be_killed():
    print("now", flush=True, file=sys.__stdout__)
    sys.stdin.read()
if {moment!r} == "uploading":
    client.api.before_submit = None
    api.OfficialClient.upload_complete = lambda *_, **__: wait_to_be_killed()
else:
    begin = Submission.begin
    Submission.begin = lambda *words: (begin(*words), wait_to_be_killed())
send_once(client, Submission(Path({str(path)!r})), "words", lambda line: None)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    if moment == "creating":  # it is unknown whether it was sent: look first, then wait
        with pytest.raises(ConnectionError, match="checks the list before it sends"):
            submit(client, path)
        assert loopback.count("CreateSubmission") == 0
        grow_old(Submission(path))
    submit(client, path)
    assert loopback.count("CreateSubmission") == 1 == len(loopback.submissions)


def test_a_zip_that_cannot_be_scored_is_reported_with_kaggles_reason(client, loopback, path):
    submission, _ = submit(client, path)
    loopback.outcomes, loopback.error = ["ERROR"], "Evaluation metric raised an unexpected error"
    with pytest.raises(RuntimeError, match="could not score the zip: Evaluation metric raised.*grpo-kit check"):
        wait_for_score(client, submission, lambda line: None)
    assert submission.read_note().state == "failed"


def test_waiting_for_the_score_survives_connection_errors_and_can_be_resumed(client, loopback, path):
    submission, _ = submit(client, path)
    loopback.faults["ListSubmissions"] = [503, "cut", 429]
    assert wait_for_score(client, submission, lambda line: None) == "0.86"
    loopback.faults["ListSubmissions"] = [503] * 6
    with pytest.raises(ConnectionError):
        wait_for_score(client, submission, lambda line: None)
    assert wait_for_score(client, submission, lambda line: None) == "0.86"


def test_a_submission_that_the_list_never_shows_ends_the_waiting(client, loopback, path):
    submission, _ = submit(client, path)
    loopback.listed_after, clock = 999, iter(range(0, 100_000, 200))
    with pytest.raises(RuntimeError, match="has not shown the submission for 10 minutes"):
        wait_for_score(client, submission, lambda line: None, lambda: next(clock))
