"""Rows of public sets beside math that are not in NeMo-Gym's form, by the form of their columns.

    ifeval     `prompt`, `instruction_id_list`, `kwargs`: google/IFEval, allenai/IFBench_test
    if_multi   `messages`, and `ground_truth`: the text of a list of {"instruction_id": [...], "kwargs": [...]}:
               allenai/IF_multi_constraints_upto5
    hotpot     `question`, `answer`, `context`, `supporting_facts`: hotpotqa/hotpot_qa (lists of titles and sentences),
               and HotpotQA's own files (pairs of title and sentences)

The forms of programs are in `code/program_rows.py`.

Open questions without documents, such as nvidia/Nemotron-RL-knowledge-openQA, have no form here: their answers are
formulas and sentences that NVIDIA lets a model compare, and nothing but an exact comparison is offered.
"""

from typing import Any

from grpo_kit.environments.code import program_rows
from grpo_kit.environments.documents import make_prompt
from grpo_kit.environments.gym_rows import LONGEST_ANSWER
from grpo_kit.environments.instruction_rows import read_instructions
from grpo_kit.environments.reading import (
    Refused,
    give_unusable,
    read_messages,
    read_structure,
    read_text,
    read_texts,
)
from grpo_kit.environments.task import Task, make_task

FORMS = {  # form: its environment
    "ifeval": "instructions",
    "if_multi": "instructions",
    "hotpot": "documents",
} | dict.fromkeys(program_rows.FORMS, "code")
MOST_DOCUMENTS = 200


@give_unusable
def read_public_row(row: dict[str, Any], form: str) -> Task:
    """Read a row of a public set.

    Args:
        row: the row, as JSON or a table of the Hub gives it.
        form: a name in `FORMS`.

    Returns:
        The task; an `Unusable` where the row gives none. No row raises an exception.

    Raises:
        ValueError: there is no such form.

    Example:
        >>> row = {"prompt": "Write.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"relation": None}]}
        >>> read_public_row(row, "ifeval").columns["kwargs"]
        '[{}]'
    """
    if form not in FORMS:
        raise ValueError(f"{form!r} is not a form of public rows. Name one of {', '.join(FORMS)}.")
    if form in program_rows.FORMS:
        return program_rows.read_program(row, form)
    if form == "ifeval":
        prompt = read_messages(row.get("prompt"), "prompt")
        columns = read_instructions(row.get("instruction_id_list"), row.get("kwargs"), row.get("grading_mode"))
        return make_task("instructions", prompt, **columns)
    if form == "if_multi":
        prompt = read_messages(read_structure(row.get("messages"), "messages"), "messages")
        return make_task("instructions", prompt, **_read_ground_truth(row.get("ground_truth")))
    return _read_hotpot(row)


def _read_ground_truth(value: Any) -> dict[str, Any]:
    parts = read_structure(value, "ground_truth")
    parts = [parts] if isinstance(parts, dict) else parts
    if not isinstance(parts, list | tuple) or not all(isinstance(part, dict) for part in parts):
        raise Refused("no instructions", "ground_truth is no list of objects with instruction_id and kwargs")
    ids: list[Any] = []
    kwargs: list[Any] = []
    for part in parts:
        names, values = part.get("instruction_id"), part.get("kwargs")
        names = [names] if isinstance(names, str) else names
        values = [values] if isinstance(values, dict) else values
        if not isinstance(names, list | tuple) or not isinstance(values, list | tuple) or len(names) != len(values):
            raise Refused("no instructions", "an object of ground_truth has other numbers of instruction_id and kwargs")
        ids += names
        kwargs += values
    return read_instructions(ids, kwargs)


def _read_hotpot(row: dict[str, Any]) -> Task:
    question = read_text(row.get("question"), "question").strip()
    answer = read_text(row.get("answer"), "answer").strip()
    if len(answer) > LONGEST_ANSWER:
        raise Refused(
            "long answer", f"the answer has {len(answer):,} characters; {LONGEST_ANSWER} can be compared exactly"
        )
    shelf = _pair_up(row.get("context"), "context", "title", "sentences")
    facts = _pair_up(row.get("supporting_facts"), "supporting_facts", "title", "sent_id")
    if len(shelf) > MOST_DOCUMENTS:
        raise Refused("too long", f"the row has {len(shelf)} documents, and {MOST_DOCUMENTS} are read")
    titles = [read_text(title, "context").strip() for title, _ in shelf]
    texts = ["".join(read_texts(sentences, "context")).strip() for _, sentences in shelf]
    named = {read_text(title, "supporting_facts").strip() for title, _ in facts}
    if len(set(titles)) < len(titles) or not named <= set(titles):
        raise Refused("supporting", "a title of supporting_facts is not the title of exactly one document")
    documents = [f"{title}: {text}" for title, text in zip(titles, texts, strict=True)]
    supporting = [number for number, title in enumerate(titles, 1) if title in named]
    prompt = read_messages(make_prompt(question, documents), "context")
    return make_task("documents", prompt, answer=answer, documents=documents, supporting=supporting)


def _pair_up(value: Any, column: str, first: str, second: str) -> list[tuple[Any, Any]]:
    """Pairs of a title and what belongs to it, from an object of two lists or a list of pairs."""
    value = read_structure(value, column)
    if isinstance(value, dict):
        lists = [value.get(first), value.get(second)]
        if all(isinstance(items, list | tuple) for items in lists) and len(lists[0]) == len(lists[1]) > 0:
            return list(zip(*lists, strict=True))
    if isinstance(value, list | tuple) and value:
        if all(isinstance(item, dict) for item in value):
            return [(item.get(first), item.get(second)) for item in value]
        if all(isinstance(item, list | tuple) and len(item) == 2 for item in value):
            return [(item[0], item[1]) for item in value]
    raise Refused("no documents", f"the column {column} has no titles with their {second}")
