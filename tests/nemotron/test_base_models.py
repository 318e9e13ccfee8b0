"""The 30B's adapter, counted to the tensor, and names as they are saved."""

import json

import pytest
import torch

from grpo_kit.nemotron import base_models, tiny
from tests.helpers.submissions import shapes_of

DENSE = ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "out_proj"]
ALL = [*DENSE, "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def nano():
    return base_models.lora_modules(base_models.PUBLISHED)


@pytest.mark.parametrize(
    ("targets", "tensors"),
    [
        (ALL, 12_008),  # all-linear: 11,776 of routed experts and 232 others
        ([*ALL, "lm_head"], 12_010),
        (DENSE, 2 * (6 * 4 + 23 * 2)),
        (["q_proj"], 2 * 6),
        (["shared_experts.up_proj"], 2 * 23),
        (["up_proj"], 2 * 23 * 129),  # 128 routed experts and the shared one
        (["experts.7.down_proj"], 2 * 23),
        (["proj"], 0),  # endings are whole names
        (["gate_proj", "x_proj", "gate", "embeddings", "conv1d"], 0),  # nothing there, or nothing that takes a LoRA
        (["backbone.layers.5.mixer.q_proj"], 2),  # in full
        ([".*_proj"], 0),  # a list holds names, not expressions
        ([], 0),
    ],
)
def test_the_30b_has_so_many_lora_tensors(nano, targets, tensors):
    assert len(shapes_of({"target_modules": targets, "r": 32}, nano)) == tensors


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        ("backbone.layers.0.mixer.in_proj", (10304, 2688)),
        ("backbone.layers.0.mixer.out_proj", (2688, 4096)),
        ("backbone.layers.1.mixer.experts.0.up_proj", (1856, 2688)),
        ("backbone.layers.51.mixer.experts.127.down_proj", (2688, 1856)),
        ("backbone.layers.1.mixer.shared_experts.up_proj", (3712, 2688)),
        ("backbone.layers.5.mixer.q_proj", (4096, 2688)),
        ("backbone.layers.5.mixer.k_proj", (256, 2688)),
        ("backbone.layers.5.mixer.o_proj", (2688, 4096)),
        ("lm_head", (131072, 2688)),
    ],
)
def test_shapes_of_the_30b(nano, module, shape):
    assert nano[module] == shape


@pytest.mark.parametrize("base", [base_models.PUBLISHED, base_models.LIGHTNING, base_models.NANO_4B])
def test_only_names_of_the_weights_in_bf16_stand_for_the_configuration_of_the_package(base):
    plain = base.removesuffix("-BF16")
    folder = f"/kaggle/input/models/metric/{base.split('/')[1].lower()}/transformers/default/1"
    for name in (base, plain, base.lower(), f"unsloth/{plain.split('/')[1]}", folder):
        assert base_models.recognize_bf16(name) == base
    for suffix in ("-FP8", "-NVFP4", "-GGUF", "-Base-BF16", "-BF16-bnb-4bit", "-mine", "-BF16-FP8", ".gguf"):
        assert base_models.recognize_bf16(plain + suffix) is None
    assert base_models.recognize_bf16("tiny") == base_models.TINY and base_models.recognize_bf16(None) is None


def test_the_30b_has_no_more_modules_than_its_parts(nano):
    assert len(nano) == 23 * 2 * 129 + 23 * 2 + 6 * 4 + 1


