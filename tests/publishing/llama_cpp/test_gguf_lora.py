"""A LoRA in a GGUF: what llama.cpp computes from the file is the update that the adapter makes.

The literal names, shapes and the order of rows are those of llama.cpp's converter. `notes/sharing.md` says how both
files and the logits of llama.cpp itself were compared.
"""

import json
import math
import sys

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from grpo_kit.adapters.folder import AdapterFolder
from grpo_kit.adapters.layouts import read_pairs
from grpo_kit.nemotron import base_models, tiny
from grpo_kit.publishing.llama_cpp import gguf_lora

MODULES = base_models.lora_modules("tiny")
LAYER = "backbone.layers."
NAMES = {  # of the tiny policy, ME*E: Mamba, experts, attention, experts
    "0.mixer.in_proj": "ssm_in", "0.mixer.out_proj": "ssm_out", "2.mixer.q_proj": "attn_q", "2.mixer.k_proj": "attn_k",
    "2.mixer.v_proj": "attn_v", "2.mixer.o_proj": "attn_output", "1.mixer.shared_experts.up_proj": "ffn_up_shexp",
    "1.mixer.shared_experts.down_proj": "ffn_down_shexp",
}  # fmt: skip


def make_adapter(folder, modules, rank=4, base="grpo-kit/tiny", spread=1.0, **config):
    """A PEFT folder with random pairs for {module: (out, in)}; `rank` may be a function of the module's name."""
    torch.manual_seed(0)
    tensors = {}
    for name, (out, inside) in modules.items():
        r = rank(name) if callable(rank) else rank
        key = f"base_model.model.{name.replace('backbone.', 'model.')}.lora_"
        tensors |= {f"{key}A.weight": torch.randn(r, inside), f"{key}B.weight": torch.randn(out, r) * spread}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "bias": "none"}
    fields |= {"base_model_name_or_path": base} | config
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def convert(folder, base="tiny", dtype="float32", name="adapter.gguf"):
    """Write the GGUF of an adapter; its pairs by module, the plan, and what rounding changes."""
    source = AdapterFolder(folder)
    pairs, _ = read_pairs(source, base_models.lora_modules(base))
    plan = gguf_lora.plan_gguf(pairs, base, source.config.alpha, dtype)
    return pairs, plan, gguf_lora.write_gguf(plan, folder / name, "mine", base)


def write(folder, base="tiny", dtype="float32", name="adapter.gguf"):
    """(fields, {tensor name: array}, plan) of the GGUF of an adapter, and its pairs by module."""
    pairs, plan, _ = convert(folder, base, dtype, name)
    reader = gguf.GGUFReader(folder / name)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return fields, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}, plan, pairs


def update_of(fields, tensors, name):
    """What llama.cpp adds to a matrix: alpha over the rank that lora_b has, times lora_b lora_a."""
    a, b = (tensors[f"{name}.weight.lora_{half}"].astype(np.float64) for half in "ab")
    return fields["adapter.lora.alpha"] / b.shape[-1] * b @ a


def turned(update, heads):
    """Rows as the converter orders those of q_proj and k_proj: the halves of a head's rows alternate."""
    size = len(update) // heads
    order = [
        head * size + half * size // 2 + row for head in range(heads) for row in range(size // 2) for half in (0, 1)
    ]
    return update[order]


def assert_same_update(made, pair, heads=0):
    a, b = (half.double().numpy() for half in pair.load())
    expected = pair.scale * b @ a
    np.testing.assert_allclose(made, turned(expected, heads) if heads else expected, rtol=1e-4, atol=1e-5)


