"""An NF4 checkpoint is found where it lies, copied from Google Drive or made, and then loads without any network."""

import errno
import json
import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from grpo_kit import config
from grpo_kit.nemotron import base_models, convert, nf4_layout, tiny
from grpo_kit.policy import model_source, nf4_source
from grpo_kit.policy.load import load_policy, load_tokenizer
from grpo_kit.policy.routing_counts import routing_path
from grpo_kit.runs import activity, files, places

HUB = "org/Some-Nemotron-H"  # a model that only the Hub has
Usage = namedtuple("Usage", "free")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A finished NF4 checkpoint of `HUB`, as a conversion from the Hub would have made it."""
    out = convert.convert_to_nf4(tiny.FOLDER, tmp_path_factory.mktemp("converted") / "nf4", "float32")
    manifest = json.loads((out / "nf4.json").read_text()) | {"source": HUB, "commit": "c0ffee"}
    (out / "nf4.json").write_text(json.dumps(manifest))
    return out


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder that the kit takes for the root of the machine; call the result with `colab` or `kaggle`."""
    for name in vars(places):
        function = getattr(places, name)
        if getattr(function, "__defaults__", None) and Path("/") in function.__defaults__:
            defaults = tuple(tmp_path if value == Path("/") else value for value in function.__defaults__)
            monkeypatch.setattr(function, "__defaults__", defaults)
    monkeypatch.delenv("GRPO_KIT_ROOT", raising=False)

    def make(kind):
        monkeypatch.setenv({"colab": "COLAB_RELEASE_TAG", "kaggle": "KAGGLE_KERNEL_RUN_TYPE"}[kind], "x")
        return tmp_path

    return make


@pytest.fixture
def no_network(monkeypatch):
    """Every connection, every look-up and every call of the Hub's client fails the test, although it is not offline."""

    def refuse(*words, **options):
        raise AssertionError(f"the network was asked: {words}")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, refuse)


def hash_small_files(path):
    """`hash_of` for a test in which no part, which has gigabytes, may be read."""
    assert path.suffix != ".safetensors", f"{path} was hashed"
    return files.hash_of(path)


@pytest.fixture
def no_hashing(monkeypatch):
    for module in (nf4_layout, convert):
        monkeypatch.setattr(module, "hash_of", hash_small_files)


def policy_of(model=HUB, **settings):
    return config.Policy(model=model, load_in_4bit=True, **settings)


def last_logits(policy):
    model, tokenizer = load_policy(policy)
    with torch.inference_mode():
        return model(**tokenizer("What is 2", return_tensors="pt")).logits[:, -1]


def put(converted, folder, **changes):
    shutil.copytree(converted, folder)
    manifest = json.loads((folder / "nf4.json").read_text()) | changes
    (folder / "nf4.json").write_text(json.dumps(manifest))
    return folder


# Without a network


@pytest.mark.parametrize("by_name", [True, False], ids=["by the model's id", "by its folder"])
def test_a_finished_checkpoint_loads_without_network_and_without_hashing(converted, no_network, no_hashing, by_name):
    policy = policy_of(nf4_folder=str(converted)) if by_name else policy_of(str(converted))
    assert last_logits(policy).isfinite().all()
    assert nf4_source.describe_download(policy) == ""
    assert model_source.base_model_name(policy) == HUB


def test_the_tokenizer_alone_comes_from_the_checkpoint_too(converted, no_network):
    assert load_tokenizer(policy_of(nf4_folder=str(converted))).padding_side == "left"


def test_a_checkpoint_whose_source_is_gone_still_loads(tmp_path, monkeypatch, no_hashing):
    monkeypatch.undo()  # the conversion hashes what it writes
    monkeypatch.setattr(nf4_source, "LARGEST_UNSTREAMED", 1000)
    source = shutil.copytree(tiny.FOLDER, tmp_path / "source")
    policy = policy_of(str(source), nf4_folder=str(tmp_path / "nf4"))
    first = last_logits(policy)
    shutil.rmtree(source)
    assert torch.equal(last_logits(policy), first)


