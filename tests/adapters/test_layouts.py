"""Whatever form an adapter was saved in, the converted one gives the original's logits on the tiny policy."""

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

THERE = base_models.lora_modules("tiny")
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
SAME = 1e-4


def fresh():
    return load_policy(config.Policy())[0]


def exact():
    model = fresh().double()
    model.set_experts_implementation("eager")  # the grouped product knows no float64
    return model


def logits(model):
    """The logits in float64, where rounding in another order (another processor, zero columns) stays far below a
    difference."""
    torch.manual_seed(1)
    ids = torch.randint(16, 272, (3, 24))
    model = model.double()
    model.set_experts_implementation("eager")
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


@pytest.fixture(scope="module")
def base_logits():
    return logits(fresh())


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """Make an adapter with PEFT, random values of a size that matters, saved by PEFT; returns (folder, its logits)."""
    monkeypatch.setattr(tuners_utils, "_check_lora_target_modules_mamba", lambda *args, **kwargs: None)

    def train(name="a", seed=0, spread=0.05, **settings):
        torch.manual_seed(seed)
        made = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM"} | settings)
        model = peft.get_peft_model(fresh(), made).eval()
        for key, value in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(value, std=spread)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, logits(model)

    return train


@pytest.fixture
def packed(tmp_path):
    """Pack folders for the tiny policy; returns (zip, config, tensors, notes)."""

    def pack(*folders, out="z.zip", **how):
        notes = []
        run = find_run("r", tmp_path / "runs")
        how = {"base": "tiny"} | how
        path = package.package_adapter(config.RunConfig(), run, tmp_path / out, folders, say=notes.append, **how)
        with zipfile.ZipFile(path) as archive:
            return (
                path,
                json.loads(archive.read("adapter_config.json")),
                load(archive.read("adapter_model.safetensors")),
                notes,
            )

    return pack


def said(path, tmp_path, merged=False):
    """What the zip says when the kit loads it, on a fresh base; or merged into one of float64.

    Adding to weights in float32 moves the tiny policy's logits by 2e-5 however exact the sum is, so what is compared
    with weights that something was added to is added there too, where it moves nothing.
    """
    folder = tmp_path / "unpacked"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    if not merged:
        return logits(lora.attach_adapter(fresh(), folder))
    return logits(lora.attach_adapter(exact(), folder).merge_and_unload())


def rewritten(folder, to, tensors=None, **changes):
    """The adapter of `folder` with other tensors or config keys, in folder `to`."""
    to.mkdir()
    saved = json.loads((folder / "adapter_config.json").read_text()) | changes
    (to / "adapter_config.json").write_text(json.dumps({k: v for k, v in saved.items() if v != "gone"}))
    old = load_file(folder / "adapter_model.safetensors")
    save_file(
        {k: v.contiguous() for k, v in (tensors(old) if tensors else old).items()}, to / "adapter_model.safetensors"
    )
    return to


def close(one, other, base):
    assert (one - base).abs().max() > 0.05, "an adapter that changes nothing proves nothing"
    assert (one - other).abs().max() < SAME


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


@pytest.mark.parametrize("ranks", ["pad", "pattern"])
@pytest.mark.parametrize("form", FORMS)
def test_what_peft_saved_says_the_same_once_packed(trainer, packed, tmp_path, base_logits, form, ranks):
    if ranks == "pattern" and "rank_pattern" not in FORMS[form]:
        pytest.skip("one rank has no pattern")
    folder, original = trainer(**FORMS[form])
    path, told, tensors, _ = packed(folder, ranks=ranks)
    close(said(path, tmp_path), original, base_logits)
    assert told["base_model_name_or_path"] == "grpo-kit/tiny" and isinstance(told["target_modules"], list)
    assert "target_parameters" not in told and told["modules_to_save"] is None and told["auto_mapping"] is None
    # The file is exactly what its config announces, in the published names, with 2-D pairs alone.
    assert {key: tuple(value.shape) for key, value in tensors.items()} == shapes_of(told, THERE)
    assert ranks == "pattern" or not told["rank_pattern"]
    assert fatal(inspect_zip.inspect_submission(path, "tiny")) == []
    assert told["r"] <= 32 and not told["use_rslora"]


def test_ranks_by_pattern_are_right_whether_the_pattern_is_read_or_not(trainer, packed):
    folder, _ = trainer(**FORMS["mixed ranks and scales"])
    _, told, tensors, _ = packed(folder, ranks="pattern")
    assert told["lora_alpha"] == told["r"] == 32 and told["rank_pattern"] == told["alpha_pattern"]
    assert {value.shape[0] for key, value in tensors.items() if "lora_A" in key} == {3, 4, 5, 32}


