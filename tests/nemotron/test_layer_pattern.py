"""A Nemotron-H is read by its layers; relatives and contradictory configurations are refused in one sentence."""

import contextlib
import json
import re

import pytest
import torch
from transformers import NemotronHConfig, NemotronHForCausalLM, PreTrainedConfig

from grpo_kit.nemotron import base_models, tiny
from grpo_kit.nemotron.layer_pattern import build_config, is_nemotron_h, read_config_file, read_layers

M, A, E, D = "linear_attention", "full_attention", "moe", "mlp"
# Fields that every model of transformers has.
GENERAL = set(PreTrainedConfig.__dataclass_fields__) | {"num_hidden_layers", "layers_block_type"}
PATTERN = {"hybrid_override_pattern": "M-*E"}


def read(**config):
    return read_layers({"model_type": "nemotron_h"} | config, "mine")


@pytest.mark.parametrize(
    "config",
    [
        PATTERN,
        {"layers_block_type": [M, D, A, E]},
        {"layers_block_type": ["mamba", "mlp", "attention", "moe"]},  # as transformers up to 5.11 names them
        PATTERN | {"layers_block_type": [M, D, A, E]},
        PATTERN | {"num_hidden_layers": 4},
        PATTERN | {"layers_block_type": None, "moe_latent_size": None},
        PATTERN | {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E"},
        PATTERN | {"num_nextn_predict_layers": 1, "mtp_layers_block_type": ["attention", "moe"]},
    ],
)
def test_layers_are_read_from_either_key(config):
    assert read(**config) == [M, D, A, E]


@pytest.mark.parametrize(("base", "layers"), [(base_models.PUBLISHED, 52), (base_models.NANO_4B, 42)])
def test_the_layers_read_are_those_that_transformers_builds(base, layers):
    fields = json.loads(base_models.CONFIGS[base].read_text())
    built = NemotronHConfig(**fields).layers_block_type
    assert read_layers(fields, base) == built and len(built) == layers


SUPER = {"moe_latent_size": 1024, "n_routed_experts": 512, "moe_intermediate_size": 2688}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "The config.json of mine has neither hybrid_override_pattern nor layers_block_type; a Nemotron-H's "
             "layers are in one of them. Download the file again."),
        ({"hybrid_override_pattern": ""}, "has neither"),
        ({"layers_block_type": []}, "has neither"),
        (PATTERN | {"num_hidden_layers": 52}, "The config.json of mine has num_hidden_layers 52 and a pattern of 4 "
         "layers (M-*E); they must agree. Correct the one that is wrong."),
        (PATTERN | {"num_hidden_layers": "4"}, "num_hidden_layers '4'"),
        ({"hybrid_override_pattern": "M-XE"}, "hybrid_override_pattern in the config.json of mine names a layer 'X'; "
         "the layers of a Nemotron-H are M, *, E, -. Correct the pattern, or name another model."),
        ({"hybrid_override_pattern": "m-*e"}, "names a layer 'm'"),
        ({"hybrid_override_pattern": 7}, "names a layer '7'"),
        ({"hybrid_override_pattern": ["M"]}, "names a layer \"['M']\""),
        ({"layers_block_type": "M-*E"}, "layers_block_type in the config.json of mine names a layer 'M-*E'"),
        ({"layers_block_type": [M, "sliding_attention"]}, "names a layer 'sliding_attention'"),
        ({"layers_block_type": [M, []]}, "names a layer '[]'"),
        (PATTERN | {"layers_block_type": [M, M]}, "The config.json of mine has hybrid_override_pattern M-*E and "
         "layers_block_type MM; they must agree. Correct the one that is wrong."),
        (PATTERN | {"mtp_hybrid_override_pattern": "*X"}, "mtp_hybrid_override_pattern in the config.json of mine"),
        (SUPER | {"hybrid_override_pattern": "ME" * 40}, "mine has experts behind a latent projection (moe_latent_size "
         "1024), as Nemotron-3-Super 120B and Ultra 550B have; its routed experts are 113 billion parameters, 54 GiB "
         "in 4 bit, and the kit trains on one GPU. Name Nemotron-3-Nano-30B-A3B"),
        ({"moe_latent_size": "1" * 9, "hybrid_override_pattern": "ME"}, "has moe_latent_size '111111111'; it must be a "
         "whole number, 1 to 1,048,576, or null"),
        (SUPER | {"moe_latent_size": "big", "hybrid_override_pattern": "ME"}, "has moe_latent_size 'big'"),
        (SUPER | {"moe_latent_size": 0, "hybrid_override_pattern": "ME"}, "has moe_latent_size '0'"),
        (SUPER | {"n_routed_experts": "big", "hybrid_override_pattern": "ME"}, "has n_routed_experts 'big'"),
        ({"moe_latent_size": 16, "hybrid_override_pattern": "ME"}, "Nemotron-3-Super 120B and Ultra 550B have. Name"),
        ({"model_type": "qwen3"}, "mine is a 'qwen3'; the kit needs a 'nemotron_h' here."),
        ({"model_type": None}, "mine is a None"),
        ({"model_type": "nemotron_h_omni"}, "is an Omni model, with layers for sound and images (nemotron_h_omni)"),
        (PATTERN | {"architectures": ["NemotronH_Omni_Reasoning_V3"]}, "mine is an Omni model"),
        ({"model_type": "NemotronH_Nano_VL_V2"}, "mine is a VL model, with layers for images"),
        (PATTERN | {"vision_config": {}}, "mine is a VL model"),
        ({"model_type": "nemotron_h_puzzle"}, "mine is a Puzzle model, whose layers differ in width"),
        (PATTERN | {"block_configs": []}, "mine is a Puzzle model"),
        (PATTERN | {"architectures": ["NemotronHVisionModel"]}, "mine is a VL model"),
        (PATTERN | {"sound_config": {}}, "mine is an Omni model"),
        (PATTERN | {"quantization_config": {"quant_method": "fp8"}}, "The weights of mine are quantised already ('fp8' "
         "in its config.json); the kit reads weights in 16 or 32 bit, which it quantises itself. Name the BF16 model."),
        (PATTERN | {"quantization_config": "x" * 10**4}, f"('{'x' * 40}' in its config.json)"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_one_sentence(config, message):
    with pytest.raises(ValueError) as error:
        read(**config)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"revision": "main"}, {"_vllm_version": "0.17"}, {"supervision": 1}, {"vision_config": None},
        {"architectures": ["NemotronHForCausalLM"], "transformers_version": "5.23.0"}, {"quantization_config": None},
    ],
)  # fmt: skip
def test_a_plain_text_model_is_taken_whatever_its_other_keys_resemble(extra):
    assert read(**PATTERN, **extra) == [M, D, A, E]


