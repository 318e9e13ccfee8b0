"""Each recipe reads its set's columns; a recipe file with an unknown key is refused."""

import pyarrow as pa
import pytest
from omegaconf import OmegaConf
from pyarrow import parquet

from grpo_kit import config
from grpo_kit.data import recipes, sources
from tests.helpers.source_rows import read_rows, write_jsonl

DAPO = recipes.load_recipe("dapo_math_17k")
# A row or two of each set as its Hub card shows its columns; what comes out: (problem, gold, reason).
ROWS = {
    "numina_math_15": (
        [
            {"problem": "p1", "solution": "s", "answer": "1", "problem_type": "Algebra",
             "question_type": "math-word-problem", "problem_is_valid": "Yes", "solution_is_valid": "Yes",
             "source": "amc_aime", "synthetic": False},
            {"problem": "p2", "solution": "s", "answer": "proof", "problem_type": "Algebra",
             "question_type": "proof", "problem_is_valid": "Yes", "solution_is_valid": "Yes",
             "source": "olympiads", "synthetic": False},
            {"problem": "p3", "solution": "s", "answer": "notfound", "problem_type": "Algebra",
             "question_type": "math-word-problem", "problem_is_valid": "Yes", "solution_is_valid": "Yes",
             "source": "olympiads", "synthetic": False},
            {"problem": "p4", "solution": "s", "answer": "2", "problem_type": "Algebra",
             "question_type": "MCQ", "problem_is_valid": "Incomplete", "solution_is_valid": "Yes",
             "source": "olympiads", "synthetic": False},
            {"problem": "p5", "solution": "s", "answer": "2", "problem_type": "Algebra",
             "question_type": "MCQ", "problem_is_valid": "Yes",
             "solution_is_valid": "Problem not solved", "source": "olympiads", "synthetic": True},
        ],
        [("p1", "1", ""), ("p2", "proof", "proof"), ("p3", "notfound", "no answer"), ("p4", "2", "invalid"),
         ("p5", "2", "invalid")],
    ),
    "numina_math_cot": (
        [{"source": "aops", "problem": "p", "solution": r"\boxed{1} or \boxed{\frac{1}{2}}",
          "messages": [{"role": "user", "content": "p"}]}],
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
        [{"expected_answer": "5", "problem_type": "has_answer_extracted", "problem_source": "aops_c4",
          "generation_model": "m",
          "pass_rate_72b_tir": "0.5", "problem": "p", "generated_solution": "<think>",
          "inference_mode": "cot", "used_in_kaggle": True},
         {"expected_answer": "5", "problem_type": "no_answer_extracted", "problem_source": "aops_c4",
          "generation_model": "m",
          "pass_rate_72b_tir": "n/a", "problem": "q", "generated_solution": "<think>",
          "inference_mode": "cot", "used_in_kaggle": True}],
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
    "aime2024": (
        [{"id": 60, "problem": "p", "solution": "s", "answer": "204", "url": "u", "year": "2024"}],
        [("p", "204", "")],
    ),
    "aime2025": ([{"problem": "p", "answer": "70", "id": "0"}], [("p", "70", "")]),
    "math500": (
        [{"problem": "p", "solution": "s", "answer": "x", "subject": "A", "level": 2, "unique_id": "u"}],
        [("p", "x", "")],
    ),
    "amc23": ([{"id": 0, "question": "p", "answer": "27.0", "url": "u"}], [("p", "27.0", "")]),
}  # fmt: skip


def test_there_is_a_fixture_for_each_math_recipe():
    assert set(ROWS) == set(recipes.list_recipes())
    assert set(recipes.list_recipes(evaluation=True)) == {"aime2024", "aime2025", "math500", "amc23", "gsm8k_test"}


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_a_recipe_reads_its_sets_columns(tmp_path, name):
    rows, expected = ROWS[name]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    assert read_rows(name, config.Data(paths={name: str(path)})) == expected


@pytest.mark.parametrize("name", recipes.list_recipes(environment=None))
def test_a_recipe_names_its_source_its_licence_and_what_was_checked(name):
    recipe = recipes.load_recipe(name)
    assert recipe.about and recipe.licence and recipe.verified and recipe.files
    assert recipe.hub or name == "nemotron_challenge"
    assert all({"column", "reason", "why"} < set(rule) for rule in recipe.drop)
    keys = OmegaConf.to_container(OmegaConf.load(recipes.FOLDER / f"{name}.yaml"))
    assert all(f"`{key}`" in (recipes.FOLDER / "README.md").read_text() for key in keys)


INSTRUCTIONS = {
    "key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
    "kwargs": [{"keywords": None, "N": None}, {"keywords": ["tea"], "N": None}],
}  # fmt: skip
HOTPOT = {
    "id": "h", "question": "q", "answer": "Oslo", "type": "bridge", "level": "hard",
    "supporting_facts": {"title": ["B", "B"], "sent_id": [0, 1]},
    "context": {"title": ["A", "B"], "sentences": [["a1."], ["b1.", " b2."]]},
}  # fmt: skip
SUM = ("tests", '{"kind": "stdin", "inputs": ["2 3\\n"], "outputs": ["5\\n"]}')
APPS = {
    "question": "Add.", "solutions": "[]", "starter_code": "", "difficulty": "EASY", "url": "u",
    "input_output": '{"inputs": ["2 3\\n"], "outputs": ["5\\n"]}',
}  # fmt: skip
MBPP = {
    "task_id": 1, "text": "Add.", "code": "c", "test_list": ["assert add(2, 3) == 5"], "test_setup_code": "",
    "challenge_test_list": [],
}  # fmt: skip
ADD = ("tests", '{"kind": "asserts", "code": ["assert add(2, 3) == 5"], "setup": ""}')
BESIDE_MATH = {  # a row of each set, and a column of the task that is read
    "nemotron_structured_outputs": (
        {"responses_create_params": {"input": [{"role": "user", "content": "s"}, {"role": "user", "content": "p"}]},
         "schema_str": '{"properties": {"a": {}}}', "schema_type": "json", "schema_fields_count": "1"},
        ("schema_str", '{"properties": {"a": {}}}'),
    ),
    "nemotron_instruction_following": (
        {"id": 1, "responses_create_params": {"input": [{"role": "user", "content": "p"}], "tools": []},
         "verifier_metadata": {"instruction_id_list": ["paragraphs:paragraphs"], "kwargs": [{"N": None}],
                               "prompt": "p", "grading_mode": "binary"}},
        ("kwargs", "[{}]"),
    ),
    "if_multi_constraints": (
        {"key": "1", "messages": [{"role": "user", "content": "p"}], "dataset": "ifeval",
         "ground_truth": "[{'instruction_id': ['startend:quotation'], 'kwargs': [None]}]"},
        ("instruction_id_list", ["startend:quotation"]),
    ),
    "ifeval": (INSTRUCTIONS, ("kwargs", '[{}, {"keywords": ["tea"]}]')),
    "ifbench_test": (INSTRUCTIONS, ("kwargs", '[{}, {"keywords": ["tea"]}]')),
    "hotpotqa": (HOTPOT, ("supporting", [2])),
    "hotpotqa_validation": (HOTPOT, ("documents", ["A: a1.", "B: b1. b2."])),
    "nemotron_competitive_coding": (
        {"responses_create_params": {"input": [{"role": "user", "content": "p"}]}, "hash_id": "h", "dataset": "taco",
         "source": "codeforces", "verifier_metadata": {"unit_tests": {"inputs": ["2 3\n"], "outputs": ["5\n"]}}},
        SUM,
    ),
    "apps": (APPS | {"problem_id": 0}, SUM),
    "taco": (APPS | {"raw_tags": "[]", "name": None, "picture_num": None, "time_limit": None, "memory_limit": None},
             SUM),
    "codeforces": (
        {"id": "1/A", "description": "Add.", "input_format": None, "output_format": "Print it.", "note": None,
         "interaction_format": None, "examples": [{"input": "2 3", "output": "5"}], "input_mode": "stdio",
         "official_tests": [{"input": "2 3\n", "output": "5\n"}], "official_tests_complete": True,
         "generated_checker": None, "time_limit": None, "memory_limit": None},
        SUM,
    ),
    "livecodebench": (
        {"question_title": "t", "question_content": "Add.", "platform": "atcoder", "starter_code": "", "metadata": "{}",
         "public_test_cases": '[{"input": "2 3\\n", "output": "5\\n", "testtype": "stdin"}]',
         "private_test_cases": ""},
        SUM,
    ),
    "mbpp": (MBPP, ADD),
    "mbpp_test": (MBPP, ADD),
    "humaneval": (
        {"task_id": "HumanEval/0", "prompt": "def add(a, b):", "canonical_solution": "c", "entry_point": "add",
         "test": "def check(candidate):\n    assert candidate(2, 3) == 5"},
        ADD,
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", [name for name in recipes.list_recipes(environment=None) if name not in ROWS])
def test_a_recipe_beside_math_reads_its_sets_rows(tmp_path, name, suffix):
    row, (column, value) = BESIDE_MATH[name]
    path = write_jsonl(tmp_path / "x.jsonl", [row])
    if suffix == "parquet":  # a table of objects, which fills every key
        path = tmp_path / "x.parquet"
        parquet.write_table(pa.Table.from_pylist([row]), path)
    data = config.Data(paths={name: str(path)})
    (read,) = sources.read_source(sources.locate_source(name, data), data, 0)
    assert (read.reason, read.environment) == ("", recipes.load_recipe(name).environment)
    assert read.columns[column] == value


def test_recipes_beside_math():
    by_environment = {
        (environment, evaluation): recipes.list_recipes(evaluation, environment)
        for environment in ("structured", "instructions", "documents", "code")
        for evaluation in (False, True)
    }
    assert by_environment == {
        ("structured", False): ["nemotron_structured_outputs"],
        ("structured", True): [],
        ("instructions", False): ["if_multi_constraints", "nemotron_instruction_following"],
        ("instructions", True): ["ifbench_test", "ifeval"],
        ("documents", False): ["hotpotqa"],
        ("documents", True): ["hotpotqa_validation"],
        ("code", False): ["apps", "codeforces", "mbpp", "nemotron_competitive_coding", "taco"],
        ("code", True): ["humaneval", "livecodebench", "mbpp_test"],
    }


@pytest.mark.parametrize(
    "keys, words",
    [
        ("environment: tea", "environment 'tea'; the environments are math, structured, instructions, documents, "),
        ("environment: code\nform: hotpot", "form 'hotpot'; rows of code have 'gym', 'livecodebench', 'apps'"),
        ("environment: structured", "form ''; rows of structured have 'gym'. Name"),
        ("environment: documents\nform: ifeval", "form 'ifeval'; rows of documents have 'gym', 'hotpot'"),
        ("form: gym", "form 'gym'; rows of math have ''"),
    ],
)
def test_an_environment_and_its_form_must_fit(tmp_path, monkeypatch, keys, words):
    (tmp_path / "mine.yaml").write_text(f"about: x\nlicence: mit\nverified: x\n{keys}\n")
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=words):
        recipes.load_recipe("mine")


def test_a_recipe_with_a_misspelt_key_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("about: x\nlicense: mit\nverified: x\n")
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="unknown keys: license"):
        recipes.load_recipe("mine")


def test_a_drop_rule_whose_sentence_is_cut_at_a_comma_is_refused(tmp_path, monkeypatch):
    rule = "{column: a, is: [b], reason: c, why: first, then the rest}"
    (tmp_path / "mine.yaml").write_text(f"about: x\nlicence: mit\nverified: x\ndrop:\n  - {rule}\n")
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="unknown keys: then the rest. Quote values that contain commas"):
        recipes.load_recipe("mine")
