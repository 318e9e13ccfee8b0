"""Public rows by their columns: IFEval and IFBench, IF_multi_constraints, HotpotQA."""

import json
from pathlib import Path

import pytest

from grpo_kit.environments.instruction_rows import ARGUMENTS
from grpo_kit.environments.public_rows import FORMS, read_public_row
from grpo_kit.environments.task import COLUMNS, Unusable
from grpo_kit.rewards.documents_qa import documents_qa_verdict
from grpo_kit.rewards.instructions import INSTRUCTIONS, instructions_verdict

IFEVAL = {
    "key": 1000,
    "prompt": "Write 300+ words.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [
        {"num_words": None, "relation": None, "keywords": None},
        {"num_words": 300, "relation": "at least", "keywords": None},
    ],
}
MULTI = {
    "key": "k",
    "messages": [{"role": "user", "content": "Write. End with Bye."}],
    "ground_truth": "[{'instruction_id': ['startend:end_checker', 'punctuation:no_comma'], "
    "'kwargs': [{'end_phrase': 'Bye.'}, None]}]",
    "dataset": "ifeval",
}
HOTPOT = {
    "id": "5a8b",
    "question": "Where was the director of Kiss born?",
    "answer": "Oslo",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": {"title": ["Kiss", "Ada Berg", "Kiss"], "sent_id": [0, 1, 2]},
    "context": {
        "title": ["Ada Berg", "Bo Lund", "Kiss"],
        "sentences": [["Ada Berg directs.", " She was born in Oslo."], ["Bo acts."], ["Kiss is a film by Ada Berg."]],
    },
}


def test_the_reader_knows_the_instructions_of_the_reward_and_their_arguments():
    assert {name: set(readers) for name, (_, readers) in INSTRUCTIONS.items()} == ARGUMENTS


def test_an_ifeval_row_loses_the_keys_that_a_table_filled():
    task = read_public_row(IFEVAL, "ifeval")
    assert task.prompt == [{"role": "user", "content": "Write 300+ words."}]
    assert tuple(task.columns) == COLUMNS["instructions"]
    assert task.columns["kwargs"] == '[{}, {"num_words": 300, "relation": "at least"}]'
    assert instructions_verdict("word " * 300, *task.columns.values()).reward == 1.0
    assert read_public_row(IFEVAL | {"kwargs": json.dumps(IFEVAL["kwargs"])}, form="ifeval") == task


@pytest.mark.parametrize(
    "truth",
    [
        MULTI["ground_truth"],
        json.dumps([{"instruction_id": ["startend:end_checker", "punctuation:no_comma"],
                     "kwargs": [{"end_phrase": "Bye."}, None]}]),
        [{"instruction_id": "startend:end_checker", "kwargs": {"end_phrase": "Bye."}},
         {"instruction_id": ["punctuation:no_comma"], "kwargs": [{}]}],
        {"instruction_id": ["startend:end_checker", "punctuation:no_comma"], "kwargs": [{"end_phrase": "Bye."}, {}]},
    ],
)  # fmt: skip
def test_a_row_of_several_constraints_is_read_from_python_json_or_lists(truth):
    task = read_public_row(MULTI | {"ground_truth": truth}, "if_multi")
    assert task.prompt == MULTI["messages"]
    assert task.columns["instruction_id_list"] == ["startend:end_checker", "punctuation:no_comma"]
    assert task.columns["kwargs"] == '[{"end_phrase": "Bye."}, {}]'
    assert instructions_verdict("Fine. Bye.", *task.columns.values()).reward == 1.0


def test_nothing_in_a_ground_truth_is_run(tmp_path):
    path = tmp_path / "made"
    for truth in (
        f"[{{'instruction_id': [open({str(path)!r}, 'w').write('x')], 'kwargs': [None]}}]",
        f"__import__('pathlib').Path({str(path)!r}).touch()",
        "[{'instruction_id': ['a'], 'kwargs': [(lambda: 1)()]}]",
    ):
        assert read_public_row(MULTI | {"ground_truth": truth}, "if_multi").reason == "unreadable"
    assert not Path(path).exists()


