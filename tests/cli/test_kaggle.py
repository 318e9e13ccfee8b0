"""The commands as a person types them: one sentence for every failure, and no secret anywhere."""

import json
import logging
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grpo_kit.cli.main import app
from grpo_kit.kaggle import credentials
from grpo_kit.kaggle.accelerators import GPU_LINE
from grpo_kit.kaggle.submission_note import Note, Submission
from grpo_kit.nemotron import base_models
from tests.helpers.fake_kaggle import BASIC, KEY, TOKEN, USER
from tests.helpers.submissions import submission
from tests.runs.test_damaged_files import DAMAGES

PRO = "NVIDIA RTX PRO 6000 Blackwell Server Edition"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["grpo-kit"])
    monkeypatch.setenv("GRPO_KIT_ROOT", str(tmp_path / "runs"))
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    submission(
        tmp_path / "submission.zip",
        {"base_model_name_or_path": base_models.PUBLISHED, "target_modules": attention, "r": 1},
        base=base_models.PUBLISHED,
    )
    return tmp_path


@pytest.fixture
def online(here, loopback, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    return loopback


def call(*words, status=0):
    sys.argv[1:] = map(str, words)  # what the next command repeats
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == status, done.output + repr(done.exception)
    return " ".join(done.output.split())


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def log(*lines):
    return json.dumps([{"stream_name": "stdout", "time": 1.0, "data": line + "\n"} for line in lines])


# --- Dry run


def test_a_dry_run_prints_every_call_without_a_login_and_changes_nothing(here, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("the network was touched"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was touched"))
    monkeypatch.setattr(credentials, "find_credentials", lambda: pytest.fail("credentials were looked for"))
    before = everything(here)
    output = call("push", "03_training", "--dry-run", "--kernel-source", "ada/grpo-kit-02-data", "grpo.max_steps=5")
    for part in (
        "kernels_push(folder=",
        "acc='NvidiaRtxPro6000')",
        "kernels_status(kernel='your-username/grpo-kit-03-training/VERSION')",
        "kernels_output(kernel=",
        '"machine_shape": "NvidiaRtxPro6000"',
        '"enable_internet": false',
        "nothing was sent or written",
    ):
        assert part in output
    assert output.endswith("next: grpo-kit push 03_training --kernel-source ada/grpo-kit-02-data grpo.max_steps=5")
    output = call("submit", "submission.zip", "-m", "first", "--dry-run")
    for part in (
        "competition_submissions(",
        "competition_get_submission_limits(",
        "competition_submit(file_name='submission.zip', message='first [grpo-kit ",
    ):
        assert part in output
    assert output.endswith("next: grpo-kit submit submission.zip -m first")
    assert everything(here) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["push", "07_nothing"], "There are 00_quickstart, 01_setup"),
        (["push", "03_training", "--accelerator", "T4", "--dry-run"], "Did you mean NvidiaTeslaT4?"),
        (["push", "03_training", "grpo.max_step=1", "--dry-run"], "Did you mean grpo.max_steps?"),
        (["push", "03_training", "--dataset", "wheels", "--dry-run"], "owner/slug"),
        (["push", "03_training"], "No Kaggle credentials"),
        (["submit", "nothing.zip"], "is not a file"),
        (["submit", "runs.txt", "--dry-run"], "is not a zip that can be read"),
        (["submit", "submission.zip"], "No Kaggle credentials"),
        (["wheels", "--have", "nothing.txt"], "does not exist"),
        (["wheels", "--platform", "any"], "manylinux2014_x86_64"),
        (["wheels", "--python", "three"], "write it like 3.12"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(here, words, says):
    (here / "runs.txt").write_text("no zip")
    output = call(*words, status=2)
    assert says in output and "Traceback" not in output
    assert not (here / "runs").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "binary", "a list", "a folder", "deleted"])
def test_a_dry_run_names_a_damaged_zip_or_note_and_leaves_it(here, damage):
    note = Submission(here / "submission.zip").note_path
    note.write_text(json.dumps(vars(Note("x", "sent", "2026-11-29T00:00:00+00:00"))))
    DAMAGES[damage](note)
    if damage not in ("flipped", "deleted"):  # a flipped byte may be in a text
        output = call("submit", "submission.zip", "--dry-run", status=2)
        assert f"{note.name} is damaged, so nobody knows whether this zip was submitted" in output
        assert "then delete the file" in output and note.exists()
    DAMAGES[damage](here / "submission.zip")
    output = call("submit", "submission.zip", "--dry-run", status=2)
    assert "submission.zip" in output and "Traceback" not in output and not (here / "runs").exists()


# --- Push


def test_push_from_the_first_call_to_the_output(online, here):
    online.files = {"submission.zip": b"zip", "runs/80gb/run.json": b"{}"}
    online.log = log(f"{GPU_LINE} {PRO}")
    output = call("push", "03_training")
    for part in (
        "as ada, by KAGGLE_USERNAME and KAGGLE_KEY in the environment",
        "pushed version 1",
        "queued after 0 min",
        "complete after 0 min",
        "3 files in",
        f"ok It ran on {PRO}",
    ):
        assert part in output
    assert re.search(r"next: grpo-kit submit \S+/output-1/submission\.zip$", output)
    staged = here / "runs/80gb/kaggle/grpo-kit-03-training"
    assert everything(staged) == [
        "03_training.ipynb", "kernel-metadata.json", "output-1/grpo-kit-03-training.log", "output-1/runs/80gb/run.json",
        "output-1/submission.zip", "push.json",
    ]  # fmt: skip
    assert "pushed before" in call("push", "03_training") and online.count("SaveKernel") == 1
    output = call("push", "03_training", "--force", "--no-follow")
    assert "pushed version 2" in output and output.endswith("next: grpo-kit push 03_training")


@pytest.mark.parametrize(
    ("notebook", "following"),
    [
        ("01_setup", "02_data"),
        ("02_data", "03_training"),
        ("05_tuning", "03_training"),
        ("06_environments", "03_training"),
    ],
)
def test_push_names_the_notebook_that_goes_on_from_an_output_without_a_zip(online, here, notebook, following):
    online.files = {"runs/mine/run.json": b"{}"}
    kernel = f"ada/grpo-kit-{notebook.replace('_', '-')}"
    rest = "--accelerator NvidiaTeslaT4 --run mine"
    output = call("push", notebook, "--accelerator", "NvidiaTeslaT4", "--run", "mine")
    assert output.endswith(f"next: grpo-kit push {following} --kernel-source {kernel}-mine {rest}")


def test_push_keeps_naming_the_kernel_that_holds_the_nf4_checkpoint(online, here):
    online.files = {"runs/mine/run.json": b"{}"}
    setup = ("--kernel-source", "ada/grpo-kit-01-setup-mine")
    output = call("push", "02_data", *setup, "--kernel-source", "ada/other", "--run", "mine")
    assert output.endswith(
        "next: grpo-kit push 03_training --kernel-source ada/grpo-kit-01-setup-mine --kernel-source "
        "ada/grpo-kit-02-data-mine --run mine"
    )


def test_push_fails_when_the_kernel_ran_on_another_gpu_than_requested(online, here):
    online.states, online.failure = ["ERROR"], "Notebook threw exception"
    online.log = log(f"{GPU_LINE} Tesla P100-PCIE-16GB", "RuntimeError: NvidiaRtxPro6000 was requested")
    output = call("push", "03_training", status=1)
    assert "FAIL NvidiaRtxPro6000 was requested, but it ran on Tesla P100-PCIE-16GB" in output
    assert (
        "| RuntimeError: NvidiaRtxPro6000 was requested" in output
        and "ended as ERROR (Notebook threw exception)" in output
    )
    online.states = ["COMPLETE"]
    assert "did not run. Choose the competition's accelerator" in call("push", "03_training", "--force", status=1)


def test_push_says_when_the_gpu_is_not_known(online, here):
    assert "? It is not known which GPU ran" in call("push", "03_training")


# --- Submit


def test_submit_from_the_zip_to_the_score(online, here):
    output = call("submit", "submission.zip", "-m", "first")
    assert "submitted as 1000: first [grpo-kit " in output and "score 0.86 on the public leaderboard" in output
    output = call("submit", "submission.zip")
    assert "submitted before" in output and "score 0.86" in output and online.count("CreateSubmission") == 1
    assert len(list(here.glob("submitted-*.json"))) == 1


def test_submit_first_without_waiting_then_waiting(online, here):
    output = call("submit", "submission.zip", "--no-follow")
    assert output.endswith("the next command waits for the score next: grpo-kit submit submission.zip")
    output = call("submit", "submission.zip")
    assert "score 0.86" in output and output.endswith("next: grpo-kit tune --help")
    assert online.count("CreateSubmission") == 1


def test_a_broken_zip_is_not_submitted(online, here):
    with zipfile.ZipFile(here / "nested.zip", "w") as archive:
        archive.writestr("adapter/adapter_config.json", "{}")
    assert "is not submitted" in call("submit", "nested.zip", status=2) and online.calls == []


def test_an_adapter_of_the_tiny_policy_is_not_submitted(online, here):
    submission(here / "tiny.zip")
    assert "embedded tiny policy" in call("submit", "tiny.zip", status=2) and online.calls == []


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        (401, 1, "does not accept the credentials"),
        (403, 1, "Accept the competition's rules"),
        (404, 2, "has nothing called"),
        ((429, {"Retry-After": "9999"}), 1, "Call again in 9999 s"),
        (500, 1, "not known whether the zip was submitted"),
        ("cut", 1, "not known whether the zip was submitted"),
    ],
)
def test_an_error_of_kaggle_is_one_sentence_and_an_exit_status(online, here, fault, status, says):
    online.faults["CreateSubmission"] = [fault]
    output = call("submit", "submission.zip", status=status)
    assert says in output and "Traceback" not in output and online.count("CreateSubmission") == 1


