"""The folder holds the files of one list, the same bytes each time, and nothing that a run should keep to itself."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo_kit.config import Policy
from grpo_kit.nemotron.base_models import PUBLISHED
from grpo_kit.publishing.base import find_base
from grpo_kit.publishing.folder import build_folder, list_files, read_facts, read_modules
from grpo_kit.publishing.run_facts import Example
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.run import Run

HYBRID, TENSORS = "org/hybrid", "adapter_model.safetensors"
BASE = find_base(Policy(model=HYBRID, revision="0a1b"))


def build(config, run, base=BASE):
    return build_folder(run, read_facts(config, run, "ada/sums", base))


@pytest.fixture
def copied(trained, tmp_path):
    """(config, run): a copy of the small run that may be changed."""
    config, run = trained
    copy = Run(tmp_path / "of_this_machine" / "runs", run.name)
    shutil.copytree(run.path, copy.path, ignore=shutil.ignore_patterns("tensorboard"))
    return config, copy


def test_the_same_run_gives_the_same_bytes_and_no_place_of_this_machine(copied, tmp_path):
    config, run = copied
    folder = build(config, run)
    first = {path.name: hash_of(path) for path in folder.iterdir()}
    (run.path / "adapter" / "optimizer.pt").write_bytes(b"a pickle")  # and whatever else may lie in the run
    (run.path / "ref").mkdir()
    with pytest.raises(ValueError, match="not as stage 'train' wrote it"):
        build(config, run)
    (run.path / "adapter" / "optimizer.pt").unlink()
    assert {path.name: hash_of(path) for path in build(config, run).iterdir()} == first
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes() and b"/home/" not in path.read_bytes()


def test_the_adapter_names_its_base_and_has_the_runs_tensors(copied):
    config, run = copied
    folder = build(config, run)
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert (fields["base_model_name_or_path"], fields["revision"], fields["r"]) == (HYBRID, "0a1b", config.lora.r)
    tensors = folder / TENSORS
    assert tensors.read_bytes() == (run.adapter / tensors.name).read_bytes()
    record = json.loads((folder / "run.json").read_text())
    assert record["sha256"] == {tensors.name: hash_of(tensors)} and record["base_model"] == HYBRID


def test_the_tokenizer_is_the_one_of_the_training(copied):
    from transformers import AutoTokenizer

    from grpo_kit.policy.load import load_tokenizer

    config, run = copied
    theirs = AutoTokenizer.from_pretrained(build(config, run))
    ours, turns = load_tokenizer(config.policy), [{"role": "user", "content": "What is 47 + 38?"}]
    texts = [t.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for t in (theirs, ours)]
    assert texts[0] == texts[1] and theirs(texts[0]).input_ids == ours(texts[1]).input_ids
    assert theirs.decode(ours.encode("</think>"), skip_special_tokens=True) == "</think>"


def test_a_file_that_is_not_listed_is_never_published(tmp_path):
    for name in ("optimizer.pt", "config.yaml", "training_args.bin", ".env", "README.txt"):
        (tmp_path / name).write_text("x")
        with pytest.raises(ValueError, match="which is never published"):
            list_files(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "ref").mkdir()
    with pytest.raises(ValueError, match="holds ref, which is never published"):
        list_files(tmp_path)


def test_a_secret_in_the_folder_leaves_no_folder(copied, monkeypatch):
    config, run = copied
    monkeypatch.setenv("SOME_API_KEY", "vLLM 0.17.1 uses")  # which the card says
    with pytest.raises(ValueError, match="the value of the environment variable SOME_API_KEY"):
        build(config, run)
    assert not (run.path / "publish").exists()


def test_a_secret_in_a_setting_or_a_sample_is_named_by_its_place(copied):
    config, run = copied
    facts, secret = read_facts(config, run, "ada/sums", BASE), "hf_" + "aB3" * 12
    told = replace(config, data=replace(config.data, system_prompt=f"Use {secret}"))
    with pytest.raises(ValueError, match="^data.system_prompt holds a token of Hugging Face, and would"):
        build_folder(run, facts._replace(config=told))
    samples = [Example("Still wrong", "1 + 1", "2", None, f"it is {secret}")]
    with pytest.raises(ValueError, match="^The sample 'Still wrong' holds a token of Hugging Face, and would"):
        build_folder(run, facts._replace(examples=samples))
    assert not (run.path / "publish").exists()


def adapter(folder, **tensors):
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
    )
    name = "base_model.model.model.layers.2.mixer.q_proj.lora_{}.weight"
    halves = {"A": torch.ones(2, 8), "B": torch.ones(8, 2)} | tensors
    save_file({name.format(half): value for half, value in halves.items()}, folder / TENSORS)
    return folder


def test_an_adapter_that_changes_nothing_or_is_damaged_is_refused(tmp_path):
    assert read_modules(adapter(tmp_path)) == {"backbone.layers.2.mixer.q_proj": [(2, 8), (8, 2)]}
    with pytest.raises(ValueError, match="Every lora_B .* is zero"):
        read_modules(adapter(tmp_path, B=torch.zeros(8, 2)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        read_modules(adapter(tmp_path, A=torch.full((2, 8), torch.nan)))
    save_file({"base_model.model.model.layers.2.mixer.q_proj.lora_B.weight": torch.ones(8, 2)}, tmp_path / TENSORS)
    with pytest.raises(ValueError, match="has no pair of matrices for backbone.layers.2.mixer.q_proj"):
        read_modules(tmp_path)
    (tmp_path / TENSORS).write_bytes(b"not one")
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_modules(tmp_path)


def test_a_base_that_the_kit_knows_has_the_adapters_modules(copied):
    with pytest.raises(ValueError, match="has no such module. Name the model that the run was trained on"):
        build(*copied, find_base(Policy(model=PUBLISHED)))
    assert not (copied[1].path / "publish").exists()


def test_zeros_are_refused_where_a_run_is_published(copied):
    config, run = copied
    path = run.adapter / TENSORS
    save_file({name: value * ("lora_A" in name) for name, value in load_file(path).items()}, path)
    notes = json.loads(run.notes.read_text())
    notes["stages"]["train"]["wrote"]["adapter"] = hash_of(run.adapter)
    run.notes.write_text(json.dumps(notes))
    with pytest.raises(ValueError, match="changes nothing"):
        build(config, run)
