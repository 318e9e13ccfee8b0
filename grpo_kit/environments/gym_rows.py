"""NeMo-Gym's rows for the environments beside math, read and written.

Their forms, as in NVIDIA-NeMo/Gym at 07d6b0d (August 2026):

    structured     structured_outputs: `schema_str`, `schema_type` (v1 to v3). Rows of v4, which want a tool call, are
                   refused.
    instructions   instruction_following: `verifier_metadata` with `instruction_id_list`, `kwargs`, `prompt` and
                   `grading_mode`, or the same at top level, as older rows and IFBench's have them
    documents      hotpotqa_qa: `expected_answer`. The documents are a column in our rows; in others they are found in
                   the prompt: numbered ("[1] ...", "Document 1: ..."), or within <document> or <text>. Without
                   documents a row is refused, and so is an answer that is longer than LONGEST_ANSWER, since answers are
                   compared exactly.
    code           code_gen: `verifier_metadata` with `unit_tests` (`code/unit_tests.py`)
    office         workplace_assistant: `ground_truth`, calls with arguments as JSON texts, and `tools` in the prompt
                   (`office/workplace.py`). NeMo-Gym has no server for our tools: its workplace pays every reply to such
                   a row, so rows of ours name an agent that is to be written. tiny-office has the same form.

The prompt is `responses_create_params.input`: a text, or messages; `instructions` there is the system message. What our
rewards read and NeMo-Gym's servers do not (`expected`, `documents`, `aliases`, `supporting`, the limits of a program)
is written beside it.
"""

import hashlib
import json
import re
from typing import Any

from grpo_kit.environments.code.unit_tests import read_unit_tests, write_unit_tests
from grpo_kit.environments.instruction_rows import read_instructions
from grpo_kit.environments.office import WORLDS
from grpo_kit.environments.office.workplace import describe_tools, read_ground_truth, write_ground_truth
from grpo_kit.environments.reading import (
    Refused,
    give_unusable,
    is_number,
    read_messages,
    read_structure,
    read_text,
    read_texts,
)
from grpo_kit.environments.schema_rows import read_schema
from grpo_kit.environments.task import COLUMNS, Task, make_task

AGENTS = {  # by environment; their configurations are in resources_servers/NAME/configs/
    "structured": "structured_outputs_simple_agent",
    "instructions": "instruction_following_simple_agent",
    "documents": "hotpotqa_qa_simple_agent",
    "code": "code_gen_simple_agent",
    "office": "office_simple_agent",  # of nobody yet, and so is the next
    "tiny-office": "tiny_office_simple_agent",
}
LONGEST_ANSWER = 100  # characters
_NUMBERED = re.compile(r"(?im)^[ \t]*(?:\[(\d{1,4})\]|(?:document|passage|doc)[ #]*\[?(\d{1,4})\]?[ \t]*[:.\n])")
_OPENED = re.compile(r"(?i)<(document|text)(?:\s[^<>]{0,200})?>")
_BEHIND_DOCUMENTS = re.compile(r"(?im)\n[ \t]*\n[ \t]*(?:question|query|answer|task|instructions?)\b.*", re.DOTALL)


@give_unusable
def read_gym_row(row: dict[str, Any], environment: str) -> Task:
    """Read one of NeMo-Gym's rows.

    Args:
        row: the row, as JSON or a table of the Hub gives it.
        environment: a name in `AGENTS`.

    Returns:
        The task; an `Unusable` where the row gives none. No row raises an exception.

    Raises:
        ValueError: there is no such environment.

    Example:
        >>> row = {"responses_create_params": {"input": "Who?"}, "expected_answer": "Ada"}
        >>> read_gym_row(row, "documents").reason
        'no documents'
    """
    if environment not in AGENTS:
        raise ValueError(
            f"{environment!r} is not an environment with rows of NeMo-Gym. Name one of {', '.join(AGENTS)}."
        )
    prompt = _read_prompt(row, has_tools=environment in WORLDS)
    if environment in WORLDS:
        return make_task(environment, prompt, **read_ground_truth(row, WORLDS[environment]))
    if environment == "structured":
        return make_task(
            environment, prompt, **read_schema(row.get("schema_str"), row.get("schema_type"), row.get("expected"))
        )
    if environment == "code":
        statement = "\n\n".join(message["content"] for message in prompt)
        return make_task(environment, prompt, tests=read_unit_tests(row.get("verifier_metadata"), statement))
    if environment == "instructions":
        metadata = read_structure(row.get("verifier_metadata"), "verifier_metadata") or {}
        if not isinstance(metadata, dict):
            raise Refused("no instructions", "verifier_metadata is no object")
        fields = (row.get(name) if metadata.get(name) is None else metadata[name] for name in COLUMNS[environment])
        return make_task(environment, prompt, **read_instructions(*fields))
    return make_task(environment, prompt, **_read_documents(row, prompt))


