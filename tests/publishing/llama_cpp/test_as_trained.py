"""What an export says of a run is the run's record, whatever the settings are today."""

import json
import shutil

import pytest

from grpo_kit.config.protocols import PROTOCOLS
from grpo_kit.publishing.llama_cpp import as_trained
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.run import Run


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the small run: (run, a function that calls `change(stages)` and writes the record)."""
    shutil.copytree(trained[1].path, tmp_path / "runs" / "small")
    run = Run(tmp_path / "runs", "small")

    def edit(change):
        record = json.loads(run.notes.read_text())
        change(record["stages"])
        run.notes.write_text(json.dumps(record))

    return run, edit


def change_rows(run, edit, change):
    """Replace the training rows by `change(rows)`, and the hash of their file in the record."""
    path = run.data_file("train")
    rows = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    edit(lambda stages: stages["data"]["wrote"].update({"data/train/data.jsonl": hash_of(path)}))


def test_a_run_without_words_of_its_own(trained):
    found = as_trained.read_training(trained[1])
    assert (found.system, found.suffix, found.stages, found.remarks) == ("", "", ["train"], [])
    assert found.policy.enable_thinking and not found.policy.load_in_4bit
    assert found.sampling == ("as it was measured", 1.0, 1.0, 0, 40)
    assert found.left_out == {}
    labels = [(each.label, each.weights, each.thinking, each.n) for each in found.measured]
    assert labels == [("before training", "float32", True, 60), ("after GRPO", "float32", True, 60)]


def test_settings_of_today_change_nothing(copy):
    run, edit = copy
    before = as_trained.read_training(run)
    text = run.config.read_text()
    for old, new in (
        ("enable_thinking: true", "enable_thinking: false"), ("load_in_4bit: false", "load_in_4bit: true"),
        ("temperature: 1.0", "temperature: 0.1"), ("system_prompt: ''", "system_prompt: other"),
        ("dtype: float32", "dtype: float16"),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    run.config.write_text(text)
    record = json.loads(run.notes.read_text())
    run.notes.write_text(json.dumps(record | {"config": hash_of(run.config)}))
    assert as_trained.read_training(run) == before


def test_the_words_around_a_problem_are_the_recorded_ones(copy):
    run, edit = copy
    edit(lambda stages: stages["data"]["settings"]["data"].update(system_prompt="Be brief.", prompt_suffix="\nGo:"))
    turn = {"role": "system", "content": "Be brief."}
    change_rows(run, edit, lambda rows: [row | {"prompt": [turn, *row["prompt"]]} for row in rows])
    found = as_trained.read_training(run)
    assert (found.system, found.suffix, found.remarks) == ("Be brief.", "\nGo:", [])


def test_a_system_turn_that_all_rows_bring_counts_and_several_are_said(copy):
    run, edit = copy

    def add(rows, texts):
        turns = [{"role": "system", "content": texts[number % len(texts)]} for number in range(len(rows))]
        return [row | {"prompt": [turn, row["prompt"][-1]]} for row, turn in zip(rows, turns)]

    change_rows(run, edit, lambda rows: add(rows, ["One."]))
    assert as_trained.read_training(run).system == "One."
    change_rows(run, edit, lambda rows: add(rows, ["One.", "Two."])[:10])
    found = as_trained.read_training(run)
    assert found.system == "" and found.remarks == ["10 of 10 rows had a system turn of their own."]


def test_rows_that_were_asked_otherwise_are_counted(copy):
    run, edit = copy
    options = [{"enable_thinking": n > 2, "token_budget": 64 if n > 5 else None} for n in range(8)]
    change_rows(run, edit, lambda rows: [row | option for row, option in zip(rows, options)])
    edit(lambda stages: stages["train"]["settings"]["policy"].update(thinking_budget="32"))
    remarks = as_trained.read_training(run).remarks
    assert remarks[:2] == [
        "3 of 8 rows asked without thinking.",
        "2 of 8 rows asked for a thought of so many tokens at most.",
    ]
    assert remarks[2].startswith("A thought was closed by force after 32 tokens.") and len(remarks) == 3


def test_data_that_was_prepared_again_leaves_the_prompt_unknown(copy):
    run, edit = copy
    edit(lambda stages: stages["data"]["wrote"].update({"data/manifest.json": "0" * 64}))
    found = as_trained.read_training(run)
    assert found.system is found.suffix is None and found.measured == []
    reason = "the rows were prepared again since"
    assert found.left_out == {"before training": reason, "after GRPO": reason}
    assert found.remarks == ["The run's data was prepared again since, so its record has no longer what it trained on."]


def test_rows_that_are_gone_are_said_to_be(copy):
    run, _ = copy
    shutil.rmtree(run.path / "data" / "train")
    assert as_trained.read_training(run).remarks == ["The run's rows are gone; some may have been asked otherwise."]


def test_rows_that_were_changed_by_hand_are_refused(copy):
    run, _ = copy
    with run.data_file("train").open("a") as file:
        file.write('{"id": "x", "prompt": "y", "answer": "z"}\n')
    with pytest.raises(ValueError, match="is not as stage 'data' wrote it"):
        as_trained.read_training(run)


def test_each_measurement_says_over_what_and_how_it_was_made(copy):
    run, edit = copy

    def change(stages):
        stages["before"]["settings"]["policy"].update(load_in_4bit=True)
        path = run.evaluation / "after.json"
        report = json.loads(path.read_text())
        report["sampling"] |= {"temperature": 0.0, "protocol": "challenge", "max_completion_length": 7680}
        report["prompt"]["enable_thinking"] = False
        path.write_text(json.dumps(report))
        stages["after"]["wrote"]["evaluation/after.json"] = hash_of(path)

    edit(change)
    found = as_trained.read_training(run)
    assert [each.weights for each in found.measured] == ["NF4", "float32"]
    assert [each.thinking for each in found.measured] == [True, False]
    assert [each.temperature for each in found.measured] == [1.0, 0.0]
    assert found.sampling == ("as it was measured", 0.0, 1.0, 0, 7680) and "challenge" in PROTOCOLS
    assert found.remarks == [
        "The figures after GRPO are those of the protocol challenge, which asks without a system turn and puts its own "
        "words behind a problem."
    ]


def test_an_adapter_that_was_not_measured_is_sampled_as_in_training(copy):
    run, edit = copy
    edit(lambda stages: (stages.pop("after"), stages["train"]["settings"]["grpo"].update(temperature=0.9)))
    found = as_trained.read_training(run)
    assert found.sampling == ("as in training", 0.9, 1.0, 0, 40)
    assert [each.label for each in found.measured] == ["before training"] and found.left_out == {}


def test_an_adapter_that_was_trained_again_leaves_out_the_figures_of_the_earlier_one(copy):
    run, edit = copy
    edit(lambda stages: stages["after"]["read"].update(adapter="0" * 64))
    found = as_trained.read_training(run)
    assert found.sampling.when == "as in training" and [each.label for each in found.measured] == ["before training"]
    assert found.left_out == {"after GRPO": "the adapter was trained again since"}
