"""Whatever form an adapter was saved in, the converted adapter gives the logits of the original on the tiny policy."""

import json
import math
import zipfile

import peft
import pytest
import torch
from peft.tuners import tuners_utils
from safetensors.torch import load, load_file, save_file

from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.adapters.findings import fatal
from grpo_kit.nemotron import base_models
from grpo_kit.policy.load import load_policy
from grpo_kit.runs.run import find_run
from grpo_kit.submission import inspect_zip, package
from tests.helpers.submissions import shapes_of

BASE_MODULES = base_models.lora_modules("tiny")
ALL = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "in_proj",
    "out_proj",
    "shared_experts.up_proj",
    "shared_experts.down_proj",
]
EXPERTS = ["mixer.experts.up_proj", "mixer.experts.down_proj"]
PREFIX = "base_model.model.model."
# Largest difference of two logits that counts as equal. Norms and the scan stay in float32 even in a float64 model:
# 4e-6 was seen on one processor. An adapter moves the logits by more than 0.05, so a scale that is 1 % off moves them
# by 5e-4.
LARGEST_DIFFERENCE = 1e-4


def load_base():
    return load_policy(config.Policy())[0]


def load_base_in_float64():
    model = load_base().double()
    model.set_experts_implementation("eager")  # the grouped product does not support float64
    return model


def logits(model):
    """The logits in float64, in which a different order of rounding (another processor, zero columns) stays far below
    any difference that counts."""
    torch.manual_seed(1)
    ids = torch.randint(16, 272, (3, 24))
    model = model.double()
    model.set_experts_implementation("eager")
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


@pytest.fixture(scope="module")
def base_logits():
    return logits(load_base())


@pytest.fixture
def train_adapter(monkeypatch, tmp_path):
    """A function that saves an adapter with PEFT, with random values that change the logits: (folder, its logits)."""
    monkeypatch.setattr(tuners_utils, "_check_lora_target_modules_mamba", lambda *args, **kwargs: None)

    def make_adapter(name="a", seed=0, spread=0.05, **settings):
        torch.manual_seed(seed)
        defaults = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM"}
        model = peft.get_peft_model(load_base(), peft.LoraConfig(**defaults | settings)).eval()
        for key, value in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(value, std=spread)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, logits(model)

    return make_adapter


@pytest.fixture
def pack(tmp_path):
    """A function that packs folders for the tiny policy and returns (zip, config, tensors, notes)."""

    def pack_folders(*folders, out="z.zip", **options):
        notes = []
        run = find_run("r", tmp_path / "runs")
        options = {"base": "tiny"} | options
        path = package.package_adapter(config.RunConfig(), run, tmp_path / out, folders, say=notes.append, **options)
        with zipfile.ZipFile(path) as archive:
            return (
                path,
                json.loads(archive.read("adapter_config.json")),
                load(archive.read("adapter_model.safetensors")),
                notes,
            )

    return pack_folders


def logits_of_zip(path, tmp_path, merged=False):
    """The logits of the base with the zip's adapter as the kit attaches it or, if `merged`, merged in float64.

    Adding an update to weights in float32 moves the tiny policy's logits by 2e-5, however exact the update is. A test
    that compares with merged weights therefore merges this adapter too, in float64.
    """
    folder = tmp_path / "unpacked"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    if not merged:
        return logits(lora.attach_adapter(load_base(), folder))
    return logits(lora.attach_adapter(load_base_in_float64(), folder).merge_and_unload())


def rewrite_adapter(folder, to, tensors=None, **changes):
    """The adapter of `folder` with other tensors or config keys, in folder `to`."""
    to.mkdir()
    saved = json.loads((folder / "adapter_config.json").read_text()) | changes
    (to / "adapter_config.json").write_text(json.dumps({k: v for k, v in saved.items() if v != "gone"}))
    old = load_file(folder / "adapter_model.safetensors")
    save_file(
        {k: v.contiguous() for k, v in (tensors(old) if tensors else old).items()}, to / "adapter_model.safetensors"
    )
    return to


def assert_same_logits(first, second, base):
    assert (first - base).abs().max() > 0.05, "an adapter that changes nothing proves nothing"
    assert (first - second).abs().max() < LARGEST_DIFFERENCE