def write_gym_row(task: Task, environment: str, id: str) -> dict[str, Any]:
    """Write a task as one of NeMo-Gym's rows; `read_gym_row` gives the same task back.

    Args:
        task: the task.
        environment: its environment.
        id: the row's name. The server for instructions wants a number, so its rows get one that is made of the name.

    Returns:
        The row with its `agent_ref`.

    Raises:
        ValueError: a program's tests are asserts, for which NeMo-Gym has no form.

    Example:
        >>> from grpo_kit.environments import documents
        >>> row = write_gym_row(documents.make_tasks(1, seed=7)[0], "documents", "documents-0")
        >>> row["agent_ref"]["name"]
        'hotpotqa_qa_simple_agent'
    """
    columns = task.columns
    row: dict[str, Any] = {"id": id, "responses_create_params": {"input": task.prompt}}
    if environment == "structured":
        row |= columns
    elif environment == "code":
        row |= {"verifier_metadata": write_unit_tests(columns["tests"])}
    elif environment in WORLDS:
        tools = {"tools": describe_tools(WORLDS[environment]), "parallel_tool_calls": False}
        row["responses_create_params"] |= tools
        row |= {"ground_truth": write_ground_truth(columns), "state": columns["state"]}
        row |= {"category": environment, "environment_name": environment}
    elif environment == "instructions":
        number = int.from_bytes(hashlib.sha256(id.encode()).digest()[:6])
        asked = next(message["content"] for message in reversed(task.prompt) if message["role"] == "user")
        metadata = columns | {"kwargs": json.loads(columns["kwargs"]), "prompt": asked}
        row |= {"id": number, "name": id, "verifier_metadata": metadata}
    else:
        answer = columns["answer"]
        row |= {name: columns[name] for name in COLUMNS[environment][1:]} | {"expected_answer": answer}
    return row | {"agent_ref": {"type": "responses_api_agents", "name": AGENTS[environment]}}


def _read_prompt(row: dict[str, Any], has_tools: bool) -> list[dict[str, str]]:
    params = read_structure(row.get("responses_create_params"), "responses_create_params")
    if not isinstance(params, dict):
        raise Refused("no prompt", "the row has no responses_create_params, which hold the prompt")
    if row.get("response_mode") == "tool_call" or (params.get("tools") and not has_tools):
        raise Refused("tool call", "the reply is to be a tool call, and the policy replies with text")
    prompt = read_messages(params.get("input"), "responses_create_params.input")
    instructions = params.get("instructions")
    if instructions is not None:
        system = read_text(instructions, "responses_create_params.instructions")
        return [{"role": "system", "content": system}, *prompt]
    return prompt


def _read_documents(row: dict[str, Any], prompt: list[dict[str, str]]) -> dict[str, Any]:
    answer = row.get("expected_answer", row.get("answer"))
    answer = read_text(str(answer) if is_number(answer) else answer, "expected_answer").strip()
    if len(answer) > LONGEST_ANSWER:
        raise Refused(
            "long answer", f"the answer has {len(answer):,} characters; {LONGEST_ANSWER} can be compared exactly"
        )
    given = read_structure(row.get("documents"), "documents")
    documents = find_documents(prompt) if given is None else read_texts(given, "documents")
    if not documents:
        raise Refused("no documents", "neither the row nor its prompt has documents that the answer could be in")
    aliases, supporting = row.get("aliases"), row.get("supporting")
    return {
        "answer": answer,
        "aliases": None if aliases is None else read_texts(aliases, "aliases"),
        "documents": documents,
        "supporting": None if supporting is None else read_numbers(supporting, len(documents)),
    }


def find_documents(prompt: list[dict[str, str]]) -> list[str]:
    """The documents that a prompt shows: within <document> or <text>, or numbered 1, 2 and so on; [] for none.

    >>> find_documents([{"role": "user", "content": "[1] Ada came.\\n\\n[2] Bo left.\\n\\nQuestion: who left?"}])
    ['Ada came.', 'Bo left.']
    """
    text = "\n\n".join(message["content"] for message in prompt)
    if tagged := _find_tagged(text):
        return tagged
    heads: list[re.Match[str]] = []
    for match in _NUMBERED.finditer(text):
        if int(match[1] or match[2]) == len(heads) + 1:
            heads.append(match)
    if len(heads) < 2:
        return []
    ends = [match.start() for match in heads[1:]] + [len(text)]
    documents = [text[match.end() : end].lstrip(" \t\n:").rstrip() for match, end in zip(heads, ends, strict=True)]
    documents[-1] = _BEHIND_DOCUMENTS.sub("", documents[-1]).strip()
    return documents if all(documents) else []


def _find_tagged(text: str) -> list[str]:
    documents, place = [], 0
    while opened := _OPENED.search(text, place):
        closed = re.compile(rf"(?i)</{opened[1]}>").search(text, opened.end())
        if closed is None:
            break
        documents.append(text[opened.end() : closed.start()].strip())
        place = closed.end()
    return list(filter(None, documents))


def read_numbers(value: Any, count: int) -> list[int]:
    """Different numbers of documents, in their order."""
    numbers = value if isinstance(value, list | tuple) else []
    if not numbers or not all(
        is_number(number) and number == int(number) and 1 <= number <= count for number in numbers
    ):
        raise Refused("supporting", f"the column supporting must list documents by their numbers, from 1 to {count}")
    return sorted({int(number) for number in numbers})
