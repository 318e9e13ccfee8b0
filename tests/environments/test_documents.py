"""Each generated question has a right reply that earns 1, and near replies that earn 0."""

import json
import random
import re
from collections import Counter

import pytest

from grpo_kit.environments.documents import draw_task, make_prompt, make_tasks
from grpo_kit.environments.task import COLUMNS, count_characters
from grpo_kit.rewards.documents_qa import documents_qa_verdict

TASKS = make_tasks(300, seed=7)


def judge(task, reply):
    columns = task.columns
    return documents_qa_verdict(
        reply, columns["answer"], columns["documents"], columns["aliases"], columns["supporting"]
    ).reason


def cite(answer, numbers):
    return f"Answer: {answer} {' '.join(f'[{number}]' for number in numbers)}"


def test_the_right_answer_with_its_documents_is_paid_in_both_forms():
    for task in TASKS:
        answer, supporting = task.columns["answer"], task.columns["supporting"]
        assert judge(task, cite(answer, supporting)) == "right", task
        assert judge(task, json.dumps({"answer": answer, "supporting": supporting})) == "right", task
        for alias in task.columns["aliases"] or []:
            assert judge(task, cite(alias, supporting)) == "right", (alias, task)


def test_the_answer_stands_in_one_needed_document_and_nowhere_else():
    for task in TASKS:
        answer, documents, supporting = (task.columns[name] for name in ("answer", "documents", "supporting"))
        border = re.compile(rf"(?<![\w,]){re.escape(answer)}(?![\w,])")
        found = [number for number, document in enumerate(documents, 1) if border.search(document)]
        assert len(found) == 1 and found[0] in supporting, task


def test_two_documents_are_needed_where_one_leads_to_the_other():
    """The thing that the question names stands in one of them, and what that leads to in both."""
    for task in TASKS:
        if len(task.columns["supporting"]) == 2:
            first, second = (task.columns["documents"][number - 1] for number in task.columns["supporting"])
            shared = set(re.findall(r"[A-Z]\w+", first)) & set(re.findall(r"[A-Z]\w+", second))
            assert shared - {"The", "Its", "At", "On", "In"}, task


def test_other_answers_and_other_documents_are_not_paid():
    for task in TASKS:
        answer, supporting = task.columns["answer"], task.columns["supporting"]
        everything = range(1, len(task.columns["documents"]) + 1)
        assert judge(task, cite("Nowhere", supporting)) == "wrong"
        assert judge(task, f"Answer: {answer}") == "uncited"
        assert judge(task, cite(answer, [9])) == "wrong_document"
        if len(everything) > len(supporting):
            assert judge(task, cite(answer, everything)) == "wrong_document"
        for number in supporting if len(supporting) == 2 else ():
            assert judge(task, cite(answer, [number])) == "wrong_document"
        assert judge(task, "\n".join(task.columns["documents"])) in ("no_answer", "wrong")
        assert judge(task, "") == "no_answer"


def test_the_prompt_holds_the_documents_the_question_and_how_to_cite():
    for task in TASKS:
        ((role, prompt),) = [message.values() for message in task.prompt]
        assert role == "user" and "Question: " in prompt and re.search(r"Answer:|supporting", prompt)
        for number, document in enumerate(task.columns["documents"], 1):
            assert f"[{number}] {document}\n" in prompt
            assert 1 <= len(re.findall(r"\.(?= |$)", document)) <= 3


def test_numbers_of_documents_vary_and_half_of_the_questions_need_two():
    sizes = Counter(len(task.columns["documents"]) for task in TASKS)
    assert set(sizes) == {2, 3, 4, 5, 6, 7, 8}
    two = sum(len(task.columns["supporting"]) == 2 for task in TASKS)
    assert 100 < two < 200


def test_short_prompts_have_fewer_documents():
    for seed in range(40):
        task = draw_task(random.Random(seed), longest_prompt=900)
        assert count_characters(task.prompt) <= 900 or len(task.columns["documents"]) == 2
    tasks = make_tasks(60, seed=7, longest_prompt=500)
    assert all(count_characters(task.prompt) <= 500 for task in tasks)
    assert max(len(task.columns["documents"]) for task in tasks) < 8
    assert min(len(task.columns["documents"]) for task in tasks) == 2
    assert tasks[:9] == make_tasks(9, seed=7, longest_prompt=500)


def test_a_seed_decides_the_tasks_and_more_tasks_begin_with_the_same():
    assert make_tasks(20, seed=7) == TASKS[:20] and make_tasks(20, seed=8) != TASKS[:20]
    assert len({task.prompt[0]["content"] for task in TASKS}) == 300


def test_columns_are_in_their_order_and_hold_what_json_holds():
    for task in TASKS:
        assert tuple(task.columns) == COLUMNS["documents"]
        assert json.loads(json.dumps(task.columns)) == task.columns


def test_the_question_may_stand_in_front():
    (message,) = make_prompt("Who?", ["Ada came.", "Bo left."], "Cite [n].", is_behind=False)
    assert message["content"] == "Question: Who?\n\nDocuments:\n\n[1] Ada came.\n\n[2] Bo left.\n\nCite [n]."


def test_numbers_dates_and_rivers_may_be_written_in_other_ways():
    aliases = {task.columns["answer"]: task.columns["aliases"] for task in make_tasks(300, seed=7)}
    pages = next(answer for answer, others in aliases.items() if others and others[0].endswith("pages"))
    people = next(answer for answer, others in aliases.items() if others and others[0].endswith("inhabitants"))
    assert aliases[pages] == [f"{pages} pages"] and aliases[people] == [f"{people} inhabitants"]
    assert aliases["24 May 1975"] == ["May 24, 1975", "1975-05-24"]
    assert next(others for others in aliases.values() if others and others[0].startswith("the river"))


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="at most 40 characters"):
        make_tasks(2, seed=1, longest_prompt=40)
