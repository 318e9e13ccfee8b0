"""A dense Nemotron-H, 12 layers of Nemotron-3-Nano-4B made narrow: converted, loaded, sampled, trained, packed."""

import json

import pytest
import torch
from safetensors import safe_open

from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.adapters.findings import fatal
from grpo_kit.data.preparation import prepare
from grpo_kit.nemotron import base_models, convert
from grpo_kit.policy.load import load_policy, load_tokenizer
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.submission.output_check import check_submission
from grpo_kit.submission.package import package_adapter
from grpo_kit.training import train

CUT = slice(6, 18)  # MM-M-M*-M-M*
NARROW = {
    "hidden_size": 64, "intermediate_size": 256, "vocab_size": 272, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "chunk_size": 16,
    "eos_token_id": 11, "initializer_range": 0.2,
}  # fmt: skip
IDS = torch.randint(16, 272, (3, 40), generator=torch.Generator().manual_seed(0))
STEP = [
    "grpo.max_steps=1", "grpo.num_generations=4", "grpo.per_device_train_batch_size=4", "grpo.resample_budget=0",
    "grpo.gradient_accumulation_steps=1", "grpo.max_completion_length=8", "grpo.mask_truncated_completions=false",
    "grpo.fp16=false", "data.source=tiny-sums", "data.limit=40", "data.val_size=8", "data.test_size=8",
    "policy.dtype=float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """As transformers publishes it: names under `backbone.`, several shards, `layers_block_type` in config.json."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    fields = json.loads(base_models.CONFIGS[base_models.NANO_4B].read_text())
    fields |= NARROW | {"hybrid_override_pattern": fields["hybrid_override_pattern"][CUT]}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dense") / "model"
    NemotronHForCausalLM(NemotronHConfig(**fields)).save_pretrained(folder, max_shard_size="400KB")
    load_tokenizer(config.Policy()).save_pretrained(folder)
    assert "layers_block_type" in json.loads((folder / "config.json").read_text())
    assert len(list(folder.glob("model-*.safetensors"))) >= 3
    return folder


@pytest.fixture(scope="module")
def converted(published):
    return convert.convert_to_nf4(published, published.parent / "nf4", "float32")


def load(folder):
    return load_policy(config.Policy(model=str(folder), load_in_4bit=True))[0]


def test_every_linear_layer_but_the_head_is_in_4_bit(converted):
    stored = set()
    for path in converted.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            stored |= set(file.keys())
    modules = base_models.lora_modules(str(converted))
    packed = {name.removesuffix(".weight.nf4").replace("model.", "backbone.", 1) for name in stored if ".nf4" in name}
    assert packed == set(modules) - {"lm_head"} and len(packed) == 6 * 2 + 2 * 4 + 4 * 2
    assert modules["backbone.layers.2.mixer.up_proj"] == (256, 64)


def test_it_answers_as_the_model_that_transformers_quantises(published, converted):
    with torch.inference_mode():
        ours, theirs = (load(folder)(input_ids=IDS).logits for folder in (converted, published))
    assert theirs.std() > 0.1 and (ours - theirs).abs().max() <= 1e-5


@pytest.mark.slow
def test_sampling_sees_the_model_that_training_sees(converted):
    model, mask = load(converted), torch.ones(3, 40, dtype=torch.long)
    mask[1, :7] = 0  # padded on the left
    model.keep_logps = True
    settings = {"max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0, "top_k": 0}
    whole = model.generate(IDS, attention_mask=mask, do_sample=True, **settings)
    sampled = model.last_sampling.logps
    with torch.inference_mode():
        mask = torch.cat([mask, torch.ones(3, 20, dtype=torch.long)], dim=1)
        logits = model(input_ids=whole, attention_mask=mask).logits[:, 39:-1]
    trained = logits.log_softmax(-1).gather(2, whole[:, 40:, None])[..., 0]
    assert sampled.shape == (3, 20) and (sampled - trained).abs().max() <= 1e-4


def test_a_lora_on_mamba_attention_and_mlp_gets_gradients(converted):
    preset = config.load_config(["t4-4b"]).lora
    model = lora.add_lora(load(converted), preset, seed=1).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if "lora_B" in name}
    assert len(gradients) == 28 and all(grad.abs().max() > 0 for grad in gradients.values())
    assert {name.split(".mixer.")[1].split(".")[0] for name in gradients} == set(preset.target_modules)
    assert lora.describe_lora(model).startswith("LoRA touches 12 of 12 layers and 28 of 29 linear modules")


@pytest.mark.slow
def test_a_grpo_step_ends_in_a_zip_that_answers_as_the_trained_policy(converted, tmp_path):
    chosen = config.load_config(["t4-4b"], [*STEP, f"policy.model={converted}"])
    run = find_run("dense", tmp_path / "runs")
    prepare(chosen, run)
    train.train(chosen, run, [lambda completion_ids, **_: [sum(ids) % 97 / 97 for ids in completion_ids]] * 2)
    (row,) = read_lines(run.metrics)
    assert row["grad_norm"] > 0 and row["sampling/logp_gap"] <= 1e-5
    path = package_adapter(chosen, run, tmp_path / "submission.zip")
    findings = check_submission(path, chosen.policy, run.probe)
    assert not fatal(findings)
    said = " ".join(finding.what for finding in findings)
    assert "56 LoRA tensors" in said and "All 28 LoRA pairs are non-zero" in said
    assert "The outputs equal the trained policy's" in said
