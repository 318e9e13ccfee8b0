"""One name for each module, whatever its prefix; PEFT's patterns, read without running a regular expression."""

import itertools

import pytest
from peft.utils.other import get_pattern_key

from grpo_kit.adapters.names import LONGEST_KEY, Pattern, parse_lora_key, published_name


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
def test_a_key_is_parsed_into_a_module_and_its_half(key, expected):
    assert parse_lora_key(key) == expected


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
    assert published_name(name) == expected and published_name(expected) == expected


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("base_model.model.backbone.layers.0.mixer.in_proj.lora_A.weight", ("backbone.layers.0.mixer.in_proj", "A")),
        ("base_model.model.model.layers.0.mixer.in_proj.lora_B.weight", ("backbone.layers.0.mixer.in_proj", "B")),
        ("base_model.model.lm_head.lora_A.weight", ("lm_head", "A")),
        ("base_model.model.backbone.lm_head.lora_A.weight", ("lm_head", "A")),
        ("base_model.model.model.lm_head.lora_B.weight", ("lm_head", "B")),
        ("base_model.model.backbone.layers.1.mixer.experts.lora_A.weight", ("backbone.layers.1.mixer.experts", "A")),
        (
            "base_model.model.backbone.layers.0.mixer.in_proj.lora_A.default.weight",
            ("backbone.layers.0.mixer.in_proj", "A"),
        ),
    ],
)
def test_a_key_gives_the_published_name_of_its_module(key, module):
    name, half = parse_lora_key(key)
    assert (published_name(name), half) == module


NAMES = [
    "model.layers.1.mixer.experts.0.up_proj",
    "model.layers.1.mixer.shared_experts.up_proj",
    "model.layers.11.mixer.q_proj",
    "model.layers.2.mixer.q_proj",
    "lm_head",
]
KEYS = [
    "q_proj",
    "mixer.q_proj",
    "model.layers.2.mixer.q_proj",
    "layers.1.mixer.experts.0.up_proj",
    r"^model\.layers\.2\..*q_proj$",
    ".*experts.*up_proj",
    "shared_experts.up_proj",
    "proj",
    "lm_head",
    "1.mixer.q_proj",
    r".*\.up_proj",
    "^q_proj",
    "^lm_head$",
    "^.*v_proj",
    ".*q_proj",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_matches_the_names_that_it_matches_in_peft(key, name):
    peft_matches = get_pattern_key([key], name) == key
    assert (Pattern({key: 7}).value_of(published_name(name), None) == 7) == (peft_matches or key == name)


def test_the_first_matching_pattern_counts_as_in_peft():
    """Every order of three keys: PEFT's own lookup says which of them counts."""
    for keys in itertools.permutations(KEYS, 3):
        pattern = Pattern({key: key for key in keys})
        for name in NAMES:
            expected = get_pattern_key(keys, name)
            assert pattern.value_of(published_name(name), name) == expected, (keys, name)


def test_a_name_without_a_matching_pattern_gets_the_default():
    name = "backbone.layers.2.mixer.q_proj"
    assert Pattern({"k_proj": 1}).value_of(name, 0) == 0 and Pattern(None).value_of(name, 5) == 5


@pytest.mark.parametrize("key", ["(a+)+$", "a|b", "[ab]", "a{2}", r"\d+", "a?", "a*b", "", "x y", "a\nb", "a" * 600])
def test_other_regular_expressions_are_listed_and_not_evaluated(key):
    pattern = Pattern({key: 1, "b": 2})
    assert pattern.unreadable_keys == [key] and pattern.value_of("a.b", 0) == 2 and pattern.value_of("a.a", 0) == 0


def test_at_most_500_patterns_with_wildcards_are_read():
    keys = [f".*.x{number}" for number in range(1000)]
    pattern = Pattern(dict.fromkeys(keys, 1))
    assert pattern.unreadable_keys == keys[500:] and pattern.value_of("a.x499", 0) == 1


def test_a_pattern_written_to_take_forever_is_matched_at_once():
    key = ".*a" * (LONGEST_KEY // 3 - 1) + "b"  # as a regular expression this would practically never end
    assert Pattern({key: 1}).value_of("backbone.layers.1." + "a" * 480, 0) == 0
