"""Checkpoints of verl and NeMo-RL, written by torch's own writers: the adapter that comes back is the one that was
written, byte for byte, and a file that is not what it claims is refused without running it."""

import json
import os
import pickle
import shutil

import pytest
import torch

from grpo_kit.adapters.checkpoints.dcp import read_dcp
from grpo_kit.adapters.checkpoints.opening import open_adapter
from grpo_kit.submission.package import pack_folders
from tests.helpers.checkpoints import META, trained_state, write_nemo_rl, write_verl


@pytest.fixture(scope="module")
def adapter(trained):
    return trained[1].adapter


@pytest.fixture(scope="module")
def state(adapter):
    return trained_state(adapter)


def packed(folder, tmp_path):
    pack_folders([folder], "tiny", tmp_path / "s.zip")
    return (tmp_path / "s.zip").read_bytes()


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((1,), 0),  # one process
        ((2,), 0),
        ((3,), 0),  # 16 rows of A: 6, 6 and 4
        ((5,), 0),  # 4, 4, 4, 4 and none
        ((3,), 1),
        ((2,), None),  # a copy in each
        ((2, 3), 0),  # two groups of three with the same
    ],
)
def test_verls_shards_pack_to_the_bytes_of_the_adapter(adapter, state, tmp_path, shape, cut):
    write_verl(tmp_path / "global_step_4" / "actor", state, shape, cut)
    for given in ("global_step_4", "global_step_4/actor"):
        assert packed(tmp_path / given, tmp_path) == packed(adapter, tmp_path)


def test_shards_of_plain_tensors_and_of_the_lora_alone_are_read(adapter, state, tmp_path):
    lora = {key: value for key, value in state.items() if "lora_" in key}
    (tmp_path / "lora_train_meta.json").write_text(json.dumps(META))
    torch.save(lora, tmp_path / "model_world_size_1_rank_0.pt")
    assert packed(tmp_path, tmp_path) == packed(adapter, tmp_path)


def test_nemo_rls_dcp_folder_packs_to_the_bytes_of_the_adapter(adapter, state, tmp_path):
    folder = write_nemo_rl(tmp_path / "step_4", state)
    assert sorted(path.name for path in folder.iterdir()) == [".metadata", "__0_0.distcp"]
    for given in (tmp_path / "step_4", folder):
        assert packed(given, tmp_path) == packed(adapter, tmp_path)


@pytest.mark.parametrize("place", ["policy/weights/model", "actor/lora_adapter", "lora_adapter"])
def test_the_adapter_folder_that_a_trainer_writes_is_found(adapter, tmp_path, place):
    shutil.copytree(adapter, tmp_path / "step" / place)
    assert packed(tmp_path / "step", tmp_path) == packed(adapter, tmp_path)


def test_the_scale_is_the_one_that_the_checkpoint_was_trained_with(state, tmp_path):
    write_verl(tmp_path / "v", state, (1,), meta=META | {"lora_alpha": 8})
    assert open_adapter(tmp_path / "v").config.scale_of("backbone.layers.0.mixer.in_proj", 16) == 0.5
    write_nemo_rl(tmp_path / "n", state)
    (tmp_path / "n" / "config.yaml").write_text("policy: {automodel_cfg: {lora_cfg: {dim: 16, alpha: 4}}}")
    assert open_adapter(tmp_path / "n").config.scale_of("backbone.layers.0.mixer.in_proj", 16) == 0.25


def change_shard(folder, change):
    path = folder / "model_world_size_2_rank_1.pt"
    shard = torch.load(path, weights_only=True)
    change(shard)
    torch.save(shard, path)


def first_lora(shard):
    return next(key for key in shard if "lora_" in key)


def other_shape(folder):
    def cut_off(shard):
        value = shard[first_lora(shard)]
        value._local_tensor = value._local_tensor[:-1].clone()

    change_shard(folder, cut_off)


def no_tensor(folder):
    change_shard(folder, lambda shard: shard.update({first_lora(shard): [1, 2]}))


def other_keys(folder):
    change_shard(folder, lambda shard: shard.pop(first_lora(shard)))


def other_run(folder):
    shutil.copy(folder / "model_world_size_2_rank_0.pt", folder / "model_world_size_4_rank_0.pt")


def a_list(folder):
    torch.save([1, 2], folder / "model_world_size_2_rank_0.pt")