def test_patterns_as_peft_itself_reads_them(trainer, packed):
    """Not by logits: the scale of each pair, as PEFT has it in memory, is the packed one's."""
    folder, _ = trainer(**FORMS["mixed ranks and scales"])
    _, told, tensors, _ = packed(folder)
    model = peft.PeftModel.from_pretrained(fresh(), folder)
    layer = model.get_submodule(f"{PREFIX}layers.2.mixer.q_proj")
    b = tensors["base_model.model.backbone.layers.2.mixer.q_proj.lora_B.weight"][:, :4]
    packed_scale = told["lora_alpha"] / told["r"]
    torch.testing.assert_close(b * packed_scale, layer.lora_B["default"].weight * layer.scaling["default"])


def old_orientation(tensors):
    """As PEFT before 0.19 laid a stack out: in and out changed places, expert by expert still."""
    found = {}
    for key, value in tensors.items():
        if ".experts." not in key:
            found[key] = value
            continue
        a, b = (tensors[key.replace("lora_B", "lora_A")], tensors[key.replace("lora_A", "lora_B")])
        experts, rank = 8, a.shape[0] // 8
        by_expert_a, by_expert_b = a.view(experts, rank, -1), b.view(-1, rank, experts).permute(2, 0, 1)
        if "lora_A" in key:  # (E r, out)
            found[key] = by_expert_b.transpose(1, 2).reshape(experts * rank, -1)
        else:  # (in, r E)
            found[key] = by_expert_a.permute(2, 1, 0).reshape(-1, rank * experts)
    return found


def expert_first(tensors):
    """As newer Unsloth reads a flat B: expert by expert."""
    return {
        key: value.view(-1, value.shape[1] // 8, 8).transpose(1, 2).reshape(value.shape)
        if ".experts." in key and "lora_B" in key
        else value
        for key, value in tensors.items()
    }


def by_axis(second):
    """With an axis for experts: A (E, r, in), and B (E, out, r) or, where `second`, (out, E, r); names without
    wrappers."""

    def change(tensors):
        found = {}
        for key, value in tensors.items():
            if ".experts." not in key:
                found[key] = value
                continue
            name = key.replace("experts.base_layer.", "experts.up_proj.")
            name = name if name != key else key.replace("experts.", "experts.down_proj.")
            stack = (
                value.view(8, -1, value.shape[1]) if "lora_A" in key else value.view(len(value), -1, 8).permute(2, 0, 1)
            )
            found[name] = stack.transpose(0, 1) if second and "lora_B" in key else stack
        return found

    return change


def renamed(*pairs):
    def change(tensors):
        for old, new in pairs:
            tensors = {key.replace(old, new): value for key, value in tensors.items()}
        return tensors

    return change


REWRITTEN = {
    "PEFT before 0.19": (old_orientation, {}, {}),
    "Unsloth, by its mark": (expert_first, {"auto_mapping": {"unsloth_fixed": True}}, {}),
    "Unsloth, by word": (expert_first, {}, {"stacked": "expert-first"}),
    "an axis for experts": (by_axis(False), {"target_parameters": "gone"}, {}),
    "an axis for experts, second in B": (by_axis(True), {"target_parameters": None}, {}),
    "in memory": (renamed((".weight", ".default.weight")), {}, {}),
    "published names": (renamed(("model.model.layers", "model.backbone.layers")), {}, {}),
    "both prefixes": (renamed(("model.model.layers", "model.model.backbone.layers")), {}, {}),
    "no prefix": (renamed(("base_model.model.model.layers", "layers")), {}, {}),
    "wrapped by FSDP": (
        renamed((".mixer.", "._fsdp_wrapped_module.mixer."), ("base_model.", "module._orig_mod.base_model.")),
        {},
        {},
    ),
    "no .weight": (renamed((".weight", "")), {}, {}),
    "regular expression for targets": (None, {"target_modules": ".*_proj"}, {}),
    "leftovers of a framework": (
        None,
        {"qalora_group_size": 16, "unsloth": {"a": 1}, "megatron_core": "megatron.core"},
        {},
    ),
}


@pytest.mark.parametrize("form", REWRITTEN)
def test_other_layouts_and_names_say_the_same(trainer, packed, tmp_path, base_logits, form):
    change, changes, how = REWRITTEN[form]
    folder, original = trainer(target_parameters=EXPERTS)
    path, told, _, notes = packed(rewritten(folder, tmp_path / "b", change, **changes), **how)
    close(said(path, tmp_path), original, base_logits)
    assert not {"unsloth", "megatron_core", "qalora_group_size"} & set(told)
    assert any("stacks of experts" in note for note in notes) or "axis" in form


def test_a_stack_read_the_wrong_way_round_is_another_adapter(trainer, packed, tmp_path):
    """The test above can fail: what scrambles silently elsewhere is far from equal here."""
    folder, original = trainer(target_parameters=EXPERTS)
    path, *_ = packed(folder, stacked="expert-first")
    assert (said(path, tmp_path) - original).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name",
    ["lm_head", "model.lm_head", "backbone.lm_head", "base_model.model.lm_head", "base_model.model.backbone.lm_head"],
)
def test_the_head_has_one_name(trainer, packed, tmp_path, base_logits, name):
    folder, original = trainer(target_modules=["lm_head", "q_proj"])
    path, told, tensors, notes = packed(rewritten(folder, tmp_path / "b", renamed(("base_model.model.lm_head", name))))
    close(said(path, tmp_path), original, base_logits)
    assert "base_model.model.lm_head.lora_A.weight" in tensors and told["target_modules"] == ["lm_head", "q_proj"]
    assert any("frozen base weights" in note for note in notes)  # PEFT saved the head's own weight beside its LoRA


