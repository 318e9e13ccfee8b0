"""Sets by name: what is read, how it is asked, and what is refused."""

import json

import pytest

from grpo_kit import config, data, problems, prompts, workspace


@pytest.fixture
def run(tmp_path):
    found = workspace.open_run("r", tmp_path / "runs")
    data.prepare(
        config.load_config(
            ["tiny"], ["data.limit=20", "data.test_size=6", "data.val_size=2", "data.prompt_suffix=now"]
        ),
        found,
    )
    return found


def told(path, *evaluation):
    return config.load_config(
        ["tiny"],
        [f"evaluation.sets=[test,{path}]", "data.prompt_suffix=now", "data.system_prompt=Be brief.", *evaluation],
    )


def test_the_runs_rows_are_asked_as_they_stand_and_others_in_the_runs_words(run, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "What is 1 + 1?", "answer": "2"}\n')
    *own, other = problems.load(told(path), run)
    assert [p.prompt for p in own] == [row["prompt"] for row in workspace.read_lines(run.rows("test"))]
    assert other.prompt == prompts.messages("What is 1 + 1?", "now", "Be brief.")
    assert other.row == {"answer": "2", "id": f"{path}:1", "source": "a"} and other.set == str(path)


def test_the_challenge_asks_the_bare_problem_in_its_own_words(run, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "What is 1 + 1?", "answer": "2"}\n')
    found = problems.load(told(path, "evaluation.protocol=challenge"), run)
    assert found[-1].prompt == prompts.messages("What is 1 + 1?", prompts.CHALLENGE_SUFFIX)
    assert all("now" not in p.prompt[0]["content"] and len(p.prompt) == 1 for p in found)


@pytest.mark.parametrize(
    ("name", "text", "error", "said"),
    [
        ("nosuch", None, ValueError, "`test`, a recipe \\(.*math500.*\\) or the path of a .jsonl"),
        ("none.jsonl", None, FileNotFoundError, "Check the path"),
        ("a.jsonl", "", ValueError, "holds no problem"),
        ("a.jsonl", '{"problem": "x", "answer": "1"}\nno json\n', ValueError, "line 2"),
        ("a.jsonl", '["x"]\n', ValueError, "line 1"),
        ("a.jsonl", '{"problem": "x"}\n', ValueError, "line 1"),  # no gold
        ("a.jsonl", '{"problem": "", "answer": "1"}\n', ValueError, "line 1"),
        ("a.jsonl", '{"problem": 5, "answer": "1"}\n', ValueError, "line 1"),
        ("a.jsonl", '{"prompt": [{"role": "user"}], "answer": "1"}\n', ValueError, "line 1"),
    ],
)  # fmt: skip
def test_what_is_no_set_is_refused(run, tmp_path, name, text, error, said):
    path = tmp_path / name if name.endswith("jsonl") else name
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=said):
        problems.rows_of(str(path), run, config.load_config(["tiny"]))


@pytest.mark.parametrize("sets", ["[]", "[test,test]"])
def test_no_set_and_a_set_named_twice_are_refused(run, sets):
    with pytest.raises(ValueError, match="each once"):
        problems.load(config.load_config(["tiny"], [f"evaluation.sets={sets}"]), run)


@pytest.mark.parametrize("name", ["aime/aime2024.jsonl", "math/math500_test.jsonl", "gsm8k/test.jsonl"])
def test_published_sets_are_read(run, shared_data, name):
    rows = problems.rows_of(str(shared_data / name), run, config.load_config(["tiny"]))
    lines = [json.loads(line) for line in (shared_data / name).read_text().splitlines()]
    assert len(rows) == len(lines) and all(row["prompt"] and row["answer"] for row in rows)


def test_a_recipe_is_a_set_by_its_name(tmp_path, shared_data):
    chosen = config.load_config(["tiny"], [f"data.paths.aime2024={shared_data / 'aime/aime2024.jsonl'}"])
    rows = problems.rows_of("aime2024", workspace.open_run("r", tmp_path), chosen)
    assert (
        len(rows) == 30 and {row["source"] for row in rows} == {"aime2024"} and len({row["id"] for row in rows}) == 30
    )
    assert all(row["prompt"] and row["answer"].isdigit() for row in rows)
