"""Rows of several environments in one run: read, cleaned and split by environment."""

import json

import pytest

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.data.splits import check_mix
from grpo_kit.environments.office import WORLDS
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run

COUNT_REWARD = """
def count_reward(completions, words, **kwargs):
    return [None if n is None else float(len(c[0]["content"].split()) == n) for c, n in zip(completions, words)]
"""


def mixed_rows(count):
    for i in range(count):
        yield {"problem": f"What is {i} + {i}?", "answer": str(2 * i)}
        yield {"environment": "count", "prompt": f"Write {i} words.", "words": i}
        documents = {"documents": [f"A{i} lies in B{i}."], "answer": f"B{i}"}
        yield {"environment": "documents", "prompt": f"Where is A{i}?", **documents}


def prepare_mixed(tmp_path, monkeypatch, rows, *overrides):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "count.py").write_text(COUNT_REWARD)
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config.load_config(
        "tiny",
        [
            "data.source=mixed.jsonl", "data.columns.prompt=problem", "data.test_size=7", "data.val_size=3",
            "environments.count.reward_funcs=[count.py]", *overrides,
        ],
    )  # fmt: skip
    run = find_run("r", tmp_path / "runs")
    return prepare(settings, run), run


def test_each_environment_has_its_part_of_test_and_val(tmp_path, monkeypatch):
    manifest, run = prepare_mixed(tmp_path, monkeypatch, mixed_rows(10))
    assert manifest["environments"] == {"math": 10, "count": 10, "documents": 10} and run.environments() == [
        "math", "count", "documents",
    ]  # fmt: skip
    names = {split: [row["environment"] for row in read_lines(run.data_file(split))] for split in ("train", "test")}
    assert [names["test"].count(name) for name in run.environments()] == [3, 2, 2]
    assert set(names["test"][:3]) == set(run.environments())  # a short measurement asks all of them
    assert [names["train"].count(name) for name in run.environments()] == [6, 7, 7]


def test_a_task_is_written_with_the_columns_of_its_reward_and_without_the_suffix_of_math(tmp_path, monkeypatch):
    _, run = prepare_mixed(tmp_path, monkeypatch, mixed_rows(10), "data.prompt_suffix=' Box it.'")
    rows = [row for split in ("train", "val", "test") for row in read_lines(run.data_file(split))]
    asked = {row["environment"]: row for row in rows}
    assert asked["math"]["prompt"][-1]["content"].endswith("? Box it.")
    assert asked["count"]["prompt"][-1]["content"].endswith(" words.") and isinstance(asked["count"]["words"], int)
    assert asked["documents"]["answer"] and len(asked["documents"]["documents"]) == 1
    assert "words" not in asked["math"] and "agent_ref" not in asked["count"]


def test_the_kits_names_for_a_problem_are_the_users_where_the_environment_is(tmp_path, monkeypatch):
    rows = [row | {"question": "mine"} if row.get("words") else row for row in mixed_rows(10)]
    _, run = prepare_mixed(tmp_path, monkeypatch, rows)
    for row in read_lines(run.data_file("train")):
        others = {"input", "output", "question", "expected_answer"} & row.keys()
        expected = {
            "math": 4,
            "documents": 0,
            "count": 1 if row.get("words") else 0,
        }  # 0 words: a row without `question`
        assert len(others) == expected[row["environment"]], row
        if row["environment"] == "count":
            assert set(row) - {"question"} == {"id", "environment", "prompt", "answer", "source", "pass_rate", "words"}
            assert row.get("question", "mine") == "mine"


def test_conversations_of_sharegpt_ask_tasks_of_every_environment(tmp_path, monkeypatch):
    def converse(row):
        asked = row.get("prompt") or row["problem"]
        reply = [{"from": "gpt", "value": "\\boxed{" + row["answer"] + "}"}] if "problem" in row else []
        rest = {key: value for key, value in row.items() if key not in ("prompt", "problem")}
        return rest | {
            "conversations": [{"from": "system", "value": "Be short."}, {"from": "human", "value": asked}, *reply]
        }

    manifest, run = prepare_mixed(
        tmp_path, monkeypatch, map(converse, mixed_rows(10)), "data.columns.prompt=conversations"
    )
    assert manifest["environments"] == {"math": 10, "count": 10, "documents": 10}
    for row in read_lines(run.data_file("train")):
        assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]


