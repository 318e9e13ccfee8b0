"""A merged model read as an adapter: the LoRA that was merged comes back; a model that is more than that is refused."""

import json
import re
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo_kit.adapters.checkpoints.opening import open_adapter
from grpo_kit.nemotron import tiny
from grpo_kit.submission.package import pack_folders

QUERY, IN_PROJ = "backbone.layers.2.mixer.q_proj.weight", "backbone.layers.0.mixer.in_proj.weight"
EXPERT = "backbone.layers.1.mixer.experts.5.up_proj.weight"
NORM, GATE = "backbone.layers.0.norm.weight", "backbone.layers.1.mixer.gate.weight"


@pytest.fixture(scope="module")
def base():
    return load_file(tiny.FOLDER / "model.safetensors")


def low_rank(weight, rank, size=0.05):
    generator = torch.Generator().manual_seed(rank)
    out, inside = weight.shape
    update = torch.randn(out, rank, generator=generator) @ torch.randn(rank, inside, generator=generator)
    return size * update / update.norm() * weight.float().norm()


def write(folder, weights):
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text((tiny.FOLDER / "config.json").read_text())
    return folder


def product(adapter, module):
    a, b = (adapter.read_tensor(f"base_model.model.{module}.lora_{half}.weight") for half in "AB")
    return b @ a


def test_in_float32_the_update_comes_back_at_its_rank(base, tmp_path):
    updates = {QUERY: low_rank(base[QUERY], 4), IN_PROJ: low_rank(base[IN_PROJ], 7), EXPERT: low_rank(base[EXPERT], 2)}
    weights = {name: value.float() for name, value in base.items()}
    adapter = open_adapter(write(tmp_path / "m", weights | {n: weights[n] + u for n, u in updates.items()}), "tiny")
    assert adapter.config.rank == adapter.config.alpha == 7 and len(adapter.entries) == 6
    for name, update in updates.items():
        module = name.replace("backbone.", "model.").removesuffix(".weight")
        torch.testing.assert_close(product(adapter, module), update, rtol=0, atol=1e-5 * update.abs().max().item())
    assert adapter.remarks[0] == "3 matrices differ from the base by at most rank 7"
    assert adapter.remarks[1].startswith("the LoRA leaves out 0.0% of the whole difference, as the rounding of a")
    assert len(adapter.remarks) == 2


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_in_16_bit_the_rest_is_what_rounding_explains(base, tmp_path, kind):
    weights = {name: value.to(kind) for name, value in base.items()}
    update = low_rank(base[QUERY], 4)
    folder = write(tmp_path / "m", weights | {QUERY: (base[QUERY].float() + update).to(kind)})
    adapter = open_adapter(folder, "tiny")
    found = product(adapter, "model.layers.2.mixer.q_proj")
    assert adapter.config.rank == 4 and len(adapter.entries) == 2
    assert (found - update).norm() < 0.03 * update.norm()


def test_stacked_experts_are_compared_one_by_one(base, tmp_path):
    changed = base | {EXPERT: (base[EXPERT].float() + low_rank(base[EXPERT], 3)).half()}
    stacked = {name: value for name, value in changed.items() if ".experts." not in name or "shared" in name}
    for layer in (1, 3):
        for matrix in ("up_proj", "down_proj"):
            above = f"backbone.layers.{layer}.mixer.experts"
            stacked[f"{above}.{matrix}"] = torch.stack([changed[f"{above}.{e}.{matrix}.weight"] for e in range(8)])
    adapter = open_adapter(write(tmp_path / "m", stacked), "tiny")
    assert set(adapter.entries) == {
        f"base_model.model.model.layers.1.mixer.experts.5.up_proj.lora_{half}.weight" for half in "AB"
    }


KEY, VALUE, OUT = (QUERY.replace("q_proj", name) for name in ("k_proj", "v_proj", "o_proj"))


def changed_in_bfloat16(base, tmp_path, changes):
    """The adapter of a model in bfloat16 whose base is in bfloat16 too; `changes` gives what to add to some weights."""
    plain = {name: value.bfloat16() for name, value in base.items()}
    changed = {name: (plain[name].float() + change(plain[name].float())).bfloat16() for name, change in changes.items()}
    return open_adapter(write(tmp_path / "m", plain | changed), str(write(tmp_path / "base", plain)))


def noise_below_the_spacing(weight):
    return 1e-3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))


def strong(weight):
    return low_rank(weight, 4)


def weak(weight):
    return low_rank(weight, 4, 0.001)


def test_all_weights_trained_by_less_than_rounding_are_refused(base, tmp_path):
    with pytest.raises(
        ValueError, match=r"in 3 of 3 matrices, with 100.0% of the whole difference: .* All weights were"
    ):
        changed_in_bfloat16(base, tmp_path, dict.fromkeys((QUERY, IN_PROJ, EXPERT), noise_below_the_spacing))


@pytest.mark.parametrize("small", [noise_below_the_spacing, weak])
def test_one_strong_update_does_not_hide_many_small_ones(base, tmp_path, small):
    with pytest.raises(ValueError, match=r"in 3 of 4 matrices, with \d\.\d% of the whole difference: .*proj"):
        changed_in_bfloat16(base, tmp_path, dict.fromkeys((KEY, VALUE, OUT), small) | {QUERY: strong})


