"""A packed zip has one rank, one scale and one dtype, and is the same bytes for the same adapter."""

import json
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file

from grpo_kit.nemotron import base_models
from grpo_kit.submission import package, zip_writer

BASE_MODULES = base_models.lora_modules("tiny")
Q, V, UP = (
    "backbone.layers.2.mixer.q_proj",
    "backbone.layers.2.mixer.v_proj",
    "backbone.layers.1.mixer.shared_experts.up_proj",
)


def halves(name, rank, seed=0, dtype=torch.float32, size=1.0):
    out, width = BASE_MODULES[name]
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, width, generator=generator) * size, torch.randn(out, rank, generator=generator) * size
    return {
        f"base_model.model.{name}.lora_A.weight": a.to(dtype),
        f"base_model.model.{name}.lora_B.weight": b.to(dtype),
    }


def write_adapter(path, tensors, **settings):
    path.mkdir()
    saved = {"r": 4, "lora_alpha": 8, "base_model_name_or_path": "grpo-kit/tiny"} | settings
    (path / "adapter_config.json").write_text(json.dumps(saved))
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def read_zip(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors"] and archive.testzip() is None
        return json.loads(archive.read("adapter_config.json")), load(archive.read("adapter_model.safetensors"))


def scaled_updates(saved, tensors):
    return {
        key[17:-14]: saved["lora_alpha"]
        / saved["r"]
        * tensors[key.replace("lora_A", "lora_B")].double()
        @ tensors[key].double()
        for key in tensors
        if "lora_A" in key
    }


def test_tensors_of_one_rank_are_packed_bit_for_bit(tmp_path):
    tensors = halves(Q, 4) | halves(UP, 4, 1)
    package.pack_folders([write_adapter(tmp_path / "a", tensors)], None, tmp_path / "z.zip")
    saved, packed = read_zip(tmp_path / "z.zip")
    assert set(packed) == set(tensors) and all(torch.equal(packed[key], tensors[key]) for key in tensors)
    assert (saved["r"], saved["lora_alpha"], saved["base_model_name_or_path"]) == (4, 8, "grpo-kit/tiny")
    assert isinstance(saved["lora_alpha"], int)
    assert saved["inference_mode"] is True and saved["modules_to_save"] is None and saved["auto_mapping"] is None
    assert "target_parameters" not in saved and saved["bias"] == "none" and saved["use_dora"] is False


def test_the_order_of_tensors_and_config_keys_does_not_change_the_zip(tmp_path):
    tensors = halves(Q, 4) | halves(V, 4, 1) | halves(UP, 4, 2)
    first = write_adapter(tmp_path / "a", tensors)
    # Written by hand in the opposite order; the library would sort.
    second = tmp_path / "b"
    second.mkdir()
    (second / "adapter_config.json").write_text(
        json.dumps(dict(reversed(json.loads((first / "adapter_config.json").read_text()).items())))
    )
    header, data = {}, b""
    for key, value in reversed(tensors.items()):
        raw = value.numpy().tobytes()
        header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (second / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    for name, source in (("1", first), ("2", second), ("3", first)):
        package.pack_folders([source], None, tmp_path / f"{name}.zip")
    assert len({(tmp_path / f"{name}.zip").read_bytes() for name in "123"}) == 1


def test_the_order_of_two_adapters_of_different_modules_does_not_change_the_zip(tmp_path):
    first, second = (
        write_adapter(tmp_path / "a", halves(V, 4)),
        write_adapter(tmp_path / "b", halves(Q, 4, 1) | halves(UP, 4, 2)),
    )
    package.pack_folders([first, second], None, tmp_path / "1.zip")
    package.pack_folders([second, first], None, tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_a_rank_reduction_gives_the_same_zip_on_any_number_of_threads(tmp_path):
    source = write_adapter(tmp_path / "a", halves(Q, 48) | halves(UP, 48, 1), r=48)
    threads = torch.get_num_threads()
    for number in (1, 2):
        torch.set_num_threads(number)
        package.pack_folders([source], None, tmp_path / f"{number}.zip")
        assert torch.get_num_threads() == number
    torch.set_num_threads(threads)
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


@pytest.mark.parametrize("saved_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_is_kept_unless_another_is_chosen(tmp_path, saved_dtype):
    source = write_adapter(tmp_path / "a", halves(Q, 4, dtype=saved_dtype))
    for chosen in (None, "float32", "float16", "bfloat16"):
        package.pack_folders([source], None, tmp_path / "z.zip", chosen)
        _, packed = read_zip(tmp_path / "z.zip")
        expected_dtype = getattr(torch, chosen) if chosen else saved_dtype
        assert all(
            torch.equal(packed[key], value.to(expected_dtype)) for key, value in halves(Q, 4, dtype=saved_dtype).items()
        )


def test_mixed_16_bit_dtypes_and_float64_become_float32(tmp_path):
    mixed = halves(Q, 4, dtype=torch.bfloat16) | halves(V, 4, dtype=torch.float16)
    package.pack_folders([write_adapter(tmp_path / "a", mixed)], None, tmp_path / "z.zip")
    assert {v.dtype for v in read_zip(tmp_path / "z.zip")[1].values()} == {torch.float32}
    package.pack_folders([write_adapter(tmp_path / "b", halves(Q, 4, dtype=torch.float64))], None, tmp_path / "z.zip")
    assert {v.dtype for v in read_zip(tmp_path / "z.zip")[1].values()} == {torch.float32}


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_a_value_too_large_for_float16_is_refused_and_the_old_zip_stays(tmp_path, kind):
    tensors = halves(Q, 4, dtype=kind)
    tensors[f"base_model.model.{Q}.lora_B.weight"][3, 1] = 7e4
    source = write_adapter(tmp_path / "a", tensors)
    package.pack_folders([source], None, tmp_path / "z.zip", "bfloat16")
    old = (tmp_path / "z.zip").read_bytes()
    with pytest.raises(ValueError, match=r"q_proj has a value of 7.*--dtype bfloat16"):
        package.pack_folders([source], None, tmp_path / "z.zip", "float16")
    assert (tmp_path / "z.zip").read_bytes() == old and sorted(p.name for p in tmp_path.iterdir()) == ["a", "z.zip"]


@pytest.mark.parametrize(("size", "lost"), [(1e-9, "100.0%"), (1e-7, "[12]\\d.\\d%")])
def test_an_adapter_too_small_for_float16_is_refused_with_what_would_be_lost(tmp_path, size, lost):
    tensors = halves(Q, 4)
    tensors[f"base_model.model.{Q}.lora_B.weight"] *= size
    source = write_adapter(tmp_path / "a", tensors)
    with pytest.raises(
        ValueError, match=rf"^float16 has .* adapter's: {lost} of its update would be lost .* with --dtype float32"
    ):
        package.pack_folders([source], None, tmp_path / "z.zip", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    notes = package.pack_folders([source], None, tmp_path / "z.zip", "bfloat16")
    assert any(note.startswith("rounding to bfloat16 changes the adapter's update by 0.2") for note in notes)
    assert not any("rounding" in note for note in package.pack_folders([source], None, tmp_path / "z.zip"))


def test_only_a_scale_that_differs_is_folded_into_its_lora_b(tmp_path):
    tensors = halves(Q, 4) | halves(V, 4, 1) | halves(UP, 4, 2)
    package.pack_folders(
        [write_adapter(tmp_path / "a", tensors, alpha_pattern={"v_proj": 2})], None, tmp_path / "z.zip"
    )
    saved, packed = read_zip(tmp_path / "z.zip")
    assert saved["lora_alpha"] == 8 and saved["r"] == 4 and saved["alpha_pattern"] == {}
    for name, factor in ((Q, 1), (UP, 1), (V, 0.25)):
        key = f"base_model.model.{name}.lora_B.weight"
        assert torch.equal(packed[key], tensors[key] * factor)


def test_padding_to_one_rank_changes_no_update(tmp_path):
    tensors = halves(Q, 2) | halves(V, 16, 1)
    source = write_adapter(
        tmp_path / "a", tensors, rank_pattern={"q_proj": 2, "v_proj": 16}, alpha_pattern={"q_proj": 4}
    )
    package.pack_folders([source], None, tmp_path / "z.zip")
    saved, packed = read_zip(tmp_path / "z.zip")
    assert saved["r"] == 16 and {v.shape[0] for k, v in packed.items() if "lora_A" in k} == {16}
    packed_updates = scaled_updates(saved, packed)
    for name, scale in ((Q, 2.0), (V, 0.5)):
        a, b = (tensors[f"base_model.model.{name}.lora_{half}.weight"].double() for half in "AB")
        torch.testing.assert_close(packed_updates[name], scale * b @ a, rtol=1e-6, atol=1e-6)


def test_a_rank_above_the_scorers_limit_is_cut_and_the_loss_is_reported(tmp_path):
    notes = package.pack_folders(
        [write_adapter(tmp_path / "a", halves(Q, 64) | halves(UP, 64, 1), r=64)], None, tmp_path / "z.zip"
    )
    assert read_zip(tmp_path / "z.zip")[0]["r"] == 32
    used, cut, *worst = notes
    assert used.startswith("The scorer (vLLM 0.17.1) uses 8,192 of 16,384 LoRA parameters (50 %)")
    assert "2 modules were cut to rank 32" in cut and len(worst) == 2 and worst[0].endswith((Q, UP))


def test_pairs_that_the_scorer_drops_can_be_left_out(tmp_path):
    source = write_adapter(tmp_path / "a", halves(Q, 4) | halves(UP, 4, 1))
    notes = package.pack_folders([source], None, tmp_path / "z.zip", only_used=True)
    _, packed = read_zip(tmp_path / "z.zip")
    assert {key.partition(".lora_")[0] for key in packed} == {f"base_model.model.{Q}"}
    assert notes == ["The scorer (vLLM 0.17.1) uses all 1,024 LoRA parameters."]
    alone = write_adapter(tmp_path / "b", halves(UP, 4))
    with pytest.raises(ValueError, match="shared experts only.*leaves nothing. Train in_proj"):
        package.pack_folders([alone], None, tmp_path / "z.zip", only_used=True)


@pytest.mark.parametrize("rank", [8, 64])  # written as it is, and cut
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_nan_or_infinity_is_refused(tmp_path, rank, value):
    tensors = halves(Q, rank)
    next(iter(tensors.values()))[0, 0] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        package.pack_folders([write_adapter(tmp_path / "a", tensors, r=rank)], None, tmp_path / "z.zip")
    assert not (tmp_path / "z.zip").exists()


def test_the_shortest_targets_select_exactly_the_packed_modules():
    for chosen in (
        ["q_proj", "v_proj"], ["up_proj"], ["shared_experts.up_proj"], ["shared_experts.up_proj", "lm_head"],
        ["layers.1.mixer.shared_experts.up_proj"], ["experts.3.down_proj"], ["layers.3.mixer.experts.3.down_proj"],
    ):  # fmt: skip
        names = base_models.select_modules(chosen, BASE_MODULES)
        assert set(base_models.select_modules(zip_writer.shortest_targets(names, BASE_MODULES), BASE_MODULES)) == set(
            names
        )
        assert len(zip_writer.shortest_targets(names, BASE_MODULES)) <= len(chosen) + 1
    everything = zip_writer.shortest_targets(BASE_MODULES, BASE_MODULES)
    assert everything == [
        "down_proj",
        "in_proj",
        "k_proj",
        "lm_head",
        "o_proj",
        "out_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]


@pytest.mark.parametrize(
    ("base", "base_name", "expected_name"),
    [
        ("tiny", "anything", "grpo-kit/tiny"),
        (None, "grpo-kit/tiny", "grpo-kit/tiny"),
        (None, "tiny", "grpo-kit/tiny"),
    ],
)
def test_the_base_is_written_under_its_published_name(tmp_path, base, base_name, expected_name):
    package.pack_folders(
        [write_adapter(tmp_path / "a", halves(Q, 4), base_model_name_or_path=base_name)], base, tmp_path / "z.zip"
    )
    assert read_zip(tmp_path / "z.zip")[0]["base_model_name_or_path"] == expected_name


def test_every_name_of_the_30b_model_becomes_the_published_one(tmp_path):
    name = "base_model.model.model.layers.5.mixer.k_proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 2688), f"{name}.lora_B.weight": torch.ones(256, 2)}
    for number, base_name in enumerate(
        (
            "/kaggle/input/models/metric/nemotron-3-nano-30b-a3b-bf16/transformers/default/1",
            "unsloth/NVIDIA-Nemotron-3-Nano-30B-A3B",
        )
    ):
        source = write_adapter(
            tmp_path / str(number), tensors, base_model_name_or_path=base_name, r=2, target_modules="all-linear"
        )
        package.pack_folders([source], None, tmp_path / "z.zip")
        saved, packed = read_zip(tmp_path / "z.zip")
        assert saved["base_model_name_or_path"] == base_models.PUBLISHED
        assert saved["target_modules"] == ["layers.5.mixer.k_proj"]
        assert set(packed) == {f"base_model.model.backbone.layers.5.mixer.k_proj.lora_{half}.weight" for half in "AB"}


@pytest.mark.parametrize(
    "base_name", [None, "", "someone/else", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16", 7, ["tiny"]]
)
def test_an_unknown_base_is_refused_with_the_option_that_names_it(tmp_path, base_name):
    with pytest.raises(ValueError, match="policy.model="):
        package.pack_folders(
            [write_adapter(tmp_path / "a", halves(Q, 4), base_model_name_or_path=base_name)], None, tmp_path / "z.zip"
        )


def test_adapters_of_two_bases_cannot_be_packed_together(tmp_path):
    first = write_adapter(tmp_path / "a", halves(Q, 4))
    second = write_adapter(tmp_path / "b", halves(Q, 4), base_model_name_or_path=base_models.PUBLISHED)
    with pytest.raises(ValueError, match="not one known base"):
        package.pack_folders([first, second], None, tmp_path / "z.zip")


def test_an_adapter_of_another_architecture_is_packed_unchanged(tmp_path):
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
    package.pack_folders([write_adapter(tmp_path / "a", tensors, r=2)], "someone/else", tmp_path / "z.zip")
    saved, packed = read_zip(tmp_path / "z.zip")
    assert set(packed) == set(tensors) and saved["target_modules"] == ["q_proj"]
    assert saved["base_model_name_or_path"] == "someone/else"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "fp8"}, "dtype is 'fp8'; it is one of float32"),
        ({"ranks": "x"}, "pad, pattern"),
        ({"stacked": "x"}, "rank-first"),
    ],
)
def test_an_unknown_value_of_an_option_is_named_with_the_valid_ones(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        package.pack_folders([write_adapter(tmp_path / "a", halves(Q, 4))], None, tmp_path / "z.zip", **options)


def test_the_safetensors_library_reads_the_packed_file_lazily(tmp_path):
    package.pack_folders([write_adapter(tmp_path / "a", halves(Q, 4) | halves(UP, 4))], None, tmp_path / "z.zip")
    with zipfile.ZipFile(tmp_path / "z.zip") as archive:
        archive.extractall(tmp_path / "out")
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_slice(f"base_model.model.{Q}.lora_A.weight").get_shape() == [4, 128]
    assert not (tmp_path / "z.zip").stat().st_mode & 0o111


def test_progress_is_reported_module_by_module(tmp_path):
    calls = []
    package.pack_folders(
        [write_adapter(tmp_path / "a", halves(Q, 4) | halves(V, 4))],
        None,
        tmp_path / "z.zip",
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(1, 2), (2, 2)]
