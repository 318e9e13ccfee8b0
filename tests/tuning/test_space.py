"""How search axes are parsed, and which ones are refused."""

import pytest

from grpo_kit.tuning.space import Axis, parse_search

MODULES = ('["q_proj"]', '["q_proj", "k_proj"]')


@pytest.mark.parametrize(
    ("word", "axis"),
    [
        ("grpo.learning_rate=log(1e-4, 1e-2)", Axis("log", 1e-4, 1e-2)),
        ("grpo.epsilon=uniform(0.1,0.3)", Axis("uniform", 0.1, 0.3)),
        ("lora.r=int(4,32)", Axis("int", 4, 32)),
        ("lora.r=[8,16]", Axis("choice", choices=("8", "16"))),
        ("grpo.loss_type=[dapo,dr_grpo]", Axis("choice", choices=('"dapo"', '"dr_grpo"'))),
        ("grpo.epsilon_high=[null,0.28]", Axis("choice", choices=("null", "0.28"))),
        ("lora.target_modules=[[q_proj],[q_proj,k_proj]]", Axis("choice", choices=MODULES)),
    ],
)  # fmt: skip
def test_search_axes_are_parsed(word, axis):
    axes, rest = parse_search([word, "grpo.num_generations=4", "lora.target_modules=[q_proj]"])
    assert axes == {word.split("=")[0]: axis}
    assert rest == ["grpo.num_generations=4", "lora.target_modules=[q_proj]"]  # a key's own list is one value


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "grpo.learning_rate=1e-3",
            "grpo.learning_rate=1e-3 has one value, so there is nothing to search.*'lora.r=\\[",
        ),
        ("lora.r", r"'lora.r' is not a setting. .*KEY=log\(a,b\).*KEY=\[a,b,c\]"),
        ("lora.r=[8", r"'lora.r=\[8' has choices that cannot be read. .*KEY=\[a,b,c\], such as 'lora.r=\[8,16,32\]'"),
        ("lora.r=[8,16] grpo.beta=[0,1]", "has choices that cannot be read"),  # two settings in one word
        ("lora.r=[]", "has choices that cannot be read"),
        ("lora.r=foo(1,2)", r"'lora.r=foo\(1,2\)' has a range that cannot be read. .*KEY=log\(a,b\)"),
        ("x=foo(1,2)", r"'x=foo\(1,2\)' has a range that cannot be read"),
        ("lora.r=int(1,2", "has a range that cannot be read"),
        ("grpo.learning_rate=log(0,1)", "above 0 with log"),
        ("grpo.learning_rate=log(1e-2,1e-3)", "lower one first"),
        ("grpo.learning_rate=log(1e-2,inf)", "its ends are numbers"),
        ("lora.r=int(4,4.5)", "whole with int"),
        ("lora.r=uniform(a,b)", "its ends are numbers"),
        ("data.source=[a.csv,b.csv]", "data.source cannot be searched"),  # trials on other problems do not compare
        ("evaluation.temperature=[0.5,1.0]", "be measured alike"),
        ("grpo.max_steps=[10,20]", "--steps"),
    ],
)
def test_an_invalid_axis_is_refused(word, message):
    with pytest.raises(ValueError, match=message):
        parse_search([word])


def test_a_text_may_look_like_a_range():
    axes, rest = parse_search(["lora.r=[8,16]", "policy.model=foo(1)", "data.prompt_suffix=log(x)"])
    assert list(axes) == ["lora.r"] and rest == ["policy.model=foo(1)", "data.prompt_suffix=log(x)"]


@pytest.mark.parametrize(
    ("axis", "inside", "outside"),
    [
        (Axis("log", 1e-4, 1e-2), [1e-4, 1e-3, 1e-2], [1e-5, None, "x"]),
        (Axis("choice", choices=("null", "0.28")), [None, 0.28], [0.3]),
        (Axis("choice", choices=('["q_proj"]',)), [["q_proj"]], [["k_proj"]]),
    ],
)
def test_a_value_is_recognised_as_on_or_off_an_axis(axis, inside, outside):
    assert all(axis.holds(value) for value in inside) and not any(axis.holds(value) for value in outside)