class Touch:
    """Unpickled by plain pickle, it makes a file."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (other_shape, ValueError, r"lora_A.default.weight is damaged"),
        (no_tensor, ValueError, r"do not fit together"),
        (other_keys, ValueError, r"do not fit together"),
        (other_run, ValueError, r"shards of \[2, 4\] processes"),
        (a_list, ValueError, r"do not fit together"),
        (
            lambda f: (f / "model_world_size_2_rank_1.pt").unlink(),
            FileNotFoundError,
            r"lacks model_world_size_2_rank_1",
        ),
        (
            lambda f: (f / "model_world_size_2_rank_1.pt").write_bytes(b"PK\3\4"),
            ValueError,
            "cannot be read as tensors",
        ),
        (lambda f: (f / "lora_train_meta.json").unlink(), FileNotFoundError, r"scale of its LoRA is unknown. Write \{"),
        (lambda f: (f / "lora_train_meta.json").write_text("[1]"), ValueError, r"does not say r and alpha"),
        (lambda f: (f / "lora_train_meta.json").write_text('{"r": 8, "lora_alpha": 8}'), ValueError, r"has rank 16"),
        (lambda f: (f / "lora_train_meta.json").write_text('{"r": -1, "lora_alpha": 8}'), ValueError, r"r is -1"),
    ],
)
def test_damaged_shards_are_refused_in_a_sentence(state, tmp_path, damage, kind, message):
    write_verl(tmp_path / "v", state, (2,))
    damage(tmp_path / "v")
    with pytest.raises(kind, match=message):
        pack_folders([tmp_path / "v"], "tiny", tmp_path / "s.zip")
    assert not (tmp_path / "s.zip").exists()


def test_a_checkpoint_without_a_lora_is_refused(state, tmp_path):
    full = {key: value for key, value in state.items() if "lora_" not in key}
    write_verl(tmp_path / "v", full, (2,))
    with pytest.raises(ValueError, match=r"holds 2 tensors and no LoRA: all weights were trained"):
        open_adapter(tmp_path / "v")
    write_nemo_rl(tmp_path / "n", full)
    with pytest.raises(ValueError, match=r"holds 2 tensors and no LoRA"):
        open_adapter(tmp_path / "n")


def test_code_in_a_shard_is_not_run(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_verl(tmp_path / "v", state, (1,))
    torch.save(dict(state) | {"x": Touch()}, tmp_path / "v" / "model_world_size_1_rank_0.pt")
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        open_adapter(tmp_path / "v")
    assert not (tmp_path / "ran").exists()


def rewrite_metadata(folder, change):
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def lora_entry(metadata):
    key = next(key for key in metadata.state_dict_metadata if "lora_" in key)
    return metadata.state_dict_metadata[key], next(v for k, v in metadata.storage_data.items() if k.fqn == key)


def outside(metadata):
    lora_entry(metadata)[1].relative_path = "../secret.distcp"


def beyond(metadata):
    lora_entry(metadata)[1].offset = 1 << 40


def negative(metadata):
    lora_entry(metadata)[1].offset = -1


def compressed(metadata):
    lora_entry(metadata)[1].transform_descriptors = ["zstd"]


def larger(metadata):
    entry = lora_entry(metadata)[0]
    entry.size = torch.Size([1 << 40, 1 << 20])
    entry.chunks[0].sizes = entry.size


def twice(metadata):
    entry = lora_entry(metadata)[0]
    entry.chunks = entry.chunks * 2


def other_type(metadata):
    lora_entry(metadata)[0].properties.dtype = torch.float16


def code(metadata):
    metadata.planner_data = Touch()


def text(metadata):
    metadata.state_dict_metadata = "abc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (outside, "is not a file of this folder"),
        (beyond, "is too short for"),
        (negative, "is too short for"),
        (compressed, "compressed, which is not read"),
        (larger, "do not make a tensor of shape"),
        (twice, "do not make a tensor of shape"),
        (other_type, "another shape or type than the checkpoint says"),
        (code, r"names posix.mkdir, which is not part of the format"),
        (text, "is damaged"),
    ],
)
def test_metadata_that_does_not_fit_its_files_is_refused(state, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    folder = write_nemo_rl(tmp_path / "n", state)
    rewrite_metadata(folder, change)
    with pytest.raises(ValueError, match=message):
        pack_folders([folder], "tiny", tmp_path / "s.zip")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "s.zip").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a pickle", pickle.dumps({"a": 1}), pickle.dumps(None)])
def test_metadata_that_is_no_metadata_is_refused(tmp_path, content):
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=r"\.metadata is damaged"):
        read_dcp(tmp_path)


def test_a_missing_file_is_named(state, tmp_path):
    folder = write_nemo_rl(tmp_path / "n", state)
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(FileNotFoundError, match=r"__0_0.distcp is missing; the checkpoint's metadata names it"):
        open_adapter(folder)


def test_code_in_a_distcp_file_is_not_run(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_nemo_rl(tmp_path / "n", state)
    torch.save(Touch(), tmp_path / "evil.pt")
    evil = (tmp_path / "evil.pt").read_bytes()

    def point(metadata):
        place = lora_entry(metadata)[1]
        place.relative_path, place.offset, place.length = "__1_0.distcp", 0, len(evil)

    rewrite_metadata(folder, point)
    (folder / "__1_0.distcp").write_bytes(evil)
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        pack_folders([folder], "tiny", tmp_path / "s.zip")
    assert not (tmp_path / "ran").exists()


def test_a_folder_with_nothing_known_says_what_an_adapter_folder_holds(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json does not exist"):
        open_adapter(tmp_path)