@pytest.mark.slow
def test_a_local_source_with_other_weights_is_converted_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(nf4_source, "LARGEST_UNSTREAMED", 1000)
    source = shutil.copytree(tiny.FOLDER, tmp_path / "source")
    policy = policy_of(str(source), nf4_folder=str(tmp_path / "nf4"))
    first = last_logits(policy)
    tensors = load_file(source / "model.safetensors")
    name = "backbone.layers.2.mixer.q_proj.weight"
    save_file(tensors | {name: tensors[name].float() * 2}, source / "model.safetensors", metadata={"format": "pt"})
    assert model_source.find_nf4(policy) is None
    assert not torch.equal(last_logits(policy), first)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A policy whose NF4 checkpoint was made of a local folder: (policy, the folder, the checkpoint)."""
    monkeypatch.setattr(nf4_source, "LARGEST_UNSTREAMED", 1000)
    source, folder = shutil.copytree(tiny.FOLDER, tmp_path / "source"), tmp_path / "nf4"
    tensors = load_file(source / "model.safetensors")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert.convert_to_nf4(source, folder, "float32")
    return policy_of(str(source), nf4_folder=str(folder)), source, folder


def doubled(source):
    """The weights of `source`, of which those that a mixer's output goes through are twice as large."""
    tensors = load_file(source / "model.safetensors")
    return {name: value * 2 if name.endswith("q_proj.weight") else value for name, value in tensors.items()}


def same_size(source):
    path = source / "model.safetensors"
    size = path.stat().st_size
    save_file(doubled(source), path, metadata={"format": "pt"})
    assert path.stat().st_size == size
    return "model.safetensors"