def test_every_matrix_has_llama_cpps_name_and_the_numbers_of_the_adapter(tmp_path):
    fields, tensors, plan, pairs = write(make_adapter(tmp_path / "a", MODULES))
    assert fields == {
        "general.architecture": "nemotron_h_moe",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
        "general.name": "mine",
        "general.base_model.count": 1,
        "general.base_model.0.name": "tiny",
        "general.file_type": 0,
    }
    for module, name in NAMES.items():
        layer, heads = module[0], {"attn_q": 4, "attn_k": 2}.get(name, 0)
        assert_same_update(update_of(fields, tensors, f"blk.{layer}.{name}"), pairs[LAYER + module], heads)
    assert_same_update(update_of(fields, tensors, "output"), pairs["lm_head"])
    a, b = pairs["backbone.layers.0.mixer.in_proj"].load()
    assert np.array_equal(tensors["blk.0.ssm_in.weight.lora_a"], a.numpy())  # bit by bit where nothing is folded
    assert np.array_equal(tensors["blk.0.ssm_in.weight.lora_b"], b.numpy())
    for matrix, shape in (("up", (8, 64, 128)), ("down", (8, 128, 64))):
        update = update_of(fields, tensors, f"blk.3.ffn_{matrix}_exps")
        assert update.shape == shape
        for expert in range(8):
            assert_same_update(update[expert], pairs[f"{LAYER}3.mixer.experts.{expert}.{matrix}_proj"])
    assert len(tensors) == 30 and plan.added == 0
    assert sum(array.nbytes for array in tensors.values()) == plan.nbytes
    assert (tmp_path / "a/adapter.gguf").stat().st_size - plan.nbytes < 4096


def test_the_order_of_rows_of_q_and_k_is_the_converters(tmp_path):
    folder = make_adapter(tmp_path / "a", {f"{LAYER}2.mixer.k_proj": (64, 128)}, rank=1, r=1)
    _, tensors, _, pairs = write(folder)
    mine, given = tensors["blk.2.attn_k.weight.lora_b"], pairs[f"{LAYER}2.mixer.k_proj"].load()[1].numpy()
    # Two heads of 32 rows: the first half of a head's rows goes to the even places.
    assert mine[:4, 0].tolist() == given[[0, 16, 1, 17], 0].tolist()
    assert mine[32:36, 0].tolist() == given[[32, 48, 33, 49], 0].tolist()


def test_ranks_alphas_and_rslora_become_part_of_b(tmp_path):
    two = {f"{LAYER}0.mixer.in_proj": MODULES[f"{LAYER}0.mixer.in_proj"], "lm_head": MODULES["lm_head"]}
    experts = {name: shape for name, shape in MODULES.items() if ".1.mixer.experts." in name}
    folder = make_adapter(
        tmp_path / "a", two | experts, rank=lambda name: 7 if "in_proj" in name or ".experts.2." in name else 4,
        use_rslora=True, alpha_pattern={"lm_head": 3, "experts.5.up_proj": 1},
        rank_pattern={"in_proj": 7, "experts.2.up_proj": 7, "experts.2.down_proj": 7},
    )  # fmt: skip
    fields, tensors, plan, pairs = write(folder)
    assert pairs["lm_head"].scale == 3 / math.sqrt(4)
    assert_same_update(update_of(fields, tensors, "blk.0.ssm_in"), pairs[f"{LAYER}0.mixer.in_proj"])
    assert_same_update(update_of(fields, tensors, "output"), pairs["lm_head"])
    for matrix in ("up", "down"):
        assert tensors[f"blk.1.ffn_{matrix}_exps.weight.lora_a"].shape[1] == 7
        update = update_of(fields, tensors, f"blk.1.ffn_{matrix}_exps")
        for expert in range(8):
            assert_same_update(update[expert], pairs[f"{LAYER}1.mixer.experts.{expert}.{matrix}_proj"])


def test_experts_without_a_pair_get_zeros_and_other_layers_stay_out(tmp_path):
    name = f"{LAYER}3.mixer.experts.5.down_proj"
    fields, tensors, plan, pairs = write(make_adapter(tmp_path / "a", {name: MODULES[name]}))
    assert sorted(tensors) == [f"blk.3.ffn_{m}_exps.weight.lora_{h}" for m in ("down", "up") for h in "ab"]
    assert plan.added == 15
    update = update_of(fields, tensors, "blk.3.ffn_down_exps")
    assert_same_update(update[5], pairs[name])
    assert not update[[0, 1, 2, 3, 4, 6, 7]].any() and not update_of(fields, tensors, "blk.3.ffn_up_exps").any()


def test_float16_halves_the_file_within_rounding(tmp_path):
    folder = make_adapter(tmp_path / "a", MODULES)
    _, whole, plan, _ = write(folder)
    fields, half, small, _ = write(folder, dtype="float16", name="half.gguf")
    assert fields["general.file_type"] == 1 and small.nbytes * 2 == plan.nbytes
    for name, array in whole.items():
        assert half[name].dtype == np.float16 and np.array_equal(half[name], array.astype(np.float16))


