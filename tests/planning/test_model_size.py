"""Sizes of weights equal the byte table; planned activations equal the tensors that layers really keep."""

import json
from dataclasses import replace

import pytest
import torch

from grpo_kit import config
from grpo_kit.adapters.lora import add_lora
from grpo_kit.nemotron import experts, patches
from grpo_kit.nemotron.base_models import LIGHTNING, NANO
from grpo_kit.planning import model_size
from grpo_kit.planning.machines import GIB
from grpo_kit.planning.model_size import Architecture
from grpo_kit.policy.load import load_policy


@pytest.fixture(scope="module")
def nano():
    return Architecture.of(config.load_config(["t4"]).policy)


# Counted by hand from the published configuration: part, millions of parameters, GiB in bf16 and in NF4 (None: not
# quantised).
TABLE = [
    ("routed experts", 29_374.81, 54.715, 14.113),
    ("shared experts", 458.98, 0.855, 0.221),
    ("Mamba in_proj", 637.03, 1.187, 0.306),
    ("Mamba out_proj", 253.23, 0.472, 0.122),
    ("attention", 140.38, 0.261, 0.067),
    ("router", 7.92, 0.015, None),
    ("norms, convolutions, A, D, dt", 0.95, 0.002, None),
    ("embeddings", 352.32, 0.656, None),
    ("lm_head", 352.32, 0.656, None),
]


@pytest.mark.parametrize(("part", "millions", "bf16", "nf4"), TABLE)
def test_parts_of_the_real_model_have_the_published_sizes(nano, part, millions, bf16, nf4):
    policy = config.Policy(dtype="bfloat16")
    assert nano.parts[part] / 1e6 == pytest.approx(millions, rel=0.01)
    assert nano.nbytes(part, policy) / GIB == pytest.approx(bf16, rel=0.01, abs=0.0005)
    if nf4:
        assert nano.nbytes(part, replace(policy, load_in_4bit=True)) / GIB == pytest.approx(nf4, rel=0.01)


def test_the_parts_sum_to_the_whole_model(nano):
    assert set(nano.parts) == {part for part, *_ in TABLE}
    assert nano.parts.total() / 1e6 == pytest.approx(31_577.94, rel=0.001)
    assert nano.kinds == {"linear_attention": 23, "moe": 23, "full_attention": 6}
    assert nano.expert.nbytes / 2**20 == pytest.approx(4.909, rel=0.01)  # one expert


@pytest.fixture(scope="module")
def dense():
    return Architecture.of(config.load_config(["t4-4b"]).policy)


@pytest.mark.parametrize(
    ("part", "millions", "nf4"),
    [
        ("Mamba in_proj", 21 * 3136 * 17504 / 1e6, 0.554),
        ("Mamba out_proj", 21 * 3136 * 7680 / 1e6, 0.243),
        ("MLP", 17 * 2 * 3136 * 12544 / 1e6, 0.643),
        ("attention", 4 * 3136 * 128 * (2 * 40 + 2 * 8) / 1e6, 0.074),
        ("embeddings", 3136 * 131072 / 1e6, 0.766),  # not quantised
        ("lm_head", 3136 * 131072 / 1e6, 0.766),
    ],
)
def test_parts_of_the_4b_have_the_published_sizes(dense, part, millions, nf4):
    assert dense.parts[part] / 1e6 == pytest.approx(millions, rel=1e-9)
    policy = config.Policy(dtype="float16", load_in_4bit=True)
    assert dense.nbytes(part, policy) / GIB == pytest.approx(nf4, abs=0.0006)


def test_the_4b_is_counted_whole_and_has_no_experts(dense):
    assert dense.parts.total() == 3_973_556_832 and dense.routed == 0
    assert dense.kinds == {"linear_attention": 21, "mlp": 17, "full_attention": 4}


@pytest.mark.parametrize("preset", ["t4", "t4x2", "24gb", "80gb"])
def test_lightning_takes_every_preset_of_the_30b(preset, nano):
    policy = config.load_config([preset], [f"policy.model={LIGHTNING}"]).policy
    assert Architecture.of(policy).parts == nano.parts


@pytest.mark.slow
def test_a_mamba_layer_keeps_the_measured_activations(nano):
    """Measured: the chunk scan keeps 476 KiB a token at the real sizes, fp32, 768 tokens, no LoRA."""
    kept, peak = model_size.layer_bytes(nano, "linear_attention", 768, "float32", 1, (), True)
    assert kept / 768 / 1024 - 2688 * 4 / 1024 == pytest.approx(476, rel=0.01)  # beside the layer's output
    assert kept < peak < 1.5 * kept
    assert model_size.layer_bytes(nano, "linear_attention", 1536, "float32", 1, (), True)[0] == pytest.approx(
        2 * kept, rel=0.01
    )