def tinker(rank, shared, seed=0):
    """(tensors as Tinker writes them, {published module: its update}) of experts, halves of in_proj and one plain
    module."""
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
    whole = torch.zeros(THERE["backbone.layers.0.mixer.in_proj"])
    for name, first in (("gate_proj", 0), ("x_proj", 192)):  # 12 heads of 16
        a, b = random(rank, 128), random(192, rank)
        key = f"base_model.model.backbone.layers.0.mixer.{name}"
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        whole[first : first + 192] = b @ a
    updates["backbone.layers.0.mixer.in_proj"] = whole
    a, b = random(rank, 128), random(272, rank)
    tensors |= {"base_model.model.model.lm_head.lora_A.weight": a, "base_model.model.model.lm_head.lora_B.weight": b}
    updates["lm_head"] = b @ a
    return tensors, updates


def with_updates(updates, scale):
    """The base with each update added to its weights by hand."""
    model = exact()
    with torch.no_grad():
        for name, update in updates.items():
            head, _, leaf = name.replace("backbone", "model").rpartition(".")
            if ".experts." in name:
                module, _, expert = head.rpartition(".")
                getattr(model.get_submodule(module), leaf)[int(expert)] += scale * update
            else:
                model.get_submodule(f"{head}.{leaf}".strip(".")).weight += scale * update
    return model


def write(folder, tensors, **settings):
    folder.mkdir()
    saved = {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "target_modules": "all-linear"} | settings
    (folder / "adapter_config.json").write_text(json.dumps(saved))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("shared", [True, False])
def test_tinkers_names_and_shared_sides_say_the_same(packed, tmp_path, base_logits, shared):
    tensors, updates = tinker(4, shared)
    path, told, found, notes = packed(write(tmp_path / "t", tensors, lora_alpha=4))
    close(said(path, tmp_path, merged=True), logits(with_updates(updates, 1.0)), base_logits)
    assert told["r"] == 8 and not any("w3" in key or "gate_proj" in key or "x_proj" in key for key in found)
    assert any("2 empty pairs" in note for note in notes)
    assert found["base_model.model.backbone.layers.0.mixer.in_proj.lora_B.weight"][384:].abs().max() == 0  # B, C, dt


def test_halves_of_in_proj_above_the_rank_are_cut_and_the_loss_is_said(packed, tmp_path):
    tensors, updates = tinker(32, True)
    _, told, found, notes = packed(write(tmp_path / "t", tensors, r=32, lora_alpha=16))
    assert told["r"] == 32
    name = "backbone.layers.0.mixer.in_proj"
    a, b = (found[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
    whole = updates[name] * 16 / 32
    lost = ((b @ a) * told["lora_alpha"] / told["r"] - whole).norm() / whole.norm()
    best = torch.linalg.svdvals(whole.double())
    assert lost.item() == pytest.approx((best[32:].norm() / best.norm()).item(), rel=1e-4) and 0.2 < lost < 0.8
    (line,) = [note for note in notes if note.endswith(f" {name}")]
    assert float(line.split()[0]) == pytest.approx(lost.item(), rel=0.01)
    assert any("1 modules were cut to rank 32" in note and "largest" in note for note in notes)


def test_halves_that_share_their_input_side_lose_nothing(packed, tmp_path, base_logits):
    tensors, updates = tinker(32, True)
    gate, x = (f"base_model.model.backbone.layers.0.mixer.{n}.lora_A.weight" for n in ("gate_proj", "x_proj"))
    tensors[x] = tensors[gate].clone()
    rows = updates["backbone.layers.0.mixer.in_proj"]
    rows[192:384] = tensors[x.replace("lora_A", "lora_B")] @ tensors[x]
    path, *_ = packed(write(tmp_path / "t", tensors, r=32, lora_alpha=8))
    close(said(path, tmp_path, merged=True), logits(with_updates(updates, 8 / 32)), base_logits)


def stacked_by_hand(folders):
    """The base with each adapter merged by PEFT, one after another."""
    model = exact()
    for folder in folders:
        model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    return logits(model)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"r": 8, "lora_alpha": 4}),  # the same targets, other ranks and scales
        ({"target_modules": ["q_proj", "in_proj"]}, {"target_modules": ["q_proj", "out_proj"], "lora_alpha": 3}),
        ({"target_parameters": EXPERTS}, {"target_modules": ["o_proj"], "r": 28}),  # sum of ranks is 32 where both are
        ({"target_parameters": EXPERTS}, {"target_parameters": EXPERTS[:1], "r": 2, "use_rslora": True}),
    ],
)
def test_two_adapters_stacked_say_what_both_said_one_after_another(
    trainer, packed, tmp_path, base_logits, first, second
):
    folders = [trainer("sft", 1, **first)[0], trainer("grpo", 2, **second)[0]]
    path, told, _, notes = packed(*folders)
    close(said(path, tmp_path, merged=True), stacked_by_hand(folders), base_logits)
    assert told["r"] <= 32 and not any("cut to rank" in note for note in notes)