def two_shards(source):
    tensors, index = doubled(source), {}
    (source / "model.safetensors").unlink()
    for number in (1, 2):
        shard = f"model-{number:05}-of-00002.safetensors"
        names = sorted(tensors)[number - 1 :: 2]
        save_file({name: tensors[name] for name in names}, source / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(names, shard)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return "model.safetensors.index.json"


def config_of(**changes):
    def change(source):
        fields = json.loads((source / "config.json").read_text()) | changes
        (source / "config.json").write_text(json.dumps(fields))
        return "config.json"

    return change


CHANGES = {
    "the same size": same_size,
    "two shards": two_shards,
    "another scaling": config_of(routed_scaling_factor=7.5),
    "fewer experts a token": config_of(num_experts_per_tok=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_source_that_became_another_model_is_converted_again(local, capsys, change):
    policy, source, folder = local
    first = last_logits(policy)
    name = change(source)
    assert model_source.find_nf4(policy) is None
    second = last_logits(policy)
    assert (
        f"{folder} was made of another {name} than lies in {source} now. It is made again." in capsys.readouterr().out
    )
    assert not torch.equal(first, second) and model_source.find_nf4(policy) == folder
    assert torch.equal(last_logits(policy), second) and capsys.readouterr().out == ""
    recorded = nf4_layout.read_manifest(folder)["parts"]
    assert {path.name for path in folder.glob("nf4-*")} == set(recorded)  # nothing of the old one takes room


def test_a_killed_conversion_of_a_changed_source_is_not_finished(local, monkeypatch):
    policy, source, folder = local
    same_size(source)

    def stop(*words):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_write_part", stop)
        with pytest.raises(KeyboardInterrupt):
            load_policy(policy)
    shutil.rmtree(source)
    assert model_source.find_nf4(policy) is None


def test_a_mount_that_may_only_be_read_is_compared_by_size(local, monkeypatch):
    policy, source, folder = local
    path = source / "model.safetensors"
    os.utime(path)
    assert model_source.find_nf4(policy) is None
    monkeypatch.setattr(nf4_layout.os, "access", lambda path, mode: not Path(path).is_relative_to(source))
    assert model_source.find_nf4(policy) == folder
    path.write_bytes(path.read_bytes() + b" ")
    assert model_source.find_nf4(policy) is None


def test_a_source_that_only_lost_its_weights_is_not_missed(local):
    policy, source, folder = local
    (source / "model.safetensors").unlink()
    (source / "config.json").write_text("{}")
    assert model_source.find_nf4(policy) == folder


# Damage


def cut(name):
    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:50])

    return damage


def flip(folder):
    data = bytearray((folder / "nf4-00001-of-00001.safetensors").read_bytes())
    data[-5000] ^= 255
    (folder / "nf4-00001-of-00001.safetensors").write_bytes(data)


PART = "nf4-00001-of-00001.safetensors"
DAMAGE = {
    "config.json": cut("config.json"),
    "tokenizer.json": cut("tokenizer.json"),
    "generation_config.json": cut("generation_config.json"),
    "chat_template.jinja": lambda folder: (folder / "chat_template.jinja").unlink(),
    PART: flip,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_made_again_from_the_source(local, capsys, name):
    policy, _, folder = local
    first = last_logits(policy)
    DAMAGE[name](folder)
    assert torch.equal(last_logits(policy), first)
    assert f"{folder / name} is not what was written" in (text := capsys.readouterr().out) and "made again." in text
    assert torch.equal(last_logits(policy), first) and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_named_where_there_is_no_source(converted, tmp_path, name):
    folder = put(converted, tmp_path / "nf4")
    DAMAGE[name](folder)
    with pytest.raises(ValueError, match=f"{name} is not what was written.*. Delete it and load the published model"):
        load_policy(policy_of(str(folder)))
    if name != PART:  # whose damage only a load from it can find
        with pytest.raises(ValueError, match=f"{name} is not what was written"):
            load_policy(policy_of(nf4_folder=str(folder)))


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", '{"format": 1, "sou', '{"format": 2}'])
def test_a_damaged_manifest_is_named_and_without_it_the_checkpoint_is_made_again(local, text):
    policy, _, folder = local
    first = last_logits(policy)
    (folder / "nf4.json").write_text(text)
    with pytest.raises(ValueError, match=r"nf4\.json is .*Delete it and load the published model"):
        load_policy(policy)
    (folder / "nf4.json").unlink()
    assert torch.equal(last_logits(policy), first)


def test_what_is_not_finished_is_not_taken_for_a_checkpoint(converted, tmp_path):
    folder = put(converted, tmp_path / "nf4", count=9)
    policy = policy_of(nf4_folder=str(folder))
    assert model_source.find_nf4(policy) is None and model_source.nf4_folder(policy) == folder
    with pytest.raises(FileNotFoundError, match="policy.model is 'org/Some-Nemotron-H'"):
        load_policy(policy)
    with pytest.raises(ValueError, match="holds 1 of 9 parts"):
        load_policy(policy_of(str(folder)))


# Kaggle


def test_a_mounted_checkpoint_is_found_by_what_it_was_made_of(converted, machine, no_network, no_hashing, monkeypatch):
    root = machine("kaggle")
    inputs = root / "kaggle/input"
    put(converted, inputs / "a", dtype="float16")
    put(converted, inputs / "b", source="org/another")
    put(converted, inputs / "c", revision="v2")
    put(converted, inputs / "d", count=2)
    mounted = put(converted, inputs / "notebooks/ada/grpo-kit-01-setup/nf4" / "org--Some-Nemotron-H")
    monkeypatch.setattr(nf4_layout.os, "access", lambda path, mode: not Path(path).is_relative_to(inputs))
    assert model_source.nf4_folder(policy_of()) == mounted
    assert last_logits(policy_of()).isfinite().all()
    assert routing_path(policy_of()) == root / "kaggle/temp/nf4/org--Some-Nemotron-H/routing.json"
    (mounted / "routing.json").write_text("{}")
    assert routing_path(policy_of()) == mounted / "routing.json"


@pytest.mark.parametrize("where", ["kaggle/temp", "kaggle/working"])
def test_a_checkpoint_of_this_session_comes_before_a_mounted_one(converted, machine, where):
    root = machine("kaggle")
    put(converted, root / "kaggle/input/mine")
    ours = put(converted, root / where / "nf4/org--Some-Nemotron-H")
    assert model_source.nf4_folder(policy_of()) == ours


@pytest.mark.slow
def test_on_kaggle_it_is_made_outside_the_output_and_a_sentence_says_how_to_keep_it(machine, monkeypatch, capsys):
    root = machine("kaggle")
    monkeypatch.setattr(nf4_source, "LARGEST_UNSTREAMED", 1000)
    load_policy(policy_of("tiny"))
    assert (root / "kaggle/temp/nf4/tiny/nf4.json").is_file() and not (root / "kaggle/working").exists()
    output = root / "kaggle/working/nf4/tiny"
    text = capsys.readouterr().out
    push = "grpo-kit push 01_setup --accelerator NvidiaTeslaT4 policy.model=tiny"
    assert f"make it with `{push}` and push later notebooks with that kernel as --kernel-source" in text
    assert f"set policy.nf4_folder={output}, 0.0 of the 20 GB" in text and text.count("\n") == 1
    load_policy(policy_of("tiny", nf4_folder=str(output)))
    assert model_source.is_finished(output, policy_of("tiny")) and capsys.readouterr().out == ""


def test_the_output_of_01_setup_is_what_the_next_kernel_loads(machine, monkeypatch):
    root = machine("kaggle")
    monkeypatch.setattr(nf4_source, "LARGEST_UNSTREAMED", 1000)
    working = root / "kaggle/working"
    first = last_logits(policy_of("tiny", nf4_folder=str(working / "nf4/tiny")))  # as `push 01_setup` sets it
    assert not (root / "kaggle/temp/nf4").exists() and not (working / "nf4/tiny/.download").exists()
    mounted = root / "kaggle/input/notebooks/ada/grpo-kit-01-setup"
    shutil.copytree(working, mounted, copy_function=shutil.copyfile)
    shutil.rmtree(working)
    monkeypatch.setattr(convert, "convert_to_nf4", lambda *words: pytest.fail("converted again"))
    monkeypatch.setattr(nf4_layout, "hash_of", hash_small_files)
    monkeypatch.setattr(nf4_layout.os, "access", lambda path, mode: not Path(path).is_relative_to(mounted))
    assert torch.equal(last_logits(policy_of("tiny")), first)


MOUNT = "/kaggle/input/models/metric/nemotron-3-nano-30b-a3b-bf16/transformers/default/1"


@pytest.mark.parametrize(
    ("made_of", "model", "found"),
    [
        (base_models.PUBLISHED, MOUNT, True),
        (MOUNT, base_models.PUBLISHED, True),
        (MOUNT, MOUNT, True),
        (MOUNT, f"{MOUNT}/", True),
        ("ada/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", MOUNT, False),
        (MOUNT, "ada/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", False),
        (MOUNT, "/kaggle/input/models/ada/nemotron-3-nano-30b-a3b-bf16/transformers/default/1", False),
        (base_models.PUBLISHED, base_models.LIGHTNING, False),
    ],
)
def test_the_30b_of_kaggle_and_of_the_hub_are_one_model_and_no_other(converted, machine, made_of, model, found):
    mounted = put(converted, machine("kaggle") / "kaggle/input/nf4-of-the-30b", source=made_of)
    assert model_source.find_nf4(policy_of(model)) == (mounted if found else None)


def test_what_this_session_made_under_the_other_name_is_found(converted, machine):
    made = put(converted, machine("kaggle") / "kaggle/temp/nf4" / MOUNT.strip("/").replace("/", "--"), source=MOUNT)
    assert model_source.nf4_folder(policy_of(base_models.PUBLISHED)) == made


# Colab and Google Drive


@pytest.fixture
def colab(machine, monkeypatch):
    root = machine("colab")
    (root / "content/drive/MyDrive").mkdir(parents=True)
    monkeypatch.setattr(nf4_source, "LARGEST_UNSTREAMED", 1000)
    return root / "content/drive/MyDrive/grpo-kit/nf4/tiny", root / "content/grpo-kit/nf4/tiny"


def test_what_fits_on_google_drive_is_kept_there_and_copied_back(colab, capsys, monkeypatch):
    drive, local = colab
    first = last_logits(policy_of("tiny"))
    assert f"(0.0 GiB) is kept in {drive}; the next session copies it from there." in capsys.readouterr().out
    shutil.rmtree(local)  # the next session
    assert nf4_source.describe_download(policy_of("tiny")) == ""  # the tiny policy is in the package
    monkeypatch.setattr(convert, "convert_to_nf4", lambda *words: pytest.fail("converted again"))
    monkeypatch.setattr(nf4_layout, "hash_of", hash_small_files)
    assert torch.equal(last_logits(policy_of("tiny")), first)
    assert {path.name for path in local.iterdir()} == {path.name for path in drive.iterdir()}
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_what_drive_damaged_is_named_and_made_again(colab, capsys):
    drive, local = colab
    first = last_logits(policy_of("tiny"))
    shutil.rmtree(local)  # the next session
    flip(drive)
    capsys.readouterr()
    assert torch.equal(last_logits(policy_of("tiny")), first)
    text = capsys.readouterr().out
    assert f"{drive / PART} is not what was written. Delete it" in text and "The checkpoint is made again." in text


def test_what_does_not_fit_on_google_drive_is_not_kept_there(colab, capsys, monkeypatch):
    drive, local = colab
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**30) if Path(path).name == "MyDrive" else real(path))
    load_policy(policy_of("tiny"))
    text = capsys.readouterr().out
    assert "is not kept on Google Drive, which has 1.0 GiB free. The next session makes it again." in text
    assert not drive.exists() and model_source.is_finished(local, policy_of("tiny"))


