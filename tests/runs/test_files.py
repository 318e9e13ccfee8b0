"""Files that are written whole; JSON without NaN and Infinity."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo_kit.runs.files import (
    clean_leftovers,
    follow_link,
    hash_of,
    new_file,
    new_folder,
    to_json,
    write_lines,
    write_text,
)
from grpo_kit.runs.reading import read_lines


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), np.float64("inf"), torch.tensor(torch.inf)]
)
def test_what_is_not_finite_becomes_null(value):
    assert strict(to_json({"a": [value, 1.5], "b": value})) == {"a": [None, 1.5], "b": None}


def test_numbers_and_arrays_of_libraries_become_plain_ones(tmp_path):
    row = {"a": np.float32(0.5), "b": torch.tensor([1, 2]), "c": np.bool_(True), "d": np.array([np.nan, 2.0])}
    write_lines(tmp_path / "rows.jsonl", [row])
    assert strict((tmp_path / "rows.jsonl").read_text()) == {"a": 0.5, "b": [1, 2], "c": True, "d": [None, 2.0]}


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError) as caught:
        write_text(pipe, "text")
    assert caught.value.filename == str(pipe) and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def copy_tree(source, aside):
    shutil.copytree(source, aside / "copy")


def copy_file(source, aside):
    shutil.copyfile(source / "a.bin", aside / "a.bin")


@pytest.mark.parametrize("copy", [copy_tree, copy_file])
def test_a_copy_that_the_disk_has_no_room_for_names_what_was_to_be_written(tmp_path, copy):
    """shutil lists what failed, or names the file that it reads from."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.bin").write_bytes(bytes(20_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # Python ignores SIGXFSZ: a write fails with EFBIG
    try:
        with pytest.raises(OSError) as caught, new_folder(tmp_path / "made") as aside:
            copy(source, aside)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "made"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_json_cannot_hold_is_named():
    with pytest.raises(TypeError, match="object .* cannot be written as JSON"):
        to_json({"a": object()})


def test_text_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "f.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_completely_or_not_at_all(tmp_path):
    target = tmp_path / "d"
    with new_folder(target) as aside:
        (aside / "one").write_text("1")
    with pytest.raises(KeyboardInterrupt), new_folder(target) as aside:
        (aside / "two").write_text("2")
        raise KeyboardInterrupt
    assert [p.name for p in target.iterdir()] == ["one"]
    with new_folder(target) as aside:
        (aside / "two").write_text("2")
    assert [p.name for p in target.iterdir()] == ["two"] and list(tmp_path.iterdir()) == [target]


def test_jsonl_lines_round_trip_any_text(tmp_path):
    rows = [{"t": 'quote " newline \n separator \u2028 nul \x00 emoji 😀 {braces}'}, {"t": ""}]
    write_lines(tmp_path / "x.jsonl", rows)
    assert read_lines(tmp_path / "x.jsonl") == rows


def test_a_folders_hash_sees_names_and_contents(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("1")
    first = hash_of(tmp_path / "d")
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "b")
    second = hash_of(tmp_path / "d")
    (tmp_path / "d" / "b").write_text("2")
    assert len({first, second, hash_of(tmp_path / "d"), hash_of(tmp_path / "none")}) == 4


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from grpo_kit.runs.files import new_file, new_folder
target = Path(sys.argv[1])
with new_folder(target / "adapter") as aside:
    (aside / "old").write_text("old")
replace = Path.replace
def killed(self, other):
    if self.name.endswith(".partial"):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, other)
Path.replace = killed
with (new_file if sys.argv[2] == "file" else new_folder)(target / sys.argv[3]) as aside:
    (aside if sys.argv[2] == "file" else aside / "new").write_text("new")
"""


def kill_writer(folder, kind, name):
    """A process that is killed when it has written `name` and is about to rename it; returns its process id."""
    process = subprocess.Popen([sys.executable, "-c", KILLED_WRITER, str(folder), kind, name])
    assert process.wait() == -signal.SIGKILL
    return process.pid


def test_what_a_killed_process_left_is_removed_and_a_half_replaced_folder_is_put_back(tmp_path):
    pid = kill_writer(tmp_path, "folder", "adapter")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".adapter.{pid}.old", f".adapter.{pid}.partial"]
    pid = kill_writer(tmp_path / "deep", "file", "a.json")
    assert (tmp_path / "deep" / f".a.json.{pid}.partial").is_file()
    (tmp_path / ".submission.zip.partial").write_text("of version 0.2.0")
    clean_leftovers(tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "adapter", "adapter/old", "deep", "deep/adapter", "deep/adapter/old",
    ]  # fmt: skip


@pytest.mark.parametrize("end", ["partial", "old"])
def test_a_leftover_of_the_same_process_number_does_not_block(tmp_path, end):
    leftover = tmp_path / f".d.{os.getpid()}.{end}"
    leftover.mkdir()
    (leftover / "one").write_text("1")
    if end == "partial":
        os.utime(leftover, (0, 0))  # from before this process; in a container each start has the same number
    (tmp_path / "d").mkdir()
    with new_folder(tmp_path / "d") as aside:
        (aside / "two").write_text("2")
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["two"] and list(tmp_path.iterdir()) == [tmp_path / "d"]


def test_what_a_running_process_writes_is_not_cleaned(tmp_path):
    with new_folder(tmp_path / "d") as aside, new_file(tmp_path / "f") as file:
        file.write_text("1")
        clean_leftovers(tmp_path)
        assert aside.is_dir() and file.is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "f"]


def put_one(path, name):
    with new_folder(path) as aside:
        (aside / name).write_text(name)


@pytest.mark.parametrize("leads_to", ["there", "nowhere", "link"])
def test_a_link_is_replaced_and_leaves_nothing_behind(tmp_path, leads_to):
    """Also one that leads to nothing, or to itself."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / leads_to)
    put_one(tmp_path / "link", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link/new").is_file()
    assert (tmp_path / "there/mine").read_text() == "1"


def test_a_link_that_a_killed_process_put_aside_is_put_back_or_removed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / ".a.4194303.old").symlink_to(tmp_path / "there")  # beyond the largest number of a process
    (tmp_path / ".b.4194303.old").symlink_to(tmp_path / "gone")
    (tmp_path / ".c.4194303.old").symlink_to(tmp_path / "there")
    (tmp_path / "c").mkdir()
    clean_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "there"]
    assert (tmp_path / "a").is_symlink() and (tmp_path / "b").is_symlink() and not (tmp_path / "c").is_symlink()


def test_a_followed_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/out")
    for name in ("one", "two"):
        put_one(follow_link(tmp_path / "link"), name)
        assert [path.name for path in (tmp_path / "link").iterdir()] == [name]
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]


def test_a_folder_that_is_no_link_keeps_its_path(tmp_path, monkeypatch):
    (tmp_path / "disk/out").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk")
    monkeypatch.chdir(tmp_path)
    assert follow_link(Path("link/out")) == tmp_path / "link/out"  # it is written beside it, on the same disk
    assert follow_link(Path("new")) == tmp_path / "new"
    assert follow_link(Path("link")) == tmp_path / "disk"


def test_a_mounted_disk_is_refused_before_the_block(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    with pytest.raises(OSError, match="a disk is mounted there") as caught, new_folder(tmp_path / "out"):
        pytest.fail("the block was run")
    assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, str(tmp_path / "out"))
    put_one(tmp_path / "out/new", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
