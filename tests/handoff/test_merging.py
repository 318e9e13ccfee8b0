"""The merged model: the base's own names, each value the sum that PEFT would make, and one tensor in memory at a
time."""

import hashlib
import json
import shutil
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from grpo_kit.adapters import lora
from grpo_kit.adapters.folder import AdapterFolder
from grpo_kit.adapters.model_files import find_base_folder
from grpo_kit.config import Lora, Policy
from grpo_kit.handoff import merging
from grpo_kit.nemotron import nf4_checkpoint, tiny
from grpo_kit.nemotron.checkpoint_files import transformers_name
from grpo_kit.policy.load import load_policy
from grpo_kit.policy.model_source import policy_source

# Largest relative difference of two values that counts as equal. Rounding to bfloat16 moves a value by up to 2**-8 of
# it; twice that leaves room for a float32 sum in another order. A scale that is 1 % off is still found.
BFLOAT16 = 2**-7


def stored(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def random_adapter(folder, shapes, r=4, alpha=6, **config):
    """An adapter with a pair for each {module: (out, in)}."""
    torch.manual_seed(0)
    pairs = {}
    for module, (out, into) in shapes.items():
        pairs[f"base_model.model.{module}.lora_A.weight"] = torch.randn(r, into)
        pairs[f"base_model.model.{module}.lora_B.weight"] = torch.randn(out, r)
    folder.mkdir()
    save_file(pairs, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "bias": "none"} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return {
        module: pairs[f"base_model.model.{module}.lora_B.weight"] @ pairs[f"base_model.model.{module}.lora_A.weight"]
        for module in shapes
    }


@pytest.mark.slow
def test_the_trained_adapter_merged_is_peft_s_merge_rounded(trained, tmp_path):
    chosen, run = trained
    merging.merge_adapter(tiny.FOLDER, run.adapter, tmp_path / "model")
    model, tokenizer = load_policy(chosen.policy)
    reference = lora.attach_adapter(model, run.adapter).merge_and_unload().state_dict()
    merged = stored(tmp_path / "model")
    assert set(merged) == set(stored(tiny.FOLDER))
    checked = 0
    for name, tensor in merged.items():
        mine = reference.get(transformers_name(name))
        if mine is not None:
            checked += 1
            torch.testing.assert_close(tensor.float(), mine, rtol=BFLOAT16, atol=0)
            assert tensor.dtype == (torch.float16 if name.endswith(nf4_checkpoint.KEPT_IN_FLOAT32) else torch.bfloat16)
    assert checked == len(merged) - 32  # all but the experts, which transformers stacks
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert again.dtype == torch.bfloat16
    assert {path.name for path in tiny.FOLDER.iterdir()} == {path.name for path in (tmp_path / "model").iterdir()}
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == "bfloat16"


def test_a_base_that_transformers_saved_gets_the_published_config(tmp_path):
    base, q_proj = tmp_path / "base", "model.layers.2.mixer.q_proj"
    base.mkdir()
    shutil.copy(tiny.FOLDER / "model.safetensors", base)
    AutoConfig.from_pretrained(tiny.FOLDER).save_pretrained(base)
    assert "layers_block_type" in (base / "config.json").read_text()
    random_adapter(tmp_path / "a", {q_proj: (128, 128)})
    merging.merge_adapter(base, tmp_path / "a", tmp_path / "model")
    saved = json.loads((tmp_path / "model/config.json").read_text())
    assert (saved["hybrid_override_pattern"], saved["num_hidden_layers"], saved["dtype"]) == ("ME*E", 4, "bfloat16")
    assert "layers_block_type" not in saved
    kinds = ["linear_attention", "moe", "full_attention", "moe"]
    assert AutoConfig.from_pretrained(tmp_path / "model").layers_block_type == kinds


def test_experts_are_merged_alike_whether_separate_or_stacked(tmp_path):
    single = "model.layers.1.mixer.experts"
    moved = random_adapter(
        tmp_path / "a", {f"{single}.{e}.up_proj": (64, 128) for e in (0, 5)} | {f"{single}.5.down_proj": (128, 64)}
    )
    merging.merge_adapter(tiny.FOLDER, tmp_path / "a", tmp_path / "one")
    base = load_file(tiny.FOLDER / "model.safetensors")
    stacked = {name: value for name, value in base.items() if "layers.1.mixer.experts." not in name}
    for matrix in ("up_proj", "down_proj"):
        stacked[f"backbone.layers.1.mixer.experts.{matrix}"] = torch.stack(
            [base[f"backbone.layers.1.mixer.experts.{e}.{matrix}.weight"] for e in range(8)]
        )
    shutil.copytree(tiny.FOLDER, tmp_path / "stacked")
    save_file(stacked, tmp_path / "stacked/model.safetensors", metadata={"format": "pt"})
    merging.merge_adapter(tmp_path / "stacked", tmp_path / "a", tmp_path / "all")
    one, fused = stored(tmp_path / "one"), stored(tmp_path / "all")
    for matrix in ("up_proj", "down_proj"):
        for expert in range(8):
            name = f"backbone.layers.1.mixer.experts.{expert}.{matrix}.weight"
            assert torch.equal(one[name], fused[f"backbone.layers.1.mixer.experts.{matrix}"][expert])
            delta = moved.get(f"{single}.{expert}.{matrix}", torch.zeros(())) * 6 / 4
            torch.testing.assert_close(one[name].float(), base[name].float() + delta, rtol=BFLOAT16, atol=1e-6)


@pytest.mark.parametrize("prefix", ["backbone.", "model.backbone.", "_orig_mod.model.", "model."])
def test_an_adapter_is_merged_whatever_names_it_was_saved_under(tmp_path, prefix):
    """`grpo-kit package` writes the published ones."""
    modules = {
        "layers.0.mixer.in_proj": (460, 128), "layers.2.mixer.q_proj": (128, 128),
        "layers.1.mixer.experts.5.up_proj": (64, 128),
    }  # fmt: skip
    moved = random_adapter(tmp_path / "a", {prefix + name: shape for name, shape in modules.items()})
    merging.merge_adapter(tiny.FOLDER, tmp_path / "a", tmp_path / "m")
    merged, base = stored(tmp_path / "m"), load_file(tiny.FOLDER / "model.safetensors")
    for name in modules:
        key = f"backbone.{name}.weight"
        expected = base[key].float() + moved[prefix + name] * 6 / 4
        torch.testing.assert_close(merged[key].float(), expected, rtol=BFLOAT16, atol=1e-6)
    untouched = "backbone.layers.2.mixer.k_proj.weight"
    assert torch.equal(merged[untouched], base[untouched].bfloat16())


@pytest.mark.parametrize("is_stacked", [False, True])
def test_peft_s_pair_for_all_experts_is_merged_by_their_numbers(tmp_path, is_stacked):
    """With eleven experts, of which 10 stands before 2 in the order of letters."""
    experts, r, module, parts = 11, 2, "layers.1.mixer.experts", {"up_proj": (64, 128), "down_proj": (128, 64)}
    shutil.copytree(tiny.FOLDER, tmp_path / "base")
    base = load_file(tiny.FOLDER / "model.safetensors")
    weights = {part: torch.randn(experts, *shape) for part, shape in parts.items()}
    base = {name: value for name, value in base.items() if module not in name}
    for part, stack in weights.items():
        key = f"backbone.{module}"
        base |= {f"{key}.{part}": stack} if is_stacked else {
            f"{key}.{e}.{part}.weight": stack[e].clone() for e in range(experts)
        }  # fmt: skip
    save_file(base, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    wrapped = {f"model.{module}.base_layer": parts["up_proj"], f"model.{module}": parts["down_proj"]}  # PEFT's order
    targets = [f"mixer.experts.{part}" for part in parts]
    random_adapter(tmp_path / "a", wrapped, r * experts, target_parameters=targets)
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config | {"r": r}))
    merging.merge_adapter(tmp_path / "base", tmp_path / "a", tmp_path / "m")
    merged, saved = stored(tmp_path / "m"), load_file(tmp_path / "a/adapter_model.safetensors")
    for part, name in zip(parts, wrapped):
        a, b = (saved[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
        for expert in range(experts):
            # A is expert by expert, B rank by rank.
            delta = b[:, expert::experts] @ a[expert * r : (expert + 1) * r] * 6 / r
            key = f"backbone.{module}.{part}" if is_stacked else f"backbone.{module}.{expert}.{part}.weight"
            got = merged[key][expert] if is_stacked else merged[key]
            torch.testing.assert_close(got.float(), weights[part][expert] + delta, rtol=BFLOAT16, atol=1e-4)


def test_a_base_in_8_bit_is_refused_before_a_byte_is_written(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny.FOLDER, base)
    tensors, key = load_file(base / "model.safetensors"), "backbone.layers.2.mixer.q_proj.weight"
    save_file(tensors | {key: tensors[key].to(torch.float8_e4m3fn)}, base / "model.safetensors")
    random_adapter(tmp_path / "a", {"backbone.layers.2.mixer.q_proj": (128, 128)})
    with pytest.raises(ValueError, match=r"layers.2.mixer.q_proj of .* has no matrix in 16 bit or more there"):
        merging.merge_adapter(base, tmp_path / "a", tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.fixture
def llama(tmp_path):
    """A small Llama in shards, tied embeddings, as published."""
    torch.manual_seed(0)
    tiny_llama = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(tiny_llama).save_pretrained(tmp_path / "llama", max_shard_size="10KB")
    return tmp_path / "llama"


def test_a_llama_in_shards_keeps_its_shards(llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama)
    model = lora.add_lora(model, Lora(r=4, target_modules=["q_proj", "down_proj"]), 0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    lora.save_adapter(model, tmp_path / "a", "llama")
    shown = []
    merging.merge_adapter(llama, tmp_path / "a", tmp_path / "m", lambda *what: shown.append(what))
    names = sorted(path.name for path in llama.glob("*.safetensors"))
    assert sorted(path.name for path in (tmp_path / "m").glob("*.safetensors")) == names and len(names) > 2
    assert [what[:2] for what in shown] == [(n, len(names)) for n in range(1, len(names) + 1)]
    index = json.loads((tmp_path / "m" / merging.INDEX).read_text())
    assert index["weight_map"] == json.loads((llama / merging.INDEX).read_text())["weight_map"]
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in stored(tmp_path / "m").values())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        torch.testing.assert_close(merged(ids).logits, model.eval()(ids).logits, rtol=0, atol=0.03)
        with model.disable_adapter():
            assert (model(ids).logits - merged(ids).logits).abs().max() > 0.1


@pytest.mark.parametrize("rows", [merging.ROWS, 50])  # a matrix at once, and in pieces
def test_the_files_digests_and_what_rounding_takes_are_known_without_reading_again(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(merging, "ROWS", rows)
    module = "model.layers.2.mixer.q_proj"
    delta = random_adapter(tmp_path / "a", {module: (128, 128)}, alpha=0.004)[module] * 0.001
    done = merging.merge_adapter(tiny.FOLDER, tmp_path / "a", tmp_path / "m")
    assert done.digests == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((tmp_path / "m").iterdir())
    }
    key = "backbone.layers.2.mixer.q_proj.weight"
    exact = load_file(tiny.FOLDER / "model.safetensors")[key].float() + delta
    # The base is float16. A change counted from the base in bf16 would have that rounding in it too.
    assert done.lost == pytest.approx(((stored(tmp_path / "m")[key] - exact).norm() / delta.norm()).item(), rel=1e-3)
    assert 0.01 < done.lost < 0.5


def test_an_update_that_bf16_rounds_away_is_refused(tmp_path):
    random_adapter(tmp_path / "a", {"model.layers.2.mixer.q_proj": (128, 128)}, alpha=4e-9)
    with pytest.raises(
        ValueError, match=r"the error of rounding to bf16 is \d[\d,]*% of the update .* at most 90% may be"
    ):
        merging.merge_adapter(tiny.FOLDER, tmp_path / "a", tmp_path / "m")


def test_merging_holds_one_tensor_at_a_time(llama, tmp_path, monkeypatch):
    assert random_adapter(tmp_path / "a", {"model.layers.0.self_attn.q_proj": (32, 32)})
    alive, most, halves = 0, 0, 0

    def watched(tensor):
        nonlocal alive, most
        alive, most = alive + 1, max(most, alive + 1)
        weakref.finalize(tensor, gone)
        return tensor

    def read_half(folder, key):
        nonlocal halves
        halves += 1
        return watched(read_tensor(folder, key))

    class Watched:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, name):
            return watched(self.file.get_tensor(name))

    def gone():
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(merging, "open_shard", lambda path: Watched(safe_open(path, "pt")))
    read_tensor = AdapterFolder.read_tensor
    monkeypatch.setattr(AdapterFolder, "read_tensor", read_half)
    merging.merge_adapter(llama, tmp_path / "a", tmp_path / "m")
    assert most <= 3 and halves == 4  # a tensor and the two halves of its pair, which are first checked


@pytest.mark.parametrize(
    ("shapes", "config", "message"),
    [
        (
            {"model.layers.0.mixer.q_proj": (128, 128)},
            {},
            r"a LoRA on \S+layers\.0\.mixer\.q_proj, and the base has no such matrix",
        ),
        (
            {"model.layers.2.mixer.q_proj": (64, 128)},
            {},
            r"\(64, 128\) on .*q_proj, which is \(128, 128\) in this base",
        ),
        ({"model.layers.1.mixer.experts.8.up_proj": (64, 128)}, {}, "the base has no such matrix"),  # there are eight
        ({"mtp.layers.2.mixer.q_proj": (128, 128)}, {}, "holds no LoRA pair"),
        (
            {"model.layers.2.mixer.q_proj": (128, 128)},
            {"use_dora": True},
            "use_dora is True; an adapter of LoRA pairs alone has no such thing",
        ),
        ({"model.layers.2.mixer.q_proj": (128, 128)}, {"bias": "all"}, "bias is 'all'"),
        ({"model.layers.2.mixer.q_proj": (128, 128)}, {"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"model.layers.2.mixer.q_proj": (128, 128)}, {"rank_pattern": {"q_proj": 2}}, "has rank 4 .* config says 2"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_a_byte_is_written(tmp_path, shapes, config, message):
    random_adapter(tmp_path / "a", shapes, **config)
    with pytest.raises(ValueError, match=message):
        merging.merge_adapter(tiny.FOLDER, tmp_path / "a", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_tensor_that_is_not_half_of_a_lora_pair_is_refused(tmp_path):
    random_adapter(tmp_path / "a", {"model.layers.2.mixer.q_proj": (128, 128)})
    path = tmp_path / "a/adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="holds base_model.model.lm_head.weight, which is not half"):
        merging.merge_adapter(tiny.FOLDER, tmp_path / "a", tmp_path / "m")


@pytest.mark.parametrize(
    ("half", "value", "message"),
    [
        ("A", float("nan"), "q_proj of .* has a value that is NaN or infinite"),
        ("B", float("inf"), "q_proj of .* has a value that is NaN or infinite"),
        ("B", 0.0, "changes nothing: the update of every pair is zero"),
        ("A", 0.0, "changes nothing"),
    ],
)
def test_an_adapter_of_nothing_or_of_no_numbers_is_refused_before_a_byte_is_written(tmp_path, half, value, message):
    random_adapter(tmp_path / "a", {"model.layers.2.mixer.q_proj": (128, 128)})
    path = tmp_path / "a/adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.model.model.layers.2.mixer.q_proj.lora_{half}.weight"].fill_(value)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        merging.merge_adapter(tiny.FOLDER, tmp_path / "a", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def scale_adapter(folder, factor):
    path = folder / "adapter_model.safetensors"
    save_file({key: tensor * factor for key, tensor in load_file(path).items()}, path)


def test_finite_halves_whose_update_is_infinite_are_refused(tmp_path):
    random_adapter(tmp_path / "a", {"model.layers.2.mixer.q_proj": (128, 128)})
    scale_adapter(tmp_path / "a", 1e19)
    with pytest.raises(ValueError, match=r"update takes backbone\.layers\.2\.mixer\.q_proj\.weight beyond .* of BF16"):
        merging.merge_adapter(tiny.FOLDER, tmp_path / "a", tmp_path / "m")


def test_an_update_whose_square_float32_has_not_is_merged(tmp_path):
    random_adapter(tmp_path / "a", {"model.layers.2.mixer.q_proj": (128, 128)})
    scale_adapter(tmp_path / "a", 1e12)
    lost = merging.merge_adapter(tiny.FOLDER, tmp_path / "a", tmp_path / "m").lost
    assert 0.001 < lost < 0.004  # bf16 has 8 bits
    assert all(tensor.isfinite().all() for tensor in stored(tmp_path / "m").values())


def test_a_base_with_infinity_in_a_trained_matrix_is_refused(tmp_path):
    shutil.copytree(tiny.FOLDER, tmp_path / "base")
    tensors, key = load_file(tiny.FOLDER / "model.safetensors"), "backbone.layers.2.mixer.q_proj.weight"
    tensors[key][3, 4] = float("inf")
    save_file(tensors, tmp_path / "base/model.safetensors")
    random_adapter(tmp_path / "a", {"model.layers.2.mixer.q_proj": (128, 128)})
    with pytest.raises(ValueError, match="q_proj.weight of the base holds NaN or infinity"):
        merging.merge_adapter(tmp_path / "base", tmp_path / "a", tmp_path / "m")


def test_rank_and_alpha_patterns_are_applied(tmp_path):
    """A pair whose rank and alpha come from patterns is scaled by these, not by r and lora_alpha."""
    module = "model.layers.2.mixer.q_proj"
    patterns = {"rank_pattern": {".*q_proj": 4}, "alpha_pattern": {"mixer.q_proj": 12}}
    moved = random_adapter(tmp_path / "a", {module: (128, 128)}, **patterns)
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 16}))
    merging.merge_adapter(tiny.FOLDER, tmp_path / "a", tmp_path / "m")
    name = "backbone.layers.2.mixer.q_proj.weight"
    expected = load_file(tiny.FOLDER / "model.safetensors")[name].float() + moved[module] * 12 / 4
    torch.testing.assert_close(stored(tmp_path / "m")[name].float(), expected, rtol=BFLOAT16, atol=1e-6)


def test_rank_stabilised_lora_is_scaled_by_the_root_of_the_rank(tmp_path):
    module = "model.layers.2.mixer.q_proj"
    moved = random_adapter(tmp_path / "a", {module: (128, 128)}, use_rslora=True)
    merging.merge_adapter(tiny.FOLDER, tmp_path / "a", tmp_path / "m")
    name = "backbone.layers.2.mixer.q_proj.weight"
    expected = load_file(tiny.FOLDER / "model.safetensors")[name].float() + moved[module] * 6 / 2
    torch.testing.assert_close(stored(tmp_path / "m")[name].float(), expected, rtol=BFLOAT16, atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda base: (base / merging.INDEX).write_text("{"), ValueError, "is not an index of shards"),
        (
            lambda base: sorted(base.glob("*.safetensors"))[1].unlink(),
            FileNotFoundError,
            "is missing; the index names it",
        ),
        (lambda base: sorted(base.glob("*.safetensors"))[1].write_bytes(b"12"), ValueError, "is damaged or missing"),
        (
            lambda base: (base / merging.INDEX).write_text('{"weight_map": {"a": "../../x.safetensors"}}'),
            FileNotFoundError,
            "is missing",
        ),
    ],
)
def test_a_damaged_base_is_named(llama, tmp_path, damage, kind, message):
    random_adapter(tmp_path / "a", {"model.layers.0.self_attn.q_proj": (32, 32)})
    damage(llama)
    with pytest.raises(kind, match=message):
        merging.merge_adapter(llama, tmp_path / "a", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_base_of_the_embedded_policy_is_its_folder():
    assert find_base_folder(policy_source(Policy())) == tiny.FOLDER


def test_layers_for_multi_token_prediction_are_kept(tmp_path):
    shutil.copytree(tiny.FOLDER, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").chmod(0o644)
    weight = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    tensors = load_file(tmp_path / "base" / "model.safetensors") | {"mtp.layers.0.mixer.q_proj.weight": weight}
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    random_adapter(tmp_path / "adapter", {"model.layers.2.mixer.q_proj": (128, 128)})
    merging.merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "model")
    assert torch.equal(stored(tmp_path / "model")["mtp.layers.0.mixer.q_proj.weight"], weight.bfloat16())
