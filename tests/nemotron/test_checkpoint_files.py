"""Downloads that were cut off are deleted; those in progress, and whole files, stay."""

import os

from huggingface_hub.utils import WeakFileLock

from grpo_kit.nemotron.checkpoint_files import PublishedCheckpoint, remove_incomplete_downloads


def make_download(cache, name, age):
    """A file of a cache as the Hub's client 2.4 lays it out, last written `age` seconds ago."""
    path = cache / "models--org--name" / "blobs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (cache / ".locks" / "models--org--name").mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1")
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


def test_what_killed_downloads_left_is_deleted_and_what_is_being_downloaded_stays(tmp_path):
    left = make_download(tmp_path, "aa.0123abcd.incomplete", 100)
    whole = make_download(tmp_path, "aa", 100)
    recent = make_download(tmp_path, "bb.0123abcd.incomplete", 10)
    locked = make_download(tmp_path, "cc.0123abcd.incomplete", 100)
    with WeakFileLock(tmp_path / ".locks" / "models--org--name" / "cc.lock"):
        remove_incomplete_downloads(tmp_path)
    assert not left.exists() and whole.exists() and recent.exists() and locked.exists()


def test_a_conversion_deletes_what_its_last_attempt_left(tmp_path):
    left = make_download(tmp_path, "aa.0123abcd.incomplete", 100)
    PublishedCheckpoint("org/name", None, tmp_path)
    assert not left.exists()
    remove_incomplete_downloads(tmp_path / "none")  # a cache that is not there yet