def tiny_pairs(folder, exponents):
    """An adapter of random pairs on {module: n}, the numbers of its B about 10^n, those of its A about 1."""
    make_adapter(folder, {name: MODULES[name] for name in exponents})
    source = AdapterFolder(folder)
    tensors = {key: source.read_tensor(key) for key in source.entries}
    for name, exponent in exponents.items():
        tensors[f"base_model.model.{name.replace('backbone.', 'model.')}.lora_B.weight"] *= 10.0**exponent
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_what_float16_changes_is_the_distance_of_the_updates(tmp_path):
    """The distance as it is without any trick: both products in float64, their difference, its norm."""
    name, other = f"{LAYER}2.mixer.k_proj", f"{LAYER}0.mixer.out_proj"
    folder = tiny_pairs(tmp_path / "a", {name: 0, other: -5})
    _, plan, rounding = convert(folder, dtype="float16")
    assert convert(folder, name="whole.gguf")[2] == (0.0, 0.0, plan.stacks[0].name)
    squares = {}
    fields, whole, *_ = write(folder, name="whole.gguf")
    fields, half, *_ = write(folder, dtype="float16")
    for known in ("blk.2.attn_k", "blk.0.ssm_out"):
        update, stored = update_of(fields, whole, known), update_of(fields, half, known)
        squares[known] = np.square(update).sum(), np.square(update - stored).sum()
    total, lost = map(sum, zip(*squares.values()))
    update, rest = squares["blk.0.ssm_out"]
    assert rounding.share == pytest.approx(math.sqrt(lost / total), rel=1e-6) and 1e-4 < rounding.share < 4e-4
    assert rounding.worst == pytest.approx(math.sqrt(rest / update), rel=1e-6) and rounding.worst > 1e-3
    assert rounding.name == "blk.0.ssm_out.weight"


@pytest.mark.parametrize(("exponent", "lost"), [(-9, "100.0%"), (-7, "16.7%"), (-6, "1.7%")])
def test_an_adapter_too_small_for_float16_is_refused_with_what_would_be_lost(tmp_path, exponent, lost):
    """float16's smallest numbers are multiples of d = 6.0e-8, whose rounding loses d / sqrt(12), so 17 % of 1e-7."""
    folder = tiny_pairs(tmp_path / "a", {"lm_head": exponent})
    message = (
        rf"adapter's: {lost} of its update would be lost \(Frobenius norm\), and at most 1% may be\. Write float32\."
    )
    with pytest.raises(ValueError, match=message):
        write(folder, dtype="float16")
    assert write(folder)[1]["output.weight.lora_b"].any()


def test_one_small_matrix_among_large_ones_is_kept_and_named(tmp_path):
    folder = tiny_pairs(tmp_path / "a", {"lm_head": 0, f"{LAYER}2.mixer.v_proj": -9})
    *_, rounding = convert(folder, dtype="float16")
    assert rounding.share < 4e-4 and rounding.worst == 1.0 and rounding.name == "blk.2.attn_v.weight"


def test_the_same_adapter_gives_the_same_bytes(tmp_path):
    folder = make_adapter(tmp_path / "a", MODULES)
    write(folder)
    write(folder, name="again.gguf")
    assert (folder / "adapter.gguf").read_bytes() == (folder / "again.gguf").read_bytes()


@pytest.fixture
def dense(tmp_path):
    """The folder of a base with MLP layers in place of experts, as Nemotron-3-Nano-4B has; its config.json only."""
    config = json.loads((tiny.FOLDER / "config.json").read_text())
    kept = {
        k: v for k, v in config.items() if "expert" not in k and not k.startswith("moe") and k != "num_hidden_layers"
    }
    (tmp_path / "dense").mkdir()
    text = json.dumps(kept | {"hybrid_override_pattern": "M-*-", "intermediate_size": 96})
    (tmp_path / "dense/config.json").write_text(text)
    return tmp_path / "dense"


@pytest.mark.parametrize("key", [{}, {"num_experts_per_tok": 2}])  # transformers writes it without experts too
def test_a_base_without_experts_is_another_architecture(tmp_path, dense, key):
    path = dense / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | key))
    modules = base_models.lora_modules(str(dense))
    fields, tensors, _, pairs = write(make_adapter(tmp_path / "a", modules, base=str(dense)), str(dense))
    assert fields["general.architecture"] == "nemotron_h"
    for layer in (1, 3):
        for matrix in ("up", "down"):
            module = f"{LAYER}{layer}.mixer.{matrix}_proj"
            assert_same_update(update_of(fields, tensors, f"blk.{layer}.ffn_{matrix}"), pairs[module])
    assert len(tensors) == 22