def test_a_system_prompt_replaces_that_of_a_task(tmp_path, monkeypatch):
    rows = [
        row if "environment" not in row else row | {"prompt": [{"role": "system", "content": "old"}, *ask(row)]}
        for row in mixed_rows(10)
    ]
    _, run = prepare_mixed(tmp_path, monkeypatch, rows, "data.system_prompt=new")
    for row in read_lines(run.data_file("train")):
        assert [turn["content"] for turn in row["prompt"] if turn["role"] == "system"] == ["new"]


def ask(row):
    return [{"role": "user", "content": row["prompt"]}]


def test_broken_repeated_and_unusable_tasks_are_dropped_with_their_reason(tmp_path, monkeypatch):
    broken = [
        {"environment": "count", "prompt": "Write 3 words.", "words": 3},  # the fourth row of the others asks it too
        {"environment": "count", "prompt": "", "words": 3},
        {"environment": "count", "prompt": "Half \ud800.", "words": 3},
        {"environment": "documents", "prompt": "Where is it?", "documents": ["It is."], "answer": ""},
        {"environment": "documents", "prompt": "Where?", "documents": "no list"},
        {"environment": "math", "problem": "Prove it.", "answer": "x"},
    ]
    manifest, run = prepare_mixed(tmp_path, monkeypatch, [*mixed_rows(10), *broken])
    assert manifest["dropped"] == {
        "empty": 1, "not text": 1, "unreadable": 1, "proof": 1, "unusable task": 1, "repeated problem": 1,
    }  # fmt: skip
    assert "documents_qa_reward cannot judge it" in (run.manifest.parent / "dropped.jsonl").read_text()


def test_filters_that_read_problems_of_math_leave_tasks_alone(tmp_path, monkeypatch):
    rows = [row | {"prompt": f"Prove that {row['prompt']}"} if "words" in row else row for row in mixed_rows(10)]
    manifest, _ = prepare_mixed(tmp_path, monkeypatch, rows)
    assert manifest["dropped"] == {}


def test_a_file_of_tasks_alone_needs_no_columns_of_math(tmp_path, monkeypatch):
    rows = [row for row in mixed_rows(20) if row.get("environment") == "count"]
    manifest, run = prepare_mixed(tmp_path, monkeypatch, rows)
    assert run.environments() == ["count"] and manifest["rows"] == {"train": 10, "val": 3, "test": 7}


def test_the_same_rows_give_the_same_bytes_and_another_gold_other_ones(tmp_path, monkeypatch):
    rows, hashes = list(mixed_rows(10)), []
    for name, changed in (("a", {}), ("b", {}), ("c", {"words": 99})):
        (tmp_path / name).mkdir()
        manifest, _ = prepare_mixed(tmp_path / name, monkeypatch, [*rows[:1], rows[1] | changed, *rows[2:]])
        hashes.append((manifest["sources"][0]["rows_sha256"], manifest["sha256"]["train"], manifest["sha256"]["test"]))
    assert hashes[0] == hashes[1] and hashes[0][0] != hashes[2][0] and hashes[0] != hashes[2]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.mix.math=1"], r"data\.mix names math, and the rows are of math, count, documents"),
        (["data.mix={math: 1, count: 1, documents: 1, tea: 1}"], "data.mix names"),
        (["data.test_size=2"], r"data\.test_size is 2, and there are 3 environments \(math, count, documents\)"),
        (["data.test_size=40"], r"environment math, whose part of data\.test_size=40 .* has 10 usable rows"),
    ],
)
def test_sizes_and_shares_that_do_not_fit_are_refused(tmp_path, monkeypatch, overrides, words):
    with pytest.raises(ValueError, match=words):
        prepare_mixed(tmp_path, monkeypatch, mixed_rows(10), *overrides)
    assert not (tmp_path / "runs/r/data").exists()


def test_an_environment_that_no_reward_judges_is_refused(tmp_path, monkeypatch):
    rows = [*mixed_rows(10), {"environment": "poem", "prompt": "Write."}]
    with pytest.raises(ValueError, match=r"environment 'poem', and no reward judges them.*environments\.poem"):
        prepare_mixed(tmp_path, monkeypatch, rows)


def test_a_mix_names_all_environments_or_none():
    check_mix({}, ["math", "json"])
    check_mix({"json": 1, "math": 3}, ["math", "json"])
    with pytest.raises(ValueError, match=r"Set 'data\.mix=\{math: 1, json: 1\}'"):
        check_mix({"math": 1}, ["math", "json"])