@pytest.mark.parametrize("own_files", [False, True])
def test_a_hotpot_row_becomes_a_question_over_numbered_documents(own_files):
    row = dict(HOTPOT)
    if own_files:
        row["context"] = [list(pair) for pair in zip(*HOTPOT["context"].values(), strict=True)]
        row["supporting_facts"] = [list(pair) for pair in zip(*HOTPOT["supporting_facts"].values(), strict=True)]
    task = read_public_row(row, "hotpot")
    assert task.columns == {
        "answer": "Oslo",
        "aliases": None,
        "documents": [
            "Ada Berg: Ada Berg directs. She was born in Oslo.",
            "Bo Lund: Bo acts.",
            "Kiss: Kiss is a film by Ada Berg.",
        ],
        "supporting": [1, 3],
    }
    content = task.prompt[0]["content"]
    assert "[3] Kiss: Kiss is a film" in content and "Question: Where was the director" in content
    columns = [task.columns[name] for name in ("answer", "documents", "aliases", "supporting")]
    assert documents_qa_verdict("Answer: Oslo [1] [3]", *columns).reward == 1.0
    assert documents_qa_verdict("Answer: Oslo [1]", *columns).reward == 0.0


REFUSED = [  # form, row, the reason
    ("ifeval", 7, "not a row"),
    ("ifeval", {}, "no prompt"),
    ("ifeval", IFEVAL | {"prompt": None}, "no prompt"),
    ("ifeval", IFEVAL | {"kwargs": "[{}"}, "unreadable"),
    ("ifeval", IFEVAL | {"kwargs": "[" * 90_000}, "unreadable"),
    ("ifeval", IFEVAL | {"kwargs": " " * 100_001}, "too long"),
    ("ifeval", IFEVAL | {"kwargs": [None, None]}, "arguments"),
    ("ifeval", IFEVAL | {"instruction_id_list": ["a", "b"]}, "unknown instruction"),
    ("if_multi", MULTI | {"messages": None}, "no prompt"),
    ("if_multi", MULTI | {"messages": [{"role": "assistant", "content": "x"}]}, "no question"),
    ("if_multi", MULTI | {"ground_truth": None}, "no instructions"),
    ("if_multi", MULTI | {"ground_truth": "[]"}, "no instructions"),
    ("if_multi", MULTI | {"ground_truth": "[1]"}, "no instructions"),
    ("if_multi", MULTI | {"ground_truth": [{"instruction_id": ["a", "b"], "kwargs": [None]}]}, "no instructions"),
    ("if_multi", MULTI | {"ground_truth": [{"instruction_id": None, "kwargs": None}]}, "no instructions"),
    ("if_multi", MULTI | {"ground_truth": "[{'instruction_id': ['startend:quotation'], 'kwargs': [{'N': 1}]}]"},
     "arguments"),
    ("hotpot", {}, "not text"),
    ("hotpot", HOTPOT | {"answer": ""}, "empty"),
    ("hotpot", HOTPOT | {"answer": "a " * 60}, "long answer"),
    ("hotpot", HOTPOT | {"context": None}, "no documents"),
    ("hotpot", HOTPOT | {"context": {"title": ["a"], "sentences": []}}, "no documents"),
    ("hotpot", HOTPOT | {"context": {"title": [], "sentences": []}}, "no documents"),
    ("hotpot", HOTPOT | {"context": {"title": ["a"], "sentences": [7]}}, "no list"),
    ("hotpot", HOTPOT | {"context": {"title": ["Ada Berg", "Kiss", "Kiss"], "sentences": [["x"]] * 3}}, "supporting"),
    ("hotpot", HOTPOT | {"supporting_facts": {"title": ["Nobody"], "sent_id": [0]}}, "supporting"),
    ("hotpot", HOTPOT | {"supporting_facts": []}, "no documents"),
    ("hotpot", HOTPOT | {"context": [["t", ["x"]]] * 201}, "too long"),
    ("hotpot", HOTPOT | {"context": [["t", ["x", None]]]}, "not text"),
]  # fmt: skip


@pytest.mark.parametrize("form, row, reason", REFUSED, ids=range(len(REFUSED)))
def test_a_row_without_a_task_is_refused_with_its_reason(form, row, reason):
    read = read_public_row(row, form)
    assert isinstance(read, Unusable) and read.reason == reason and read.detail and len(read.detail) < 300


def test_every_form_belongs_to_an_environment():
    assert set(FORMS.values()) <= set(COLUMNS)
    with pytest.raises(ValueError, match="'open_qa' is not a form"):
        read_public_row({}, "open_qa")
