"""Run folders are where users look for them, are written completely or not at all, and keep finished work."""

import ctypes
import json
import os
import threading
from pathlib import Path

import pytest

from grpo_kit.runs import files
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.places import find_drive, find_root
from grpo_kit.runs.run import Run, find_run
from grpo_kit.runs.session import describe_run


def test_the_zip_lies_where_kaggle_looks_for_it(tmp_path, monkeypatch):
    assert Run(tmp_path / "runs", "r").submission == tmp_path / "submission/submission.zip"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert Run(tmp_path / "runs", "r").submission == tmp_path / "submission.zip"


def test_an_earlier_kernel_output_is_copied_on_kaggle(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    earlier = tmp_path / "kaggle/input/my-output/runs/r1"
    earlier.mkdir(parents=True)
    record = {"finished": "", "seconds": 1, "settings": {}, "read": {}, "wrote": {}}
    (earlier / "run.json").write_text(json.dumps({"run": "r1", "stages": {"data": record}}))
    for path in (earlier / "run.json", earlier):  # as inputs are mounted
        path.chmod(path.stat().st_mode & 0o555)
    run = find_run("r1", filesystem=tmp_path)
    assert all(path.stat().st_mode & 0o200 for path in (run.path, run.notes))
    assert run.path == tmp_path / "kaggle/working/runs/r1" and "data" in run.stages()
    assert list(run.path.parent.iterdir()) == [run.path]  # nothing half-copied beside it


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden", "-x", "a b", "x" * 101, "a\n"])
def test_a_name_that_is_not_a_folder_name_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="Invalid run name.*Use at most 100 letters"):
        find_run(name, tmp_path)


def test_opening_a_run_creates_nothing(tmp_path):
    run = find_run("r", tmp_path / "runs")
    assert run.stages() == {} and not (tmp_path / "runs").exists()


def make_stage(run, settings, reads=()):
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / "made.txt").write_text("made")
    run.record_stage("data", settings, list(reads), [run.path / "made.txt"], 1.0, "run: {}\n")


def test_a_stage_made_the_same_way_is_done(tmp_path):
    run = find_run("r", tmp_path)
    assert not run.is_done("data", {"a": {"b": 1}}, [])
    make_stage(run, {"a": {"b": 1}})
    assert run.is_done("data", {"a": {"b": 1}}, [])
    assert not run.is_done("data", {"a": {"b": 1}}, [], force=True)


def test_a_record_made_by_version_0_1_still_holds(tmp_path, far_east):
    """A record as version 0.1 wrote it, with hashes and versions shortened."""
    run = find_run("old", tmp_path)
    (run.path / "data").mkdir(parents=True)
    run.manifest.write_text("{}\n")
    run.notes.write_text(
        '{\n  "run": "old",\n  "stages": {\n    "data": {\n      "finished": "2026-11-25T10:00:00.000+00:00",\n'
        '      "seconds": 1.25,\n      "settings": {"data": {"source": "tiny-sums"}, "seed": 0},\n      "read": {},\n'
        f'      "wrote": {{"data/manifest.json": "{hash_of(run.manifest)}"}},\n'
        '      "environment": {"python": "3.11.7", "packages": {"grpo-kit": "0.1.0"}, "commit": null}\n    }\n  }\n}\n'
    )
    assert run.is_done("data", {"data": {"source": "tiny-sums"}, "seed": 0}, [])
    with pytest.raises(ValueError, match="data.source was tiny-sums, now mine.csv"):
        run.is_done("data", {"data": {"source": "mine.csv"}, "seed": 0}, [])
    run.require_stage("data", "grpo-kit data")
    assert "data    done 2026-11-25 18:00 CST in 1 s" in describe_run(run)


def test_a_stage_made_with_different_settings_is_refused_and_says_how_it_differs(tmp_path):
    run = find_run("r", tmp_path)
    make_stage(run, {"a": {"b": 1}})
    with pytest.raises(
        ValueError, match=r"already finished with different settings \(a\.b was 1, now 2\)\. Use --force.*or --run"
    ):
        run.is_done("data", {"a": {"b": 2}}, [])
    assert not run.is_done("data", {"a": {"b": 2}}, [], force=True)