def test_a_drive_that_fails_costs_the_copy_and_nothing_else(colab, capsys, monkeypatch):
    def fail(*words):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(nf4_source, "copy_checkpoint", fail)
    assert last_logits(policy_of("tiny")).isfinite().all()
    assert "could not be kept on Google Drive (Input/output error). The next session" in capsys.readouterr().out


def test_a_checkpoint_on_drive_with_another_dtype_is_neither_taken_nor_replaced(colab, converted, capsys):
    drive, local = colab
    put(converted, drive, source=str(tiny.FOLDER), dtype="float16")
    load_policy(policy_of("tiny"))
    assert [nf4_layout.read_manifest(folder)["dtype"] for folder in (local, drive)] == ["float32", "float16"]
    assert f"could not be kept on Google Drive ({drive} holds another NF4 checkpoint, of " in capsys.readouterr().out


# The copy


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory):
    """A finished checkpoint of several parts."""
    from transformers import NemotronHForCausalLM

    folder = tmp_path_factory.mktemp("parts")
    NemotronHForCausalLM.from_pretrained(tiny.FOLDER).save_pretrained(folder / "model", max_shard_size="150KB")
    return convert.convert_to_nf4(folder / "model", folder / "nf4", "float32")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "nf4.json"}


def test_an_interrupted_copy_goes_on_after_its_last_whole_part(in_parts, tmp_path, monkeypatch):
    parts, opened = list(nf4_layout.read_manifest(in_parts)["parts"]), []
    new_file, target = nf4_source.new_file, tmp_path / "copy"

    def note(path):
        if path.name in parts:
            opened.append(path.name)
        if opened == parts[:3]:
            raise KeyboardInterrupt
        return new_file(path)

    monkeypatch.setattr(nf4_source, "new_file", note)
    with pytest.raises(KeyboardInterrupt):
        nf4_source.copy_checkpoint(in_parts, target, "copying")
    with pytest.raises(ValueError, match=f"holds 2 of {len(parts)} parts"):
        nf4_layout.verify_checkpoint(target)
    opened += ["again"]
    nf4_source.copy_checkpoint(in_parts, target, "copying")
    assert opened == [*parts[:3], "again", *parts[2:]] and len(parts) > 3
    assert contents(target) == contents(in_parts)
    monkeypatch.setattr(nf4_layout, "hash_of", hash_small_files)
    nf4_layout.confirm_parts(target)


