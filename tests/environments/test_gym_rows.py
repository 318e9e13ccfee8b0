"""NeMo-Gym's rows, in the forms of its repository, are read; ours are written and read back; hostile ones refused."""

import json

import pytest

from grpo_kit.environments import documents, instructions, structured
from grpo_kit.environments.code import programs
from grpo_kit.environments.gym_rows import AGENTS, find_documents, read_gym_row, write_gym_row
from grpo_kit.environments.task import Task, Unusable
from grpo_kit.rewards.documents_qa import documents_qa_verdict
from grpo_kit.rewards.instructions import instructions_verdict
from grpo_kit.rewards.structured_output import structured_output_verdict

SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
USER = [{"role": "user", "content": "q"}]
GENERATORS = {"structured": structured, "instructions": instructions, "documents": documents, "code": programs}


def row(**columns):
    return {"responses_create_params": {"input": USER}, **columns}


@pytest.mark.parametrize("environment", GENERATORS)
def test_what_was_written_is_read_back_as_the_same_task(environment):
    for number, task in enumerate(GENERATORS[environment].make_tasks(60, seed=5)):
        written = write_gym_row(task, environment, f"{environment}-{number}")
        assert written["agent_ref"] == {"type": "responses_api_agents", "name": AGENTS[environment]}
        assert read_gym_row(json.loads(json.dumps(written)), environment) == task


def test_a_structured_row_is_written_as_nvidias():
    task = Task(USER, {"schema_str": SCHEMA, "schema_type": "json", "expected": '{"city": "Oslo"}'})
    assert write_gym_row(task, "structured", "s-0") == {
        "id": "s-0",
        "responses_create_params": {"input": USER},
        "schema_str": SCHEMA,
        "schema_type": "json",
        "expected": '{"city": "Oslo"}',
        "agent_ref": {"type": "responses_api_agents", "name": "structured_outputs_simple_agent"},
    }


def test_an_instructions_row_has_a_number_and_the_prompt_of_the_user():
    prompt = [{"role": "system", "content": "No commas."}, {"role": "user", "content": "Write."}]
    columns = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": "[{}]", "grading_mode": "binary"}
    written = write_gym_row(Task(prompt, columns), "instructions", "i-0")
    assert (
        isinstance(written.pop("id"), int) and written.pop("agent_ref")["name"] == "instruction_following_simple_agent"
    )
    assert written == {
        "name": "i-0",
        "responses_create_params": {"input": prompt},
        "verifier_metadata": {
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
            "grading_mode": "binary",
            "prompt": "Write.",
        },
    }
    ids = {write_gym_row(Task(prompt, columns), "instructions", f"i-{number}")["id"] for number in range(100)}
    assert len(ids) == 100


def test_a_documents_row_has_the_answer_that_the_server_expects():
    columns = {"answer": "Oslo", "aliases": None, "documents": ["a", "b"], "supporting": [2]}
    written = write_gym_row(Task(USER, columns), "documents", "d-0")
    assert written["expected_answer"] == "Oslo" and written["documents"] == ["a", "b"] and "answer" not in written