def test_a_small_update_that_is_lost_is_named(base, tmp_path):
    adapter = changed_in_bfloat16(base, tmp_path, {QUERY: strong, OUT: strong, KEY: weak})
    assert {key.split(".")[-3] for key in adapter.entries} == {"q_proj", "o_proj"}
    assert adapter.remarks[2].startswith("warning: what other matrices differ by is no LoRA")
    assert re.search(
        r"\(1 matrices, 0\.\d% of the whole difference\): model\.layers\.2\.mixer\.k_proj$", adapter.remarks[2]
    )


def test_an_update_comes_back_until_a_third_of_it_is_rounding(base, tmp_path):
    adapter = changed_in_bfloat16(base, tmp_path, {QUERY: lambda weight: low_rank(weight, 4, 0.006)})
    update = low_rank(base[QUERY].bfloat16(), 4, 0.006)
    assert (product(adapter, "model.layers.2.mixer.q_proj") - update).norm() < 0.1 * update.norm()
    (tmp_path / "2").mkdir()
    with pytest.raises(ValueError, match=r"by so little that [45]\d% of the difference is rounding, and at most 33%"):
        changed_in_bfloat16(base, tmp_path / "2", {QUERY: lambda weight: low_rank(weight, 4, 0.0025)})


def test_a_change_whose_square_is_zero_in_float32_is_no_error(base, tmp_path):
    plain = base | {KEY: torch.zeros(base[KEY].shape), QUERY: base[QUERY].float()}
    changed = plain | {KEY: torch.full(base[KEY].shape, 1e-30), QUERY: plain[QUERY] + low_rank(plain[QUERY], 2)}
    folder = str(write(tmp_path / "base", plain))
    assert len(open_adapter(write(tmp_path / "m", changed), folder).remarks) in (2, 3)


@pytest.mark.slow
def test_the_merged_run_comes_back_with_its_outputs(trained, tmp_path):
    from grpo_kit.adapters import lora
    from grpo_kit.handoff.merging import merge_adapter
    from grpo_kit.policy.load import load_policy

    chosen, run = trained
    merge_adapter(tiny.FOLDER, run.adapter, tmp_path / "m")
    notes = pack_folders([tmp_path / "m"], "tiny", tmp_path / "s.zip")
    assert "matrices differ from the base by at most rank 16" in notes[0]
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        archive.extractall(tmp_path / "a")
    ids = torch.arange(20, 52)[None]
    with torch.inference_mode():
        plain = load_policy(chosen.policy)[0](ids).logits
        want = lora.attach_adapter(load_policy(chosen.policy)[0], run.adapter)(ids).logits
        got = lora.attach_adapter(load_policy(chosen.policy)[0], tmp_path / "a")(ids).logits
    assert (got - want).norm() < 0.1 * (want - plain).norm()


def noisy(weights):
    weights[QUERY] = weights[QUERY] + 0.01 * torch.randn(
        weights[QUERY].shape, generator=torch.Generator().manual_seed(0)
    )


def other_norm(weights):
    weights[NORM] = weights[NORM] * 1.5


def other_router(weights):
    weights[GATE] = weights[GATE] + low_rank(weights[GATE], 1)


def one_more(weights):
    weights["backbone.layers.9.norm.weight"] = torch.zeros(4)


def wider(weights):
    weights[QUERY] = torch.zeros(130, 128)


def not_a_number(weights):
    weights[QUERY][3, 3] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (noisy, r"by more than a LoRA of rank 64 .*, in 1 of 1 matrices, with \d+.\d% of the whole .*q_proj\. All"),
        (other_norm, r"layers.0.norm.weight differs from the base, and no LoRA trains it"),
        (other_router, r"mixer.gate differs from the base, and no LoRA trains it"),
        (one_more, r"have not the same tensors; only one has model.layers.9.norm.weight"),
        (wider, r"q_proj has the shape \(130, 128\), in the base \(128, 128\)"),
        (not_a_number, r"q_proj is not of finite numbers"),
        (lambda weights: None, r"has the same weights as its base"),
    ],
)
def test_what_is_no_merged_lora_is_refused(base, tmp_path, change, message):
    weights = {name: value.float() for name, value in base.items()}
    change(weights)
    with pytest.raises(ValueError, match=message):
        pack_folders([write(tmp_path / "m", weights)], "tiny", tmp_path / "s.zip")
    assert not (tmp_path / "s.zip").exists()


def test_a_merged_model_without_a_base_asks_for_it(base, tmp_path):
    folder = write(tmp_path / "m", dict(base))
    with pytest.raises(ValueError, match="is a merged model, whose adapter is what it adds to its base. Name the base"):
        pack_folders([folder], None, tmp_path / "s.zip")
    with pytest.raises(
        FileNotFoundError,
        match=r"'nobody/none' has no safetensors .* and give policy.model=FOLDER \(in an export --base FOLDER\)\.$",
    ):
        pack_folders([folder], "nobody/none", tmp_path / "s.zip")


def test_layers_for_multi_token_prediction_are_not_compared(base, tmp_path):
    weights = base | {QUERY: base[QUERY] + low_rank(base[QUERY], 2).half()}
    folder = write(tmp_path / "m", weights | {"mtp.layers.0.norm.weight": torch.ones(4)})
    assert len(open_adapter(folder, "tiny").entries) == 2


def test_a_damaged_shard_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"12")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or missing"):
        open_adapter(tmp_path, "tiny")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": 5}}))
    with pytest.raises(ValueError, match=r"index.json is not an index of shards; it is damaged"):
        open_adapter(tmp_path, "tiny")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="the index names it"):
        open_adapter(tmp_path, "tiny")