def test_an_interrupted_copy_is_continued_by_a_conversion_if_drive_is_gone(in_parts, tmp_path, monkeypatch):
    target, parts = tmp_path / "copy", list(nf4_layout.read_manifest(in_parts)["parts"])
    write = nf4_source.write_manifest

    def stop_after_the_second(folder, manifest):
        write(folder, manifest)
        if len(manifest["parts"]) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(nf4_source, "write_manifest", stop_after_the_second)
    with pytest.raises(KeyboardInterrupt):
        nf4_source.copy_checkpoint(in_parts, target, "copying")
    made = []
    convert.convert_to_nf4(
        in_parts.parent / "model", target, "float32", progress=lambda done, total, words: made.append(words)
    )
    assert made[0] == f"part 3 of {len(parts)}" and contents(target) == contents(in_parts)


def test_a_part_that_was_made_here_of_other_bytes_is_replaced(in_parts, tmp_path):
    """Another kind of device rounds differently: the same size, another sha256."""
    target = shutil.copytree(in_parts, tmp_path / "copy")
    manifest = nf4_layout.read_manifest(target)
    first, *_ = manifest["parts"]
    manifest["parts"] = {first: manifest["parts"][first] | {"sha256": "of another device"}}
    nf4_layout.write_manifest(target, manifest)
    (target / first).write_bytes(b"\0" * (target / first).stat().st_size)
    nf4_source.copy_checkpoint(in_parts, target, "copying")
    assert contents(target) == contents(in_parts)