def test_the_embedded_policys_tasks_are_sources_of_their_environments(tmp_path):
    sources = "tiny-sums,tiny-records,tiny-instructions,tiny-documents"
    sizes = ["data.limit=12", "data.test_size=8", "data.val_size=4"]
    run = find_run("r", tmp_path / "runs")
    manifest = prepare(config.load_config("tiny", [f"data.source={sources}", *sizes]), run)
    assert manifest["environments"] == {"math": 12, "structured": 12, "instructions": 12, "documents": 12}
    found = {(row["source"], row["environment"]) for row in read_lines(run.data_file("train"))}
    assert found == {
        ("tiny-sums", "math"), ("tiny-records", "structured"), ("tiny-instructions", "instructions"),
        ("tiny-documents", "documents"),
    }  # fmt: skip


def test_programs_of_several_forms_go_through_the_funnel(tmp_path, monkeypatch):
    tests = '{"inputs": ["2 3"], "outputs": ["5"]}'
    rows = [{"environment": "code", "question": f"Add {i}.", "input_output": tests} for i in range(9)]
    rows += [
        {"environment": "code", "text": "Add.", "test_list": ["assert add(2, 3) == 5"]},
        {"environment": "code", "prompt": "Add.", "tests": {"kind": "stdin", "inputs": ["2 3"], "outputs": ["5"]}},
        {"environment": "code", "prompt": "Add.", "tests": {"kind": "stdin", "inputs": ["2 3"], "outputs": []}},
        {"environment": "code", "question": "Print any of them.", "input_output": tests},
        {"environment": "code", "prompt": "Add!", "tests": '{"kind": "asserts", "code": ["assert 1 == 1"]}'},
    ]
    manifest, run = prepare_mixed(tmp_path, monkeypatch, rows)
    assert manifest["rows"] == {"train": 1, "val": 3, "test": 7}
    assert manifest["dropped"] == {"no tests": 1, "several answers": 1, "function name": 1}
    written = [row for split in ("train", "val", "test") for row in read_lines(run.data_file(split))]
    assert {row["environment"] for row in written} == {"code"}
    assert all(json.loads(row["tests"])["kind"] in ("stdin", "asserts") for row in written)


def test_generated_programs_are_rows_of_code(tmp_path):
    run = find_run("r", tmp_path / "runs")
    sizes = ["data.limit=30", "data.test_size=6", "data.val_size=4"]
    manifest = prepare(config.load_config("tiny", ["data.source=programs", *sizes]), run)
    assert manifest["environments"] == {"code": 30} and manifest["dropped"] == {}
    (first, *_) = read_lines(run.data_file("train"))
    assert first["source"] == "programs" and len(json.loads(first["tests"])["inputs"]) == 10


@pytest.mark.parametrize("name", ["a/b", "a.b", "Math", "x" * 41, " ", "1st", 3, True, ["own"], {"a": 1}])
def test_an_environment_that_is_no_plain_name_is_refused_with_the_line(tmp_path, monkeypatch, name):
    rows = [*mixed_rows(10), {"environment": name, "prompt": "Write."}]
    if name == " ":
        rows[-1] |= {"environment": "math "}
        rows[-1] |= {"problem": "What is 7 + 90?", "answer": "97"}
        assert prepare_mixed(tmp_path, monkeypatch, rows)[0]["environments"]["math"] == 11
        return
    with pytest.raises(ValueError, match=r"mixed\.jsonl, line 31: environment is .*(Write math|Rename it)\."):
        prepare_mixed(tmp_path, monkeypatch, rows)


@pytest.mark.parametrize("name", WORLDS)
def test_tasks_of_a_world_keep_their_state_and_gold_calls(tmp_path, name):
    run = find_run("r", tmp_path / "runs")
    sizes = ["data.limit=12", "data.test_size=4", "data.val_size=2", "data.max_prompt_tokens=1000"]
    manifest = prepare(config.load_config("tiny", [f"data.source={name}", *sizes]), run)
    assert manifest["environments"] == {name: 12} and manifest["dropped"] == {}
    for row in read_lines(run.data_file("train")):
        world = WORLDS[name]()
        world.reset(**row)
        for call in json.loads(row["gold_calls"]):
            getattr(world, call["name"])(**call["arguments"])
        assert world.get_reward() == 1.0 and row["environment"] == name
    trained = f"environments.{name}.reward_weights=[2]"  # as a finished training names them
    assert prepare(config.load_config("tiny", [f"data.source={name}", *sizes, trained]), run) == manifest


