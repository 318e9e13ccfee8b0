"""The official client against a fake Kaggle on loopback: its requests, its retries and its error messages."""

import json
import os
import subprocess
import sys
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from grpo_kit.kaggle import credentials
from tests.helpers.fake_kaggle import KEY, TOKEN, USER

SLUG = "nvidia-nemotron-model-reasoning-challenge"
UNAVAILABLE = (503, {"Retry-After": "1"})  # urllib3 alone would repeat any call after this answer


# Answers of something that stands between us and Kaggle: whatever they say, Kaggle may have done what was asked.
NOT_KAGGLES = [
    "redirect dead", "redirect foreign", "redirect plain", "redirect loop",
    b"", b"null", b"[1]", b'"x"', b"7", b'{"ref"', b"<html>", b"\xff", b"[" * 200_000, b'{"a":' * 200_000,
    b'{"code": 500, "message": "later"}',
]  # fmt: skip
UNUSABLE = [
    b"{}",
    b'{"ref": "x", "versionNumber": "x"}',
    b'{"ref": [1], "versionNumber": {}}',
    b'{"code": "x"}',
    b'{"code": 400}',
]


@pytest.fixture
def client(loopback):
    from grpo_kit.kaggle.client import KaggleClient

    return KaggleClient(credentials.Credentials("the test", USER, KEY))


@pytest.fixture
def impatient(monkeypatch):
    """For `slow` answers: the client waits half a second only."""
    from grpo_kit.kaggle import api

    return lambda fault: fault == "slow" and monkeypatch.setattr(api, "TIMEOUTS", (0.5, 0.5))


@pytest.fixture
def folder(tmp_path):
    from grpo_kit.kaggle import kernel

    notebook = kernel.find_notebook("03_training")
    staged_kernel = kernel.build_kernel(USER, notebook, "NvidiaRtxPro6000", tmp_path, kernels=["ada/grpo-kit-02-data"])
    staged_kernel.write()
    return staged_kernel.folder


def archive(tmp_path, size=300_000):
    path = tmp_path / "any name.zip"
    path.write_bytes(os.urandom(size))
    return path


def send(client, path):
    began = []
    return client.submit_zip(path, "words [tag]", SLUG, lambda: began.append(1)), began


# --- Who we are


def test_a_key_is_used_directly_and_a_tokens_username_is_looked_up(loopback):
    from grpo_kit.kaggle.client import KaggleClient

    assert KaggleClient(credentials.Credentials("the test", USER, KEY)).owner == USER and loopback.calls == []
    client = KaggleClient(credentials.Credentials("the test", token=TOKEN))
    assert client.owner == USER and [name for name, _ in loopback.calls] == ["IntrospectToken"]
    assert client.submission_limits(SLUG) == (0, 5)


def test_the_given_credentials_win_over_all_others(loopback, monkeypatch, tmp_path):
    from grpo_kit.kaggle.client import KaggleClient

    monkeypatch.setenv("KAGGLE_API_TOKEN", "another")
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/access_token").write_text("another one")
    assert KaggleClient(credentials.Credentials("the test", USER, KEY)).submission_limits(SLUG) == (0, 5)


def test_an_expired_token_is_reported(loopback):
    from grpo_kit.kaggle.client import KaggleClient

    loopback.token_lives = False
    with pytest.raises(PermissionError, match="from the test is not valid any more. Make a new one at"):
        KaggleClient(credentials.Credentials("the test", token=TOKEN))


def test_the_login_of_the_kaggle_command_is_used(loopback, tmp_path, monkeypatch):
    from grpo_kit.kaggle.client import KaggleClient

    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    path = tmp_path / ".kaggle/credentials.json"
    path.parent.mkdir()
    login = {
        "refresh_token": "r",
        "access_token": TOKEN,
        "access_token_expiration": "2999-01-01T00:00:00+00:00",
        "username": USER,
    }
    path.write_text(json.dumps(login))
    path.chmod(0o600)
    client = KaggleClient(credentials.find_credentials())
    assert client.owner == USER and client.submission_limits(SLUG) == (0, 5)


@pytest.mark.slow
def test_importing_the_client_neither_logs_in_nor_prints_nor_makes_a_folder(tmp_path):
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/access_token").write_text(TOKEN)
    code = """
import os, socket
def refuse(*_, **__): raise AssertionError("the network was touched")
socket.getaddrinfo = socket.create_connection = refuse
before = dict(os.environ)
from grpo_kit.kaggle import api
assert dict(os.environ) == before
assert api.OfficialClient.args == [] and api.extended.KaggleApi.args == []
"""
    environ = os.environ | {"HOME": str(tmp_path), "VERBOSE": "1", "KAGGLE_API_TOKEN": TOKEN}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".kaggle"]