def test_a_part_that_drive_lost_the_end_of_is_not_a_checkpoint(in_parts, tmp_path):
    source = shutil.copytree(in_parts, tmp_path / "source")
    part = list(nf4_layout.read_manifest(source)["parts"])[1]
    (source / part).write_bytes((source / part).read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{part} is not what was written. Delete it"):
        nf4_source.copy_checkpoint(source, tmp_path / "copy", "copying")
    with pytest.raises(ValueError, match="holds 1 of "):
        nf4_layout.verify_checkpoint(tmp_path / "copy")


@pytest.mark.parametrize("name", ["a part", "config.json"])
def test_a_copy_is_hashed_on_its_way(in_parts, tmp_path, name):
    source = shutil.copytree(in_parts, tmp_path / "source")
    path = source / (list(nf4_layout.read_manifest(source)["parts"])[1] if name == "a part" else name)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(nf4_layout.DamagedError, match=f"{path} is not what was written. Delete it"):
        nf4_source.copy_checkpoint(source, tmp_path / "copy", "copying")
    assert not (tmp_path / "copy" / path.name).exists()


def test_a_part_that_changed_after_an_interrupted_copy_is_copied_again(in_parts, tmp_path):
    target = shutil.copytree(in_parts, tmp_path / "copy")
    manifest = nf4_layout.read_manifest(target)
    first = next(iter(manifest["parts"]))
    nf4_layout.write_manifest(target, manifest | {"parts": {first: manifest["parts"][first]}})
    (target / first).write_bytes(b"\0" * (target / first).stat().st_size)
    nf4_source.copy_checkpoint(in_parts, target, "copying")
    assert contents(target) == contents(in_parts)


def test_a_copy_says_the_part_and_its_bytes_to_who_listens(in_parts, tmp_path):
    heard = []
    with activity.listen(heard.append):
        nf4_source.copy_checkpoint(in_parts, tmp_path / "copy", "copying from Google Drive")
    count = len(nf4_layout.read_manifest(in_parts)["parts"])
    assert heard[0] == f"copying from Google Drive, part 1 of {count}: 0.0 of 0.0 GiB" and len(heard) == count


def test_a_load_refuses_an_nf4_folder_that_is_a_file_and_leaves_it(tmp_path):
    (tmp_path / "cli.py").write_text("print()")
    with pytest.raises(ValueError, match=r"cli.py is a file; an NF4 checkpoint is a folder. Name another one\."):
        load_policy(policy_of("tiny", nf4_folder=str(tmp_path / "cli.py")))
    assert (tmp_path / "cli.py").read_text() == "print()"
