"""A form field is split as a person means it: spaces and commas in quotes and brackets belong to the value."""

import pytest

from grpo_kit.config.form import join_settings, split_settings
from grpo_kit.config.load import load_config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" , ", []),
        ("grpo.max_steps=7  grpo.beta=0.1", ["grpo.max_steps=7", "grpo.beta=0.1"]),
        ("grpo.max_steps=7,grpo.beta=0.1", ["grpo.max_steps=7", "grpo.beta=0.1"]),
        ("grpo.max_steps=7,\ngrpo.beta=0.1,", ["grpo.max_steps=7", "grpo.beta=0.1"]),
        ('data.system_prompt="Be brief" grpo.beta=0', ['data.system_prompt="Be brief"', "grpo.beta=0"]),
        ("'data.system_prompt=Be brief' grpo.beta=0", ["data.system_prompt=Be brief", "grpo.beta=0"]),
        ("data.system_prompt=Don't", ["data.system_prompt=Don't"]),
        ('data.system_prompt="It\'s [a, \\"b\\" ("', ['data.system_prompt="It\'s [a, \\"b\\" ("']),
        ("lora.r=log(1, 3) a.b=[[x, y], [z]]", ["lora.r=log(1, 3)", "a.b=[[x, y], [z]]"]),
        ('a.b=["x y", z] c.d={k: "v w"}', ['a.b=["x y", z]', 'c.d={k: "v w"}']),
    ],
)
def test_a_field_is_split_into_settings(text, words):
    assert split_settings(text) == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.b=[1, 2", "']' is missing in 'a.b=[1, 2'. Close every"),
        ('a.b="x y', "'\"' in 'a.b=\"x y' has no counterpart. Close every"),
        ("a.b=1]", "']' in 'a.b=1]' has no counterpart"),
        ("data.system_prompt=Be brief", """'brief' is not a setting. Put a value with spaces into quotes: \
data.system_prompt="Be brief"."""),
        ("grpo.beta = 0.1", "'grpo.beta' is not a setting. Write each setting as key=value"),
        ("fast", "'fast' is not a setting. Write each setting as key=value"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_read_is_refused_with_a_remedy(text, message):
    with pytest.raises(ValueError) as raised:
        split_settings(text)
    assert message in str(raised.value)


@pytest.mark.parametrize("value", ["Be brief", "a: b", "[x]", "it's, so", "5", 'say "no"'])
def test_a_quoted_text_reaches_the_configuration_as_it_is(value):
    quoted = value.replace('"', '\\"')
    (word,) = split_settings(f'data.system_prompt="{quoted}"')
    assert load_config("tiny", word).data.system_prompt == value


@pytest.mark.parametrize(
    "words",
    [
        ["grpo.max_steps=2", "lora.r=[4, 8]"],
        ["data.system_prompt=Be brief", 'data.prompt_suffix="a b"'],
        ["data.system_prompt=It's so", 'data.prompt_suffix=say "no" (now'],
        ["data.system_prompt=a b]"],
    ],
)
def test_joined_settings_are_split_into_the_same(words):
    assert split_settings(join_settings(words)) == words


def test_settings_that_a_field_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="cannot be written into a form field"):
        join_settings(["data.system_prompt=x\"y z' w"])