@pytest.mark.parametrize(
    ("spread", "dtype", "message"),
    [
        (0.0, "float32", "Every update of the adapter is zero, so the model would answer as its base does."),
        (math.inf, "float32", "lm_head holds NaN or infinity. Train again."),
        (1e6, "float16", "output.weight holds numbers beyond 65,504, the largest of float16. Write float32."),
    ],
)
def test_numbers_that_no_model_should_get_are_refused(tmp_path, spread, dtype, message):
    folder = make_adapter(tmp_path / "a", {"lm_head": MODULES["lm_head"]}, spread=spread)
    with pytest.raises(ValueError, match=message):
        write(folder, dtype=dtype)


@pytest.mark.parametrize(
    ("config", "modules", "message"),
    [
        ({"use_dora": True}, {"lm_head": (272, 128)}, "DoRA"),
        ({}, {f"{LAYER}0.mixer.conv1d": (256, 4)}, "conv1d"),
        ({}, {f"{LAYER}0.mixer.A_log": (12, 1)}, "A_log"),
        ({}, {f"{LAYER}0.mixer.D": (12, 1)}, r"mixer\.D"),
        ({}, {f"{LAYER}1.mixer.gate": (8, 128)}, "mixer.gate"),
        ({"r": 8}, {"lm_head": (272, 128)}, "has rank 4 for lm_head, but its config says 8"),
    ],
)
def test_what_is_no_plain_lora_on_a_matrix_is_refused(tmp_path, config, modules, message):
    with pytest.raises(ValueError, match=message):
        write(make_adapter(tmp_path / "a", modules, **config))


def test_a_base_whose_config_leaves_out_its_heads_is_refused(tmp_path, dense):
    path, name = dense / "config.json", f"{LAYER}2.mixer.q_proj"
    config = json.loads(path.read_text()) | {
        "num_key_value_heads": 2,
        "num_attention_heads": 32,
    }  # transformers' default
    path.write_text(json.dumps(config))
    modules = {name: base_models.lora_modules(str(dense))[name]}
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "num_attention_heads"}))
    with pytest.raises(ValueError, match="has no num_attention_heads, by which llama.cpp's converter orders the rows"):
        write(make_adapter(tmp_path / "a", modules, base=str(dense)), str(dense))


def test_a_whole_module_among_the_pairs_is_refused(tmp_path):
    folder = make_adapter(tmp_path / "a", {"lm_head": MODULES["lm_head"]}, modules_to_save=["embeddings"])
    source = AdapterFolder(folder)
    tensors = {key: source.read_tensor(key) for key in source.entries}
    whole = {"base_model.model.model.embeddings.modules_to_save.weight": torch.zeros(272, 128)}
    save_file(tensors | whole, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="not half of a LoRA pair on a linear layer"):
        write(folder)


def test_two_zeros_in_one_stack_are_zero_although_each_half_has_numbers(tmp_path):
    names = [f"{LAYER}1.mixer.experts.{expert}.up_proj" for expert in (0, 1)]
    folder = make_adapter(tmp_path / "a", {name: MODULES[name] for name in names})
    source = AdapterFolder(folder)
    tensors = {key: source.read_tensor(key) for key in source.entries}
    for key, tensor in tensors.items():
        if (".0." in key) == ("lora_A" in key):
            tensor.zero_()
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="Every update of the adapter is zero"):
        write(folder)


def test_a_pair_is_zero_whose_numbers_never_meet_in_one_rank(tmp_path):
    folder = make_adapter(tmp_path / "a", {"lm_head": MODULES["lm_head"]})
    source = AdapterFolder(folder)
    tensors = {key: source.read_tensor(key) for key in source.entries}
    tensors["base_model.model.lm_head.lora_A.weight"][:2] = 0
    tensors["base_model.model.lm_head.lora_B.weight"][:, 2:] = 0
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="Every update of the adapter is zero"):
        write(folder)


def test_without_the_package_gguf_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RuntimeError, match='Run `pip install "gguf>=0.19"`'):
        gguf_lora.plan_gguf({}, "tiny", 1.0)
