"""Tasks of the embedded policy: what they ask, that each has a right reply, and that replies with one fault earn 0."""

import json

import pytest

from grpo_kit.environments import tiny_tasks
from grpo_kit.environments.task import COLUMNS
from grpo_kit.environments.tiny_tasks import Notes, Person, Wording, make_tasks
from grpo_kit.rewards.documents_qa import documents_qa_reward
from grpo_kit.rewards.instructions import instructions_reward
from grpo_kit.rewards.structured_output import structured_output_reward

REWARDS = {
    "structured": structured_output_reward, "instructions": instructions_reward, "documents": documents_qa_reward,
}  # fmt: skip


def pay(environment, task, *replies):
    columns = {name: [value] * len(replies) for name, value in task.columns.items()}
    return REWARDS[environment](list(replies), prompt_opened_think=[True] * len(replies), **columns)


def closed(*replies):
    return [f"hm\n</think>\n{reply}" for reply in replies]


def test_a_record_is_paid_for_its_form_and_its_values():
    task = tiny_tasks.ask_record(Person("Ada", 36, "Rome"))
    assert task.prompt == [{"role": "user", "content": "Ada is 36 and lives in Rome.\nAs JSON:"}]
    right = '{"name":"Ada","age":36,"city":"Rome"}'
    wrong = [
        right.replace("36", '"36"'),  # a text
        right.replace("36", "63"),
        right.replace("Rome", "Oslo"),
        right.replace(',"city":"Rome"', ""),
        right.replace("}", ',"country":"Italy"}'),
        right.replace('"', "'"),
        f"Here it is: {right}",
        "{}",
    ]
    assert pay("structured", task, *closed(right, *wrong)) == [1.0] + [0.0] * len(wrong)
    assert pay("structured", task, right) == [0.0]  # the thought is not closed


def test_so_many_words_in_capitals_with_the_ending_are_paid():
    task = tiny_tasks.ask_wording(Wording(4, "RED TEA"))
    assert task.prompt[0]["content"] == "Write 4 words in capitals, ending in RED TEA."
    wrong = [
        "BIG RED TEA", "A VERY BIG RED TEA", "big old red tea", "BIG old RED TEA", "BIG OLD TEA RED", "RED TEA BIG OLD",
        "BIG OLD GREEN TEA", "",
    ]  # fmt: skip
    assert pay("instructions", task, *closed("BIG OLD RED TEA", *wrong)) == [1.0] + [0.0] * len(wrong)


def test_an_answer_is_paid_with_its_document():
    task = tiny_tasks.ask_notes(Notes([("age", "36"), ("town", "Oslo"), ("name", "Ada")], 1))
    assert task.prompt[0]["content"] == "age: 36 [1]\ntown: Oslo [2]\nname: Ada [3]\nWhich town?"
    assert task.columns["documents"] == ["age: 36", "town: Oslo", "name: Ada"]
    wrong = ["Answer: Oslo", "Answer: Oslo [1]", "Answer: Ada [3]", "Answer: Ada [2]", "Answer: Oslo [1] [2]", "[2]"]
    assert pay("documents", task, *closed("Answer: Oslo [2]", *wrong)) == [1.0] + [0.0] * len(wrong)


@pytest.mark.parametrize("source", tiny_tasks.SOURCES)
def test_tasks_differ_and_depend_on_the_seed_alone(source):
    tasks = make_tasks(source, 300, seed=3)
    assert len({task.prompt[0]["content"] for task in tasks}) == 300
    assert make_tasks(source, 20, seed=3) == tasks[:20] != make_tasks(source, 20, seed=4)
    assert all(set(task.columns) == set(COLUMNS[tiny_tasks.SOURCES[source].environment]) for task in tasks)
    assert all(len(task.prompt[0]["content"]) <= 85 for task in tasks)


@pytest.mark.slow
def test_all_wordings_can_be_made_and_no_more():
    assert len(make_tasks("tiny-instructions", 780, seed=0)) == 780
    with pytest.raises(ValueError, match="gave 780 different tasks .* and 781 were asked for"):
        make_tasks("tiny-instructions", 781, seed=0)


def test_every_question_has_one_answer():
    for task in make_tasks("tiny-documents", 200, seed=1):
        *lines, question = task.prompt[0]["content"].split("\n")
        kind = question.removeprefix("Which ").removesuffix("?")
        found = [line for line in lines if line.startswith(f"{kind}: ")]
        assert found == [f"{kind}: {task.columns['answer']} [{task.columns['supporting'][0]}]"]


def test_what_a_record_holds_is_in_its_line():
    for task in make_tasks("tiny-records", 100, seed=1):
        known = json.loads(task.columns["expected"])
        line = f"{known['name']} is {known['age']} and lives in {known['city']}."
        assert task.prompt[0]["content"] == f"{line}\nAs JSON:"