FORMS = {
    "plain": {},
    "stacked experts": {"target_parameters": EXPERTS},
    "experts alone": {"target_modules": [], "target_parameters": EXPERTS},
    "up alone": {"target_parameters": EXPERTS[:1]},
    "down alone": {"target_parameters": EXPERTS[1:]},
    "targets named in full": {
        "target_parameters": ["model.layers.3.mixer.experts.down_proj", "model.layers.1.mixer.experts.up_proj"]
    },
    "mixed ranks": {
        "target_parameters": EXPERTS,
        "rank_pattern": {"q_proj": 7, "layers.1.mixer.experts.up_proj": 2, "in_proj": 1},
    },
    "mixed ranks and scales": {
        "target_parameters": EXPERTS,
        "rank_pattern": {"k_proj": 32, "mixer.experts.down_proj": 3, "model.layers.2.mixer.v_proj": 5},
        "alpha_pattern": {"out_proj": 3, ".*experts.up_proj": 5, "^model.layers.2.mixer.q_proj$": 1},
    },
    "rank-stabilised": {"use_rslora": True, "r": 8, "target_parameters": EXPERTS},
    "rank-stabilised of an odd rank": {"use_rslora": True, "r": 3, "lora_alpha": 5},
    "head": {"target_modules": [*ALL, "lm_head"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["pad", "pattern"])
@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_saved_by_peft_gives_the_same_logits_once_packed(
    train_adapter, pack, tmp_path, base_logits, form, ranks
):
    if ranks == "pattern" and "rank_pattern" not in FORMS[form]:
        pytest.skip("one rank has no pattern")
    folder, original = train_adapter(**FORMS[form])
    path, saved, tensors, _ = pack(folder, ranks=ranks)
    assert_same_logits(logits_of_zip(path, tmp_path), original, base_logits)
    assert saved["base_model_name_or_path"] == "grpo-kit/tiny" and isinstance(saved["target_modules"], list)
    assert "target_parameters" not in saved and saved["modules_to_save"] is None and saved["auto_mapping"] is None
    # The file holds exactly the tensors that its config announces: published names and 2-D pairs only.
    assert {key: tuple(value.shape) for key, value in tensors.items()} == shapes_of(saved, BASE_MODULES)
    assert ranks == "pattern" or not saved["rank_pattern"]
    assert fatal(inspect_zip.inspect_submission(path, "tiny")) == []
    assert saved["r"] <= 32 and not saved["use_rslora"]


def test_a_packed_rank_pattern_gives_the_right_scales_even_to_a_reader_that_ignores_it(train_adapter, pack):
    folder, _ = train_adapter(**FORMS["mixed ranks and scales"])
    _, saved, tensors, _ = pack(folder, ranks="pattern")
    assert saved["lora_alpha"] == saved["r"] == 32 and saved["rank_pattern"] == saved["alpha_pattern"]
    assert {value.shape[0] for key, value in tensors.items() if "lora_A" in key} == {3, 4, 5, 32}


def test_the_packed_scale_of_a_pattern_is_the_one_that_peft_computes(train_adapter, pack):
    """This compares the pair that PEFT holds in memory, with its scale, instead of logits."""
    folder, _ = train_adapter(**FORMS["mixed ranks and scales"])
    _, saved, tensors, _ = pack(folder)
    model = peft.PeftModel.from_pretrained(load_base(), folder)
    layer = model.get_submodule(f"{PREFIX}layers.2.mixer.q_proj")
    b = tensors["base_model.model.backbone.layers.2.mixer.q_proj.lora_B.weight"][:, :4]
    packed_scale = saved["lora_alpha"] / saved["r"]
    torch.testing.assert_close(b * packed_scale, layer.lora_B["default"].weight * layer.scaling["default"])


def old_orientation(tensors):
    """The layout of PEFT before 0.19: input and output dimensions swapped, still expert by expert."""
    result = {}
    for key, value in tensors.items():
        if ".experts." not in key:
            result[key] = value
            continue
        a, b = (tensors[key.replace("lora_B", "lora_A")], tensors[key.replace("lora_A", "lora_B")])
        experts, rank = 8, a.shape[0] // 8
        by_expert_a, by_expert_b = a.view(experts, rank, -1), b.view(-1, rank, experts).permute(2, 0, 1)
        if "lora_A" in key:  # (E r, out)
            result[key] = by_expert_b.transpose(1, 2).reshape(experts * rank, -1)
        else:  # (in, r E)
            result[key] = by_expert_a.permute(2, 1, 0).reshape(-1, rank * experts)
    return result


def expert_first(tensors):
    """The layout of newer Unsloth, which reads a flat B expert by expert."""
    return {
        key: value.view(-1, value.shape[1] // 8, 8).transpose(1, 2).reshape(value.shape)
        if ".experts." in key and "lora_B" in key
        else value
        for key, value in tensors.items()
    }


def by_axis(second):
    """A layout with an axis for experts: A is (E, r, in), B is (E, out, r) or, if `second`, (out, E, r). Its names have
    no wrappers."""

    def change(tensors):
        result = {}
        for key, value in tensors.items():
            if ".experts." not in key:
                result[key] = value
                continue
            name = key.replace("experts.base_layer.", "experts.up_proj.")
            name = name if name != key else key.replace("experts.", "experts.down_proj.")
            stack = (
                value.view(8, -1, value.shape[1]) if "lora_A" in key else value.view(len(value), -1, 8).permute(2, 0, 1)
            )
            result[name] = stack.transpose(0, 1) if second and "lora_B" in key else stack
        return result

    return change


def rename_keys(*pairs):
    def change(tensors):
        for old, new in pairs:
            tensors = {key.replace(old, new): value for key, value in tensors.items()}
        return tensors

    return change


LAYOUTS = {
    "PEFT before 0.19": (old_orientation, {}, {}),
    "Unsloth, by its mark": (expert_first, {"auto_mapping": {"unsloth_fixed": True}}, {}),
    "Unsloth, by word": (expert_first, {}, {"stacked": "expert-first"}),
    "an axis for experts": (by_axis(False), {"target_parameters": "gone"}, {}),
    "an axis for experts, second in B": (by_axis(True), {"target_parameters": None}, {}),
    "in memory": (rename_keys((".weight", ".default.weight")), {}, {}),
    "published names": (rename_keys(("model.model.layers", "model.backbone.layers")), {}, {}),
    "both prefixes": (rename_keys(("model.model.layers", "model.model.backbone.layers")), {}, {}),
    "no prefix": (rename_keys(("base_model.model.model.layers", "layers")), {}, {}),
    "wrapped by FSDP": (
        rename_keys((".mixer.", "._fsdp_wrapped_module.mixer."), ("base_model.", "module._orig_mod.base_model.")),
        {},
        {},
    ),
    "no .weight": (rename_keys((".weight", "")), {}, {}),
    "regular expression for targets": (None, {"target_modules": ".*_proj"}, {}),
    "leftovers of a framework": (
        None,
        {"qalora_group_size": 16, "unsloth": {"a": 1}, "megatron_core": "megatron.core"},
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", LAYOUTS)
def test_an_adapter_in_another_layout_or_with_other_names_gives_the_same_logits(
    train_adapter, pack, tmp_path, base_logits, form
):
    change, changes, options = LAYOUTS[form]
    folder, original = train_adapter(target_parameters=EXPERTS)
    path, saved, _, notes = pack(rewrite_adapter(folder, tmp_path / "b", change, **changes), **options)
    assert_same_logits(logits_of_zip(path, tmp_path), original, base_logits)
    assert not {"unsloth", "megatron_core", "qalora_group_size"} & set(saved)
    assert any("stacks of experts" in note for note in notes) or "axis" in form


@pytest.mark.slow
def test_a_stack_read_in_the_wrong_order_gives_other_logits(train_adapter, pack, tmp_path):
    """The test above can fail: an order that other tools accept silently gives logits that are far off."""
    folder, original = train_adapter(target_parameters=EXPERTS)
    path, *_, notes = pack(folder, stacked="expert-first")
    assert any(
        "were read expert-first, as Unsloth writes them; `grpo-kit package --stacked rank-first` reads" in note
        for note in notes
    )
    assert (logits_of_zip(path, tmp_path) - original).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name",
    ["lm_head", "model.lm_head", "backbone.lm_head", "base_model.model.lm_head", "base_model.model.backbone.lm_head"],
)
def test_the_lm_head_is_packed_under_one_name_whatever_it_was_called(train_adapter, pack, tmp_path, base_logits, name):
    folder, original = train_adapter(target_modules=["lm_head", "q_proj"])
    path, saved, tensors, notes = pack(
        rewrite_adapter(folder, tmp_path / "b", rename_keys(("base_model.model.lm_head", name)))
    )
    assert_same_logits(logits_of_zip(path, tmp_path), original, base_logits)
    assert "base_model.model.lm_head.lora_A.weight" in tensors and saved["target_modules"] == ["lm_head", "q_proj"]
    assert any("frozen base weights" in note for note in notes)  # PEFT saved the head's own weight next to its LoRA


def test_multi_token_prediction_is_left_out_and_never_taken_for_a_layer_of_the_backbone(train_adapter, pack, tmp_path):
    folder, _ = train_adapter(target_modules=["q_proj"])
    key = "base_model.model.mtp.layers.2.mixer.k_proj.lora_{}.weight"
    extra = {key.format("A"): torch.ones(4, 128), key.format("B"): torch.ones(64, 4)}
    _, _, tensors, notes = pack(rewrite_adapter(folder, tmp_path / "b", lambda tensors: tensors | extra))
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in tensors} == {"q_proj"}
    assert any(
        note.endswith("2 tensors of multi-token prediction (mtp), which no answer needs, were left out")
        for note in notes
    )


def tinker(rank, shared, seed=0):
    """(tensors as Tinker writes them, {published module: its update}) for experts, both halves of in_proj and one
    plain module."""
    torch.manual_seed(seed)
    tensors, updates = {}, {}

    def random(*shape):
        return torch.randn(*shape) * 0.05

    for layer in (1, 3):
        for name, (out, inside), few in (("w1", (64, 128), "A"), ("w2", (128, 64), "B")):
            a = random(1 if shared and few == "A" else 8, rank, inside)
            b = random(1 if shared and few == "B" else 8, out, rank)
            key = f"base_model.model.backbone.layers.{layer}.mixer.experts.{name}"
            tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
            leaf = {"w1": "up_proj", "w2": "down_proj"}[name]
            for expert, update in enumerate(b.expand(8, -1, -1) @ a.expand(8, -1, -1)):
                updates[f"backbone.layers.{layer}.mixer.experts.{expert}.{leaf}"] = update
        for half in "AB":
            tensors[f"base_model.model.backbone.layers.{layer}.mixer.experts.w3.lora_{half}.weight"] = torch.empty(0)
    update = torch.zeros(BASE_MODULES["backbone.layers.0.mixer.in_proj"])
    for name, first in (("gate_proj", 0), ("x_proj", 192)):  # 12 heads of 16
        a, b = random(rank, 128), random(192, rank)
        key = f"base_model.model.backbone.layers.0.mixer.{name}"
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        update[first : first + 192] = b @ a
    updates["backbone.layers.0.mixer.in_proj"] = update
    a, b = random(rank, 128), random(272, rank)
    tensors |= {"base_model.model.model.lm_head.lora_A.weight": a, "base_model.model.model.lm_head.lora_B.weight": b}
    updates["lm_head"] = b @ a
    return tensors, updates


def with_updates(updates, scale):
    """The base with each update added to its weights by hand."""
    model = load_base_in_float64()
    with torch.no_grad():
        for name, update in updates.items():
            head, _, leaf = name.replace("backbone", "model").rpartition(".")
            if ".experts." in name:
                module, _, expert = head.rpartition(".")
                getattr(model.get_submodule(module), leaf)[int(expert)] += scale * update
            else:
                model.get_submodule(f"{head}.{leaf}".strip(".")).weight += scale * update
    return model


def write_adapter(folder, tensors, **settings):
    folder.mkdir()
    saved = {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "target_modules": "all-linear"} | settings
    (folder / "adapter_config.json").write_text(json.dumps(saved))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("shared", [True, False])
def test_an_adapter_written_by_tinker_gives_the_same_logits(pack, tmp_path, base_logits, shared):
    tensors, updates = tinker(4, shared)
    path, saved, packed, notes = pack(write_adapter(tmp_path / "t", tensors, lora_alpha=4))
    assert_same_logits(logits_of_zip(path, tmp_path, merged=True), logits(with_updates(updates, 1.0)), base_logits)
    assert saved["r"] == 8 and not any("w3" in key or "gate_proj" in key or "x_proj" in key for key in packed)
    assert any("2 empty pairs" in note for note in notes)
    assert packed["base_model.model.backbone.layers.0.mixer.in_proj.lora_B.weight"][384:].abs().max() == 0  # B, C, dt


def test_two_halves_of_in_proj_with_a_rank_above_32_are_cut_and_the_loss_is_reported(pack, tmp_path):
    tensors, updates = tinker(32, True)
    _, saved, packed, notes = pack(write_adapter(tmp_path / "t", tensors, r=32, lora_alpha=16))
    assert saved["r"] == 32
    name = "backbone.layers.0.mixer.in_proj"
    a, b = (packed[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
    expected = updates[name] * 16 / 32
    loss = ((b @ a) * saved["lora_alpha"] / saved["r"] - expected).norm() / expected.norm()
    best = torch.linalg.svdvals(expected.double())
    assert loss.item() == pytest.approx((best[32:].norm() / best.norm()).item(), rel=1e-4) and 0.2 < loss < 0.8
    (line,) = [note for note in notes if note.endswith(f" {name}")]
    assert float(line.split()[0]) == pytest.approx(loss.item(), rel=0.01)
    assert any("1 modules were cut to rank 32" in note and "largest" in note for note in notes)


def test_two_halves_of_in_proj_with_the_same_input_matrix_are_packed_without_loss(pack, tmp_path, base_logits):
    tensors, updates = tinker(32, True)
    gate, x = (f"base_model.model.backbone.layers.0.mixer.{n}.lora_A.weight" for n in ("gate_proj", "x_proj"))
    tensors[x] = tensors[gate].clone()
    rows = updates["backbone.layers.0.mixer.in_proj"]
    rows[192:384] = tensors[x.replace("lora_A", "lora_B")] @ tensors[x]
    path, *_ = pack(write_adapter(tmp_path / "t", tensors, r=32, lora_alpha=8))
    assert_same_logits(logits_of_zip(path, tmp_path, merged=True), logits(with_updates(updates, 8 / 32)), base_logits)


def merge_one_by_one(folders):
    """The base with each adapter merged by PEFT, one after another."""
    model = load_base_in_float64()
    for folder in folders:
        model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    return logits(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"r": 8, "lora_alpha": 4}),  # the same targets, different ranks and scales
        ({"target_modules": ["q_proj", "in_proj"]}, {"target_modules": ["q_proj", "out_proj"], "lora_alpha": 3}),
        (
            {"target_parameters": EXPERTS},
            {"target_modules": ["o_proj"], "r": 28},
        ),  # ranks of modules that both have add up to 32
        ({"target_parameters": EXPERTS}, {"target_parameters": EXPERTS[:1], "r": 2, "use_rslora": True}),
    ],
)
def test_two_packed_adapters_give_the_logits_of_both_merged_one_after_another(
    train_adapter, pack, tmp_path, base_logits, first, second
):
    folders = [train_adapter("sft", 1, **first)[0], train_adapter("grpo", 2, **second)[0]]
    path, saved, _, notes = pack(*folders)
    assert_same_logits(logits_of_zip(path, tmp_path, merged=True), merge_one_by_one(folders), base_logits)
    assert saved["r"] <= 32 and not any("cut to rank" in note for note in notes)


def test_two_adapters_whose_ranks_exceed_32_are_cut_to_the_best_approximation_of_rank_32(train_adapter, pack):
    folders = [
        train_adapter(name, seed, r=24, lora_alpha=12, spread=0.1)[0] for seed, name in enumerate(("sft", "grpo"))
    ]
    _, saved, packed, notes = pack(*folders)
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert saved["r"] == 32
    for name in ("layers.2.mixer.q_proj", "layers.0.mixer.in_proj"):
        keys = [f"{PREFIX}{name}.lora_{half}.weight" for half in "BA"]
        expected = sum((t[keys[0]] @ t[keys[1]] for t in (first, second)), start=torch.zeros(())) * 12 / 24
        a, b = (packed[f"base_model.model.backbone.{name}.lora_{half}.weight"] for half in "AB")
        loss = ((b @ a) * saved["lora_alpha"] / saved["r"] - expected).norm() / expected.norm()
        best = torch.linalg.svdvals(expected.double())
        assert loss.item() == pytest.approx((best[32:].norm() / best.norm()).item(), rel=1e-3)
        (line,) = [note for note in notes if note.endswith(f" backbone.{name}")]
        assert float(line.split()[0]) == pytest.approx(loss.item(), rel=0.01)


@pytest.mark.slow
def test_an_adapter_packed_twice_counts_double_and_loses_nothing(train_adapter, pack, tmp_path, base_logits):
    folder, _ = train_adapter(r=32, spread=0.03)
    path, _, _, notes = pack(folder, folder)
    assert_same_logits(logits_of_zip(path, tmp_path, merged=True), merge_one_by_one([folder, folder]), base_logits)
    assert any("largest" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensors", "changes", "match"),
    [
        (
            lambda t: {k: v for k, v in t.items() if "layers.2.mixer.q_proj.lora_B" not in k},
            {},
            "without its other half",
        ),
        (
            lambda t: t | {f"{PREFIX}layers.2.mixer.gate_proj.lora_{h}.weight": torch.ones(4, 4) for h in "AB"},
            {},
            "no such matrix",
        ),
        (
            lambda t: t | {f"{PREFIX}layers.1.mixer.gate.lora_{h}.weight": torch.ones(4, 4) for h in "AB"},
            {},
            "no such matrix",
        ),
        (
            lambda t: t | {f"{PREFIX}layers.9.mixer.q_proj.lora_{h}.weight": torch.ones(4, 4) for h in "AB"},
            {},
            "no such matrix",
        ),
        (lambda t: t | {"base_model.model.lm_head.weight": torch.ones(2, 2)}, {}, "modules_to_save"),
        (lambda t: t | {f"{PREFIX}embeddings.lora_embedding_A": torch.ones(2, 2)}, {}, "not half of a LoRA pair"),
        (
            lambda t: t | {f"{PREFIX}layers.2.mixer.q_proj.lora_magnitude_vector.weight": torch.ones(2)},
            {},
            "not half of a LoRA pair",
        ),
        (lambda t: t | {f"{PREFIX}layers.2.mixer.q_proj.lora_B.bias": torch.ones(2)}, {}, "not half of a LoRA pair"),
        (lambda t: t | {f"{PREFIX}layers.2.mixer.q_proj.lora_A.other.weight": torch.ones(4, 128)}, {}, "twice"),
        (
            lambda t: (
                t
                | {
                    f"base_model.model.backbone.layers.2.mixer.q_proj.lora_{h}.weight": t[
                        f"{PREFIX}layers.2.mixer.q_proj.lora_{h}.weight"
                    ].clone()
                    for h in "AB"
                }
            ),
            {},
            "twice",
        ),
        (lambda t: {k: v[:2] if "q_proj.lora_A" in k else v for k, v in t.items()}, {}, r"they are \(r, in\)"),
        (lambda t: {k: v[:0] if "q_proj.lora_A" in k else v for k, v in t.items()}, {}, r"they are \(r, in\)"),
        (lambda t: {k: v[:, :64] if "q_proj.lora_A" in k else v for k, v in t.items()}, {}, r"which is \(128, 128\)"),
        (lambda t: {k: v[None] if "q_proj" in k else v for k, v in t.items()}, {}, r"they are \(r, in\)"),
        (None, {"r": 8}, "has rank 4 .* config says 8"),
        (None, {"rank_pattern": {"q_proj": 2}}, "has rank 4 .* config says 2"),
        (None, {"rank_pattern": {"(a+)+b": 2}}, "names of modules"),
        (
            None,
            {"target_parameters": "gone", "target_modules": EXPERTS[:1]},
            None,
        ),  # with both stacks their order is known
        (None, {"target_parameters": EXPERTS[:1]}, "it is unknown which stack belongs to which parameter"),
        (
            lambda t: {k: v[:30] if "experts.base_layer.lora_A" in k else v for k, v in t.items()},
            {},
            "No known way of stacking experts",
        ),
        (
            lambda t: {k: v[:, :5] if "layers.1.mixer.experts.lora_A" in k else v for k, v in t.items()},
            {},
            "No known way of stacking experts",
        ),
        (lambda t: {}, {}, "no LoRA pair"),
        (lambda t: {"x" * 600 + ".lora_A.weight": torch.ones(1, 1)}, {}, "not half of a LoRA pair"),
    ],
)
def test_tensors_that_form_no_lora_pair_are_refused_in_one_sentence(
    train_adapter, pack, tmp_path, tensors, changes, match
):
    folder, _ = train_adapter(target_parameters=EXPERTS)
    broken = rewrite_adapter(folder, tmp_path / "b", tensors, **changes)
    if match is None:
        pack(broken)
        return
    with pytest.raises(ValueError, match=match) as caught:
        pack(broken)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert not list(tmp_path.glob("*.zip")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("missing", ["gate_proj", "x_proj"])
def test_one_half_of_in_proj_without_the_other_is_refused(pack, tmp_path, missing):
    tensors, _ = tinker(4, True)
    with pytest.raises(ValueError, match="without its other half"):
        pack(write_adapter(tmp_path / "t", {k: v for k, v in tensors.items() if missing not in k}))


def test_a_rank_stabilised_scale_is_kept_to_float64_precision(train_adapter, pack):
    folder, _ = train_adapter(r=3, lora_alpha=5, use_rslora=True)
    _, saved, _, _ = pack(folder)
    assert saved["lora_alpha"] / saved["r"] == pytest.approx(5 / math.sqrt(3), rel=1e-15)
