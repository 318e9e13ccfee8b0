"""A published checkpoint is converted shard by shard, whatever happens meanwhile, and loads as the same model."""

import errno
import json
import os
import re
import shutil
import weakref
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.nemotron import convert, experts, nf4, nf4_checkpoint, nf4_layout, tiny
from grpo_kit.policy.load import load_policy, load_tokenizer
from grpo_kit.runs.files import hash_of

IDS = torch.randint(16, 272, (3, 40), generator=torch.Generator().manual_seed(0))
INDEX = "model.safetensors.index.json"
EXPERT = "backbone.layers.3.mixer.experts.5.down_proj.weight"
OURS = re.escape("model.layers.3.mixer.experts.5.down_proj.weight")
TARGETS = [
    "in_proj",
    "out_proj",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "shared_experts.up_proj",
    "shared_experts.down_proj",
]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The embedded policy as a model is published: fp16, per-expert tensors under `backbone.`, several shards.

    Its router biases are large with small differences, as the real model's are: 16 bit would lose them.
    """
    from transformers import NemotronHForCausalLM

    folder = tmp_path_factory.mktemp("published") / "model"
    model = NemotronHForCausalLM.from_pretrained(tiny.FOLDER, dtype=torch.float16)
    for module in model.modules():
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias.copy_(64 + torch.arange(8) * 1e-3)
    model.save_pretrained(folder, max_shard_size="150KB")
    load_tokenizer(config.Policy()).save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) >= 5 and "backbone.layers.1.mixer.experts.7.up_proj.weight" in index(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    return convert.convert_to_nf4(published, tmp_path_factory.mktemp("converted") / "nf4", "float32")


@pytest.fixture(scope="module")
def expected(published):
    return logits(load_policy(config.Policy(model=str(published), load_in_4bit=True))[0])


@pytest.fixture
def source(published, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(published, tmp_path / "source")


def index(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def shard(folder, number):
    return sorted(folder.glob("model-*.safetensors"))[number - 1]


def parts(folder):
    """{name: bytes} of the part files and of nf4.json without the parts' times of change."""
    manifest = json.loads((folder / "nf4.json").read_text())
    for record in manifest["parts"].values():
        del record["changed"]
    return {path.name: path.read_bytes() for path in folder.glob("nf4-*")} | {"nf4.json": manifest}


def recorded(folder):
    return list(json.loads((folder / "nf4.json").read_text())["parts"])


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def change(path, edit):
    """Rewrite a shard with its tensors edited in place."""
    tensors = load_file(path)
    edit(tensors)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


# What comes out is the model that was put in


def test_it_says_what_the_model_quantised_by_transformers_says(converted, expected):
    assert (logits(nf4_checkpoint.load_nf4_model(converted, "cpu")) - expected).abs().max() <= 1e-5


def test_a_checkpoint_in_one_file_does_too(tmp_path):
    folder = convert.convert_to_nf4(tiny.FOLDER, tmp_path / "nf4", "float32")
    model, _ = load_policy(config.Policy(load_in_4bit=True))
    assert (logits(nf4_checkpoint.load_nf4_model(folder, "cpu")) - logits(model)).abs().max() <= 1e-5


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_wherever_the_experts_lie_it_says_the_same(converted, expected, share):
    model = nf4_checkpoint.load_nf4_model(converted, "cpu", share, slots=2)
    layers = [module for module in model.modules() if isinstance(module, experts.TieredExperts)]
    assert [sorted(layer.on_host) for layer in layers] == [list(range(8 - round(8 * share), 8))] * 2
    assert torch.equal(logits(model), logits(nf4_checkpoint.load_nf4_model(converted, "cpu")))


