"""Columns are chosen by recipe, by name or by usual names; nested ones and chat messages are read."""

import pytest

from grpo_kit import config
from grpo_kit.data import recipes
from grpo_kit.data.columns import choose_columns, get_text
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


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        (7, "7"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "q"),
        ([{"role": "user"}], ""),
        (["q"], ""),  # a list that is not a conversation
    ],
)
def test_cells_are_read_as_text(cell, text):
    assert get_text(cell) == text