def test_the_private_parts_of_the_client_that_we_use_exist():
    import kagglesdk
    from kagglesdk.kaggle_client import KaggleClient

    from grpo_kit.kaggle.api import READS, Adapter, UploadAdapter, extended, mount_adapters

    http = mount_adapters(KaggleClient(username="a", password="b").http_client())
    assert isinstance(http._session.get_adapter("https://www.kaggle.com"), Adapter)
    assert http.BearerAuth("t").token == "t"
    folder = Path(kagglesdk.__file__).parent
    code = "".join(path.read_text() for path in folder.glob("*/services/*.py"))
    assert all(f'"{service}", "{name}"' in code for service, name in (call.split("/") for call in READS))
    ends = extended.ResumableUploadResult
    assert len({ends.COMPLETE, ends.FAILED, ends.INCOMPLETE, ends.EXPIRED}) == 4
    for name in (
        "kernels_push", "kernels_status", "kernels_output", "competition_submissions", "competition_submit",
        "competition_get_submission_limits", "upload_complete", "with_retry", "build_kaggle_client",
    ):  # fmt: skip
        assert callable(getattr(extended.KaggleApi, name))
    assert extended.HTTPAdapter is UploadAdapter
    assert isinstance(extended.requests.Session().get_adapter("https://www.kaggle.com"), UploadAdapter)


# --- Push, status, output


def test_a_push_sends_the_metadata_and_the_accelerator(client, loopback, folder):
    answer = client.push_kernel(folder, "NvidiaRtxPro6000")
    assert answer.version_number == 1 and answer.url.endswith("/ada/grpo-kit-03-training")
    [sent] = loopback.pushed
    assert sent["slug"] == "ada/grpo-kit-03-training" and sent["newTitle"] == "grpo-kit 03 training"
    assert (sent["machineShape"], sent["enableGpu"], sent["enableInternet"]) == ("NvidiaRtxPro6000", True, False)
    assert sent["modelDataSources"] == ["metric/nemotron-3-nano-30b-a3b-bf16/Transformers/default/1"]
    assert sent["datasetDataSources"] == ["ada/grpo-kit-wheels-cp312"] and sent["isPrivate"] is True
    assert sent["kernelDataSources"] == ["ada/grpo-kit-02-data"] and sent["competitionDataSources"] == [SLUG]
    assert json.loads(sent["text"])["cells"][0]["source"].startswith("# Added by `grpo-kit push`")


def test_a_push_that_drops_a_source_fails(client, loopback, folder):
    loopback.invalid = {"invalidDatasetSources": ["ada/grpo-kit-wheels-cp312"]}
    with pytest.raises(RuntimeError, match="without dataset ada/grpo-kit-wheels-cp312.*Stop the run at https"):
        client.push_kernel(folder, "NvidiaRtxPro6000")


def test_a_push_answered_with_an_error_fails(client, loopback, folder):
    loopback.invalid = {"error": "Maximum batch GPU session count of 2 reached."}
    with pytest.raises(RuntimeError, match="refused the kernel: Maximum batch GPU session count"):
        client.push_kernel(folder, "NvidiaRtxPro6000")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut", "cut after", "slow", "half", "html", 500, 502, 503, UNAVAILABLE])
def test_a_push_without_an_answer_is_sent_once_and_its_outcome_is_unknown(client, loopback, impatient, folder, fault):
    impatient(fault)
    loopback.faults["SaveKernel"] = [fault]
    with pytest.raises(ConnectionError, match="gave no answer"):
        client.push_kernel(folder, "NvidiaRtxPro6000")
    assert loopback.count("SaveKernel") == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*NOT_KAGGLES, *UNUSABLE], ids=lambda fault: str(fault)[:20])
def test_a_push_with_an_answer_that_kaggle_does_not_give_is_neither_repeated_nor_taken_for_success(
    client, loopback, folder, fault
):
    loopback.faults["SaveKernel"] = [fault]
    with pytest.raises(ConnectionError, match="gave no answer"):
        client.push_kernel(folder, "NvidiaRtxPro6000")
    assert loopback.count("SaveKernel") == 1 and loopback.count("foreign") == 0