def test_every_matrix_is_in_four_bits_and_nothing_else(converted):
    stored = {name: value for path in converted.glob("*.safetensors") for name, value in load_file(path).items()}
    packed = {name for name, value in stored.items() if value.dtype == torch.uint8}
    assert packed == {name for name in stored if name.endswith(".nf4")}
    assert {re.sub(r"\.\d+", ".*", name) for name in packed} == {
        "model.layers.*.mixer.in_proj.weight.nf4", "model.layers.*.mixer.out_proj.weight.nf4",
        *(f"model.layers.*.mixer.{p}_proj.weight.nf4" for p in "qkvo"),
        *(f"model.layers.*.mixer.shared_experts.{p}_proj.weight.nf4" for p in ("up", "down")),
        *(f"model.layers.*.mixer.experts.*.{p}_proj.weight.nf4" for p in ("up", "down")),
    }  # fmt: skip
    assert len(packed) == 2 + 4 + 2 * (2 + 16)
    shapes = json.loads((converted / "nf4.json").read_text())["matrices"]
    assert all(stored[f"{n}.nf4"].shape == (nf4.packed_nbytes(tuple(shape)),) for n, shape in shapes.items())


def test_in_half_precision_what_needs_more_keeps_it(published, tmp_path, expected):
    model = nf4_checkpoint.load_nf4_model(convert.convert_to_nf4(published, tmp_path / "nf4", "float16"), "cpu")
    kept = {n for n, p in [*model.named_parameters(), *model.named_buffers()] if p.dtype == torch.float32}
    assert {name.rsplit("mixer.", 1)[-1] for name in kept} == {
        "A_log",
        "D",
        "dt_bias",
        "gate.weight",
        "gate.e_score_correction_bias",
    }
    bias = model.get_buffer("model.layers.1.mixer.gate.e_score_correction_bias")
    assert torch.equal(bias, 64 + torch.arange(8) * 1e-3)
    assert model.lm_head.weight.dtype == torch.float16
    assert (logits(model).float() - expected).abs().max() / expected.std() < 0.1  # seen: 0.009


def test_a_matrix_is_quantised_from_what_was_published_and_not_from_fp16(source, tmp_path):
    path = source / index(source)[EXPERT]
    faint = (torch.randn(128, 64, generator=torch.Generator().manual_seed(0)) * 1e-7).to(
        torch.bfloat16
    )  # fp16 has 1, 2, 3
    change(path, lambda tensors: tensors.update({EXPERT: faint}))
    out = convert.convert_to_nf4(source, tmp_path / "nf4", "float16")
    stored = {name: value for path in out.glob("*.safetensors") for name, value in load_file(path).items()}
    packed = torch.zeros(nf4.packed_nbytes((128, 64)), dtype=torch.uint8)
    assert torch.equal(stored[EXPERT.replace("backbone", "model") + ".nf4"], nf4.pack_matrix(faint.float(), packed))


def test_nothing_stays_on_meta_nothing_is_trained_and_it_counts_as_a_4_bit_model(converted):
    model = nf4_checkpoint.load_nf4_model(converted, "cpu")
    values = [*model.named_parameters(), *model.named_buffers()]
    assert [n for n, p in values if p.is_meta or p.requires_grad] == []
    assert model.is_loaded_in_4bit and model.is_quantized and not model.training and model.hf_quantizer.is_trainable
    assert model.quantization_method == "bitsandbytes" and model.config.name_or_path == str(converted)
    assert model.generation_config.eos_token_id == 11
    assert model.model.layers[0].mixer.time_step_limit == (0.0, float("inf"))


def test_a_lora_on_it_gets_the_gradients_it_would_get_on_the_model_quantised_by_transformers(converted, published):
    def gradients(model):
        model = lora.add_lora(model, config.Lora(r=4, target_modules=TARGETS), seed=1).train()
        assert "bnb" in type(model.base_model.model.model.layers[0].mixer.in_proj).__module__
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if "lora_B" in n}

    ours = gradients(nf4_checkpoint.load_nf4_model(converted, "cpu", 0.5))
    theirs = gradients(load_policy(config.Policy(model=str(published), load_in_4bit=True))[0])
    assert len(ours) == 2 + 4 + 2 * 2 and all(grad.abs().max() > 0 for grad in ours.values())
    assert ours.keys() == theirs.keys() and all((ours[n] - theirs[n]).abs().max() <= 1e-5 for n in ours)


def test_the_tokenizer_comes_along(published, converted):
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        assert (converted / name).read_bytes() == (published / name).read_bytes()


