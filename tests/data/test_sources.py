"""Each set's columns through its recipe, local copies found where they lie, and a remedy where they do not."""

import json

import pytest
from omegaconf import OmegaConf

from grpo_kit import config
from grpo_kit.data import recipes, sources

DAPO = recipes.load_recipe("dapo_math_17k")
# A row or two of each set as its Hub card shows its columns; what comes out: (problem, gold, reason).
ROWS = {
    "numina_math_15": (
        [
            {"problem": "p1", "solution": "s", "answer": "1", "problem_type": "Algebra", "question_type": "math-word-problem",
             "problem_is_valid": "Yes", "solution_is_valid": "Yes", "source": "amc_aime", "synthetic": False},
            {"problem": "p2", "solution": "s", "answer": "proof", "problem_type": "Algebra", "question_type": "proof",
             "problem_is_valid": "Yes", "solution_is_valid": "Yes", "source": "olympiads", "synthetic": False},
            {"problem": "p3", "solution": "s", "answer": "notfound", "problem_type": "Algebra", "question_type": "math-word-problem",
             "problem_is_valid": "Yes", "solution_is_valid": "Yes", "source": "olympiads", "synthetic": False},
            {"problem": "p4", "solution": "s", "answer": "2", "problem_type": "Algebra", "question_type": "MCQ",
             "problem_is_valid": "Incomplete", "solution_is_valid": "Yes", "source": "olympiads", "synthetic": False},
            {"problem": "p5", "solution": "s", "answer": "2", "problem_type": "Algebra", "question_type": "MCQ",
             "problem_is_valid": "Yes", "solution_is_valid": "Problem not solved", "source": "olympiads", "synthetic": True},
        ],
        [("p1", "1", ""), ("p2", "proof", "proof"), ("p3", "notfound", "no answer"), ("p4", "2", "invalid"), ("p5", "2", "invalid")],
    ),
    "numina_math_cot": (
        [{"source": "aops", "problem": "p", "solution": r"\boxed{1} or \boxed{\frac{1}{2}}", "messages": [{"role": "user", "content": "p"}]}],
        [("p", r"\frac{1}{2}", "")],
    ),
    "gsm8k": ([{"question": "p", "answer": "x\n#### 1,072"}], [("p", "1,072", "")]),
    "gsm8k_test": ([{"question": "p", "answer": "x\n#### 3"}], [("p", "3", "")]),
    "math": (
        [{"problem": "p", "level": "Level 5", "type": "Algebra", "solution": r"so $\boxed{7}$"}],
        [("p", "7", "")],
    ),
    "deepscaler": ([{"problem": "p", "answer": "7", "solution": ""}], [("p", "7", "")]),
    "dapo_math_17k": (
        [{"data_source": "math_dapo", "prompt": [{"role": "user", "content": f"{DAPO.prefix}p\n\nq{DAPO.suffix}"}],
          "ability": "MATH", "reward_model": {"ground_truth": "34", "style": "rule"}, "extra_info": {"index": "0"}}],
        [("p\n\nq", "34", "")],
    ),
    "open_math_reasoning": (
        [{"expected_answer": "5", "problem_type": "has_answer_extracted", "problem_source": "aops_c4", "generation_model": "m",
          "pass_rate_72b_tir": "0.5", "problem": "p", "generated_solution": "<think>", "inference_mode": "cot", "used_in_kaggle": True},
         {"expected_answer": "5", "problem_type": "no_answer_extracted", "problem_source": "aops_c4", "generation_model": "m",
          "pass_rate_72b_tir": "n/a", "problem": "q", "generated_solution": "<think>", "inference_mode": "cot", "used_in_kaggle": True}],
        [("p", "5", ""), ("q", "5", "no answer")],
    ),
    "skywork_or1": (
        [{"data_source": "train-math-x", "prompt": [{"content": "p", "role": "user"}], "ability": "math",
          "reward_model": {"ground_truth": '["\\\\frac{1}{2}"]', "style": "rule"}, "extra_info": {"index": 0}},
         {"data_source": "train-math-x", "prompt": [{"content": "q", "role": "user"}], "ability": "math",
          "reward_model": {"ground_truth": '["1", "2"]', "style": "rule"}, "extra_info": {"index": 1}}],
        [("p", r"\frac{1}{2}", ""), ("q", '["1", "2"]', "several answers")],
    ),
    "aime_1983_2023": (
        [{"ID": "1983-1", "Year": 1983, "Problem Number": 1, "Question": "p", "Answer": "060", "Part": None},
         {"ID": "2024-1", "Year": 2024, "Problem Number": 1, "Question": "q", "Answer": "204", "Part": "I"}],
        [("p", "060", ""), ("q", "204", "evaluation year")],
    ),
    "nemotron_challenge": ([{"id": "00066667", "prompt": "p", "answer": "0011"}], [("p", "0011", "")]),
    "aime2024": ([{"id": 60, "problem": "p", "solution": "s", "answer": "204", "url": "u", "year": "2024"}], [("p", "204", "")]),
    "aime2025": ([{"problem": "p", "answer": "70", "id": "0"}], [("p", "70", "")]),
    "math500": ([{"problem": "p", "solution": "s", "answer": "x", "subject": "A", "level": 2, "unique_id": "u"}], [("p", "x", "")]),
    "amc23": ([{"id": 0, "question": "p", "answer": "27.0", "url": "u"}], [("p", "27.0", "")]),
}  # fmt: skip


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def taken(item, data=None, **where):
    data = data or config.Data()
    return [
        (t.problem, t.answer, t.reason)
        for t in sources.read_source(sources.locate_source(item, data, **where), data, 0)
    ]


