"""The zip holds exactly what the scorer reads; `check` passes the trained adapter and fails everything else."""

import json
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from grpo_kit import submission
from grpo_kit.submission import MEMBERS


@pytest.fixture
def packed(trained, tmp_path):
    chosen, run = trained
    return chosen, run, submission.package(chosen, run, tmp_path / "submission.zip")


def repacked(path, config=None, tensors=None, extra=(), drop=()):
    """The zip with its members changed by functions; `extra` members added, `drop` left out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if config:
        members[MEMBERS[0]] = json.dumps(config(json.loads(members[MEMBERS[0]]))).encode()
    if tensors:
        members[MEMBERS[1]] = save(tensors(load(members[MEMBERS[1]])))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name not in drop:
                archive.writestr(name, content)
        for name, content in extra:
            archive.writestr(name, content)
    return path


def failed(findings):
    return [finding for passed, finding in findings if not passed]


def test_the_zip_has_exactly_two_files_at_its_root(packed):
    _, run, path = packed
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == list(MEMBERS)
        adapter = json.loads(archive.read(MEMBERS[0]))
        assert archive.read(MEMBERS[1]) == (run.adapter / MEMBERS[1]).read_bytes()
    assert adapter["base_model_name_or_path"] == "grpo-kit/tiny" and adapter["inference_mode"] is True
    assert adapter["modules_to_save"] is None and isinstance(adapter["target_modules"], list)
    assert str(run.path) not in json.dumps(adapter)


def test_the_same_adapter_gives_the_same_bytes(trained, tmp_path):
    chosen, run = trained
    first = submission.package(chosen, run, tmp_path / "a.zip").read_bytes()
    assert submission.package(chosen, run, tmp_path / "b.zip").read_bytes() == first


def test_the_trained_adapter_passes_every_check(packed):
    chosen, run, path = packed
    findings = submission.check(chosen, path, run.probe)
    assert len(findings) == 4 and failed(findings) == []


def test_without_a_run_it_is_compared_with_the_base_only(packed):
    chosen, _, path = packed
    findings = submission.check(chosen, path)
    assert len(findings) == 3 and failed(findings) == []


def zeroed(part):
    return lambda tensors: {k: torch.zeros_like(v) if part in k else v for k, v in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (zeroed("q_proj.lora_B"), "8 of 9 LoRA pairs"),  # one pair never moved
        (zeroed("lora_B"), "0 of 9 LoRA pairs"),  # an adapter that does nothing
        (zeroed("k_proj.lora_A"), "8 of 9 LoRA pairs"),  # the other half
        (lambda t: {k: v * float("nan") if "v_proj.lora_B" in k else v for k, v in t.items()}, "8 of 9 LoRA pairs"),
    ],
)
def test_a_dead_pair_fails(packed, tensors, said):
    chosen, run, path = packed
    assert any(
        said in finding for finding in failed(submission.check(chosen, repacked(path, tensors=tensors), run.probe))
    )


def test_an_adapter_of_zeros_does_not_pass_for_a_change(packed):
    chosen, run, path = packed
    said = failed(submission.check(chosen, repacked(path, tensors=zeroed("lora_B")), run.probe))
    assert any("outputs differ from the base" in finding for finding in said)


@pytest.mark.parametrize("scale", [0.5, 2.0, -1.0])
def test_an_adapter_that_is_not_the_trained_one_fails(packed, scale):
    chosen, run, path = packed
    other = repacked(path, tensors=lambda t: {k: v * scale if "lora_B" in k else v for k, v in t.items()})
    assert any(
        "equal the trained policy's" in finding for finding in failed(submission.check(chosen, other, run.probe))
    )


def test_another_scaling_in_the_config_fails(packed):
    chosen, run, path = packed
    other = repacked(path, config=lambda c: c | {"lora_alpha": 8})
    assert failed(submission.check(chosen, other, run.probe))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra": [("notes.txt", "x")]}, "wants exactly"),  # one file too many
        ({"extra": [("checkpoint-1/adapter_config.json", "{}")]}, "wants exactly"),  # the scorer might take this one
        ({"extra": [("../escape.txt", "x")]}, "wants exactly"),  # would land outside
        ({"drop": [MEMBERS[0]]}, "wants exactly"),
        ({"drop": MEMBERS}, "holds nothing"),
        ({"extra": [(MEMBERS[0], "{}")]}, "wants exactly"),  # the same name twice
        ({"config": lambda c: c | {"target_modules": ".*"}}, "list of target_modules"),
        ({"config": lambda c: c | {"r": 8}}, "do not fit"),
        ({"tensors": lambda t: dict(list(t.items())[2:])}, "lacks 2 tensors"),
    ],
)
def test_a_zip_the_scorer_would_not_load_is_refused(packed, change, said, tmp_path):
    chosen, run, path = packed
    with pytest.raises(ValueError, match=said):
        submission.check(chosen, repacked(path, **change), run.probe)
    assert [p.name for p in tmp_path.iterdir()] == ["submission.zip"]


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all", b"PK\x05\x06" + b"\0" * 18])
def test_what_is_no_zip_is_refused(trained, tmp_path, content):
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.zip (is not a zip|holds nothing)"):
        submission.check(trained[0], path)


def test_a_truncated_or_flipped_zip_is_refused(packed):
    chosen, run, path = packed
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a zip"):
        submission.check(chosen, path, run.probe)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="not a zip"):
        submission.check(chosen, path, run.probe)


def test_a_bomb_is_refused_before_it_is_unpacked(trained, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBERS[0], b"0" * (submission.LARGEST_CONFIG + 1))
        archive.writestr(MEMBERS[1], b"")
    with pytest.raises(ValueError, match="unpacks to"):
        submission.unpack(tmp_path / "bomb.zip", tmp_path / "nowhere")


def test_a_missing_zip_is_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.zip does not exist"):
        submission.check(trained[0], tmp_path / "none.zip")


def test_an_interrupted_packing_leaves_the_old_zip(packed, monkeypatch):
    chosen, run, path = packed
    old = path.read_bytes()
    monkeypatch.setattr(submission.shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        submission.package(replace(chosen, run=replace(chosen.run, force=True)), run, path)
    assert path.read_bytes() == old and [p.name for p in path.parent.iterdir()] == ["submission.zip"]


def test_packing_again_is_skipped_until_the_zip_or_the_adapter_changes(packed):
    chosen, run, path = packed
    first = path.stat().st_mtime_ns
    submission.package(chosen, run, path)
    assert path.stat().st_mtime_ns == first
    path.write_bytes(b"damaged")
    submission.package(chosen, run, path)
    assert zipfile.is_zipfile(path)


def test_an_untrained_run_cannot_be_packed(trained, tmp_path):
    from grpo_kit import workspace

    with pytest.raises(FileNotFoundError, match="`grpo-kit train` first"):
        submission.package(trained[0], workspace.open_run("r", tmp_path))