@pytest.fixture
def dirty_memory():
    """Fresh tensors hold anything but zeros, so that bytes nobody wrote are noticed."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_converting_again_gives_the_same_bytes(published, converted, tmp_path, dirty_memory):
    assert torch.empty(4, dtype=torch.uint8).tolist() == [255] * 4
    assert parts(convert.convert_to_nf4(published, tmp_path / "nf4", "float32")) == parts(converted)


def test_a_source_that_may_only_be_read_stays_as_it_was(source, tmp_path):
    before = hash_of(source)
    for path in [*source.iterdir(), source]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    out = convert.convert_to_nf4(source, tmp_path / "nf4")
    assert hash_of(source) == before
    assert all(path.stat().st_mode & 0o644 == 0o644 for path in out.iterdir())  # ours can be replaced and copied


def test_a_finished_conversion_reads_no_shard_again(converted, published, monkeypatch):
    monkeypatch.setattr(convert, "safe_open", None)
    assert convert.convert_to_nf4(published, converted, "float32", progress=pytest.fail) == converted


# Stopped and resumed


def stop_at(monkeypatch, number, error, half_written=False):
    calls = []

    def save(tensors, path, metadata):
        calls.append(path)
        if len(calls) == number:
            if half_written:
                Path(path).write_bytes(b"half")
            raise error
        save_file(tensors, path, metadata)

    monkeypatch.setattr(convert, "save_file", save)


def note_parts(seen):
    """A `progress` that appends the number of each part that is made."""

    def show(done, total, words):
        number = int(words.split()[1])
        if number not in seen:
            seen.append(number)

    return show


def finish(source, out, converted, monkeypatch, first):
    """Finish a conversion; the parts before `first` must not be touched, and the whole must be what it always is."""
    monkeypatch.undo()
    before, seen = {name: (out / name).stat().st_mtime_ns for name in recorded(out)}, []
    convert.convert_to_nf4(source, out, "float32", progress=note_parts(seen))
    assert seen == list(range(first, len(index_files(source)) + 1))
    assert all((out / name).stat().st_mtime_ns == at for name, at in before.items())
    ours, theirs = parts(out), parts(converted)
    assert ours.keys() == theirs.keys() and all(ours[n] == theirs[n] for n in ours if n != "nf4.json")


def index_files(folder):
    return set(index(folder).values())


def test_interrupted_after_the_first_part_it_goes_on_with_the_second(source, converted, tmp_path, monkeypatch):
    out = tmp_path / "nf4"
    stop_at(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert.convert_to_nf4(source, out, "float32")
    with pytest.raises(ValueError, match=r"holds 1 of \d+ parts"):
        nf4_checkpoint.load_nf4_model(out, "cpu")
    finish(source, out, converted, monkeypatch, 2)


def test_a_part_that_was_damaged_since_is_made_again_alone(source, converted, tmp_path):
    out = shutil.copytree(converted, tmp_path / "nf4")
    notes = json.loads((out / "nf4.json").read_text())
    (out / "nf4.json").write_text(json.dumps(notes | {"source": str(source)}))
    path = out / recorded(out)[2]
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))  # same size
    nf4_checkpoint.verify_checkpoint(out)
    with pytest.raises(ValueError, match=re.escape(path.name)):
        nf4_checkpoint.load_nf4_model(out, "cpu", check_hashes=True)
    seen = []
    convert.convert_to_nf4(source, out, "float32", progress=note_parts(seen))
    assert seen == [3] and nf4_checkpoint.verify_checkpoint(out, check_hashes=True)


@pytest.mark.parametrize("end", [-1, 100, 0], ids=["a byte short", "in the header", "empty"])
def test_a_part_cut_short_is_not_loaded(converted, tmp_path, end):
    out = shutil.copytree(converted, tmp_path / "nf4")
    path = out / recorded(out)[1]
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=f"{path.name} is not what was written"):
        nf4_checkpoint.load_nf4_model(out, "cpu")


def flip(position):
    def edit(data):
        return data[:position] + bytes([data[position] ^ 0x20]) + data[position + 1 :]

    return edit


DAMAGE = {
    "a byte short": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "header length flipped": lambda data: data[:6] + b"\x01" + data[7:],
    "header's first brace flipped": flip(8),
    "a web page": lambda data: b"<!DOCTYPE html><html>403</html>",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_named_and_what_was_done_is_kept(source, converted, tmp_path, monkeypatch, damage):
    out, path = tmp_path / "nf4", shard(source, 2)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    with pytest.raises(
        ValueError, match=f"{path.name} is damaged.*Download it and call again; finished parts are kept"
    ):
        convert.convert_to_nf4(source, out, "float32")
    assert recorded(out) == [p.name for p in out.glob("*.safetensors")] and len(recorded(out)) == 1
    path.write_bytes(good)
    finish(source, out, converted, monkeypatch, 2)


def test_a_shard_whose_numbers_are_not_finite_is_refused(source, tmp_path):
    name = next(name for name, file in index(source).items() if file == shard(source, 2).name)
    change(shard(source, 2), lambda tensors: tensors[name].view(-1)[-1:].fill_(float("nan")))
    with pytest.raises(ValueError, match="is not finite"):
        convert.convert_to_nf4(source, tmp_path / "nf4", "float32")


# Something is missing, or too much


def test_a_tensor_that_the_index_promises_and_its_shard_lacks_is_named(source, tmp_path):
    path = source / index(source)[EXPERT]
    change(path, lambda tensors: tensors.pop(EXPERT))
    with pytest.raises(ValueError, match=f"{path.name} lacks {OURS}"):
        convert.convert_to_nf4(source, tmp_path / "nf4")
    assert len(recorded(tmp_path / "nf4")) >= 1


def test_a_tensor_that_not_even_the_index_promises_is_named_before_any_work(source, tmp_path):
    where = index(source)
    where.pop(EXPERT)
    (source / INDEX).write_text(json.dumps({"weight_map": where}))
    with pytest.raises(ValueError, match=f"{INDEX} lacks {OURS}"):
        convert.convert_to_nf4(source, tmp_path / "nf4", progress=pytest.fail)


def test_a_tensor_that_a_single_file_lacks_is_named(tmp_path):
    source = shutil.copytree(tiny.FOLDER, tmp_path / "source")
    change(source / "model.safetensors", lambda tensors: tensors.pop(EXPERT))
    with pytest.raises(ValueError, match=f"model.safetensors lacks {OURS}"):
        convert.convert_to_nf4(source, tmp_path / "nf4")


def test_a_shard_that_is_not_there_is_named(source, tmp_path):
    shard(source, 2).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-.* is not in"):
        convert.convert_to_nf4(source, tmp_path / "nf4")


def test_a_part_that_lacks_a_tensor_does_not_load_half_a_model(converted, tmp_path):
    out = shutil.copytree(converted, tmp_path / "nf4")
    notes = json.loads((out / "nf4.json").read_text())
    part, note = next((p, n) for p, n in notes["parts"].items() if "model.norm_f.weight" in n["tensors"])
    change(out / part, lambda tensors: tensors.pop("model.norm_f.weight"))
    note["bytes"] = (out / part).stat().st_size
    (out / "nf4.json").write_text(json.dumps(notes))
    with pytest.raises(ValueError, match=r"lacks model\.norm_f\.weight"):
        nf4_checkpoint.load_nf4_model(out, "cpu")


def test_scales_of_a_checkpoint_that_is_quantised_already_are_not_ignored(source, tmp_path):
    change(shard(source, 2), lambda tensors: tensors.update({"backbone.layers.1.mixer.weight_scale": torch.ones(1)}))
    with pytest.raises(ValueError, match="holds model.layers.1.mixer.weight_scale, which is not in this model"):
        convert.convert_to_nf4(source, tmp_path / "nf4")


def test_weights_for_predicting_further_tokens_are_left_out(tmp_path):
    source = shutil.copytree(tiny.FOLDER, tmp_path / "source")
    change(source / "model.safetensors", lambda tensors: tensors.update({"mtp.layers.0.norm.weight": torch.ones(8)}))
    fields = json.loads((source / "config.json").read_text())
    fields |= {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E"}
    (source / "config.json").write_text(json.dumps(fields))
    load_policy(config.Policy(model=str(source)))
    assert nf4_checkpoint.verify_checkpoint(convert.convert_to_nf4(source, tmp_path / "nf4"))


def test_a_tensor_of_another_shape_or_type_is_named(source, tmp_path):
    path = source / index(source)[EXPERT]
    change(path, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].T.contiguous()}))
    with pytest.raises(
        ValueError, match=rf"{OURS} in .* is \(64, 128\) of torch.float16; config.json calls for \(128, 64\)"
    ):
        convert.convert_to_nf4(source, tmp_path / "nf4")
    change(path, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].T.to(torch.int8).contiguous()}))
    with pytest.raises(ValueError, match=f"{OURS} in .*torch.int8"):
        convert.convert_to_nf4(source, tmp_path / "nf4b")


# The disk is full


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"),
     SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")],
    ids=["as python says it", "as safetensors says it"],
)  # fmt: skip
def test_a_disk_that_fills_up_in_a_part_leaves_the_parts_before_it(source, converted, tmp_path, monkeypatch, error):
    out = tmp_path / "nf4"
    stop_at(monkeypatch, 2, error, half_written=True)
    with pytest.raises(OSError, match="is full.*Make room and call again; the 1 finished parts are kept") as caught:
        convert.convert_to_nf4(source, out, "float32")
    assert caught.value.errno == errno.ENOSPC
    assert sorted(p.name for p in out.iterdir() if "nf4" in p.name) == sorted([*recorded(out), "nf4.json"])
    finish(source, out, converted, monkeypatch, 2)


def test_a_part_that_would_not_fit_is_not_begun(source, converted, tmp_path, monkeypatch):
    out, free, Usage = tmp_path / "nf4", iter([10**9, 20_000]), namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(next(free)))
    with pytest.raises(OSError, match=r"0\.0 MiB free, 0\.\d MiB needed for nf4-00002-of.*1 finished parts are kept"):
        convert.convert_to_nf4(source, out, "float32")
    finish(source, out, converted, monkeypatch, 2)


# Memory


def test_one_part_and_one_tensor_is_all_that_is_held(published, tmp_path, monkeypatch):
    """Source tensors are fp16 here and kept in fp32 or NF4, so none of those read may live on in a part."""
    alive, most, written = weakref.WeakSet(), [], []

    class Watched:
        def __init__(self, *args):
            assert not any(ref() is not None for ref in written), "a part is held while the next shard is read"
            self.file = safe_open(*args)

        def __enter__(self):
            self.opened = self.file.__enter__()
            return self

        def __exit__(self, *args):
            return self.file.__exit__(*args)

        def keys(self):
            return self.opened.keys()

        def get_tensor(self, name):
            tensor = self.opened.get_tensor(name)
            if tensor.dtype == torch.float16:
                alive.add(tensor)
                most.append(len(alive))
            return tensor

    def save(tensors, path, metadata):
        assert len(alive) <= 1
        written.extend(weakref.ref(value) for value in tensors.values())
        save_file(tensors, path, metadata)

    monkeypatch.setattr(convert, "safe_open", Watched)
    monkeypatch.setattr(convert, "save_file", save)
    convert.convert_to_nf4(published, tmp_path / "nf4", "float32")
    assert len(most) > 40 and max(most) <= 2  # the one that came and the one before it


# From the Hub


@pytest.fixture
def hub(published, monkeypatch):
    """A Hub that knows one model at one commit, and counts what lies in the cache at once."""
    seen = {"asked": [], "most": 0}

    def download(repo, name, revision, cache_dir, tqdm_class):
        seen["asked"].append((name, revision))
        if repo != "nvidia/published":
            raise LocalEntryNotFoundError("outgoing traffic has been disabled")
        if not (published / name).is_file():
            raise EntryNotFoundError(name)
        blob, link = Path(cache_dir, "blobs", name), Path(cache_dir, "snapshots", "c0ffee", name)
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            shutil.copyfile(published / name, blob)
            link.symlink_to(blob)
        seen["most"] = max(seen["most"], len(list(blob.parent.glob("model-*"))))
        return str(link)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return seen


def test_from_the_hub_one_shard_lies_on_the_disk_at_a_time_and_all_are_of_one_commit(hub, converted, tmp_path):
    out = convert.convert_to_nf4("nvidia/published", tmp_path / "nf4", "float32")
    ours, theirs = parts(out), parts(converted)
    assert all(ours[name] == theirs[name] for name in theirs if name != "nf4.json")
    assert hub["most"] == 1 and not (out / ".download").exists()
    assert {revision for name, revision in hub["asked"]} == {None, "c0ffee"} and hub["asked"][0] == (
        "config.json",
        None,
    )
    assert [revision for name, revision in hub["asked"] if name.startswith("model-")] == ["c0ffee"] * (len(theirs) - 1)


@pytest.mark.slow
def test_a_shard_damaged_on_its_way_is_fetched_anew(hub, published, tmp_path, monkeypatch):
    honest, bad = huggingface_hub.hf_hub_download, [shard(published, 2).name]

    def download(repo, name, **where):
        path = honest(repo, name, **where)
        if name in bad:
            bad.remove(name)
            Path(path).write_bytes(b"cut")
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ValueError, match="is damaged"):
        convert.convert_to_nf4("nvidia/published", tmp_path / "nf4")
    convert.convert_to_nf4("nvidia/published", tmp_path / "nf4")
    assert nf4_checkpoint.verify_checkpoint(tmp_path / "nf4", check_hashes=True)["commit"] == "c0ffee"


def test_the_room_for_a_shard_on_its_way_is_counted(hub, published, tmp_path, monkeypatch):
    largest = max(path.stat().st_size for path in published.glob("*.safetensors"))
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(largest * 1.5))  # a part fits, with its shard not
    with pytest.raises(OSError, match="0.2 MiB free, 0.[3-9] MiB needed for nf4-00001"):
        convert.convert_to_nf4("nvidia/published", tmp_path / "nf4", "float16")


def test_a_name_that_neither_folder_nor_hub_knows(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="'nvidia/nothing' was not found.*HF_TOKEN"):
        convert.convert_to_nf4("nvidia/nothing", tmp_path / "nf4")


# Not what is converted here


def test_a_folder_that_is_no_checkpoint(tmp_path, converted):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no config.json"):
        convert.convert_to_nf4(tmp_path / "empty", tmp_path / "nf4")
    shutil.copy(converted / "config.json", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="model.safetensors is not in"):
        convert.convert_to_nf4(tmp_path / "empty", tmp_path / "nf4")
    with pytest.raises(FileNotFoundError, match="holds no nf4.json"):
        nf4_checkpoint.load_nf4_model(tmp_path / "empty", "cpu")
    assert not nf4_layout.is_nf4_checkpoint(tmp_path / "empty") and nf4_layout.is_nf4_checkpoint(converted)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"model_type": "qwen3"}', "is a 'qwen3'"),
        ("{}", "has model_type 'None'"),
        ("[1]", "not a JSON object"),
        ("{", "not a JSON object"),
        ('{"model_type": "nemotron_h"}', "has neither hybrid_override_pattern nor layers_block_type"),
        (
            '{"model_type": "nemotron_h", "hybrid_override_pattern": "ME", "num_hidden_layers": 4}',
            "4 and a pattern of 2",
        ),
        ('{"model_type": "nemotron_h_omni"}', "is an Omni model"),
    ],
)
def test_a_config_that_is_no_nemotron_h(source, tmp_path, text, says):
    (source / "config.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        convert.convert_to_nf4(source, tmp_path / "nf4")
    assert not (tmp_path / "nf4").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"head_dim": []}, r"has head_dim '\[\]'; it must be a whole number"),
        ({"hidden_size": "big"}, "has hidden_size 'big'; it must be a whole number"),
        ({"hybrid_override_pattern": None}, "has neither hybrid_override_pattern nor layers_block_type"),
        ({"hybrid_override_pattern": None, "layers_block_type": ["moe"]}, "num_hidden_layers 4 and a pattern of 1"),
    ],
)
def test_a_config_that_was_damaged_after_the_conversion_is_refused(converted, tmp_path, change, says):
    out = shutil.copytree(converted, tmp_path / "nf4")
    fields = (
        json.loads((out / "config.json").read_text()) | {"layers_block_type": None, "num_hidden_layers": 4} | change
    )
    fields = {"hybrid_override_pattern": "ME*E"} | fields
    (out / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"config\.json is not what was written, or is missing. Delete it and load"):
        nf4_checkpoint.load_nf4_model(out, "cpu")
    manifest = json.loads((out / "nf4.json").read_text())  # earlier versions did not record the small files
    (out / "nf4.json").write_text(json.dumps(manifest | {"files": {}}))
    with pytest.raises(ValueError, match=says) as error:
        nf4_checkpoint.load_nf4_model(out, "cpu")
    assert str(out) in str(error.value) and "\n" not in str(error.value)
    (out / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        nf4_checkpoint.load_nf4_model(out, "cpu")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("generation_config.json", "{", "is not a JSON object; it is damaged. Download it again."),
        ("generation_config.json", '{"cache_implementation": "none such"}', "is damaged.*Download it again."),
        ("generation_config.json", '{"watermarking_config": 3}', "is damaged.*Download it again."),
        ("tokenizer.json", '{"version": "1.0", "trunc', "is not a JSON object; it is damaged. Download it again."),
        ("tokenizer_config.json", "[]", "is not a JSON object; it is damaged. Download it again."),
    ],
)
def test_a_damaged_small_file_is_refused_before_any_shard_is_read(source, tmp_path, name, text, says):
    (source / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} {says}"):
        convert.convert_to_nf4(source, tmp_path / "nf4", progress=lambda *words: pytest.fail("a shard was read"))
    assert not (tmp_path / "nf4").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"metadata": {}}'])
def test_an_index_that_is_none(source, tmp_path, text):
    (source / INDEX).write_text(text)
    with pytest.raises(ValueError, match="is not an index of shards"):
        convert.convert_to_nf4(source, tmp_path / "nf4")


def test_an_index_cannot_point_outside_its_folder(source, tmp_path):
    where = index(source)
    (source / INDEX).write_text(json.dumps({"weight_map": where | {EXPERT: f"../{where[EXPERT]}"}}))
    with pytest.raises(ValueError, match=f"lacks {OURS}"):
        convert.convert_to_nf4(source, tmp_path / "nf4")


def test_two_conversions_do_not_mix(converted, published):
    for changed, says in (
        ({"dtype": "float16"}, "dtype 'float32', now 'float16'"),
        ({"revision": "v2"}, "revision None"),
    ):
        with pytest.raises(ValueError, match=says):
            convert.convert_to_nf4(published, converted, **{"dtype": "float32"} | changed)
    with pytest.raises(ValueError, match="source"):
        convert.convert_to_nf4(tiny.FOLDER, converted, "float32")


def test_a_type_that_is_none(published, tmp_path):
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        convert.convert_to_nf4(published, tmp_path / "nf4", "int8")


def test_a_format_from_the_future_is_not_guessed_at(converted, tmp_path):
    notes = json.loads((converted / "nf4.json").read_text())
    (tmp_path / "nf4.json").write_text(json.dumps(notes | {"format": 2}))
    with pytest.raises(ValueError, match="of format 2; this version reads 1"):
        nf4_checkpoint.load_nf4_model(tmp_path, "cpu")


@pytest.mark.parametrize(
    "damage",
    [
        lambda manifest: "{",
        lambda manifest: "[" * 100_000,
        lambda manifest: "[]",
        lambda manifest: "{}",
        lambda manifest: json.dumps({key: value for key, value in manifest.items() if key != "count"}),
        lambda manifest: json.dumps(manifest | {"count": "5"}),
        lambda manifest: json.dumps(manifest | {"count": 0, "parts": {}}),
        lambda manifest: json.dumps(manifest | {"dtype": "Tensor"}),
        lambda manifest: json.dumps(manifest | {"files": ["config.json"]}),
        lambda manifest: json.dumps(manifest | {"files": {"../config.json": "x"}}),
        lambda manifest: json.dumps(manifest | {"files": {"config.json": 7}}),
        lambda manifest: json.dumps(manifest | {"parts": {"nf4-1": {"sha256": "x", "bytes": 1, "shard_changed": "x"}}}),
        lambda manifest: json.dumps(manifest | {"source": None}),
        lambda manifest: json.dumps(manifest | {"parts": []}),
        lambda manifest: json.dumps(manifest | {"parts": {"nf4-1": {"sha256": "x"}}}),
        lambda manifest: json.dumps(manifest | {"parts": {"../nf4-1": {"sha256": "x", "bytes": 1}}}),
        lambda manifest: json.dumps(manifest | {"parts": {"nf4-1": 7}}),
    ],
)
def test_a_manifest_that_no_conversion_writes_is_damaged(converted, tmp_path, damage):
    (tmp_path / "nf4.json").write_text(damage(json.loads((converted / "nf4.json").read_text())))
    with pytest.raises(ValueError, match=r"nf4\.json is not what a conversion writes; it is damaged. Delete it and"):
        nf4_checkpoint.load_nf4_model(tmp_path, "cpu")


# What a load checks


def load_without_hashing(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(nf4_layout, "hash_of", lambda path: hash_of(path) if path.suffix != ".safetensors" else "hashed")
        nf4_layout.confirm_parts(folder)


def test_a_new_checkpoint_is_not_read_again(published, tmp_path, monkeypatch):
    load_without_hashing(convert.convert_to_nf4(published, tmp_path / "nf4"), monkeypatch)


def test_a_copy_is_hashed_once_and_its_times_are_recorded(converted, tmp_path, monkeypatch):
    out, hashed = shutil.copytree(converted, tmp_path / "nf4", copy_function=shutil.copyfile), []
    monkeypatch.setattr(nf4_layout, "hash_of", lambda path: hashed.append(path.name) or hash_of(path))

    def hashed_parts():
        return [name for name in hashed if name.endswith(".safetensors")]

    nf4_layout.confirm_parts(out)
    assert hashed_parts() == recorded(out)
    load_without_hashing(out, monkeypatch)
    os.utime(out / recorded(out)[1])
    nf4_layout.confirm_parts(out)
    assert hashed_parts() == [*recorded(out), recorded(out)[1]]


def test_a_copy_with_a_changed_byte_is_refused(converted, tmp_path):
    out = shutil.copytree(converted, tmp_path / "nf4", copy_function=shutil.copyfile)
    path = out / recorded(out)[2]
    path.write_bytes(flip(-1 % path.stat().st_size)(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path.name} is not what was written. Delete it and load"):
        nf4_layout.confirm_parts(out)


def test_a_copy_that_may_only_be_read_is_checked_by_size(converted, tmp_path, monkeypatch):
    out = shutil.copytree(converted, tmp_path / "nf4", copy_function=shutil.copyfile)
    before = (out / "nf4.json").read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    load_without_hashing(out, monkeypatch)
    assert (out / "nf4.json").read_bytes() == before
    (out / recorded(out)[0]).write_bytes(b"short")
    with pytest.raises(ValueError, match="is not what was written, or is missing"):
        nf4_layout.confirm_parts(out)


def test_a_checkpoint_of_an_earlier_version_without_times_is_hashed_once(converted, tmp_path, monkeypatch):
    out = shutil.copytree(converted, tmp_path / "nf4")
    (out / "nf4.json").write_text(json.dumps(parts(out)["nf4.json"]))
    nf4_layout.confirm_parts(out)
    load_without_hashing(out, monkeypatch)


# Progress


def test_progress_counts_the_published_bytes_up_to_their_end(published, tmp_path):
    calls = []
    convert.convert_to_nf4(published, tmp_path / "nf4", progress=lambda *call: calls.append(call))
    dones, (total,) = [done for done, _, _ in calls], {total for _, total, _ in calls}
    assert dones[0] == 0 and dones == sorted(dones) and dones[-1] == pytest.approx(total)
    stored = sum(value.numel() for path in published.glob("*.safetensors") for value in load_file(path).values())
    assert total == 2 * stored
    count = len(index_files(published))
    assert [words for _, _, words in calls] == sorted(words for _, _, words in calls)
    assert calls[-1][2] == f"part {count} of {count}" and len(calls) > 40


def test_progress_of_a_resumed_conversion_begins_with_what_is_done(source, tmp_path, monkeypatch):
    stop_at(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert.convert_to_nf4(source, tmp_path / "nf4")
    monkeypatch.undo()
    calls = []
    convert.convert_to_nf4(source, tmp_path / "nf4", progress=lambda *call: calls.append(call))
    where, count = index(source), len(index_files(source))
    size_of = {
        file: 2 * sum(v.numel() for v in load_file(source / file).values()) for file in sorted(set(where.values()))
    }
    assert calls[0] == (sum(list(size_of.values())[:2]), sum(size_of.values()), f"part 3 of {count}")
