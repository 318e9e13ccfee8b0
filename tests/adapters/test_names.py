"""One name for a module, whatever stood before it; PEFT's patterns read without running anybody's regular expression."""

import time

import pytest
from peft.utils.other import get_pattern_key

from grpo_kit.adapters.names import Pattern, half_of, published


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (
            "base_model.model.model.layers.5.mixer.q_proj.lora_A.weight",
            ("base_model.model.model.layers.5.mixer.q_proj", "A"),
        ),
        ("a.lora_B.default.weight", ("a", "B")),
        ("a.lora_B.my-adapter_2.weight", ("a", "B")),
        ("a.lora_B", ("a", "B")),
        ("a.lora_A.default", ("a", "A")),
        ("m._fsdp_wrapped_module.b._orig_mod.c.lora_A.weight", ("m.b.c", "A")),
        ("a.lora_C.weight", None),
        ("a.lora_A.weight.more", None),
        ("a.lora_B.bias", None),
        ("a.lora_embedding_A", None),
        ("a.lora_magnitude_vector.default.weight", None),
        ("a.weight", None),
        (".lora_A.weight", None),
        ("", None),
        ("a" * 600 + ".lora_A.weight", None),
        ("a.lora_A.de fault.weight", None),
    ],
)
def test_halves_by_key(key, expected):
    assert half_of(key) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.1.mixer.experts.3.up_proj", "backbone.layers.1.mixer.experts.3.up_proj"),
        ("base_model.model.model.backbone.layers.1.mixer.in_proj", "backbone.layers.1.mixer.in_proj"),
        ("layers.1.x", "backbone.layers.1.x"),
        ("module.base_model.model.layers.12.mixer.in_proj", "backbone.layers.12.mixer.in_proj"),
        ("base_model.model.model.lm_head", "lm_head"),
        ("lm_head", "lm_head"),
        ("base_model.model.other", "other"),
        ("my_layers.1.x", "my_layers.1.x"),
    ],
)
def test_published_names(name, expected):
    assert published(name) == expected and published(expected) == expected


NAMES = [
    "model.layers.1.mixer.experts.0.up_proj", "model.layers.1.mixer.shared_experts.up_proj", "model.layers.11.mixer.q_proj",
    "model.layers.2.mixer.q_proj", "lm_head",
]  # fmt: skip
KEYS = [
    "q_proj", "mixer.q_proj", "model.layers.2.mixer.q_proj", "layers.1.mixer.experts.0.up_proj", r"^model\.layers\.2\..*q_proj$",
    ".*experts.*up_proj", "shared_experts.up_proj", "proj", "lm_head", "1.mixer.q_proj", r".*\.up_proj",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", NAMES)
def test_a_key_means_what_it_means_to_peft(key, name):
    to_peft = get_pattern_key([key], name) == key
    assert (Pattern({key: 7}).of(published(name), None) == 7) == (to_peft or key == name)


def test_the_first_key_that_fits_decides():
    name = "backbone.layers.2.mixer.q_proj"
    assert Pattern({"q_proj": 1, "model.layers.2.mixer.q_proj": 2}).of(name, 0) == 1
    assert Pattern({"model.layers.2.mixer.q_proj": 2, "q_proj": 1}).of(name, 0) == 2
    assert Pattern({"k_proj": 1}).of(name, 0) == 0 and Pattern(None).of(name, 5) == 5


@pytest.mark.parametrize("key", ["(a+)+$", "a|b", "[ab]", "a{2}", r"\d+", "a?", "a*b", "", "x y", "a\nb"])
def test_more_than_names_is_refused(key):
    with pytest.raises(ValueError, match="names of modules"):
        Pattern({key: 1})


def test_a_key_made_to_hang_does_not():
    began = time.monotonic()
    Pattern({".*a" * 200 + "b": 1}).of("backbone.layers.1." + "a" * 480, 0)
    assert time.monotonic() - began < 5  # as a regular expression it would outlast us all