def test_two_adapters_whose_ranks_do_not_fit_are_cut_to_the_best_32(trainer, packed):
    folders = [trainer(name, seed, r=24, lora_alpha=12, spread=0.1)[0] for seed, name in enumerate(("sft", "grpo"))]
    _, told, found, notes = packed(*folders)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert told["r"] == 32
    for name in ("layers.2.mixer.q_proj", "layers.0.mixer.in_proj"):
        keys = [f"{PREFIX}{name}.lora_{half}.weight" for half in "BA"]
        whole = sum((t[keys[0]] @ t[keys[1]] for t in (one, other)), start=torch.zeros(())) * 12 / 24
        a, b = (found[f"base_model.model.backbone.{name}.lora_{half}.weight"] for half in "AB")
        lost = ((b @ a) * told["lora_alpha"] / told["r"] - whole).norm() / whole.norm()
        best = torch.linalg.svdvals(whole.double())
        assert lost.item() == pytest.approx((best[32:].norm() / best.norm()).item(), rel=1e-3)
        (line,) = [note for note in notes if note.endswith(f" backbone.{name}")]
        assert float(line.split()[0]) == pytest.approx(lost.item(), rel=0.01)


def test_an_adapter_twice_is_twice_the_adapter_and_loses_nothing(trainer, packed, tmp_path, base_logits):
    folder, _ = trainer(r=32, spread=0.03)
    path, _, _, notes = packed(folder, folder)
    close(said(path, tmp_path, merged=True), stacked_by_hand([folder, folder]), base_logits)
    assert any("largest" in note for note in notes)


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
        ),  # both stacks are there: their order is known
        (None, {"target_parameters": EXPERTS[:1]}, "which stack belongs to which is unknown"),
        (
            lambda t: {k: v[:30] if "experts.base_layer.lora_A" in k else v for k, v in t.items()},
            {},
            "no known way of stacking",
        ),
        (
            lambda t: {k: v[:, :5] if "layers.1.mixer.experts.lora_A" in k else v for k, v in t.items()},
            {},
            "no known way of stacking",
        ),
        (lambda t: {}, {}, "no LoRA pair"),
        (lambda t: {"x" * 600 + ".lora_A.weight": torch.ones(1, 1)}, {}, "not half of a LoRA pair"),
    ],
)
def test_what_no_pair_can_be_made_of_is_refused_in_a_sentence(trainer, packed, tmp_path, tensors, changes, match):
    folder, _ = trainer(target_parameters=EXPERTS)
    broken = rewritten(folder, tmp_path / "b", tensors, **changes)
    if match is None:
        packed(broken)
        return
    with pytest.raises(ValueError, match=match) as caught:
        packed(broken)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert not list(tmp_path.glob("*.zip")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("missing", ["gate_proj", "x_proj"])
def test_half_of_an_in_proj_alone_is_refused(packed, tmp_path, missing):
    tensors, _ = tinker(4, True)
    with pytest.raises(ValueError, match="without its other half"):
        packed(write(tmp_path / "t", {k: v for k, v in tensors.items() if missing not in k}))


def test_a_stabilised_scale_is_kept_to_the_last_digit(trainer, packed):
    folder, _ = trainer(r=3, lora_alpha=5, use_rslora=True)
    _, told, _, _ = packed(folder)
    assert told["lora_alpha"] / told["r"] == pytest.approx(5 / math.sqrt(3), rel=1e-15)