def test_own_requests_to_an_office_are_read_and_broken_ones_dropped(tmp_path, monkeypatch):
    tasks = [{"id": 1, "title": "Write", "list": "to do"}]
    done = {"name": "change", "arguments": {"table": "tasks", "id": 1, "field": "list", "value": "done"}}
    rows = [
        {"environment": "office", "prompt": f"No. {i}: it is written.", "state": {"tasks": tasks}, "gold_calls": [done]}
        for i in range(20)
    ]
    rows += [rows[0] | {"gold_calls": []}, rows[0] | {"gold_calls": [{"name": "search", "arguments": {}}]}]
    rows += [rows[0] | {"state": "{"}, rows[0] | {"gold_calls": [{"name": "search", "arguments": {"table": "tasks"}}]}]
    nvidias = {"responses_create_params": {"input": "q"}, "agent_ref": {"name": "workplace_assistant_simple_agent"}}
    manifest, _ = prepare_mixed(tmp_path, monkeypatch, [*rows, nvidias])
    assert manifest["environments"] == {"office": 20}
    assert manifest["dropped"] == {"bad gold": 2, "no JSON": 1, "idle gold": 1, "no tables": 1}


def test_an_environment_that_loses_every_row_is_refused_with_the_reason(tmp_path, monkeypatch):
    rows = [row if "words" not in row else row | {"prompt": ""} for row in mixed_rows(10)]
    with pytest.raises(
        ValueError, match="No row of the environment count can be used; 10 were dropped for '(empty|no prompt)'"
    ):
        prepare_mixed(tmp_path, monkeypatch, rows)


def test_columns_keep_their_types_and_an_answer_of_zero(tmp_path, monkeypatch):
    rows = [row | {"answer": i, "meta": {str(i): i}} if "words" in row else row for i, row in enumerate(mixed_rows(10))]
    rows[1] |= {"answer": 0}
    _, run = prepare_mixed(tmp_path, monkeypatch, rows)
    written = [row for split in ("train", "val", "test") for row in read_lines(run.data_file(split))]
    own = {row["words"]: row["answer"] for row in written if row["environment"] == "count"}
    assert own[0] == 0 and own[1] == 4 and {type(row["answer"]) for row in written} == {int, str}


def test_the_prompt_may_have_another_name(tmp_path, monkeypatch):
    rows = [{"environment": "count", "question": f"Write {i} words.", "words": i} for i in range(20)]
    manifest, _ = prepare_mixed(tmp_path, monkeypatch, rows, "data.columns.prompt=question")
    assert manifest["environments"] == {"count": 20}


def test_rewards_that_choose_no_row_do_not_make_the_data_again(tmp_path, monkeypatch):
    """A finished training names the rewards of all environments, also of those that were never set."""
    manifest, run = prepare_mixed(tmp_path, monkeypatch, mixed_rows(10))
    trained = [
        "environments.documents.reward_funcs=[documents_qa.py:documents_qa_reward]",
        "environments.documents.reward_weights=[3]", "environments.count.reward_weights=[2]",
    ]  # fmt: skip
    again, _ = prepare_mixed(tmp_path, monkeypatch, mixed_rows(10), *trained)
    assert again == manifest
    with pytest.raises(ValueError, match=r"different settings \(environments\.documents"):
        prepare_mixed(tmp_path, monkeypatch, mixed_rows(10), "environments.documents.reward_funcs=[choice.py]")


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["environments.cuont.reward_funcs=[count.py]"], ValueError, "cuont is set, .* mean environments.count"),
        (["environments.count.reward_funcs=[gone.py]"], FileNotFoundError, "gone.py is neither a file here nor"),
        (["environments.documents.reward_funcs=[documents_qa.py,gone.py]",
          "environments.documents.reward_weights=[1,1]"], FileNotFoundError, "gone.py is neither a file here nor"),
    ],
)  # fmt: skip
def test_rewards_that_are_gone_and_names_without_rows_are_refused_before_data_is_written(
    tmp_path, monkeypatch, overrides, error, words
):
    with pytest.raises(error, match=words):
        prepare_mixed(tmp_path, monkeypatch, mixed_rows(10), *overrides)
    assert not (tmp_path / "runs/r/data").exists()