UNUSED = {
    "num_labels": 10**9, "id2label": 5, "label2id": [], "_attn_implementation": "flash_attention_2",
    "layer_types": ["a"], "num_local_experts": 10**9, "rope_scaling": "M", "rope_parameters": 3,
    "mtp_hybrid_override_pattern": None, "auto_map": {"AutoConfig": "evil.Config"}, "torchscript": "no",
    "is_encoder_decoder": [], "problem_type": "x",
}  # fmt: skip


@pytest.mark.parametrize("key", UNUSED)
def test_transformers_does_not_see_keys_that_the_layers_do_not_need(key):
    fields = {"model_type": "nemotron_h", **PATTERN, "hidden_size": 8, "n_routed_experts": 4}
    built = build_config(fields | {key: UNUSED[key]}, "mine").to_dict()
    assert built == build_config(fields, "mine").to_dict()
    assert (built["hidden_size"], built["n_routed_experts"], built["layers_block_type"]) == (8, 4, [M, D, A, E])


@pytest.mark.parametrize("base", [base_models.PUBLISHED, base_models.NANO_4B, base_models.TINY])
def test_a_published_configuration_loses_nothing_that_the_model_uses(base):
    fields = json.loads(base_models.CONFIGS[base].read_text())
    built, whole = build_config(fields, base), NemotronHConfig.from_dict(dict(fields))
    for key in set(NemotronHConfig.__dataclass_fields__) - GENERAL - {"mtp_layers_block_type"}:
        assert key == "num_nextn_predict_layers" or getattr(built, key) == getattr(whole, key), key
    assert (built.layers_block_type, built.dtype) == (whole.layers_block_type, whole.dtype)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "7", '{"a": {"__float__": []}}', "\xff"])
def test_a_file_that_is_no_object_is_damaged(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError) as error:
        read_config_file(path, "mine")
    assert str(error.value) == f"{path} is not a JSON object; it is damaged. Download it again."


def test_infinity_is_read_as_transformers_saves_it(tmp_path):
    path, fields = tmp_path / "config.json", {"model_type": "nemotron_h", **PATTERN}
    for value in ("Infinity", {"__float__": "Infinity"}):
        path.write_text(json.dumps(fields | {"time_step_limit": [0.0, value]}).replace('"Infinity"]', "Infinity]"))
        assert read_config_file(path, "mine")["time_step_limit"] == [0.0, float("inf")]
    path.write_text(json.dumps(fields | {"time_step_limit": [0.0, {"__float__": "NaN"}]}))
    with pytest.raises(ValueError, match="time_step_limit"):
        read_config_file(path, "mine")


