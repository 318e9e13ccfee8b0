"""A Nemotron-H is read by its layers; relatives and contradictory configurations are refused in one sentence."""

import json

import pytest
from transformers import NemotronHConfig

from grpo_kit.nemotron import base_models
from grpo_kit.nemotron.layer_pattern import is_nemotron_h, read_layers

M, A, E, D = "linear_attention", "full_attention", "moe", "mlp"
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
        ({"moe_latent_size": "1" * 9, "hybrid_override_pattern": "ME"}, "are 0 billion parameters"),
        ({"model_type": "qwen3"}, "mine is a 'qwen3'; the kit needs a 'nemotron_h' here."),
        ({"model_type": None}, "mine is a None"),
        ({"model_type": "nemotron_h_omni"}, "is an Omni model, with layers for sound and images (nemotron_h_omni)"),
        (PATTERN | {"architectures": ["NemotronH_Omni_Reasoning_V3"]}, "mine is an Omni model"),
        ({"model_type": "NemotronH_Nano_VL_V2"}, "mine is a VL model, with layers for images"),
        (PATTERN | {"vision_config": {}}, "mine is a VL model"),
        ({"model_type": "nemotron_h_puzzle"}, "mine is a Puzzle model, whose layers differ in width"),
        (PATTERN | {"block_configs": []}, "mine is a Puzzle model"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_one_sentence(config, message):
    with pytest.raises(ValueError) as error:
        read(**config)
    assert message in str(error.value) and "\n" not in str(error.value)


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
