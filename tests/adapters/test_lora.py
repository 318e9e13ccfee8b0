"""LoRA on a policy, its routed experts included, and adapters that come from outside."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.policy.load import load_policy

TINY = config.load_config(["tiny"])


def last_logits(model, tokenizer):
    with torch.inference_mode():
        return model(**tokenizer("What is 2", return_tensors="pt")).logits[:, -1]


@pytest.fixture
def lora_model():
    model, tokenizer = load_policy(config.Policy())
    return lora.add_lora(model, TINY.lora, seed=1), tokenizer


def test_a_fresh_lora_gives_the_logits_of_the_base(lora_model, tiny_policy):
    assert torch.equal(last_logits(*lora_model), last_logits(*tiny_policy))


def test_every_target_module_and_no_other_gets_a_lora(lora_model):
    names = {
        n.removeprefix("base_model.model.").split(".lora_")[0]
        for n, _ in lora_model[0].named_parameters()
        if ".lora_" in n
    }
    assert names == {
        *(f"model.layers.0.mixer.{p}_proj" for p in ("in", "out")),
        *(f"model.layers.2.mixer.{p}_proj" for p in "qkvo"),
    }


def test_the_presets_train_only_what_the_scorer_uses_and_shared_experts_are_counted(lora_model):
    assert lora.describe_dropped(lora_model[0]) == ""
    targets = config.Lora(target_modules=["q_proj", "shared_experts.up_proj"], r=4)
    model = lora.add_lora(load_policy(config.Policy())[0], targets, 0)
    shapes = [(n, p.numel()) for n, p in model.named_parameters() if "lora_" in n]
    dropped, total = sum(size for name, size in shapes if ".shared_experts." in name), sum(size for _, size in shapes)
    sentence = lora.describe_dropped(model)
    assert 0 < dropped < total and f"shared experts, {100 * dropped / total:.0f} % of the parameters" in sentence
    assert "lora.target_modules=[in_proj,out_proj,q_proj,k_proj,v_proj,o_proj]" in sentence


def test_only_lora_is_trained_and_in_float32(lora_model):
    trained = {n: p.dtype for n, p in lora_model[0].named_parameters() if p.requires_grad}
    assert len(trained) == 12 and set(trained.values()) == {torch.float32} and all("lora_" in n for n in trained)


def test_the_seed_determines_the_first_lora_weights():
    def draw_lora(seed):
        model = lora.add_lora(load_policy(config.Policy())[0], TINY.lora, seed)
        return next(p.clone() for n, p in model.named_parameters() if "lora_A" in n)

    assert torch.equal(draw_lora(1), draw_lora(1)) and not torch.equal(draw_lora(1), draw_lora(2))


@pytest.mark.parametrize("target", ["gate_proj", "proj", "experts", "in_prj"])
def test_a_target_that_matches_nothing_is_named(target):
    model, _ = load_policy(config.Policy())
    with pytest.raises(ValueError, match=f"'{target}', which matches nothing.*in_proj"):
        lora.add_lora(model, config.Lora(target_modules=["q_proj", target]), seed=1)


def set_random_lora_b(model):
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.1
    return model


def test_a_saved_adapter_gives_the_same_logits_and_names_no_local_path(lora_model, tmp_path):
    model, tokenizer = lora_model
    lora.save_adapter(set_random_lora_b(model), tmp_path, "tiny")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "tiny" and isinstance(saved["target_modules"], list)
    restored = lora.attach_adapter(load_policy(config.Policy())[0], tmp_path)
    assert torch.equal(last_logits(restored, tokenizer), last_logits(model.eval(), tokenizer))


LAYER = "base_model.model.model.layers."


def change_adapter(folder, change_config=None, change_tensors=None):
    if change_config:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change_config))
    if change_tensors:
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file(change_tensors(tensors), folder / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change_config", "change_tensors", "match"),
    [
        ({"peft_type": "IA3"}, None, "peft_type is 'IA3'; a LoRA has LORA"),
        ({"target_modules": ".*"}, None, "not a list of names"),  # a regular expression from outside
        ({"rank_pattern": {"(a+)+b": 2}}, None, "are not evaluated"),
        (None, lambda t: dict(list(t.items())[1:]), "without its other half"),
        (None, lambda t: dict(list(t.items())[2:]), "lacks 2 tensors"),
        (
            None,
            lambda t: {
                **t,
                f"{LAYER}9.mixer.x.lora_A.weight": torch.zeros(16, 2),
                f"{LAYER}9.mixer.x.lora_B.weight": torch.zeros(2, 16),
            },
            "2 of its tensors have no module",
        ),
        (None, lambda t: {k: v[:, :3].clone() for k, v in t.items()}, r"they are \(r, in\)"),
        (None, lambda t: {k: v[:, :3].clone() if "lora_A" in k else v for k, v in t.items()}, "do not fit"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(lora_model, tmp_path, change_config, change_tensors, match):
    lora.save_adapter(lora_model[0], tmp_path, "tiny")
    change_adapter(tmp_path, change_config, change_tensors)
    with pytest.raises(ValueError, match=match):
        lora.attach_adapter(load_policy(config.Policy())[0], tmp_path)


def test_unknown_config_keys_from_outside_are_ignored(lora_model, tmp_path):
    lora.save_adapter(lora_model[0], tmp_path, "tiny")
    change_adapter(tmp_path, {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}, "qalora": True})
    lora.attach_adapter(load_policy(config.Policy())[0], tmp_path)


@pytest.mark.slow
def test_a_saved_adapter_of_routed_experts_has_published_names_and_gives_the_same_logits(tmp_path):
    policy = config.Policy(load_in_4bit=True, experts_on_host=0.25)
    model, tokenizer = load_policy(policy)
    model = set_random_lora_b(lora.add_lora(model, config.Lora(r=4, target_modules=["up_proj", "down_proj"]), seed=1))
    lora.save_adapter(model, tmp_path, "tiny")
    names = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert len(names) == 2 * 2 * 2 * (8 + 1)  # A and B, up and down, two layers, eight routed experts and a shared one
    assert "base_model.model.model.layers.3.mixer.experts.7.down_proj.lora_B.weight" in names
    restored = lora.attach_adapter(load_policy(policy)[0], tmp_path)
    assert torch.equal(last_logits(restored, tokenizer), last_logits(model.eval(), tokenizer))


def test_dropout_on_routed_experts_is_refused():
    model, _ = load_policy(config.Policy(load_in_4bit=True))
    with pytest.raises(ValueError, match="lora.lora_dropout is 0.1 and lora.target_modules names routed experts"):
        lora.add_lora(model, config.Lora(lora_dropout=0.1, target_modules=["up_proj"]), seed=1)


@pytest.mark.parametrize("way", ["merge_adapter", "merge_and_unload"])
def test_merging_into_routed_experts_in_4_bit_is_refused_before_anything_changes(way):
    model, _ = load_policy(config.Policy(load_in_4bit=True))
    model = lora.add_lora(model, config.Lora(r=2, target_modules=["in_proj", "up_proj"]), seed=1)
    with pytest.raises(ValueError, match="routed experts in 4 bit.*handoff --to trl --merge"):
        getattr(model, way)()
    assert not any(getattr(module, "merged", False) for module in model.modules())


def test_lora_on_out_proj_is_allowed_and_gets_a_gradient():
    model, _ = load_policy(config.Policy())
    model = lora.add_lora(model, config.Lora(target_modules=["out_proj"]), seed=1).train()
    ids = torch.arange(20, 60)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    grads = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    assert len(grads) == 1 and grads[0].abs().max() > 0


def test_peft_still_refuses_out_proj_which_the_kit_works_around():
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ValueError, match="out_proj' is incompatible"):
        get_peft_model(load_policy(config.Policy())[0], LoraConfig(target_modules=["out_proj"]))


@pytest.mark.parametrize("rows", [64, 63])
def test_a_lora_pair_of_one_expert_is_added_to_the_joint_weight_if_it_fits(tmp_path, rows):
    key = "base_model.model.backbone.layers.1.mixer.experts.3.up_proj"
    a, b = torch.randn(2, 128), torch.randn(rows, 2)
    save_file({f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
    saved = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": ["experts.3.up_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    model = load_policy(config.Policy())[0]
    before = model.model.layers[1].mixer.experts.up_proj.detach().clone()
    if rows != 64:
        with pytest.raises(ValueError, match="experts.3.up_proj has a LoRA that does not fit"):
            lora.attach_adapter(model, tmp_path)
        return
    after = lora.attach_adapter(model, tmp_path).model.layers[1].mixer.experts.up_proj.detach()
    torch.testing.assert_close(after[3] - before[3], 0.5 * b @ a, rtol=1e-4, atol=1e-5)
    assert torch.equal(after[[0, 1, 2, 4, 5, 6, 7]], before[[0, 1, 2, 4, 5, 6, 7]])