@pytest.mark.parametrize(
    ("kind", "grad", "kept", "peak"),
    [
        ("full_attention", True, 81_482_310, 111_326_103),
        ("full_attention", False, 8_354_304, 39_192_657),
        ("linear_attention", True, 440_414_660, 546_342_372),
        ("moe", True, 48_515_166, 77_752_122),
    ],
)
def test_the_meta_device_counts_what_fake_tensors_of_a_cpu_count(nano, kind, grad, kept, peak):
    """The figures were counted with PyTorch's FakeTensorMode and its own fused attention, which take longer."""
    targets = (".q_proj", ".k_proj", ".v_proj", ".o_proj", ".in_proj", ".out_proj", ".up_proj", ".down_proj")
    assert model_size.layer_bytes(nano, kind, 777, "float16", 16, targets, grad) == (kept, peak)


def test_a_plan_can_follow_in_the_process_that_loaded_a_policy(nano):
    """Loading a policy changes the scan of transformers' Mamba layers for the rest of the process."""
    patches.keep_scan_out_of_autocast()
    layer = (nano, "linear_attention", 300, "float16", 4, (".in_proj",), True)
    assert model_size.layer_bytes(*layer)[0] > 0


@pytest.mark.slow
def test_fused_attention_keeps_no_quadratic_tensor_but_the_mask(nano):
    short, long = (
        model_size.layer_bytes(nano, "full_attention", n, "float16", 1, (), True)[1] / n for n in (1024, 4096)
    )
    assert long / short < 1.6  # unfused, with 32 heads of 4096 scores a token, it would be four times as much


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
def test_planned_activations_of_the_tiny_policy_equal_those_held_in_training(checkpointing):
    """A real forward and backward pass of the embedded policy, unquantised, with PEFT's LoRA, every tensor followed."""
    settings = config.load_config(
        ["tiny"], ["grpo.per_device_train_batch_size=8", f"grpo.gradient_checkpointing={checkpointing}"]
    )
    model, _ = load_policy(settings.policy)
    model = add_lora(model, settings.lora, 0)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    ids, mask = torch.randint(16, 272, (8, 96)), torch.ones(8, 96, dtype=torch.long)
    mask[0, :5] = 0
    with model_size.Alive([ids, mask, *model.parameters(), *model.buffers()]) as alive:
        hidden = model.get_base_model().model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        hidden.backward(torch.ones_like(hidden))
    planned = sum(model_size.activation_bytes(Architecture.of(settings.policy), settings, 8, 96, True))
    planned += sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)  # their gradients
    assert planned == pytest.approx(alive.peak, rel=0.10)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("spread", [True, False])
def test_routed_experts_in_4_bit_use_less_than_planned(grad, dtype, spread):
    """At the embedded policy's sizes, also in the worst case: every token chooses the same two experts."""
    model, kind = Architecture.of(config.Policy()), getattr(torch, dtype)
    bench = experts.Workbench(model.expert, torch.device("cpu"), kind)
    layer = experts.TieredExperts(model.expert, 8, lambda x: torch.relu(x).square(), bench)
    layer.place()
    index = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]] if spread else [[1, 5]] * 4).repeat(128, 1)
    x = torch.randn(512, model.expert.hidden, dtype=kind, requires_grad=grad)
    for number in range(8):
        layer.write_expert(number, torch.randn(model.expert.up) / 16, torch.randn(model.expert.down) / 16)
    weights = torch.full((512, 2), 0.5, requires_grad=grad)
    with model_size.Alive([x, index, weights, bench.memory, *layer.rows]) as alive:
        out = layer(x, index, weights)
        if grad:
            out.backward(torch.ones_like(out))
    kept, most = model_size.expert_bytes(model, 512, config.Policy(dtype=dtype, load_in_4bit=True), grad)
    assert alive.peak <= most <= 2 * alive.peak


@pytest.mark.slow
def test_the_shipped_config_loads_and_is_what_a_local_copy_gives(tmp_path, nano):
    (tmp_path / "config.json").write_text(NANO.read_text())
    local = Architecture.of(config.Policy(model=str(tmp_path)))
    assert local.parts == nano.parts and json.loads(NANO.read_text())["model_type"] == "nemotron_h"