def test_the_4b_has_the_published_tensors_and_parameters():
    """263 tensors and 3,973,556,832 parameters, as the model's card and the index of its files say."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    fields = json.loads(base_models.CONFIGS[base_models.NANO_4B].read_text())
    with torch.device("meta"):
        model = NemotronHForCausalLM._from_config(NemotronHConfig(**fields), dtype=torch.float32)
    tensors = model.state_dict()
    assert (len(tensors), sum(value.numel() for value in tensors.values())) == (263, 3_973_556_832)
    modules = base_models.lora_modules(base_models.NANO_4B)
    assert len(modules) == 21 * 2 + 4 * 4 + 17 * 2 + 1
    assert modules["backbone.layers.1.mixer.up_proj"] == (12544, 3136)
    assert modules["backbone.layers.41.mixer.down_proj"] == (3136, 12544)
    assert modules["backbone.layers.0.mixer.in_proj"] == (17504, 3136)
    assert modules["backbone.layers.12.mixer.k_proj"] == (1024, 3136)


def test_the_tiny_policys_modules_are_those_of_its_checkpoint():
    from safetensors import safe_open

    with safe_open(tiny.FOLDER / "model.safetensors", "pt") as weights:
        keys = weights.keys()
        stored = {key: tuple(weights.get_slice(key).get_shape()) for key in keys}
    modules = base_models.lora_modules("tiny")
    assert {f"{name}.weight": shape for name, shape in modules.items()}.items() <= stored.items()
    left = {key.removesuffix(".weight") for key in stored if "proj" in key} - modules.keys()
    assert left == set()


@pytest.mark.parametrize("base", [base_models.PUBLISHED, base_models.LIGHTNING, base_models.NANO_4B, base_models.TINY])
def test_the_listed_modules_are_those_that_transformers_builds(tmp_path, base):
    (tmp_path / "config.json").write_text(base_models.CONFIGS[base].read_text())
    built = base_models.lora_modules(str(tmp_path))
    assert list(base_models.lora_modules(base).items()) == list(built.items())


def test_a_folder_is_read_by_its_own_config(tmp_path):
    saved = json.loads((tiny.FOLDER / "config.json").read_text()) | {"n_routed_experts": 3}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    modules = base_models.lora_modules(str(tmp_path))
    assert len(base_models.select_modules(["up_proj"], modules)) == 2 * (3 + 1)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model_type": "llama"}', '{"model_type": "nemotron_h", "head_dim": []}']
)
def test_a_folder_of_another_model_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="not the config of a Nemotron-H"):
        base_models.lora_modules(str(tmp_path))


@pytest.mark.parametrize(
    ("base", "which"),
    [
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", base_models.PUBLISHED),
        ("metric/nemotron-3-nano-30b-a3b-bf16/transformers/default", base_models.PUBLISHED),
        ("/kaggle/input/models/metric/nemotron-3-nano-30b-a3b-bf16/transformers/default/1", base_models.PUBLISHED),
        ("unsloth/Nemotron-3-Nano-30B-A3B", base_models.PUBLISHED),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16", None),  # the same shapes, other weights
        ("nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16", base_models.NANO_4B),
        ("/kaggle/input/nemotron-3-nano-4b-bf16/transformers/default/1", base_models.NANO_4B),
        ("nvidia/NVIDIA-Nemotron-3-Nano-4B-Base-BF16", None),
        ("nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B-BF16", base_models.LIGHTNING),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", None),
        ("Qwen/Qwen3-4B", None),
        ("tiny", base_models.TINY),
        ("grpo-kit/tiny", base_models.TINY),
        ("tiny-environments", "grpo-kit/tiny-environments"),
        ("grpo-kit/tiny-environments", "grpo-kit/tiny-environments"),
        ("tiny-office", "grpo-kit/tiny-office"),
        ("", None),
        (None, None),
        (7, None),
        ("a\0b", None),
        ("x" * 5000, None),
    ],
)
def test_a_base_is_known_by_its_names(base, which):
    assert base_models.resolve_base(base) == which


def test_an_unknown_base_says_what_is_known():
    with pytest.raises(FileNotFoundError, match="'Qwen/Qwen3-4B' is not a known base model"):
        base_models.lora_modules("Qwen/Qwen3-4B")


def test_rank_pattern_counts_by_the_end_of_a_name():
    config = {"r": 8, "rank_pattern": {"experts.1.up_proj": 4, "in_proj": 2}, "target_modules": ["up_proj", "in_proj"]}
    shapes = shapes_of(config, base_models.lora_modules("tiny"))
    key = "base_model.model.backbone.layers.{}.lora_{}.weight"
    assert shapes[key.format("0.mixer.in_proj", "A")] == (2, 128)
    assert shapes[key.format("1.mixer.experts.1.up_proj", "B")] == (64, 4)
    assert shapes[key.format("1.mixer.experts.2.up_proj", "B")] == (64, 8)
    assert shapes[key.format("1.mixer.shared_experts.up_proj", "A")] == (8, 128)


def test_keys_can_be_named_as_transformers_saves_them():
    config, modules = {"r": 8, "target_modules": ["q_proj", "lm_head"]}, base_models.lora_modules("tiny")
    assert list(shapes_of(config, modules, "model.")) == [
        "base_model.model.model.layers.2.mixer.q_proj.lora_A.weight",
        "base_model.model.model.layers.2.mixer.q_proj.lora_B.weight",
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.lm_head.lora_B.weight",
    ]


def test_every_name_of_a_saved_adapter_is_expected(trained):
    """What PEFT saves for the embedded policy is what is expected of it: names and shapes."""
    from safetensors import safe_open

    _, run = trained
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    with safe_open(run.adapter / "adapter_model.safetensors", "pt") as saved:
        keys = saved.keys()
        held = {key: tuple(saved.get_slice(key).get_shape()) for key in keys}
    assert held == shapes_of(config, base_models.lora_modules("tiny"), "model.")


def test_nothing_with_weights_is_built(nano):
    before = torch.get_default_device()
    base_models.lora_modules("tiny")
    assert torch.get_default_device() == before and torch.empty(1).device.type == "cpu"