@pytest.mark.parametrize(
    "given, prompt",
    [
        ("q", USER),
        ([{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
         [{"role": "user", "content": "ab"}]),
        ([{"role": "developer", "content": "s", "type": "message"}, {"role": "user", "content": "q", "type": None}],
         [{"role": "system", "content": "s"}, *USER]),
        ([{"role": "user", "content": "schema"}, {"role": "user", "content": "document"}],
         [{"role": "user", "content": "schema"}, {"role": "user", "content": "document"}]),
        ([*USER, {"role": "assistant", "content": "{}"}, {"role": "user", "content": "as YAML"}],
         [*USER, {"role": "assistant", "content": "{}"}, {"role": "user", "content": "as YAML"}]),
    ],
)  # fmt: skip
def test_prompts_in_every_form(given, prompt):
    task = read_gym_row({"responses_create_params": {"input": given}, "schema_str": SCHEMA}, "structured")
    assert task.prompt == prompt


def test_instructions_of_the_request_are_the_system_message():
    params = {"input": "q", "instructions": "Be brief.", "tools": [], "temperature": 1.0}
    task = read_gym_row({"responses_create_params": json.dumps(params), "schema_str": SCHEMA}, "structured")
    assert task.prompt == [{"role": "system", "content": "Be brief."}, *USER]


def test_structured_rows_of_all_versions():
    first = read_gym_row(row(schema_str=SCHEMA, schema_type="json", schema_fields_count="1"), "structured")
    third = read_gym_row(
        row(schema_str=SCHEMA, schema_type="toml", problem_type="direct", schema_repr="yaml", num_turns=1,
            source_format=None, source_record_id="DS1", instruction_layout="user"),
        "structured",
    )  # fmt: skip
    assert first.columns == {"schema_str": SCHEMA, "schema_type": "json", "expected": None}
    assert third.columns["schema_type"] == "toml"
    assert structured_output_verdict('{"city": "Oslo"}', *first.columns.values()).reward == 1.0
    assert structured_output_verdict('city = "Oslo"', *third.columns.values()).reward == 1.0
    as_object = read_gym_row(row(schema_str=json.loads(SCHEMA)), "structured")
    assert json.loads(as_object.columns["schema_str"]) == json.loads(SCHEMA)


@pytest.mark.parametrize("place", ["verifier_metadata", "top"])
def test_instructions_stand_in_the_metadata_or_at_the_top(place):
    fields = {
        "instruction_id_list": ["paragraphs:paragraphs", "length_constraints:number_words"],
        "kwargs": [None, {"num_words": 204, "relation": "less than", "keyword": None}],
        "prompt": "q",
    }
    given = row(id=8654, verifier_metadata=fields) if place != "top" else row(id=1, grading_mode="fraction", **fields)
    task = read_gym_row(given, "instructions")
    assert task.columns == {
        "instruction_id_list": fields["instruction_id_list"],
        "kwargs": '[{}, {"num_words": 204, "relation": "less than"}]',
        "grading_mode": "fraction" if place == "top" else "binary",
    }
    assert instructions_verdict("One.\n***\nTwo.", *task.columns.values()).reward == 1.0


def test_the_metadata_is_read_before_the_top_where_it_says_something():
    given = row(
        instruction_id_list=["punctuation:no_comma"],
        kwargs=[{"N": 3}],
        verifier_metadata={"instruction_id_list": ["count:numbers"], "kwargs": None, "grading_mode": None},
    )
    columns = read_gym_row(given, "instructions").columns
    assert columns["instruction_id_list"] == ["count:numbers"] and columns["kwargs"] == '[{"N": 3}]'


@pytest.mark.parametrize(
    "prompt, found",
    [
        ("[1] Ada came.\n[2] Bo left.\n\nQuestion: who?", ["Ada came.", "Bo left."]),
        ("Document 1: Ada came.\n\nDocument 2: Bo\nleft.\n\nQuery: who?", ["Ada came.", "Bo\nleft."]),
        ("Passage #1:\nAda came.\n\nPassage #2:\nBo left.", ["Ada came.", "Bo left."]),
        ("<document id='1'>Ada came.</document><document>Bo left.</document> Who?", ["Ada came.", "Bo left."]),
        ("<text>One long text.</text>\n\nWho?", ["One long text."]),
        ("[1] Only one.\n\nQuestion: who?", []),
        ("[3] not\n[7] in order", []),
        ("No documents. See [1] and [2].", []),
        ("<document>never closed", []),
        ("<document></document>", []),
    ],
)
def test_documents_are_found_in_the_prompt(prompt, found):
    assert find_documents([{"role": "user", "content": prompt}]) == found
    task = read_gym_row({"responses_create_params": {"input": prompt}, "expected_answer": "Ada"}, "documents")
    assert task.columns["documents"] == found if found else task.reason == "no documents"


def test_an_open_question_with_documents_is_judged():
    task = read_gym_row(row(expected_answer=7, documents=["x", "y"], supporting=[2.0, 1]), "documents")
    assert task.columns == {"answer": "7", "aliases": None, "documents": ["x", "y"], "supporting": [1, 2]}
    columns = task.columns
    verdict = documents_qa_verdict("Answer: 7 [1] [2]", columns["answer"], columns["documents"], None, [1, 2])
    assert verdict.reward == 1.0


def deep(levels):
    value = "x"
    for _ in range(levels):
        value = [value]
    return value


CIRCLE = []
CIRCLE.append(CIRCLE)
HOSTILE = [  # environment, row, the reason
    ("structured", None, "not a row"),
    ("structured", [], "not a row"),
    ("structured", {}, "no prompt"),
    ("structured", {"responses_create_params": None}, "no prompt"),
    ("structured", {"responses_create_params": "{'input': __import__('os').system('true')}"}, "unreadable"),
    ("structured", {"responses_create_params": {"input": []}}, "no prompt"),
    ("structured", {"responses_create_params": {"input": 7}}, "no prompt"),
    ("structured", {"responses_create_params": {"input": [7]}}, "no message"),
    ("structured", {"responses_create_params": {"input": [{"role": "tool", "content": "x"}]}}, "no message"),
    ("structured", {"responses_create_params": {"input": [{"role": ["user"], "content": "x"}]}}, "no message"),
    ("structured", {"responses_create_params": {"input": [{"type": "reasoning", "summary": []}]}}, "no message"),
    ("structured", {"responses_create_params": {"input": [{"role": "user", "content": None}]}}, "not text"),
    ("structured", {"responses_create_params": {"input": [{"role": "user", "content": " \n"}]}}, "empty"),
    ("structured",
     {"responses_create_params": {"input": [{"role": "user", "content": "\ud800"}]}, "schema_str": SCHEMA},
     "not text"),
    ("structured",
     {"responses_create_params": {"input": [{"role": "user", "content": [{"type": "input_image", "text": "x"}]}]}},
     "not text"),
    ("structured", {"responses_create_params": {"input": [{"role": "user", "content": [None]}]}}, "not text"),
    ("structured", {"responses_create_params": {"input": [*USER, {"role": "assistant", "content": "x"}]}},
     "no question"),
    ("structured", {"responses_create_params": {"input": "x" * 1_000_001}}, "too long"),
    ("structured", {"responses_create_params": {"input": USER * 101}}, "too long"),
    ("structured", {"responses_create_params": {"input": "q", "tools": [{"name": "f"}]}, "schema_str": SCHEMA},
     "tool call"),
    ("structured", row(schema_str=SCHEMA, response_mode="tool_call"), "tool call"),
    ("structured", row(), "not text"),
    ("structured", row(schema_str="{"), "schema"),
    ("structured", row(schema_str="{}"), "schema"),
    ("structured", row(schema_str="[1]"), "schema"),
    ("structured", row(schema_str='{"minimum": NaN}'), "schema"),
    ("structured", row(schema_str={"minimum": float("nan")}), "not JSON"),
    ("structured", row(schema_str={"x": {1, 2}}), "not JSON"),
    ("structured", row(schema_str={"x": CIRCLE}), "not JSON"),
    ("structured", row(schema_str='{"$ref": "http://x/y"}'), "schema"),
    ("structured", row(schema_str='{"properties": {"a": {"items": {"$ref": "file:///etc/passwd"}}}}'), "schema"),
    ("structured", row(schema_str='{"properties": {"a": {"patternProperties": {}}}}'), "schema"),
    ("structured", row(schema_str='{"type": "object", "additionalProperties": "false"}'), "schema"),
    ("structured", row(schema_str='{"properties": {"a": {}}, "required": {"item": ["a"]}}'), "schema"),
    ("structured", row(schema_str='{"type": "text"}'), "schema"),
    ("structured", row(schema_str='{"type": [["string"]]}'), "schema"),
    ("structured", row(schema_str='{"properties": ["a"]}'), "schema"),
    ("structured", row(schema_str='{"anyOf": []}'), "schema"),
    ("structured", row(schema_str='{"properties": {"a": null}}'), "schema"),
    ("structured", row(schema_str='{"properties": {"a": {"minLength": true}}}'), "schema"),
    ("structured", row(schema_str="[" * 100_000), "too deep"),
    ("structured", row(schema_str='{"items":' * 20_000 + "{}" + "}" * 20_000), "too long"),
    ("structured", row(schema_str='{"items":' * 5_000 + "{}" + "}" * 5_000), "too deep"),
    ("structured", row(schema_str=SCHEMA, schema_type="protobuf"), "schema"),
    ("structured", row(schema_str=SCHEMA, schema_type=["json"]), "schema"),
    ("structured", row(schema_str=SCHEMA, expected="Oslo"), "expected"),
    ("structured", row(schema_str=SCHEMA, expected='{"n": NaN}'), "expected"),
    ("structured", row(schema_str=SCHEMA, expected={"city": "Oslo"}), "not text"),
    ("instructions", row(), "no instructions"),
    ("instructions", row(verifier_metadata=[1]), "no instructions"),
    ("instructions", row(instruction_id_list=[], kwargs=[]), "no instructions"),
    ("instructions", row(instruction_id_list="startend:quotation", kwargs=[{}]), "unreadable"),
    ("instructions", row(instruction_id_list=["startend:quotation"], kwargs=[]), "no instructions"),
    ("instructions", row(instruction_id_list=["startend:quotation"], kwargs={}), "no instructions"),
    ("instructions", row(instruction_id_list=["startend:quotation"] * 51, kwargs=[{}] * 51), "no instructions"),
    ("instructions", row(instruction_id_list=[None], kwargs=[{}]), "not text"),
    ("instructions", row(instruction_id_list=["words:start_verb"], kwargs=[{}]), "unknown instruction"),
    ("instructions", row(instruction_id_list=["keywords:existence"], kwargs=[{}]), "arguments"),
    ("instructions", row(instruction_id_list=["startend:quotation"], kwargs=[{"N": 3}]), "arguments"),
    ("instructions", row(instruction_id_list=["startend:quotation"], kwargs=[7]), "arguments"),
    ("instructions", row(instruction_id_list=["startend:quotation"], kwargs=[{1: 2}]), "arguments"),
    ("instructions",
     row(instruction_id_list=["letters:letter_counting"], kwargs=[{"N": 3, "relation": "more than"}]), "arguments"),
    ("instructions", row(instruction_id_list=["count:numbers"], kwargs=[{"N": "3"}]), "arguments"),
    ("instructions", row(instruction_id_list=["count:numbers"], kwargs=[{"N": -1}]), "arguments"),
    ("instructions", row(instruction_id_list=["count:numbers"], kwargs=[{"N": 1.5}]), "arguments"),
    ("instructions", row(instruction_id_list=["count:numbers"], kwargs=[{"N": True}]), "arguments"),
    ("instructions", row(instruction_id_list=["keywords:existence"], kwargs=[{"keywords": "tea"}]), "arguments"),
    ("instructions", row(instruction_id_list=["keywords:existence"], kwargs=[{"keywords": []}]), "arguments"),
    ("instructions", row(instruction_id_list=["keywords:existence"], kwargs=[{"keywords": ["a", 1]}]), "arguments"),
    ("instructions", row(instruction_id_list=["keywords:word_once"], kwargs=[{"keyword": 7}]), "arguments"),
    ("instructions", row(instruction_id_list=["keywords:word_once"], kwargs=[{"keyword": ["a", "b"]}]), "arguments"),
    ("instructions", row(instruction_id_list=["letters:letter_counting"], kwargs=[{"N": 3, "relation": [1]}]),
     "arguments"),
    ("instructions", row(instruction_id_list=["count:numbers"], kwargs=[{"N": float("inf")}]), "arguments"),
    ("instructions", row(instruction_id_list=["count:numbers"], kwargs=[{"N": deep(100_000)}]), "too deep"),
    ("instructions",
     row(instruction_id_list=["keywords:word_count_different_numbers"],
         kwargs=[{"keyword": "a", "frequency": 3, "relation": "less than"}]), "contradiction"),
    ("instructions", row(instruction_id_list=["startend:quotation"], kwargs=[{}], grading_mode="mean"),
     "grading mode"),
    ("instructions", row(instruction_id_list=["startend:quotation"], kwargs=[{}], grading_mode=[]), "grading mode"),
    ("documents", row(), "not text"),
    ("documents", row(expected_answer=True), "not text"),
    ("documents", row(expected_answer=10**5000), "not text"),
    ("documents", row(expected_answer=float("nan")), "not text"),
    ("documents", row(expected_answer="x" * 101, documents=["a"]), "long answer"),
    ("documents", row(expected_answer="x"), "no documents"),
    ("documents", row(expected_answer="x", documents=[]), "no list"),
    ("documents", row(expected_answer="x", documents="[]"), "no list"),
    ("documents", row(expected_answer="x", documents=[{"text": "a"}]), "not text"),
    ("documents", row(expected_answer="x", documents=["a"], aliases="y"), "no list"),
    ("documents", row(expected_answer="x", documents=["a"], supporting=[]), "supporting"),
    ("documents", row(expected_answer="x", documents=["a"], supporting=[2]), "supporting"),
    ("documents", row(expected_answer="x", documents=["a"], supporting=[True]), "supporting"),
    ("documents", row(expected_answer="x", documents=["a"], supporting=[1.5]), "supporting"),
    ("documents", row(expected_answer="x", documents=["a"], supporting="1"), "supporting"),
    ("documents", row(expected_answer="x", documents=["a"], supporting=[float("nan")]), "supporting"),
]  # fmt: skip


@pytest.mark.parametrize("environment, given, reason", HOSTILE, ids=range(len(HOSTILE)))
def test_a_row_without_a_task_is_refused_with_its_reason(environment, given, reason):
    read = read_gym_row(given, environment)
    assert isinstance(read, Unusable) and read.reason == reason and read.detail and len(read.detail) < 300


def test_prompts_made_to_be_slow_are_read_at_once():
    for prompt in (
        "<text>" * 100_000,
        "document" + " " * 500_000,
        "\n" * 300_000,
        "\n \n" * 200_000,
        "[1]\n" * 200_000,
    ):
        assert find_documents([{"role": "user", "content": f"{prompt}x"}]) == []


def test_an_unknown_environment_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="'math' is not an environment"):
        read_gym_row(row(), "math")