def test_there_is_a_fixture_for_each_recipe():
    assert set(ROWS) == set(recipes.list_recipes())
    assert set(recipes.list_recipes(evaluation=True)) == {"aime2024", "aime2025", "math500", "amc23", "gsm8k_test"}


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_a_recipe_reads_its_sets_columns(tmp_path, name):
    rows, expected = ROWS[name]
    path = jsonl(tmp_path / "x.jsonl", rows)
    assert taken(name, config.Data(paths={name: str(path)})) == expected


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_a_recipe_says_where_from_under_which_licence_and_what_was_checked(name):
    known = recipes.load_recipe(name)
    assert known.about and known.licence and known.verified and known.files
    assert known.hub or name == "nemotron_challenge"
    assert all({"column", "reason", "why"} < set(rule) for rule in known.drop)
    keys = OmegaConf.to_container(OmegaConf.load(recipes.FOLDER / f"{name}.yaml"))
    assert all(f"`{key}`" in (recipes.FOLDER / "README.md").read_text() for key in keys)


@pytest.mark.parametrize(
    "mount",
    [
        "nvidia-nemotron-3-reasoning-challenge/train.csv",
        "competitions/nvidia-nemotron-model-reasoning-challenge/train.csv",
    ],
)
def test_the_challenge_is_found_at_both_of_kaggles_mounts(tmp_path, mount):
    path = tmp_path / "kaggle/input" / mount
    path.parent.mkdir(parents=True)
    path.write_text('id,prompt,answer\n0,"What?",0011\n')
    assert taken("nemotron_challenge", filesystem=tmp_path, environ={}) == [("What?", "0011", "")]


def test_a_local_copy_is_found_in_the_folder_that_the_environment_names(tmp_path):
    jsonl(tmp_path / "gsm8k/train.jsonl", ROWS["gsm8k"][0])
    assert taken("gsm8k", environ={"GRPO_KIT_DATA": str(tmp_path)}, filesystem=tmp_path) == [("p", "1,072", "")]


def test_shards_of_a_set_are_read_in_order_and_a_folder_can_be_named(tmp_path):
    for shard in (1, 0):
        jsonl(tmp_path / f"train-{shard}.jsonl", [{"question": f"p{shard}", "answer": "#### 1"}])
    (tmp_path / "README.md").write_text("not data")
    data = config.Data(paths={"gsm8k": str(tmp_path)})
    assert [row[0] for row in taken("gsm8k", data)] == ["p0", "p1"]
    assert [row[0] for row in taken("gsm8k", config.Data(paths=data.paths, limit=1))] == ["p0"]


