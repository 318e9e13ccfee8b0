"""The zip holds exactly what the scorer reads, the same bytes for the same adapter, and is never left half-written."""

import json
import zipfile
from dataclasses import replace

import pytest
from safetensors.torch import load, load_file

from grpo_kit.submission import package, zip_writer
from tests.helpers.submissions import CONFIG, TENSORS


@pytest.fixture
def packed(trained, tmp_path):
    config, run = trained
    return config, run, package.package_adapter(config, run, tmp_path / "submission.zip")


def test_the_zip_has_exactly_two_files_at_its_root(packed):
    _, run, path = packed
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [CONFIG, TENSORS]
        adapter = json.loads(archive.read(CONFIG))
        packed_tensors, saved = load(archive.read(TENSORS)), load_file(run.adapter / TENSORS)
    assert {k.replace(".backbone.", ".model."): v.tolist() for k, v in packed_tensors.items()} == {
        k: v.tolist() for k, v in saved.items()
    }
    assert adapter["base_model_name_or_path"] == "grpo-kit/tiny" and adapter["inference_mode"] is True
    assert adapter["modules_to_save"] is None and isinstance(adapter["target_modules"], list)
    assert str(run.path) not in json.dumps(adapter)


def test_the_same_adapter_gives_the_same_bytes(trained, tmp_path):
    config, run = trained
    first = package.package_adapter(config, run, tmp_path / "a.zip").read_bytes()
    assert package.package_adapter(config, run, tmp_path / "b.zip").read_bytes() == first


def test_an_interrupted_packing_keeps_the_old_zip(packed, monkeypatch):
    config, run, path = packed
    old = path.read_bytes()
    monkeypatch.setattr(zip_writer, "_finish_pair", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        package.package_adapter(replace(config, run=replace(config.run, force=True)), run, path)
    assert path.read_bytes() == old and [p.name for p in path.parent.iterdir()] == ["submission.zip"]


def test_packing_again_is_skipped_until_the_zip_or_the_adapter_changes(packed):
    config, run, path = packed
    first = path.stat().st_mtime_ns
    package.package_adapter(config, run, path)
    assert path.stat().st_mtime_ns == first
    path.write_bytes(b"damaged")
    package.package_adapter(config, run, path)
    assert zipfile.is_zipfile(path)


def test_an_untrained_run_cannot_be_packed(trained, tmp_path):
    from grpo_kit.runs.run import find_run

    with pytest.raises(FileNotFoundError, match="`grpo-kit train` first"):
        package.package_adapter(trained[0], find_run("r", tmp_path))
