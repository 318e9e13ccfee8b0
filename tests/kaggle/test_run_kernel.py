"""A kernel is pushed once, followed to its end and fetched, and its GPU is checked."""

import json

import pytest

from grpo_kit.kaggle import credentials, run_kernel
from grpo_kit.kaggle.accelerators import GPU_LINE, compare_gpu, find_gpu
from grpo_kit.kaggle.kernel import build_kernel, find_notebook
from tests.helpers.fake_kaggle import KEY, USER

PRO = "NVIDIA RTX PRO 6000 Blackwell Server Edition"


@pytest.fixture
def client(loopback):
    from grpo_kit.kaggle.client import KaggleClient

    return KaggleClient(credentials.Credentials("the test", USER, KEY))


@pytest.fixture
def kernel(tmp_path):
    return build_kernel(USER, find_notebook("03_training"), "NvidiaRtxPro6000", tmp_path)


def push(client, kernel, force=False):
    messages = []
    return run_kernel.push_once(client, kernel, force, messages.append), " | ".join(messages)


def log(*lines):
    return json.dumps([{"stream_name": "stdout", "time": 1.0, "data": line + "\n"} for line in lines])


@pytest.mark.slow
def test_a_kernel_is_pushed_followed_and_fetched(client, loopback, kernel):
    note, output = push(client, kernel)
    assert "pushed version 1 on NvidiaRtxPro6000" in output
    messages = []
    loopback.states = ["QUEUED", "QUEUED", "RUNNING", "RUNNING", "COMPLETE"]
    assert run_kernel.follow_run(client, note, messages.append) == ("COMPLETE", "")
    assert [line.split()[0] for line in messages] == ["queued", "running", "complete"]
    assert loopback.slept == [5, 8, 12, 18]
    loopback.files, loopback.log = {"submission.zip": b"zip"}, log(f"{GPU_LINE} {PRO}")
    output, fetched = run_kernel.download_output(client, note, kernel.folder)
    assert output == kernel.folder / "output-1" and sorted(path.name for path in fetched) == [
        "grpo-kit-03-training.log",
        "submission.zip",
    ]
    assert compare_gpu(find_gpu(output, note["at"]), "NvidiaRtxPro6000")[0] is True


def test_the_same_content_is_pushed_once_unless_forced(client, loopback, kernel):
    push(client, kernel)
    assert "pushed before" in push(client, kernel)[1] and loopback.count("SaveKernel") == 1
    assert push(client, kernel, force=True)[0]["version"] == 2


def test_other_content_is_another_push(client, loopback, kernel, tmp_path):
    push(client, kernel)
    other = build_kernel(
        USER, find_notebook("03_training"), "NvidiaRtxPro6000", tmp_path, overrides=["grpo.max_steps=3"]
    )
    assert push(client, other)[0]["version"] == 2


def test_a_push_without_an_answer_is_followed_if_it_runs(client, loopback, kernel):
    loopback.faults["SaveKernel"], loopback.states = ["cut after"], ["RUNNING", "COMPLETE"]
    with pytest.raises(ConnectionError, match="checks before it pushes"):
        push(client, kernel)
    note, output = push(client, kernel)
    assert "the kernel is running" in output and loopback.count("SaveKernel") == 1
    assert run_kernel.follow_run(client, note, lambda line: None)[0] == "COMPLETE"
    assert run_kernel.versioned_name(note) == "ada/grpo-kit-03-training"


def test_a_push_that_never_arrived_is_pushed_again(client, loopback, kernel):
    loopback.faults["SaveKernel"] = ["cut"]
    with pytest.raises(ConnectionError):
        push(client, kernel)
    assert push(client, kernel)[0]["version"] == 1 and loopback.count("SaveKernel") == 2


SOUND = {"kernel": "ada/k", "version": 1, "url": "https://", "content": "0", "accelerator": "NvidiaH100",
         "state": "pushed", "at": "2026-11-30T10:00:00+00:00"}  # fmt: skip
WRONG = (
    {"version": "1"}, {"version": None}, {"state": "done"}, {"state": []}, {"at": "yesterday"}, {"at": 5},
    {"at": "2026-11-30T10:00:00"}, {"kernel": ["a"]}, {"content": 0},
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "[" * 100_000, "null", *(json.dumps(SOUND | other) for other in WRONG)],
    ids=lambda text: str(len(text)),
)
def test_a_damaged_note_is_not_treated_as_missing(client, loopback, kernel, text):
    kernel.write()
    (kernel.folder / "push.json").write_text(text)
    with pytest.raises(ValueError, match="push.json is damaged, so nobody knows whether this kernel was pushed"):
        run_kernel.push_once(client, kernel, False, lambda line: None)
    assert loopback.count("SaveKernel") == 0


def test_a_refused_push_leaves_no_note(client, loopback, kernel):
    loopback.faults["SaveKernel"] = [403]
    with pytest.raises(PermissionError):
        push(client, kernel)
    assert not (kernel.folder / "push.json").exists()
    assert push(client, kernel)[0]["version"] == 1


def test_a_kernel_that_kaggle_does_not_list_yet_is_awaited_for_a_limited_time(client, loopback, kernel):
    note, _ = push(client, kernel)
    loopback.faults["GetKernelSessionStatus"] = [404, 404]
    assert run_kernel.follow_run(client, note, lambda line: None)[0] == "COMPLETE"
    loopback.faults["GetKernelSessionStatus"] = [404] * 99
    clock = iter(range(0, 10_000, 100))
    with pytest.raises(FileNotFoundError, match="nothing called kernel ada/grpo-kit-03-training/1"):
        run_kernel.follow_run(client, note, lambda line: None, lambda: next(clock))


def test_following_survives_connection_errors_and_reports_why_a_kernel_failed(client, loopback, kernel):
    note, _ = push(client, kernel)
    loopback.faults["GetKernelSessionStatus"] = ["cut", 503, (429, {"Retry-After": "40"})]
    loopback.states, loopback.failure = ["ERROR"], "Notebook timed out"
    assert run_kernel.follow_run(client, note, lambda line: None) == ("ERROR", "Notebook timed out")
    assert max(loopback.slept) >= 40


def test_the_last_words_of_a_log(tmp_path):
    (tmp_path / "k.log").write_text(log("one", "", "two", "RuntimeError: three"))
    assert run_kernel.read_last_lines(tmp_path, 2) == ["two", "RuntimeError: three"]
    (tmp_path / "k.log").write_text("plain\nwords\n")
    assert run_kernel.read_last_lines(tmp_path) == ["plain", "words"]


def test_a_lost_connection_ends_the_following_but_not_the_kernel(client, loopback, kernel):
    note, _ = push(client, kernel)
    loopback.faults["GetKernelSessionStatus"] = [503] * 6
    with pytest.raises(ConnectionError, match="The run goes on. Run the same command again to follow it"):
        run_kernel.follow_run(client, note, lambda line: None)
    assert run_kernel.follow_run(client, push(client, kernel)[0], lambda line: None)[0] == "COMPLETE"
    assert loopback.count("SaveKernel") == 1
