"""Columns are chosen by recipe, by name or by usual names; nested ones and chat messages are read."""

import pytest

from grpo_kit import config
from grpo_kit.data import recipes
from grpo_kit.data.columns import choose_columns
from tests.helpers.source_rows import read_rows, write_jsonl


def test_a_file_without_the_column_of_a_drop_rule_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"problem": "p", "answer": "1"}])
    with pytest.raises(ValueError, match="has no column question_type, which its recipe needs to drop rows"):
        read_rows("numina_math_15", config.Data(paths={"numina_math_15": str(path)}))


def test_a_column_named_by_the_user_wins_over_the_usual_names():
    columns = ["prompt", "answer", "q", "a"]
    plain = recipes.Recipe("", "", "")
    assert choose_columns(columns, plain, config.Columns(), "x").columns() == {"prompt", "answer"}
    assert choose_columns(columns, plain, config.Columns("q", "a"), "x").columns() == {"q", "a"}
    with pytest.raises(
        ValueError, match="data.columns.prompt is 'p', and x has the columns prompt, answer, q, a. Name"
    ):
        choose_columns(columns, plain, config.Columns("p"), "x")


def test_an_empty_answer_is_replaced_by_the_last_box_of_the_solution():
    recipe = recipes.Recipe("", "", "", prompt=["p"], answer=["a"], solution=["s"])
    reader = choose_columns(["p", "a", "s"], recipe, config.Columns(), "x")
    assert reader.read(1, {"p": "q", "a": " ", "s": r"so \boxed{7}"}).gold == "7"
    assert reader.read(1, {"p": "q", "a": "8", "s": r"so \boxed{7}"}).gold == "8"


PLAIN = recipes.Recipe("", "", "")
VERL = {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "8", "style": "rule"}}
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": r"so \boxed{8}"}]}


def read(row, *named):
    return choose_columns(list(row), PLAIN, config.Columns(*named), "x").read(1, row)


@pytest.mark.parametrize(
    ("row", "named", "gold"),
    [
        (VERL, (None, "reward_model.ground_truth"), "8"),
        (VERL, (), "8"),
        ({"prompt": "q", "reward_model": str(VERL["reward_model"])}, (None, "reward_model.ground_truth"), "8"),  # CSV
        ({"prompt": "q", "reward_model.ground_truth": "8"}, (None, "reward_model.ground_truth"), "8"),  # a flat name
        ({"question": "q", "answers": {"text": ["8"], "start": [0]}}, (None, "answers.text"), "8"),
        ({"x": {"y": {"q": "q"}}, "answer": 8}, ("x.y.q",), "8"),
        ({"problem": "q", "ground_truth": "8"}, (), "8"),
        ({"problem": "q", "final_answer": 8}, (), "8"),
        ({"problem": "q", "solution": r"so \boxed{8}, or \boxed{9}"}, (), "9"),
        ({"problem": "q", "solution": "so\n#### 8"}, (), "8"),
        ({"problem": "q", "solution": "x=8"}, (), "x=8"),
        ({"problem": "q", "solution": "eight apples"}, (None, "solution"), "eight apples"),
        ({"problem": "q", "answer": "8", "solution": r"\boxed{9}"}, (), "8"),
        ({"problem": "q", "answer": None, "solution": r"\boxed{9}"}, (), "9"),
        ({"problem": "q", "answer": float("nan"), "solution": r"\boxed{9}"}, (), "9"),
        ({"problem": "q", "answer": r"We get $\boxed{8}$."}, (), "8"),
        (SHAREGPT, (), "8"),
        ({**SHAREGPT, "answer": "7"}, (), "7"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "8"}]}, (), "8"),
        ({"prompt": "q", "answer": [{"role": "assistant", "content": r"\boxed{8}"}]}, (), "8"),
        ({"problem": "q", "answer": "8", "image": None, "images": []}, (), "8"),
    ],
)
def test_golds_are_found_by_usual_names_and_by_the_names_of_fields(row, named, gold):
    source_row = read(row, *named)
    assert (source_row.problem, source_row.gold, source_row.reason) == ("q", gold, "")


@pytest.mark.parametrize(
    ("row", "named", "reason", "detail"),
    [
        (VERL, (None, "reward_model"), "not text",
         "the column reward_model holds an object with the fields ground_truth, style; name a field, as in "
         "reward_model.ground_truth"),
        (VERL, (None, "reward_model.gold"), "no answer",
         "reward_model has the fields ground_truth, style, and not gold"),
        ({"prompt": "q", "answer": float("inf")}, (), "not finite",
         "the column answer holds inf, which is not a number to work with"),
        ({"prompt": "q", "answer": ["1", "2"]}, (), "several answers",
         "the column answer holds a list of 2 values; one is needed"),
        ({"problem": "q", "solution": "It is eight."}, (), "no answer",
         "the column solution holds a text with neither a box nor a line '#### answer'"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "It is 8."}]}, (),
         "no answer", "the column messages holds a text with neither a box nor a line '#### answer'"),
        ({"problem": "q", "answer": "8", "images": [b"x"]}, (), "image",
         "the column images holds an image, and the policy reads text only"),
        ({"problem": {"en": "q"}, "answer": "8"}, (), "not text",
         "the column problem holds an object with the fields en; name a field, as in reward_model.ground_truth"),
    ],
)  # fmt: skip
def test_a_row_without_one_text_is_dropped_with_a_reason_that_names_the_column(row, named, reason, detail):
    source_row = read(row, *named)
    assert (source_row.reason, source_row.detail) == (reason, detail)
    assert "{" not in source_row.problem + source_row.gold


def test_the_column_of_a_field_is_read_of_a_parquet():
    assert choose_columns(list(VERL), PLAIN, config.Columns(), "x").columns() == {"prompt", "reward_model"}


def test_golds_of_a_recipe_are_taken_to_the_letter():
    recipe = recipes.Recipe("", "", "", prompt=["p"], answer=["a"])
    for gold in ('["8"]', r"\boxed{8}", "{'a': 1}"):
        assert choose_columns(["p", "a"], recipe, config.Columns(), "x").read(1, {"p": "q", "a": gold}).gold == gold


@pytest.mark.parametrize("answers", ['["7"]', ["7"], "7", 7])
def test_a_recipes_list_with_one_answer_is_read(answers):
    recipe = recipes.Recipe("", "", "", prompt=["p"], answer=["a"], answer_is="json")
    row = choose_columns(["p", "a"], recipe, config.Columns(), "x").read(1, {"p": "q", "a": answers})
    assert (row.gold, row.reason) == ("7", "")


def test_usual_names_are_found_in_any_case():
    assert choose_columns(["Problem", "Final_Answer"], PLAIN, config.Columns(), "x").columns() == {
        "Problem", "Final_Answer",
    }  # fmt: skip
    assert choose_columns(["PROMPT", "prompt", "answer"], PLAIN, config.Columns(), "x").columns() == {
        "prompt", "answer",
    }  # fmt: skip
    with pytest.raises(ValueError, match="none of prompt"):  # two that differ by case alone
        choose_columns(["PROMPT", "Prompt", "answer"], PLAIN, config.Columns(), "x")
