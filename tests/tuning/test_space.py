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
        ("grpo.learning_rate=1e-3", "nothing to search"),
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