def test_a_push_rejected_with_status_429_is_sent_again(client, loopback, folder):
    loopback.faults["SaveKernel"] = [(429, {"Retry-After": "20"}), 429]
    assert client.push_kernel(folder, "NvidiaRtxPro6000").version_number == 1
    assert loopback.count("SaveKernel") == 3 and loopback.slept[0] == 20 and 2 <= loopback.slept[1] <= 3


def test_status_gives_the_state_and_the_reason(client, loopback, folder):
    client.push_kernel(folder, "NvidiaRtxPro6000")
    loopback.states, loopback.failure = ["RUNNING", "ERROR"], "Your notebook ran out of memory"
    assert [client.kernel_status("ada/grpo-kit-03-training/1")[0] for _ in "ab"] == ["RUNNING", "ERROR"]
    assert loopback.calls[-1][1]["versionLabel"] == "v1"


def test_output_is_fetched_page_by_page_without_the_checkpoint(client, loopback, folder, tmp_path):
    loopback.files = {
        "runs/r/run.json": b"{}",
        "submission.zip": b"zip",
        "a.txt": b"a" * 4_000_000,
        "nf4/x": b"big",
        "z": b"",
    }
    loopback.log = "words"
    client.download_output("ada/grpo-kit-03-training/1", tmp_path / "out", r"^(?!nf4/)")
    fetched = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert fetched == {name: data for name, data in loopback.files.items() if name != "nf4/x"} | {
        "grpo-kit-03-training.log": b"words"
    }


def test_an_output_that_would_escape_its_folder_is_refused(client, loopback, tmp_path):
    loopback.files = {"../evil": b"x"}
    with pytest.raises(ValueError, match="Refusing to download"):
        client.download_output("ada/grpo-kit-03-training/1", tmp_path / "out", "")
    assert not (tmp_path / "evil").exists()


# --- Reads are tried again


