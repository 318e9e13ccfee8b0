"""Problem sets by name: which rows are read, how their prompts are built, and which sets are refused."""

import json

import pytest

from grpo_kit import config
from grpo_kit.config.protocols import CHALLENGE_SUFFIX
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import problem_sets
from grpo_kit.policy.chat import build_messages
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run


@pytest.fixture
def run(tmp_path):
    prepared = find_run("r", tmp_path / "runs")
    prepare(
        config.load_config(
            ["tiny"], ["data.limit=20", "data.test_size=6", "data.val_size=2", "data.prompt_suffix=now"]
        ),
        prepared,
    )
    return prepared


def make_config(path, *evaluation):
    return config.load_config(
        ["tiny"],
        [f"evaluation.sets=[test,{path}]", "data.prompt_suffix=now", "data.system_prompt=Be brief.", *evaluation],
    )


def test_own_rows_keep_their_prompts_and_other_sets_get_the_runs_prompt_format(run, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "What is 1 + 1?", "answer": "2"}\n')
    *own, other = problem_sets.load_problems(make_config(path), run)
    assert [p.prompt for p in own] == [row["prompt"] for row in read_lines(run.data_file("test"))]
    assert other.prompt == build_messages("What is 1 + 1?", "now", "Be brief.")
    assert other.row == {"answer": "2", "id": f"{path}:1", "source": "a"} and other.set == str(path)


def test_the_challenge_asks_the_bare_problem_in_its_own_words(run, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "What is 1 + 1?", "answer": "2"}\n')
    problems = problem_sets.load_problems(make_config(path, "evaluation.protocol=challenge"), run)
    assert problems[-1].prompt == build_messages("What is 1 + 1?", CHALLENGE_SUFFIX)
    assert all("now" not in p.prompt[0]["content"] and len(p.prompt) == 1 for p in problems)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("mathh500", None, ValueError, "Did you mean math500"),
        ("math500", None, FileNotFoundError, "math500"),  # a recipe whose set is not here
        ("test.txt", None, ValueError, "test.txt"),
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
def test_an_unknown_problem_set_is_refused(run, tmp_path, name, text, error, message):
    path = tmp_path / name if name.endswith("jsonl") else name
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        problem_sets.load_set(str(path), make_config(path), run)


@pytest.mark.parametrize("sets", ["[]", "[test,test]"])
def test_an_empty_list_and_a_set_named_twice_are_refused(run, sets):
    with pytest.raises(ValueError, match="each once"):
        problem_sets.load_problems(config.load_config(["tiny"], [f"evaluation.sets={sets}"]), run)


@pytest.mark.parametrize("name", ["aime/aime2024.jsonl", "math/math500_test.jsonl", "gsm8k/test.jsonl"])
def test_published_files_are_read(run, shared_data, name):
    path = shared_data / name
    rows = problem_sets.load_set(str(path), make_config(path), run)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == len(lines) and all(row["prompt"] and 0 < len(row["answer"]) < 200 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("aime2024", 30), ("aime2025", 30), ("math500", 500), ("gsm8k_test", 1319)]
)
def test_sets_are_found_by_the_names_of_their_recipes(run, shared_data, monkeypatch, name, count):
    monkeypatch.setenv("GRPO_KIT_DATA", str(shared_data))
    settings = make_config(name, "evaluation.num_problems=1000000")
    rows = problem_sets.load_set(name, settings, run)
    assert len(rows) == count and rows[0]["id"] == f"{name}:1" and rows[0]["source"] == name
    assert len(problem_sets.hash_sets(settings)[name][0]) == 64