def test_puzzles_are_made_when_they_are_named(monkeypatch):
    from grpo_kit.data import puzzles

    def make_rows(count, seed):
        return [{"prompt": f"p{seed}{i}", "answer": "0011"} for i in range(count)]

    monkeypatch.setattr(puzzles, "make_rows", make_rows)
    assert taken("puzzles", config.Data(limit=2)) == [("p00", "0011", ""), ("p01", "0011", "")]


@pytest.mark.parametrize(
    ("item", "error", "said"),
    [
        ("gsm8", ValueError, "no recipe, file or Hub dataset.*Did you mean gsm8k"),
        ("none.csv", FileNotFoundError, "no such file exists. Check the path"),
        (".", ValueError, "is a folder"),
    ],
)
def test_unknown_sources_are_named(item, error, said):
    with pytest.raises(error, match=said):
        sources.locate_source(item, config.Data())


def test_a_wrong_path_for_a_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.paths\.gsm8k is .*Check the path"):
        sources.locate_source("gsm8k", config.Data(paths={"gsm8k": str(tmp_path / "none")}))


@pytest.mark.parametrize(
    ("item", "remedy"),
    [
        ("gsm8k", r"hf download openai/gsm8k --repo-type dataset.*set data\.paths\.gsm8k="),
        ("nobody/nothing", r"hf download nobody/nothing .*as data\.source"),
        ("nemotron_challenge", r"add the competition as input.*data\.paths\.nemotron_challenge="),
    ],
)
def test_without_a_network_the_message_says_how_to_attach_the_set(tmp_path, item, remedy):
    data = config.Data()
    with pytest.raises(FileNotFoundError, match=f"'{item}' is no file here, and the Hub did not give it .*{remedy}"):
        list(sources.read_source(sources.locate_source(item, data, environ={}, filesystem=tmp_path), data, 0))


def test_a_machine_without_a_network_does_not_wait_for_the_hub(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(FileNotFoundError, match="did not give it .*refused"):
        list(sources.read_source(sources.locate_source("nobody/nothing", config.Data()), config.Data(), 0))


def test_a_set_on_the_hub_is_read_by_datasets_and_streamed_when_large(monkeypatch):
    import datasets

    asked = []

    def load(name, subset, split, streaming):
        asked.append((name, subset, split, streaming))
        return iter([{"question": "p", "problem": "p", "answer": "#### 3", "solution": r"\boxed{3}"}] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "_knock", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    nowhere = {"environ": {}, "filesystem": sources.Path("/nowhere")}
    assert taken("gsm8k", **nowhere) == [("p", "3", "")] * 3
    assert taken("numina_math_cot", config.Data(limit=2), **nowhere) == [("p", "3", "")] * 2
    assert taken("me/mine", config.Data(subset="s", split="dev"), **nowhere) == [("p", "3", "")] * 3
    assert asked == [
        ("openai/gsm8k", "main", "train", False), ("AI-MO/NuminaMath-CoT", None, "train", True), ("me/mine", "s", "dev", False),
    ]  # fmt: skip


def test_a_stream_that_breaks_off_is_no_missing_set(monkeypatch):
    import datasets

    def rows():
        yield {"question": "p", "answer": "#### 3"}
        raise TimeoutError("read timed out")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    monkeypatch.setattr(sources, "_knock", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ConnectionError, match="openai/gsm8k broke off after row 1 .*Repeat the command"):
        taken("gsm8k", environ={}, filesystem=sources.Path("/nowhere"))


def test_a_copy_without_the_column_that_rows_are_dropped_by_is_refused(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{"problem": "p", "answer": "1"}])
    with pytest.raises(ValueError, match="has no column question_type, by which its recipe drops rows"):
        taken("numina_math_15", config.Data(paths={"numina_math_15": str(path)}))


def test_a_recipe_with_a_misspelt_key_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("about: x\nlicense: mit\nverified: x\n")
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="unknown keys license"):
        recipes.load_recipe("mine")