@pytest.mark.slow
@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, 520, "cut", "slow", "half"])
def test_a_read_is_retried_after_a_temporary_error(client, loopback, impatient, fault):
    impatient(fault)
    loopback.faults["GetSubmissionLimits"] = [fault] * 3
    assert client.submission_limits(SLUG) == (0, 5)
    assert loopback.count("GetSubmissionLimits") == 4
    assert len(loopback.slept) == 2  # the second try comes at once
    assert all(due <= pause <= due + 1 for pause, due in zip(loopback.slept, [2, 4]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error", "says", "calls"),
    [
        (400, RuntimeError, "refused competition .*400", 1),
        (401, PermissionError, "does not accept the credentials from the test .*settings/api", 1),
        (403, PermissionError, "does not allow ada .*rules", 1),
        (404, FileNotFoundError, "has nothing called competition", 1),
        (429, RuntimeError, "too many calls .*Call again later", 6),
        ((429, {"Retry-After": "soon"}), RuntimeError, "Call again later", 6),
        ((429, {"Retry-After": "301"}), RuntimeError, "Call again in 301 s", 1),
        ((429, {"Retry-After": "3600"}), RuntimeError, "Call again in 3600 s", 1),
        (500, ConnectionError, "no answer about competition .*500", 6),
        ("cut", ConnectionError, "no answer about competition", 6),
        ("half", ConnectionError, "no answer about competition", 6),
        ("html", ConnectionError, "cannot read it", 1),
    ],
)
def test_a_permanent_error_is_one_sentence(client, loopback, fault, error, says, calls):
    loopback.faults["GetSubmissionLimits"] = [fault] * 9
    with pytest.raises(error, match=says) as caught:
        client.submission_limits(SLUG)
    assert type(caught.value) is error and "\n" not in str(caught.value)
    assert loopback.count("GetSubmissionLimits") == calls


def test_an_unreachable_server_means_that_nothing_was_sent(client, loopback, folder):
    loopback.close()
    for call in (lambda: client.submission_limits(SLUG), lambda: client.push_kernel(folder, "NvidiaRtxPro6000")):
        with pytest.raises(RuntimeError, match="cannot be reached, so nothing was done"):
            call()
    assert len(loopback.slept) == 8  # four pauses each: even the push was tried again, since it was never sent


def test_a_retry_waits_until_the_date_in_retry_after(client, loopback):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    loopback.faults["GetSubmissionLimits"] = [(503, {"Retry-After": later}), (429, {"Retry-After": past})]
    assert client.submission_limits(SLUG) == (0, 5)
    assert 90 <= loopback.slept[0] <= 100 and 2 <= loopback.slept[1] <= 3


@pytest.mark.parametrize("call", ["kernels_status", "kernels_output"])
@pytest.mark.parametrize("status", [401, 403])
def test_the_clients_own_words_for_a_refusal_are_replaced(client, loopback, tmp_path, call, status):
    loopback.faults["GetKernelSessionStatus"] = loopback.faults["ListKernelSessionOutput"] = [status]
    with pytest.raises(PermissionError, match=str(status)) as caught:
        client.kernel_status("ada/any-kernel/1") if call == "kernels_status" else client.download_output(
            "ada/any-kernel", tmp_path, ""
        )
    assert "benchmark" not in str(caught.value)


# --- Submit


def test_a_zip_is_uploaded_under_the_name_the_scorer_expects_then_submitted(client, loopback, tmp_path):
    path = archive(tmp_path)
    assert send(client, path) == (1000, [1])
    assert loopback.uploads["blob-0"] == path.read_bytes()
    names = [name for name, _ in loopback.calls]
    assert names == ["StartSubmissionUpload", "upload", "CreateSubmission"]
    assert loopback.calls[0][1]["fileName"] == "submission.zip" and loopback.calls[0][1]["contentLength"] == 300_000
    assert loopback.calls[2][1]["submissionDescription"] == "words [tag]"


@pytest.mark.slow
@pytest.mark.parametrize("faults", [["cut"], [503], ["slow"], ["cut", 503, "cut"]])
def test_a_cut_upload_resumes_where_it_stopped(client, loopback, impatient, tmp_path, faults):
    impatient(faults[0])
    loopback.faults["upload"] = list(faults)
    path = archive(tmp_path, 3_000_000)
    assert send(client, path) == (1000, [1])
    assert loopback.uploads["blob-0"] == path.read_bytes() and loopback.count("CreateSubmission") == 1
    if faults == ["cut"]:
        assert loopback.calls[-2][1]["Content-Range"] == "bytes 1500000-2999999/3000000"


@pytest.mark.parametrize("fault", [503, 400, 403])
def test_an_unfinished_upload_submits_nothing(client, loopback, tmp_path, fault):
    loopback.faults["upload"] = [fault] * 20
    with pytest.raises(RuntimeError, match="nothing was submitted"):
        send(client, archive(tmp_path))
    assert loopback.count("CreateSubmission") == 0


@pytest.mark.slow
@pytest.mark.parametrize("status", [302, 307, 308])
@pytest.mark.parametrize("place", ["dead", "foreign", "plain", "loop"])
@pytest.mark.parametrize("call", ["upload", "resume"])
def test_an_upload_that_is_led_to_another_address_submits_nothing(client, loopback, tmp_path, call, place, status):
    loopback.faults["upload"] = [503]  # for `resume`: the client asks how much has arrived
    loopback.faults[call] = [f"redirect {place} {status}"] * 20
    with pytest.raises(RuntimeError, match="upload of .* failed, so nothing was submitted. Check the .* proxy"):
        send(client, archive(tmp_path))
    assert loopback.count("CreateSubmission") == loopback.count("foreign") == 0
    assert sum(loopback.slept) == 31


def test_an_upload_that_is_led_away_once_goes_on_where_it_was_sent(client, loopback, tmp_path):
    loopback.faults["upload"] = ["redirect foreign 307"]
    path = archive(tmp_path)
    assert send(client, path) == (1000, [1])
    assert loopback.uploads["blob-0"] == path.read_bytes() and loopback.count("foreign") == 0


def test_an_upload_that_cannot_start_is_retried_and_submits_nothing(client, loopback, tmp_path):
    loopback.faults["StartSubmissionUpload"] = ["cut"] * 9
    with pytest.raises(RuntimeError, match="Nothing was submitted"):
        send(client, archive(tmp_path))
    assert loopback.count("StartSubmissionUpload") == 6


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut", "cut after", "late", "slow", "half", "html", 500, 504, UNAVAILABLE])
def test_a_submission_without_an_answer_is_sent_once_and_its_outcome_is_unknown(
    client, loopback, impatient, tmp_path, fault
):
    impatient(fault)
    loopback.faults["CreateSubmission"] = [fault]
    with pytest.raises(ConnectionError):
        send(client, archive(tmp_path))
    assert loopback.count("CreateSubmission") == 1


@pytest.mark.parametrize("fault", [*NOT_KAGGLES, *UNUSABLE], ids=lambda fault: str(fault)[:20])
def test_a_submission_with_an_answer_that_kaggle_does_not_give_is_unknown(client, loopback, tmp_path, fault):
    loopback.faults["CreateSubmission"] = [fault]
    with pytest.raises(ConnectionError, match="gave no answer"):
        send(client, archive(tmp_path))
    assert loopback.count("CreateSubmission") == 1 and loopback.count("foreign") == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", NOT_KAGGLES, ids=lambda fault: str(fault)[:20])
def test_a_read_with_an_answer_that_kaggle_does_not_give_is_an_error(client, loopback, folder, tmp_path, fault):
    client.push_kernel(folder, "NvidiaRtxPro6000")
    calls = {
        "GetKernelSessionStatus": lambda: client.kernel_status("ada/grpo-kit-x"),
        "ListKernelSessionOutput": lambda: client.download_output("ada/grpo-kit-x", tmp_path, ".*"),
        "ListSubmissions": lambda: client.list_submissions(SLUG, "[tag]"),
        "GetSubmissionLimits": lambda: client.submission_limits(SLUG),
        "StartSubmissionUpload": lambda: send(client, archive(tmp_path)),
    }
    for name, call in calls.items():
        loopback.faults[name] = [fault]
        with pytest.raises((ConnectionError, RuntimeError), match="gave no answer"):
            call()
    assert loopback.count("foreign") == loopback.count("CreateSubmission") == 0


@pytest.mark.parametrize("fault", NOT_KAGGLES, ids=lambda fault: str(fault)[:20])
def test_another_servers_answer_does_not_name_the_account(loopback, fault):
    from grpo_kit.kaggle.client import KaggleClient

    loopback.faults["IntrospectToken"] = [fault]
    with pytest.raises(ConnectionError, match="gave no answer"):
        KaggleClient(credentials.Credentials("the test", token=TOKEN))
    assert loopback.count("foreign") == 0


@pytest.mark.parametrize("status", [400, 503])
def test_a_refusal_is_read_by_its_status_whatever_its_text_is(client, loopback, status):
    loopback.faults["GetSubmissionLimits"] = [(status, {}, b"[" * 200_000)] * 6
    with pytest.raises((RuntimeError, ConnectionError), match=str(status)):
        client.submission_limits(SLUG)


def test_a_submission_rejected_temporarily_is_sent_again_without_another_upload(client, loopback, tmp_path):
    loopback.faults["CreateSubmission"] = [(429, {"Retry-After": "9"})]
    assert send(client, archive(tmp_path))[0] == 1000
    assert loopback.count("upload") == 1 and loopback.count("CreateSubmission") == 2 and loopback.slept == [9]


def test_all_pages_of_the_submission_list_are_read(client, loopback):
    loopback.submissions = [{"ref": n, "description": f"[{n}]", "status": "COMPLETE"} for n in range(230)]
    assert [one.ref for one in client.list_submissions(SLUG, "[229]")] == [229]
    assert loopback.count("ListSubmissions") == 3


# --- Nothing shows


@pytest.mark.slow
@pytest.mark.parametrize("secret", ["key", "token"])
@pytest.mark.parametrize("fault", [401, 403, 500, "cut", "html"])
def test_no_error_shows_a_secret_even_when_the_server_says_it(loopback, capfd, monkeypatch, secret, fault):
    from grpo_kit.kaggle.client import KaggleClient

    monkeypatch.setenv("VERBOSE", "1")
    secrets = {"username": USER, "key": KEY} if secret == "key" else {"token": TOKEN}
    client = KaggleClient(credentials.Credentials("the test", **secrets))
    wrong = (
        credentials.Credentials("the test", USER, KEY[::-1])
        if secret == "key"
        else credentials.Credentials("t", token=TOKEN[::-1])
    )
    for login in (client.api.credentials, wrong):  # the server answers a wrong one with the header it got
        client.api.credentials = login
        loopback.faults["GetSubmissionLimits"] = [fault] * 6
        with pytest.raises((OSError, RuntimeError)) as caught:
            client.submission_limits(SLUG)
        output = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + "".join(capfd.readouterr())
        import base64

        for hidden in (KEY, TOKEN, KEY[::-1], TOKEN[::-1], base64.b64encode(f"{USER}:{KEY[::-1]}".encode()).decode()):
            assert hidden not in output


def test_only_the_client_module_imports_kaggle_and_light_modules_do_not():
    code = "import sys, grpo_kit.cli; sys.exit(bool({'kaggle', 'kagglesdk', 'requests'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
