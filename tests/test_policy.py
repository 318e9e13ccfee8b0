"""Loading, LoRA, and adapters that come from outside."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo_kit import config, policy
from grpo_kit.submission import lora_pairs

TINY = config.load_config(["tiny"])


@pytest.fixture
def lora_model():
    model, tokenizer = policy.load_policy(config.Policy())
    return policy.add_lora(model, TINY.lora, seed=1), tokenizer


def last_logits(model, tokenizer):
    with torch.inference_mode():
        return model(**tokenizer("What is 2", return_tensors="pt")).logits[:, -1]


def test_a_fresh_lora_says_what_the_base_says(lora_model, tiny_policy):
    assert torch.equal(last_logits(*lora_model), last_logits(*tiny_policy))


def test_lora_sits_on_every_target_and_on_nothing_else(lora_model):
    names = {name.removeprefix("base_model.model.") for name in lora_pairs(lora_model[0])}
    assert names == {
        "model.layers.0.mixer.in_proj",
        *(f"model.layers.{i}.mixer.shared_experts.{p}_proj" for i in (1, 3) for p in ("up", "down")),
        *(f"model.layers.2.mixer.{p}_proj" for p in "qkvo"),
    }


def test_only_lora_is_trained_and_in_float32(lora_model):
    trained = {n: p.dtype for n, p in lora_model[0].named_parameters() if p.requires_grad}
    assert len(trained) == 18 and set(trained.values()) == {torch.float32} and all("lora_" in n for n in trained)


def test_the_seed_fixes_the_lora():
    def drawn(seed):
        model = policy.add_lora(policy.load_policy(config.Policy())[0], TINY.lora, seed)
        return next(p.clone() for n, p in model.named_parameters() if "lora_A" in n)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("target", ["gate_proj", "proj", "experts", "in_prj"])
def test_a_target_that_matches_nothing_is_named(target):
    model, _ = policy.load_policy(config.Policy())
    with pytest.raises(ValueError, match=f"'{target}', which matches nothing.*in_proj"):
        policy.add_lora(model, config.Lora(target_modules=["q_proj", target]), seed=1)


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.1
    return model


def test_an_adapter_comes_back_the_same_and_names_no_machine(lora_model, tmp_path):
    model, tokenizer = lora_model
    policy.save_adapter(randomised(model), tmp_path, "tiny")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "tiny" and isinstance(saved["target_modules"], list)
    again = policy.attach_adapter(policy.load_policy(config.Policy())[0], tmp_path)
    assert torch.equal(last_logits(again, tokenizer), last_logits(model.eval(), tokenizer))


def damaged(folder, change_config=None, change_tensors=None):
    if change_config:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change_config))
    if change_tensors:
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file(change_tensors(tensors), folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change_config", "change_tensors", "said"),
    [
        ({"peft_type": "IA3"}, None, "not a LoRA"),
        ({"target_modules": ".*"}, None, "list of target_modules"),  # a regular expression from outside
        (None, lambda t: dict(list(t.items())[1:]), "lacks 1 tensors"),
        (None, lambda t: {**t, "base_model.model.model.layers.9.mixer.x.lora_A.weight": torch.zeros(2)}, "1 that fit nowhere"),
        (None, lambda t: {k: v[:, :3].clone() for k, v in t.items()}, "do not fit"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused(lora_model, tmp_path, change_config, change_tensors, said):
    policy.save_adapter(lora_model[0], tmp_path, "tiny")
    damaged(tmp_path, change_config, change_tensors)
    with pytest.raises(ValueError, match=said):
        policy.attach_adapter(policy.load_policy(config.Policy())[0], tmp_path)


def test_unknown_config_keys_from_outside_are_ignored(lora_model, tmp_path):
    policy.save_adapter(lora_model[0], tmp_path, "tiny")
    damaged(tmp_path, {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}, "qalora": True})
    policy.attach_adapter(policy.load_policy(config.Policy())[0], tmp_path)


def test_a_model_that_nobody_has_is_one_sentence():
    with pytest.raises(FileNotFoundError, match="policy.model is 'nobody/nothing'") as error:
        policy.load_policy(config.Policy(model="nobody/nothing"))
    assert "\n" not in str(error.value)


def test_a_local_folder_is_a_policy(tiny_policy, tmp_path):
    model, tokenizer = tiny_policy
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = policy.load_policy(config.Policy(model=str(tmp_path)))
    assert torch.equal(last_logits(again, tokenizer), last_logits(model, tokenizer))


def test_lora_on_out_proj_is_allowed_and_gets_a_gradient():
    model, _ = policy.load_policy(config.Policy())
    model = policy.add_lora(model, config.Lora(target_modules=["out_proj"]), seed=1).train()
    ids = torch.arange(20, 60)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    grads = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    assert len(grads) == 1 and grads[0].abs().max() > 0


def test_peft_still_refuses_out_proj_by_the_name_that_we_go_round():
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ValueError, match="out_proj' is incompatible"):
        get_peft_model(policy.load_policy(config.Policy())[0], LoraConfig(target_modules=["out_proj"]))


def test_in_4_bit_every_large_matrix_is_4_bit():
    model, _ = policy.load_policy(config.Policy(load_in_4bit=True))
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    dense = [n for n, k in kinds.items() if n.endswith("_proj") and k != "Identity"]
    assert dense and {kinds[n] for n in dense} == {"Linear4bit"}
    assert kinds["model.layers.1.mixer.experts"] == kinds["model.layers.3.mixer.experts"] == "TieredExperts"
    assert kinds["lm_head"] == "Linear"


def test_what_is_too_large_to_be_loaded_whole_is_streamed_once_into_an_nf4_checkpoint(monkeypatch, tmp_path):
    whole, tokenizer = policy.load_policy(config.Policy(load_in_4bit=True))
    monkeypatch.setattr(policy, "LARGEST_WHOLE", 1000)
    asked = config.Policy(load_in_4bit=True, nf4_folder=str(tmp_path / "nf4"), experts_on_host=0.5)
    streamed, _ = policy.load_policy(asked)
    assert torch.equal(last_logits(streamed, tokenizer), last_logits(whole, tokenizer))
    assert policy.base_name(config.Policy(model=str(tmp_path / "nf4"))) == str(
        policy.tiny.FOLDER
    )  # what it was made of
    made = (tmp_path / "nf4/nf4.json").stat().st_mtime_ns
    again, _ = policy.load_policy(asked)  # and the next time it is read as it is
    kept, _ = policy.load_policy(config.Policy(model=str(tmp_path / "nf4"), load_in_4bit=True))  # by its folder, too
    assert torch.equal(last_logits(again, tokenizer), last_logits(kept, tokenizer))
    assert (tmp_path / "nf4/nf4.json").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match=r"policy.dtype is float16 and .* was made for float32"):
        policy.load_policy(config.Policy(model=str(tmp_path / "nf4"), load_in_4bit=True, dtype="float16"))


def test_overflowing_experts_go_where_the_configuration_says(monkeypatch, tmp_path):
    from grpo_kit import experts

    placed, place = [], experts.TieredExperts.place

    def watched(self, on_host=(), host=None):
        placed.append((len(on_host), host))
        place(self, on_host, None if host is None or host.type == "cuda" else host)

    monkeypatch.setattr(experts.TieredExperts, "place", watched)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = config.Policy(load_in_4bit=True, experts_on_host=0.5, experts_overflow="cuda:1", nf4_folder=str(tmp_path))
    policy.load_policy(asked)  # whole
    monkeypatch.setattr(policy, "LARGEST_WHOLE", 1000)
    policy.load_policy(asked)  # by an NF4 checkpoint
    assert placed == [(4, torch.device("cuda:1"))] * 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="experts_overflow is cuda:1; this machine has 1 GPUs.*Set it to host"):
        policy.load_policy(asked)


def test_a_tokenizer_that_hides_the_closing_tag_is_mended():
    from tokenizers import AddedToken

    from grpo_kit import tiny

    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(tag, special=True, normalized=False) for tag in ("<think>", "</think>")], special_tokens=True
    )
    assert tokenizer.decode([13], skip_special_tokens=True) == ""
    mended = policy.usable_tokenizer(tokenizer)
    assert mended.decode([12, 13, 11], skip_special_tokens=True) == "<think></think>"
    assert mended.encode("<think></think>é", add_special_tokens=False)[:2] == [12, 13]
    assert (mended.chat_template, mended.pad_token_id, mended.eos_token_id) == (tokenizer.chat_template, 0, 11)


def test_no_warning_of_missing_kernels_stands_in_the_way(capfd):
    policy.load_policy(config.Policy())[0](torch.tensor([[20, 21]]))
    assert "falling back" not in capfd.readouterr().err
