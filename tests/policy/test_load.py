"""Loading a policy, whole and in 4 bit, and a tokenizer fit for training."""

import json
import os
import re
import shutil

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.torch import load_file, save_file

from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.nemotron import base_models, tiny
from grpo_kit.planning import model_size
from grpo_kit.policy import load, nf4_source
from grpo_kit.policy.load import load_policy, load_tokenizer
from grpo_kit.policy.model_source import base_model_name, build_config, missing_model


def last_logits(model, tokenizer):
    with torch.inference_mode():
        return model(**tokenizer("What is 2", return_tensors="pt")).logits[:, -1]


def test_a_model_that_nobody_has_is_one_sentence():
    with pytest.raises(FileNotFoundError, match="policy.model is 'nobody/nothing'") as error:
        load_policy(config.Policy(model="nobody/nothing"))
    assert "\n" not in str(error.value)


def test_a_policy_that_cannot_be_loaded_leaves_the_progress_bars_of_others(monkeypatch):
    monkeypatch.setattr(load, "_load_published", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_policy(config.Policy())
    assert not are_progress_bars_disabled()


def test_a_local_folder_is_a_policy(tiny_policy, tmp_path):
    model, tokenizer = tiny_policy
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_policy(config.Policy(model=str(tmp_path)))
    assert torch.equal(last_logits(again, tokenizer), last_logits(model, tokenizer))


def test_a_file_that_lacks_a_tensor_is_not_filled_with_random_numbers(tmp_path):
    shutil.copytree(tiny.FOLDER, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["backbone.layers.2.mixer.q_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack model.layers.2.mixer.q_proj.weight, which its config.json calls for"):
        load_policy(config.Policy(model=str(tmp_path)))


def shorten(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "backbone.layers.2.mixer.q_proj.weight"
    tensors[name] = tensors[name][:64].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def replace_by_index(text):
    def edit(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return edit


@pytest.mark.parametrize("load_in_4bit", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shorten, r"model.layers.2.mixer.q_proj.weight in the files of .* is \(64, 128\); its config.json calls for "
                  r"\(128, 128\). Download them again, or name another model."),
        (cut_short, "are damaged .*incomplete metadata, file not fully covered"),
        (replace_by_index("{}"), "are damaged .'weight_map'"),
        (replace_by_index("{"), "are damaged .Expecting property name"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_one_sentence(tmp_path, damage, message, load_in_4bit):
    shutil.copytree(tiny.FOLDER, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load_policy(config.Policy(model=str(tmp_path), load_in_4bit=load_in_4bit))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hybrid_override_pattern": None}, "has neither hybrid_override_pattern nor layers_block_type"),
        ({"num_hidden_layers": 5}, "num_hidden_layers 5 and a pattern of 4 layers"),
        ({"hybrid_override_pattern": "ME?E"}, "names a layer '?'"),
        ({"model_type": "nemotron_h_puzzle"}, "is a Puzzle model"),
        ({"moe_latent_size": 64}, "has experts behind a latent projection"),
        ({"head_dim": []}, "has head_dim '[]'; it must be a whole number"),
        ({"hidden_size": "big"}, "has hidden_size 'big'; it must be a whole number"),
        ({"vocab_size": True}, "has vocab_size 'True'; it must be a whole number"),
        ({"layer_norm_epsilon": float("nan")}, "has layer_norm_epsilon 'nan'; it must be a number"),
        ({"mamba_num_heads": 10**30}, "has mamba_num_heads '1000000000000000000000000000000'; it must be"),
        ({"moe_latent_size": "big"}, "has moe_latent_size 'big'; it must be a whole number"),
        ({"quantization_config": {"quant_method": "fp8"}}, "are quantised already ('fp8' in its config.json)"),
    ],
)
def test_a_config_whose_layers_are_unclear_is_refused_before_anything_is_loaded(tmp_path, change, message):
    fields = json.loads((tiny.FOLDER / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(fields))

    def lora_modules(policy):  # what the check of a zip asks
        return base_models.lora_modules(policy.model)

    for function in (load_tokenizer, load_policy, model_size.Architecture.of, lora_modules):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            function(config.Policy(model=str(tmp_path)))
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "7", "null", "", "{", "[" * 100_000])
def test_a_config_that_is_no_object_is_damaged(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    for function in (load_tokenizer, model_size.Architecture.of, lambda p: base_models.lora_modules(p.model)):
        with pytest.raises(ValueError, match="is not a JSON object; it is damaged. Download it again"):
            function(config.Policy(model=str(tmp_path)))


ODD = {
    "num_labels": 10**9, "_attn_implementation": "flash_attention_2", "mtp_hybrid_override_pattern": None,
    "rope_scaling": "M", "id2label": 5, "layer_types": ["a"], "revision": "main", "_vllm_version": "0.17",
}  # fmt: skip


@pytest.mark.slow
def test_keys_that_the_model_does_not_use_change_nothing_wherever_a_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(nf4_source, "LARGEST_UNSTREAMED", 1000)
    source, nf4 = tmp_path / "source", tmp_path / "nf4"
    shutil.copytree(tiny.FOLDER, source)
    fields = json.loads((source / "config.json").read_text()) | ODD
    (source / "config.json").write_text(json.dumps(fields))
    plain, tokenizer = load_policy(config.Policy())
    assert torch.equal(
        last_logits(load_policy(config.Policy(model=str(source)))[0], tokenizer), last_logits(plain, tokenizer)
    )
    assert base_models.lora_modules(str(source)) == base_models.lora_modules("tiny")  # what the check of a zip asks
    assert model_size.Architecture.of(config.Policy(model=str(source))).parts == (
        model_size.Architecture.of(config.Policy()).parts
    )
    streamed = config.Policy(model=str(source), load_in_4bit=True, nf4_folder=str(nf4))
    for policy in (streamed, config.Policy(model=str(nf4), load_in_4bit=True)):  # made, then read by its own folder
        assert load_policy(policy)[0].config.num_labels == 2


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_a_folder_without_a_config_says_so(tmp_path, load_in_4bit):
    policy = config.Policy(model=str(tmp_path), load_in_4bit=load_in_4bit)
    for function in (load_tokenizer, load_policy, model_size.Architecture.of):
        with pytest.raises(FileNotFoundError, match=f"^{tmp_path} has no config.json, which every checkpoint has."):
            function(policy)
    (tmp_path / "config.json").write_text("{}")
    for function in (load_tokenizer, load_policy, model_size.Architecture.of):
        with pytest.raises(ValueError, match="has model_type 'None'; it must name a kind of model"):
            function(policy)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "nosuch"},
        {"model_type": "qwen3", "hidden_size": "big"},
        {"model_type": "llama", "vocab_size": []},
    ],
)
def test_another_model_that_transformers_cannot_build_is_refused(tmp_path, fields):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(
        ValueError, match=f"^The config.json of {tmp_path} describes no model that transformers"
    ) as error:
        load_tokenizer(config.Policy(model=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_labels_and_code_in_another_models_config_are_not_read(tmp_path):
    fields = {"model_type": "qwen3", "hidden_size": 64, "num_labels": 10**9, "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    built = build_config(config.Policy(model=str(tmp_path)))
    assert (built.hidden_size, built.num_labels, built.name_or_path) == (64, 2, str(tmp_path))
    assert not hasattr(built, "auto_map")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", ""), ("tokenizer.json", "{"), ("tokenizer.json", "[]"), ("tokenizer_config.json", ""),
        ("tokenizer_config.json", "[]"), ("chat_template.jinja", "{% for"), ("chat_template.jinja", "{{ 1 / 0 }}"),
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_is_not_called_missing(tmp_path, name, text):
    shutil.copytree(tiny.FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(
        ValueError, match=f"^The tokenizer of {tmp_path} cannot be used .*again, or name another"
    ) as error:
        load_tokenizer(config.Policy(model=str(tmp_path)))
    assert "\n" not in str(error.value)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("a-pickle-ran",)


def test_a_pickle_is_not_opened_and_weights_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"a": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"^The safetensors files of .* cannot be read .*model.safetensors"
    ) as error:
        load_policy(config.Policy(model=str(tmp_path)))
    assert "\n" not in str(error.value) and not (tmp_path / "a-pickle-ran").exists()


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_an_expert_of_a_wrong_shape_is_one_sentence(tmp_path, caplog, capfd, load_in_4bit):
    shutil.copytree(tiny.FOLDER, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["backbone.layers.1.mixer.experts.0.up_proj.weight"] = torch.zeros(1024, 64)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as error:
        load_policy(config.Policy(model=str(tmp_path), load_in_4bit=load_in_4bit))
    assert str(error.value).startswith(
        f"The files of {tmp_path} are damaged (model.layers.1.mixer.experts.up_proj: stack expects each tensor to be"
    )
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


def test_in_4_bit_every_large_matrix_is_4_bit():
    model, _ = load_policy(config.Policy(load_in_4bit=True))
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    dense = [n for n, k in kinds.items() if n.endswith("_proj") and k != "Identity"]
    assert dense and {kinds[n] for n in dense} == {"Linear4bit"}
    assert kinds["model.layers.1.mixer.experts"] == kinds["model.layers.3.mixer.experts"] == "TieredExperts"
    assert kinds["lm_head"] == "Linear"


@pytest.mark.slow
def test_what_is_too_large_to_be_loaded_whole_is_streamed_once_into_an_nf4_checkpoint(monkeypatch, tmp_path):
    unstreamed, tokenizer = load_policy(config.Policy(load_in_4bit=True))
    monkeypatch.setattr(nf4_source, "LARGEST_UNSTREAMED", 1000)
    policy = config.Policy(load_in_4bit=True, nf4_folder=str(tmp_path / "nf4"), experts_on_host=0.5)
    streamed, _ = load_policy(policy)
    assert torch.equal(last_logits(streamed, tokenizer), last_logits(unstreamed, tokenizer))
    assert base_model_name(config.Policy(model=str(tmp_path / "nf4"))) == str(tiny.FOLDER)  # what it was made of
    made = (tmp_path / "nf4/nf4.json").stat().st_mtime_ns
    again, _ = load_policy(policy)  # and the next time it is read as it is
    kept, _ = load_policy(config.Policy(model=str(tmp_path / "nf4"), load_in_4bit=True))  # by its folder, too
    assert torch.equal(last_logits(again, tokenizer), last_logits(kept, tokenizer))
    assert (tmp_path / "nf4/nf4.json").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match=r"policy.dtype is float16 and .* was made for float32"):
        load_policy(config.Policy(model=str(tmp_path / "nf4"), load_in_4bit=True, dtype="float16"))


@pytest.mark.slow
def test_overflowing_experts_go_where_the_configuration_says(monkeypatch, tmp_path):
    from grpo_kit.nemotron import experts

    placed, place = [], experts.TieredExperts.place

    def watched(self, on_host=(), host=None):
        placed.append((len(on_host), host))
        place(self, on_host, None if host is None or host.type == "cuda" else host)

    monkeypatch.setattr(experts.TieredExperts, "place", watched)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    policy = config.Policy(load_in_4bit=True, experts_on_host=0.5, experts_overflow="cuda:1", nf4_folder=str(tmp_path))
    load_policy(policy)  # whole
    monkeypatch.setattr(nf4_source, "LARGEST_UNSTREAMED", 1000)
    load_policy(policy)  # by an NF4 checkpoint
    assert placed == [(4, torch.device("cuda:1"))] * 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="experts_overflow is cuda:1; this machine has 1 GPUs.*Set it to host"):
        load_policy(policy)


def test_no_warning_of_missing_kernels_stands_in_the_way(capfd):
    load_policy(config.Policy())[0](torch.tensor([[20, 21]]))
    assert "falling back" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
def test_another_model_takes_the_plain_4_bit_path_with_the_same_call(kind, tiny_policy, tmp_path):
    import transformers

    sizes = {
        "vocab_size": len(tiny_policy[1]), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "eos_token_id": 11, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes))
    made.save_pretrained(tmp_path)
    tiny_policy[1].save_pretrained(tmp_path)
    model, tokenizer = load_policy(config.Policy(model=str(tmp_path), load_in_4bit=True))
    linear = {n: type(m).__name__ for n, m in model.named_modules() if n.endswith("_proj")}
    assert len(linear) == 2 * 7 and set(linear.values()) == {"Linear4bit"}
    model = lora.add_lora(model, config.Lora(target_modules=["q_proj", "down_proj"]), seed=1).train()
    ids = tokenizer("What is 2", return_tensors="pt")["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad.any() for n, p in model.named_parameters() if "lora_B" in n)
    assert model.generate(ids, max_new_tokens=3, pad_token_id=0).shape[0] == 1


def test_a_library_that_is_missing_is_not_taken_for_a_damaged_file(monkeypatch):
    def lacks_a_library(*_, **__):
        raise ImportError("No module named 'bitsandbytes'")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lacks_a_library)
    with pytest.raises(ImportError, match="bitsandbytes"):
        load_policy(config.Policy())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("tiny-enviroments", "Did you mean tiny-environments? Check the spelling"),
        ("tinny", "Did you mean tiny? Check the spelling"),
        ("nvidia/tiny-environments-30B", "such a model. Check the spelling"),
    ],
)
def test_a_misspelt_embedded_policy_is_recognised(model, words):
    error = missing_model(config.load_config("tiny", f"policy.model={model}").policy, OSError("no network"))
    assert isinstance(error, FileNotFoundError) and words in str(error)