# --- Secrets


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["key", "token", "kaggle.json", "access_token"])
def test_no_secret_is_printed_logged_or_written(online, here, monkeypatch, capfd, caplog, kind):
    """Everything printed, logged and written, in success and failure, is searched for each form of the secret."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("VERBOSE", "1")
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    kept = here / "home/.kaggle"
    kept.mkdir(parents=True)
    if kind == "key":
        monkeypatch.setenv("KAGGLE_USERNAME", USER)
        monkeypatch.setenv("KAGGLE_KEY", KEY)
    elif kind == "token":
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    else:
        text = json.dumps({"username": USER, "key": KEY}) if kind == "kaggle.json" else TOKEN
        (kept / kind).write_text(text)
        (kept / kind).chmod(0o644)
    online.log = log(f"{GPU_LINE} {PRO}")
    output = call("push", "03_training", "--dry-run") + call("submit", "submission.zip", "--dry-run")
    output += call("push", "03_training")
    assert ("chmod 600" in output) is (kind in ("kaggle.json", "access_token"))
    for fault in (401, 403, 500, "cut", "html", 400):
        online.faults["CreateSubmission"] = [fault]
        done = CliRunner().invoke(app, ["submit", "submission.zip"])
        assert done.exit_code == 1
        output += done.output + repr(done.exception)
        for path in here.glob("submitted-*.json"):
            output += path.read_text()
            path.unlink()
    output += call("submit", "submission.zip") + "".join(capfd.readouterr()) + caplog.text
    written = [path for path in here.rglob("*") if path.is_file() and not path.is_relative_to(kept)]
    for path in written:
        output += path.read_bytes().decode("latin-1")
    assert len(written) > 5 and "score 0.86" in output.replace("score    ", "score ")
    for secret in (KEY, TOKEN, BASIC.removeprefix("Basic ")):
        assert secret not in output
    assert Path(sys.modules["kaggle"].__file__).name == "__init__.py"  # the real client, not a stand-in


# --- Wheels


def test_wheels_names_its_folder_the_upload_and_the_cell(here, monkeypatch):
    from grpo_kit.kaggle import wheels

    calls = []

    def build(out, python, platform, have, owner, show):
        calls.append((out, python, platform, have, owner))
        out.mkdir()
        (out / "a-1-py3-none-any.whl").write_bytes(b"x" * 2**20)
        return [out / "a-1-py3-none-any.whl"]

    monkeypatch.setattr(wheels, "build_wheels", build)
    (here / "freeze.txt").write_text("torch==2.11.0+cu128\nscipy==1.15.3\n")
    output = call("wheels", "--have", "freeze.txt", "--out", "w")
    assert calls == [
        (
            Path("w"),
            "3.12",
            "manylinux_2_28_x86_64",
            wheels.IMAGE | {"torch": "2.11.0+cu128", "scipy": "1.15.3"},
            "your-username",
        )
    ]
    for part in (
        "1 in w, 1.0 MiB",
        "kaggle datasets create -p w",
        "put your name in place of your-username",
        "--no-index",
    ):
        assert part in output
    assert output.endswith("next: grpo-kit push 03_training")
