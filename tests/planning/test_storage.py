"""What loading a policy still downloads and writes, beside what lies on the machine already."""

import json

import pytest

from grpo_kit import config
from grpo_kit.nemotron import base_models
from grpo_kit.planning import storage
from grpo_kit.planning.fit import assess_fit
from grpo_kit.planning.machines import DEVICES, GIB
from grpo_kit.planning.model_size import Architecture
from grpo_kit.planning.storage import assess_storage, describe_disk_remedy, nearest_folder
from grpo_kit.policy import model_source
from tests.helpers.machines import T4, machine, write_nf4, write_source
from tests.helpers.plans import plan_for


def storage_of(*overrides, preset="t4", device=None, **disks):
    policy = config.load_config([preset], list(overrides)).policy
    device = device or machine(T4, host=11, disks={"/": 70.0} | disks)
    return assess_storage(Architecture.of(policy), policy, device)


def gib(needs):
    return tuple(round(n / GIB, 2) for n in (needs.download, needs.checkpoint, needs.shard))


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch, tmp_path):
    monkeypatch.setenv("GRPO_KIT_ROOT", str(tmp_path / "runs"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def nf4_of_preset(tmp_path):
    return tmp_path / "nf4" / base_models.PUBLISHED.replace("/", "--")


def test_a_fresh_machine_downloads_all_and_keeps_the_nf4_and_one_shard_at_a_time(tmp_path):
    fresh = storage_of()
    assert gib(fresh) == (58.82, 16.17, 4.66) and fresh.converts and fresh.source == "NF4"
    assert fresh.folder == nf4_of_preset(tmp_path) and fresh.free == 70 * GIB
    assert gib(storage_of(device=DEVICES["t4"])) == gib(fresh)


# parts that are there, of 13; GiB to download, to write, of a shard
@pytest.mark.parametrize(
    ("done", "left"), [(0, (58.82, 16.17, 4.66)), (3, (45.25, 12.44, 4.66)), (12, (4.54, 1.25, 4.54)), (13, (0, 0, 0))]
)
def test_finished_parts_are_not_made_again(tmp_path, done, left):
    write_nf4(nf4_of_preset(tmp_path), done)
    unfinished = storage_of()
    assert gib(unfinished) == pytest.approx(left, abs=0.02) and unfinished.converts == (done < 13)
    if 0 < done < 13:
        assert unfinished.source == f"NF4, {done} of 13 parts are there"


def test_a_part_of_another_size_has_to_be_made_again(tmp_path):
    folder = write_nf4(nf4_of_preset(tmp_path))
    with sorted(folder.glob("*.safetensors"))[4].open("r+b") as file:
        file.truncate(1)
    assert gib(storage_of()) == pytest.approx((4.52, 1.24, 4.52), abs=0.02)


@pytest.mark.parametrize(
    "changed",
    [{"dtype": "bfloat16"}, {"source": "someone/else"}, {"revision": "main"}, {"parts": []}, {"parts": {"x": 3}},
     {"parts": {"x": {"bytes": "big"}}}, {"count": None}, {"parts": {"../../x": {"bytes": 10**18, "sha256": ""}}}],
)  # fmt: skip
def test_a_manifest_of_another_conversion_or_a_damaged_one_counts_nothing(tmp_path, changed):
    write_nf4(nf4_of_preset(tmp_path), **changed)
    assert gib(storage_of()) == (58.82, 16.17, 4.66)
    (nf4_of_preset(tmp_path) / "nf4.json").write_text(json.dumps([changed]) + "x")
    assert gib(storage_of()) == (58.82, 16.17, 4.66)


def test_a_mounted_source_is_not_downloaded_and_has_no_shard_on_the_disk(tmp_path):
    mounted = storage_of(f"policy.model={write_source(tmp_path / 'input')}")
    assert gib(mounted) == (0, 16.17, 0) and mounted.converts


def test_a_mounted_nf4_checkpoint_needs_nothing(tmp_path):
    there = storage_of(f"policy.model={write_nf4(tmp_path / 'input')}")
    assert gib(there) == (0, 0, 0) and not there.converts and there.folder == tmp_path / "input"


def test_the_disk_is_that_of_the_nf4_folder_not_of_the_working_folder(tmp_path):
    (tmp_path / "large").mkdir()
    chosen = f"policy.nf4_folder={tmp_path / 'large' / 'not' / 'yet'}"
    assert storage_of(chosen, **{str(tmp_path / "large"): 5.0}).free == 5 * GIB
    assert storage_of(chosen, **{str(tmp_path / "other"): 5.0}).free == 70 * GIB
    assert nearest_folder(tmp_path / "large" / "not" / "yet") == tmp_path / "large"


@pytest.mark.parametrize("device", [None, DEVICES["t4"]], ids=["here", "named"])
@pytest.mark.parametrize("inside", ["", "nf4/30b"])
def test_an_nf4_folder_that_is_a_file_is_refused_before_any_plan(tmp_path, device, inside):
    file = tmp_path / "cli.py"
    file.write_text("print()")
    with pytest.raises(ValueError) as refused:
        storage_of(f"policy.nf4_folder={file / inside}", device=device)
    assert str(refused.value) == (
        f"policy.nf4_folder is {file / inside} and {file} is a file; an NF4 checkpoint is a folder. Name another one."
    )


def test_a_16_bit_checkpoint_lies_in_the_cache_of_the_hub_and_is_not_downloaded_twice(tmp_path):
    assert gib(storage_of(preset="80gb")) == (58.82, 58.82, 0) and not storage_of(preset="80gb").converts
    blobs = tmp_path / "hub" / f"models--{base_models.PUBLISHED.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    for name, size in (("a", 4 * GIB), ("b", 5 * GIB), ("c.123.incomplete", 3 * GIB)):
        with (blobs / name).open("wb") as file:
            file.truncate(size)
    assert gib(storage_of(preset="80gb", **{str(tmp_path / "hub"): 50.0})) == (49.82, 49.82, 0)
    assert storage_of(preset="80gb", **{str(tmp_path / "hub"): 50.0}).free == 50 * GIB


def test_the_embedded_policy_and_a_local_folder_need_nothing(tmp_path):
    assert gib(storage_of(preset="tiny")) == gib(storage_of(preset="tiny", device=DEVICES["t4"])) == (0, 0, 0)
    assert gib(storage_of(f"policy.model={write_source(tmp_path / 'here')}", preset="80gb")) == (0, 0, 0)


@pytest.mark.slow
def test_on_kaggle_the_shard_lies_outside_the_output(monkeypatch, tmp_path):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    both = storage_of()
    assert both.folder.is_relative_to("/kaggle/temp/nf4") and both.shard_free is None  # on one disk
    apart = storage_of(f"policy.nf4_folder={tmp_path / 'output'}", **{str(tmp_path): 18.6})
    assert (apart.free / GIB, apart.shard_free / GIB) == pytest.approx((18.6, 70.0))
    assert apart.needed / GIB == pytest.approx(16.17, abs=0.01) and describe_disk_remedy(apart) == ""
    full = apart._replace(shard_free=1 * GIB)
    assert describe_disk_remedy(full).startswith("free 3.7 GiB at /")
    plan = plan_for("t4x2", "t4x2")
    chosen = config.load_config(["t4x2"], [f"policy.nf4_folder={tmp_path / 'output'}"])
    fit = assess_fit(Architecture.of(chosen.policy), chosen, plan.device, 256, full)
    assert not fit.fits and fit.needs["disk"].nbytes / GIB == pytest.approx(16.17, abs=0.01)
    assert fit.needs["disk for downloads"].has == 1 * GIB


def test_on_kaggle_an_nf4_checkpoint_among_the_inputs_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    mounted = write_nf4(tmp_path / "input" / "anything")
    monkeypatch.setattr(model_source, "find_mounted_folders", lambda file: [mounted])
    assert gib(storage_of()) == (0, 0, 0) and storage_of().folder == mounted


def test_in_colab_a_checkpoint_on_drive_is_copied_not_downloaded(monkeypatch, tmp_path):
    kept = write_nf4(tmp_path / "drive")
    monkeypatch.setattr(storage, "drive_nf4_folder", lambda model: kept)
    assert gib(storage_of()) == (0, 16.17, 0) and storage_of().source == "NF4, copied from Google Drive"
    assert not storage_of().converts
    (kept / "nf4.json").unlink()
    assert gib(storage_of()) == (58.82, 16.17, 4.66)