@pytest.mark.parametrize("kind", [None, 5, []])
def test_a_file_without_a_kind_of_model_says_so(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(
        ValueError, match=r"of mine has model_type '.*'; it must name a kind of model, such as nemotron_h"
    ):
        read_config_file(tmp_path / "config.json", "mine")
    with pytest.raises(FileNotFoundError, match="mine has no config.json"):
        read_config_file(tmp_path / "elsewhere.json", "mine")


def test_a_latent_size_without_experts_refuses_nothing():
    assert read(hybrid_override_pattern="M-*", moe_latent_size=1024) == [M, D, A]


@pytest.mark.parametrize(
    ("kind", "is_one"),
    [
        ("nemotron_h", True),
        ("nemotron_h_puzzle", True),
        ("NemotronH_Nano_VL_V2", True),
        ("nemotron", False),
        (None, False),
    ],
)
def test_relatives_are_told_by_their_model_type(kind, is_one):
    assert is_nemotron_h({"model_type": kind}) is is_one


# Values

HERE = {  # key: (values that the layers M-*E can be built from, values that are refused, the rule)
    "hidden_size": ([1, 2688, 2**20], [0, -1, 2**20 + 1, 10**30, "big", "64", 64.0, True, None, [], {}, float("nan")],
                    "a whole number, 1 to 1,048,576"),
    "head_dim": ([128], [[], 0], "a whole number, 1 to 1,048,576"),
    "intermediate_size": ([7], [0], "a whole number, 1 to 1,048,576"),
    "mamba_d_conv": ([4], [0], "a whole number, 1 to 1,048,576"),
    "num_nextn_predict_layers": ([0, 1], [-1, None, False], "a whole number, 0 to 1,048,576"),
    "routed_scaling_factor": ([1, 2.5, 0], [-1.0, float("nan"), float("inf"), "1", True], "a number, 0 to 1,048,576"),
    "layer_norm_epsilon": ([1e-5, 0.0], [0, 1, -1e-5, float("nan"), float("inf"), None, "1e-5"],
                           "a number with a decimal point, 0.0 to 1000.0"),
    "tie_word_embeddings": ([True, False], [0, 1, None, "false"], "true or false"),
    "mlp_hidden_act": (["relu2", "silu", "gelu"], ["big", "", None, 3, []],
                       "the name of an activation, such as relu2 or silu"),
    "mamba_ssm_cache_dtype": (["float32"], [32, None], "the name of a type, such as float32"),
    "dtype": (["bfloat16", None], ["big", 16, []], "one of bfloat16, float16, float32, or null"),
    "pad_token_id": ([0, None], [[0], "0", True, 1.0], "a token's number, or null"),
    "eos_token_id": ([2, [2, 11], None], ["2", [2, "11"], [None], 2.0],
                     "a token's number, a list of such numbers, or null"),
    "sliding_window": ([None, 512], ["512", 1.5], "a whole number, or null"),
    "time_step_limit": ([[0.0, float("inf")], (0.0, 0.5)],
                        [None, 1.0, [0, 1], [0.0], [-1.0, 1.0], [float("nan"), 1.0], "01", {}, [0.0, {}]],
                        "a list of two numbers with decimal points"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (fine, _, _) in HERE.items() for value in fine])
def test_a_value_in_its_range_is_taken(key, value):
    assert len(read(**PATTERN, **{key: value})) == 4


@pytest.mark.parametrize(
    ("key", "value", "rule"), [(key, value, rule) for key, (_, bad, rule) in HERE.items() for value in bad]
)
def test_a_value_of_another_type_or_outside_its_range_is_refused_in_one_sentence(key, value, rule):
    with pytest.raises(ValueError) as error:
        read(**PATTERN, **{key: value})
    told = f"The config.json of mine has {key} {str(value)[:40]!r}; it must be {rule}. Correct it, or download the "
    assert str(error.value) == f"{told}file again."


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 40, "num_key_value_heads": 7},
         "num_attention_heads '40'; it must be a multiple of num_key_value_heads, 7"),
        ({"mamba_num_heads": 12, "n_groups": 5}, "mamba_num_heads '12'; it must be a multiple of n_groups, 5"),
        ({"n_routed_experts": 8, "n_group": 3}, "n_routed_experts '8'; it must be a multiple of n_group, 3"),
        ({"n_routed_experts": 8, "num_experts_per_tok": 9},
         "num_experts_per_tok '9'; it must be at most n_routed_experts, 8"),
        ({"n_group": 2, "topk_group": 4}, "topk_group '4'; it must be at most n_group, 2"),
        ({"hybrid_override_pattern": "M" * 1001}, "a pattern of 1,001 layers; the kit takes at most 1,000"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_together_are_refused(config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(**(PATTERN | config))


def test_sizes_of_layers_that_the_model_does_not_have_may_be_0():
    none = {"n_routed_experts": 0, "moe_intermediate_size": 0, "intermediate_size": 0, "head_dim": 0}
    assert read(hybrid_override_pattern="MM", **none) == [M, M]
    with pytest.raises(ValueError, match="n_routed_experts '0'; it must be a whole number, 1 to"):
        read(hybrid_override_pattern="ME", **none)


HOSTILE = ([], {}, "big", "8", -1, 10**30, 2**40, True, None, float("nan"), float("inf"), 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted({*NemotronHConfig.__dataclass_fields__, *UNUSED}))
def test_whatever_transformers_cannot_build_was_refused_before(key):
    """Each field of transformers' configuration, so that a new one is noticed."""
    fields = json.loads((tiny.FOLDER / "config.json").read_text()) | {"intermediate_size": 64, key: None}
    fields |= {"hybrid_override_pattern": "ME*-", "num_hidden_layers": 4}
    for value in HOSTILE:
        fields[key] = value
        with contextlib.suppress(ValueError):
            config = build_config(fields, "mine")
            with torch.device("meta"):
                try:
                    NemotronHForCausalLM._from_config(config)
                except Exception as error:
                    pytest.fail(f"{key} {value!r} was let through: {error}")
