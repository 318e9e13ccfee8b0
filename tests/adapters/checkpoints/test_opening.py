"""Checkpoints of verl and NeMo-RL, written by torch's own writers: the adapter that comes back is the one that was
written, byte for byte, and a file that is not what it claims is refused without running it."""

import json
import os
import pickle
import shutil
import zipfile

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


@pytest.mark.slow
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


def one_key_more(folder):
    change_shard(folder, lambda shard: shard.update({"x.lora_A.weight": torch.ones(2, 2)}))


def other_run(folder):
    shutil.copy(folder / "model_world_size_2_rank_0.pt", folder / "model_world_size_4_rank_0.pt")


def a_shard(content):
    return lambda folder: torch.save(content, folder / "model_world_size_2_rank_0.pt")


def deflate(path):
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def is_replaced(make):
    def replace(folder):
        (folder / "model_world_size_2_rank_1.pt").unlink()
        make(folder / "model_world_size_2_rank_1.pt")

    return replace


class Touch:
    """Unpickled by plain pickle, it makes a file."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (other_shape, ValueError, r"lora_A.default.weight is damaged"),
        (no_tensor, ValueError, r"do not fit together"),
        (other_keys, ValueError, r"have not the same LoRA, such as .*lora_A"),
        (one_key_more, ValueError, r"have not the same LoRA, such as x.lora_A.weight"),
        (other_run, ValueError, r"shards of \[2, 4\] processes"),
        (a_shard([1, 2]), ValueError, r"rank_0.pt holds a list, and a shard of verl holds tensors by name"),
        (a_shard(torch.ones(3)), ValueError, r"rank_0.pt holds a Tensor, and"),
        (a_shard({}), ValueError, r"rank_0.pt holds nothing, and"),
        (a_shard({"model": {"lora_A": torch.ones(3)}}), ValueError, r"rank_0.pt holds model, and"),
        (a_shard({1: torch.ones(3)}), ValueError, r"rank_0.pt holds 1, and"),
        (lambda f: deflate(f / "model_world_size_2_rank_1.pt"), ValueError, r"rank_1.pt is compressed inside, which"),
        (is_replaced(os.mkdir), ValueError, r"rank_1.pt is not a file"),
        (is_replaced(os.mkfifo), ValueError, r"rank_1.pt is not a file"),
        (is_replaced(lambda path: path.symlink_to("/dev/zero")), ValueError, r"rank_1.pt is not a file"),
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda value: value.to("meta"), "lora_A.weight is not a plain tensor"),
        (lambda value: value.to_sparse(), "lora_A.weight is not a plain tensor"),
        (lambda value: torch.ones(1).expand(10**6, 10**6), "do not make a tensor of shape"),
        (lambda value: 2 * value, "lora_A.weight has other values in the shard of process 1 than in that of 0"),
        (lambda value: value[:3], "lora_A.weight has other values in the shard of process 1 than in that of 0"),
    ],
)
def test_a_whole_tensor_that_is_no_plain_copy_is_refused(tmp_path, make, message):
    names, first = ("x.lora_A.weight", "x.lora_B.weight"), torch.ones(4, 3)
    both = [dict.fromkeys(names, first), dict.fromkeys(names, make(first))]
    if "values" not in message:
        both[0] = both[1]
    for rank, state in enumerate(both):
        torch.save(state, tmp_path / f"model_world_size_2_rank_{rank}.pt")
    with pytest.raises(ValueError, match=message):
        open_adapter(tmp_path)


def test_a_second_group_of_processes_must_hold_copies(state, tmp_path):
    write_verl(tmp_path / "v", state, (2, 2))
    path = tmp_path / "v" / "model_world_size_4_rank_3.pt"
    shard = torch.load(path, weights_only=True)
    shard[first_lora(shard)]._local_tensor += 1
    torch.save(shard, path)
    with pytest.raises(ValueError, match="has other values in the shard of process 3 than in that of 1"):
        open_adapter(tmp_path / "v")


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


def overlap(metadata):
    entry = lora_entry(metadata)[0]
    chunk = entry.chunks[0]
    chunk.sizes = torch.Size([chunk.sizes[0] // 2, *chunk.sizes[1:]])
    entry.chunks = [chunk, chunk]


def no_tensor_at_all(metadata):
    metadata.state_dict_metadata = {}


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
        (overlap, "do not make a tensor of shape"),
        (no_tensor_at_all, r"weights holds no tensor\. Copy"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04K\x01r\xff\xff\xff\x7f.", "has 10 bytes and numbers an object 2,147,483,647"),
        (b"\x80\x04K\x01p99999999\n.", "numbers an object 99,999,999"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x01\x00\x00\x00.", r"\.metadata is damaged: it is not metadata as torch"),
        (b"\x80\x04(\x85.", r"\.metadata is damaged: it is not metadata as torch"),
        (b"\x80\x04K\x01Q.", r"\.metadata refers to objects outside of it"),
    ],
)
def test_metadata_that_would_fill_the_memory_is_refused(tmp_path, content, message):
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_dcp(tmp_path)


def test_a_distcp_file_that_inflates_is_refused(state, tmp_path):
    folder = write_nemo_rl(tmp_path / "n", state)
    torch.save(torch.zeros(10**6), folder / "__1_0.distcp")
    deflate(folder / "__1_0.distcp")

    def point(metadata):
        place = lora_entry(metadata)[1]
        place.relative_path, place.offset = "__1_0.distcp", 0
        place.length = (folder / "__1_0.distcp").stat().st_size

    rewrite_metadata(folder, point)
    with pytest.raises(ValueError, match=r"__1_0.distcp is compressed inside"):
        pack_folders([folder], "tiny", tmp_path / "s.zip")


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


def a_folder_with(name):
    def make(path):
        path.mkdir()
        (path / name).write_bytes(b"1")

    return make


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (lambda path: None, "is missing"),
        (lambda path: path.mkdir(), "holds no adapter"),
        (lambda path: path.write_bytes(b"PK"), "is no folder"),
        (a_folder_with("pytorch_model.bin"), "holds no adapter"),
        (a_folder_with("model_world_size_0_rank_0.pt"), "holds no adapter"),
    ],
)
def test_another_folder_is_told_what_is_accepted(tmp_path, make, state):
    make(tmp_path / "f")
    with pytest.raises(
        FileNotFoundError, match=rf"f {state}. Give a folder with an adapter \(.*verl.*NeMo-RL.*merged model"
    ):
        open_adapter(tmp_path / "f")


def test_an_adapter_without_its_config_is_told_so(tmp_path):
    a_folder_with("adapter_model.safetensors")(tmp_path / "f")
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json does not exist"):
        open_adapter(tmp_path / "f")