def test_a_file_where_a_runs_folder_should_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path, tmp_path / "file", tmp_path / "file/x"):
        with pytest.raises(NotADirectoryError, match="cannot be a folder, because .*file is a file. Set run.root"):
            find_run("file", root)


def test_a_run_without_data_is_told_to_prepare_it_first(tmp_path):
    run = find_run("r", tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        run.require_stage("train", "grpo-kit train")
    assert str(caught.value).endswith(
        "Run `grpo-kit data` and then `grpo-kit train` first (in Python: `prepare_data(config, run)`, then "
        "`train(config, run, config.grpo.reward_funcs)`)."
    )
    make_stage(run, {})
    with pytest.raises(FileNotFoundError, match="Run `grpo-kit train` first"):
        run.require_stage("train", "grpo-kit train")


def test_a_stage_whose_input_changed_is_refused(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("one")
    run = find_run("r", tmp_path)
    make_stage(run, {}, [source])
    assert run.is_done("data", {}, [source])
    source.write_text("two")
    with pytest.raises(ValueError, match=r"in\.txt changed since"):
        run.is_done("data", {}, [source])


def test_a_derived_stage_whose_input_was_replaced_is_merely_out_of_date(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("one")
    run = find_run("r", tmp_path)
    make_stage(run, {"a": 1}, [source])
    assert run.is_done("data", {"a": 1}, [source], derived=True)
    source.write_text("two")
    assert not run.is_done("data", {"a": 1}, [source], derived=True)
    source.write_text("one")
    with pytest.raises(ValueError, match="a was 1, now 2"):
        run.is_done("data", {"a": 2}, [source], derived=True)


def test_an_input_that_moved_is_known_by_its_content(tmp_path):
    (tmp_path / "old.txt").write_text("one")
    run = find_run("r", tmp_path)
    make_stage(run, {}, [tmp_path / "old.txt"])
    (tmp_path / "old.txt").rename(tmp_path / "new.txt")
    assert run.is_done("data", {}, [tmp_path / "new.txt"])


def test_a_deleted_file_is_made_again_and_a_damaged_one_is_not_written_over(tmp_path):
    run = find_run("r", tmp_path)
    make_stage(run, {})
    (run.path / "made.txt").write_text("cut")
    sentence = (
        r"made\.txt is not as stage 'data' wrote it: it was damaged, or changed by hand. Put back a copy of it, or "
    )
    with pytest.raises(ValueError, match=sentence + "move it away and run the same command again"):
        run.is_done("data", {}, [], derived=True)
    with pytest.raises(ValueError, match=sentence + "move it away and run `grpo-kit data`, which makes it anew"):
        run.require_stage("data", "grpo-kit data")
    assert not run.is_done("data", {}, [], force=True)
    (run.path / "made.txt").unlink()
    assert not run.is_done("data", {}, [])


def test_a_log_that_grew_since_is_not_damaged_but_one_that_cannot_be_read_is(tmp_path):
    run = find_run("r", tmp_path)
    run.path.mkdir()
    run.metrics.write_text('{"step": 1, "seconds": 1}\n')
    run.record_stage("train", {}, [], [run.metrics], 1.0, "run: {}\n")
    run.metrics.write_text('{"step": 1, "seconds": 1}\n{"step": 2, "seconds": 2}\n')
    run.require_stage("train", "grpo-kit train")
    assert not run.is_done("train", {}, [])
    run.metrics.write_text('{"step": 1, "sec\n')
    for check in (lambda: run.require_stage("train", "grpo-kit train"), lambda: run.is_done("train", {}, [])):
        with pytest.raises(ValueError, match="metrics.jsonl, line 1, is damaged: it is not JSON"):
            check()


@pytest.mark.parametrize("data", ["", "{", "[]", '{"stages": []}', None])
def test_a_damaged_record_is_neither_empty_nor_written_over(tmp_path, data):
    run = find_run("r", tmp_path)
    make_stage(run, {})
    if data is None:
        run.notes.unlink()
        run.notes.mkdir()
    else:
        run.notes.write_text(data)
    for call in (run.stages, lambda: make_stage(run, {})):
        with pytest.raises(ValueError, match="run.json.* [Pp]ut back a copy of it, or move the run's folder away"):
            call()
    assert run.notes.is_dir() if data is None else run.notes.read_text() == data


def test_a_missing_stage_names_the_command_and_the_runs_that_exist(tmp_path):
    make_stage(find_run("other", tmp_path), {})
    with pytest.raises(FileNotFoundError, match="`grpo-kit data` first.*other"):
        find_run("r", tmp_path).require_stage("data", "grpo-kit data")


def test_a_stage_whose_files_are_gone_is_named(tmp_path):
    run = find_run("r", tmp_path)
    make_stage(run, {})
    (run.path / "made.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"made\.txt.*is gone"):
        run.require_stage("data", "grpo-kit data")


def test_a_stage_that_others_went_on_from_can_only_be_made_again_by_force(tmp_path):
    """Without it the command that the message names would be refused."""
    run = find_run("r", tmp_path)
    for stage in ("sft", "train", "prefer"):
        adapter = run.stage_files(stage).adapter
        adapter.mkdir(parents=True)
        run.record_stage(stage, {}, [], [adapter], 1.0, "run: {}\n")
        adapter.rmdir()
    assert run.stages_after("sft") == ["train", "prefer"] and run.stages_after("data") == []
    with pytest.raises(FileNotFoundError, match=r"copy of it; or make it again by .*--force.*then stage 'prefer'"):
        run.require_stage("train", "grpo-kit train")
    with pytest.raises(FileNotFoundError, match=r"is gone\. Run `grpo-kit prefer` to make it again"):
        run.require_stage("prefer", "grpo-kit prefer")


def test_the_notes_of_other_stages_survive(tmp_path):
    run = find_run("r", tmp_path)
    make_stage(run, {"x": 1})
    run.record_stage("train", {}, [], [], 2.0, "")
    assert list(run.stages()) == ["data", "train"] and run.stages()["data"]["settings"] == {"x": 1}
    assert json.loads(run.notes.read_text())["stages"]["train"]["environment"]["packages"]["trl"] == "1.16.0"


# A disk that hangs: no call on it ever returns


@pytest.fixture(params=["a mount whose process hangs", "a call that waits"])
def hung(request, tmp_path, monkeypatch):
    """A root of the machine whose Google Drive never answers; the first kind needs the rights to mount."""
    monkeypatch.setattr(files, "ANSWERS_WITHIN", 0.3)
    drive = tmp_path / "content/drive"
    (drive / "MyDrive").mkdir(parents=True)
    if request.param == "a call that waits":
        stat, over = Path.stat, threading.Event()
        hangs = lambda path, **options: over.wait(60) if path.is_relative_to(drive) else stat(path, **options)  # noqa: E731
        monkeypatch.setattr(Path, "stat", hangs)
        yield tmp_path
        over.set()
        return
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("this machine has no FUSE, or the tests may not use it")
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"hung", str(drive).encode(), b"fuse", 0, options) != 0:
        os.close(server)
        pytest.skip("this machine lets the tests mount nothing")
    yield tmp_path
    os.close(server)  # which ends the calls that wait
    libc.umount2(str(drive).encode(), 2)


@pytest.mark.slow
def test_a_drive_that_hangs_is_a_sentence_and_no_endless_wait(hung):
    sentence = (
        r"Google Drive is mounted but does not answer \(no answer within 0 s\).* it mounts Drive anew\. In a term"
    )
    for call in (lambda: find_drive(hung), lambda: find_root({"COLAB_RELEASE_TAG": "x"}, hung)):
        with pytest.raises(OSError, match=sentence):
            call()


def test_a_run_on_a_disk_that_hangs_is_a_sentence_and_no_endless_wait(hung):
    root = hung / "content/drive/MyDrive/grpo-kit/runs"
    sentence = (
        rf"^{root}, the folder of the runs, does not answer \(no answer within 0 s\)\. Mount its disk again .* set "
    )
    with pytest.raises(OSError, match=sentence):
        find_run("r", root)


def test_a_disk_that_answers_is_asked_as_always(tmp_path):
    assert files.stat_in_time(tmp_path).st_ino == tmp_path.stat().st_ino
    with pytest.raises(FileNotFoundError, match="nowhere"):
        files.stat_in_time(tmp_path / "nowhere")
