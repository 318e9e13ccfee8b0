"""structured_output: the traps of the public verifier, each with its verdict and ours; five formats; content; bombs."""

import csv
import json
import socket
import tomllib

import pytest

from grpo_kit.rewards import structured_output
from grpo_kit.rewards.structured_output import (
    DEEPEST_DOCUMENT,
    LONGEST_DOCUMENT,
    STRUCTURED_REASONS,
    structured_output_reward,
    structured_output_verdict,
)

PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
TREE = {
    "$defs": {"N": {"properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}},
    "$ref": "#/$defs/N",
}
INSIDE = {"anyOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}, {"type": "null"}]}


def fields(**properties):
    return {"type": "object", "properties": properties}


def judge(text, schema, kind="json", **options):
    return structured_output_verdict(text, schema if isinstance(schema, str) else json.dumps(schema), kind, **options)


CLOSED = fields(a={}) | {"additionalProperties": False, "allOf": [fields(b={})]}
BOTH = {"allOf": [fields(a=fields(b={})), fields(c={})]}

# Reply, schema, what NVIDIA pays, what we pay, our reason, the trap. NeMo-Gym's own function (commit 07d6b0d, with
# openapi-schema-validator 0.6.3) was run on every row and paid the third column; nvidia_rule pays the same but for
# what this file bounds under any rule.
BOUNDED = ("a $ref to nothing", "patternProperties", "an alias", "any DOCTYPE")
TRAPS = [
    ('{"name": "Ada", "age": 36}', PERSON, 1, 1, "right", "nothing is wrong"),
    ('\n{"name": "Ada", "age": 36}\n', PERSON, 1, 1, "right", "blank lines around it"),
    ('{"name": "Ada"}', PERSON, 0, 0, "schema_violated", "a field that the schema does not require is missing"),
    ('{"name": "Ada", "age": 36, "x": 1}', PERSON, 0, 0, "schema_violated", "a field too many"),
    ('{"name": "Ada", "age": true}', PERSON, 0, 0, "schema_violated", "true for an integer"),
    ('{"name": "Ada", "age": 36.0}', PERSON, 1, 1, "right", "36.0 is an integer, says JSON schema"),
    ('{"name": "Ada", "age": "36"}', PERSON, 0, 0, "schema_violated", "a text for an integer"),
    ('{"n": NaN}', fields(n={"type": "number"}), 1, 0, "not_finite", "NaN, which is no JSON"),
    ('{"n": 1e999}', fields(n={"type": "number"}), 1, 0, "not_finite", "beyond all floats"),
    ('{"name": "Bob", "name": "Ada", "age": 36}', PERSON, 1, 0, "repeated_name", "the last of two wins"),
    ('{"name": "Ada", "age": 36, "age": 36}', PERSON, 1, 0, "repeated_name", "twice the same"),
    ('```json\n{"name": "Ada", "age": 36}\n```', PERSON, 0, 0, "fenced", "a fence"),
    ('Here: {"name": "Ada", "age": 36}', PERSON, 0, 0, "unreadable", "words around it"),
    ('{"name": "Ada", "age": 36', PERSON, 0, 0, "unreadable", "cut off"),
    ("", PERSON, 0, 0, "empty", "nothing"),
    (" \n", PERSON, 0, 0, "empty", "blanks"),
    ('{"name": "", "age": 0}', PERSON, 1, 0, "hollow", "valid, and says nothing"),
    ('{"name": " ", "age": 0}', PERSON, 1, 0, "hollow", "valid, and says nothing"),
    ('{"is_spam": false}', fields(is_spam={"type": "boolean"}), 1, 1, "right", "false is an answer"),
    ('{"count": 0}', fields(count={"type": "integer"}), 1, 1, "right", "and so is 0"),
    ("[]", {"type": "array", "items": PERSON}, 1, 0, "hollow", "no item, though items have fields"),
    ('[{"name": "Ada"}]', {"type": "array", "items": PERSON}, 0, 0, "schema_violated", "an item without a field"),
    ("{}", {}, 1, 0, "hollow", "a schema that wants nothing"),
    ("{}", {"type": "object"}, 1, 0, "hollow", "a schema that names nothing"),
    ("5", {"properties": {"a": {"type": "integer"}}}, 1, 0, "schema_violated", "properties without a type: any number"),
    ("{}", INSIDE, 1, 0, "schema_violated", "within anyOf: nothing is required"),
    ('{"a": 1}', INSIDE, 1, 1, "right", "within anyOf"),
    ('{"a": 1, "b": 2}', INSIDE, 1, 0, "schema_violated", "within anyOf: a field too many"),
    ("[{}]", {"prefixItems": [PERSON]}, 1, 0, "schema_violated", "within a list of schemas"),
    ('{"d": "yesterday"}', fields(d={"type": "string", "format": "date"}), 1, 0, "schema_violated", "no date"),
    ('{"d": "2024-02-30"}', fields(d={"type": "string", "format": "date"}), 1, 0, "schema_violated", "no such day"),
    ('{"d": "2024-02-29"}', fields(d={"type": "string", "format": "date"}), 1, 1, "right", "a date"),
    ('{"a": "x", "b": null}', fields(a={}, b={"type": "string", "nullable": True}), 0, 1, "right", "nullable"),
    ('{"a": "x", "b": null}', fields(a={}, b={"type": ["string", "null"]}), 1, 1, "right", "null by its type"),
    ('{"properties": "x"}', fields(properties={"type": "string"}), 0, 1, "right", "a field called properties"),
    ('{"properties": "x", "b": 1}', fields(properties={"type": "string"}), 0, 0, "schema_violated", "and another"),
    ('{"properties": {"a": 1}}', fields(properties=fields(a={"type": "integer"})), 0, 1, "right", "an object in it"),
    ('{"required": "x"}', fields(required={"type": "string"}), 1, 1, "right", "a field called required"),
    ('{"$ref": "x"}', fields(**{"$ref": {"type": "string"}}), 1, 1, "right", "a field called $ref"),
    ('{"v": 1, "next": {"v": 2, "next": null}}', TREE, 1, 1, "right", "a schema that leads back to itself"),
    ('{"v": 1, "next": {"v": 2}}', TREE, 0, 0, "schema_violated", "within it a field is missing"),
    ('{"v": 1, "next": {"v": 2, "next": null, "x": 1}}', TREE, 0, 0, "schema_violated", "within it one too many"),
    ('{"a": 1, "b": 2}', {"allOf": [fields(a={}), fields(b={})]}, 1, 1, "right", "two schemas about one object"),
    ('{"a": 1, "b": 2, "c": 3}', {"allOf": [fields(a={}), fields(b={})]}, 1, 0, "schema_violated", "and a third field"),
    ('{"a": 1}', {"allOf": [fields(a={}), fields(b={})]}, 1, 0, "schema_violated", "and one field missing"),
    ('{"a": 1, "b": 2}', fields(a={}) | {"anyOf": [fields(b={}), fields(c={})]}, 0, 1, "right", "fields beside anyOf"),
    ('{"a": 1}', fields(a={}) | {"anyOf": [fields(b={}), fields(c={})]}, 1, 0, "schema_violated", "neither of them"),
    ('{"a": 1, "b": 2}', CLOSED, 0, 1, "right", "closed beside allOf, which as written nothing could obey"),
    ('{"a": {"b": 1}, "c": 1}', BOTH, 1, 1, "right", "an object within one of two schemas"),
    ('{"a": {"b": 1, "x": 2}, "c": 1}', BOTH, 1, 0, "schema_violated", "and a field too many in it"),
    ('{"a": 1}', fields(a={}) | {"required": ["z"]}, 1, 1, "right", "a field is required that is not named"),
    ('{"a": 1}', fields(a={}) | {"additionalProperties": True}, 1, 1, "right", "more fields are allowed"),
    ('{"a": 1, "b": 2}', fields(a={}) | {"additionalProperties": True}, 0, 0, "schema_violated", "not when strict"),
    ('{"x": 1, "y": 2}', {"additionalProperties": {"type": "integer"}}, 1, 1, "right", "a table with names of its own"),
    ('{"x": "1"}', {"additionalProperties": {"type": "integer"}}, 0, 0, "schema_violated", "with a text in it"),
    ('{"a": 1}', {"not": fields(a={}, b={})}, 1, 0, "schema_violated", "within `not` the schema stays as it is"),
    ('{"a": [1, 1.0]}', fields(a={"uniqueItems": True}), 0, 0, "schema_violated", "one number twice"),
    ('{"a": [1, true]}', fields(a={"uniqueItems": True}), 1, 1, "right", "true is no number"),
    ('{"a": "b"}', fields(a={"pattern": "^a+$"}), 0, 0, "schema_violated", "a pattern"),
    ('{"a": 1}', fields(a={"type": "integr"}), 0, None, "unusable", "the row's schema is no schema"),
    ('{"a": 1}', '{"properties": {"a": ', 0, None, "unusable", "nor is this one JSON"),
    ('{"a": [1]}', fields(a={"items": [{"type": "integer"}]}), 0, None, "unusable", "a list of items as in draft 7"),
    ('{"a": 1}', fields(a={"$ref": "#/$defs/A"}), 0, None, "unusable", "a $ref to nothing"),
    ('{"a": 1}', {"patternProperties": {"^a": {"type": "integer"}}}, 1, None, "unusable", "patternProperties"),
]  # fmt: skip

ROWS = {"type": "array", "items": PERSON}
ROOT = fields(person=PERSON)
BOOK = fields(
    title={"type": "string"}, tags={"type": "array", "items": {"type": "string"}}, year={"type": ["integer", "null"]}
)
SHELF = fields(p={"type": "array", "items": fields(title={"type": "string"})}, n={"type": "integer"})
FORMATS = [  # format, and then as above
    ("yaml", "name: Ada\nage: 36", PERSON, 1, 1, "right", "YAML"),
    ("yaml", "  name: Ada\n  age: 36", PERSON, 1, 1, "right", "indented"),
    ("yaml", "name: Bob\nname: Ada\nage: 36", PERSON, 1, 0, "repeated_name", "a name twice"),
    ("yaml", "n: .nan", fields(n={"type": "number"}), 1, 0, "not_finite", "NaN"),
    ("yaml", "d: 2024-02-29", fields(d={"type": "string"}), 0, 1, "right", "a date is a text"),
    ("yaml", "d: 2024-99-99", fields(d={"type": "string"}), 0, 1, "right", "and so is what looks like one"),
    ("yaml", "d: no", fields(d={"type": "string"}), 0, 0, "schema_violated", "`no` is false in YAML 1.1"),
    ("yaml", "a: &x 1\nb: *x", fields(a={}, b={}), 1, 0, "unreadable", "an alias"),
    ("yaml", "a: !!python/object/apply:os.system [ls]", fields(a={}), 0, 0, "unreadable", "a tag that calls"),
    ("yaml", "a: 1\n---\na: 2", fields(a={}), 0, 0, "unreadable", "two documents"),
    ("yaml", "- 1: 2", {"items": {"type": "object"}}, 1, 0, "schema_violated", "a name that is no text"),
    ("toml", 'name = "Ada"\nage = 36', PERSON, 1, 1, "right", "TOML"),
    ("toml", 'name = "Ada"\nname = "Bob"\nage = 36', PERSON, 0, 0, "unreadable", "a name twice"),
    ("toml", "n = nan", fields(n={"type": "number"}), 1, 0, "not_finite", "NaN"),
    ("toml", "d = 2024-02-29", fields(d={"type": "string"}), 0, 1, "right", "a date is a text"),
    ("toml", 'title = "x"\ntags = ["y"]', BOOK, 0, 1, "right", "TOML has no null"),
    ("toml", 'title = "x"\nyear = 1', BOOK, 0, 0, "schema_violated", "which excuses nothing else"),
    ("xml", "<person><name>Ada</name><age>36</age></person>", ROOT, 1, 1, "right", "XML, its root is the only field"),
    ("xml", "<person><name>Ada</name><age>36</age></person>", PERSON, 0, 1, "right", "its root is the object"),
    ("xml", "<person><name>Ada</name></person>", PERSON, 0, 0, "schema_violated", "without a field"),
    ("xml", '<person id="1"><name>Ada</name><age>36</age></person>', PERSON, 0, 0, "schema_violated", "an attribute"),
    ("xml", "<person><name>Ada</name><age>3_6</age></person>", ROOT, 1, 0, "schema_violated", "3_6 is Python's"),
    ("xml", "<b><title>x</title><tags><tag>y</tag></tags><year>7</year></b>", BOOK, 0, 1, "right", "a list of one"),
    ("xml", "<b><title>x</title><tags>y</tags><tags>z</tags><year/></b>", BOOK, 0, 1, "right", "repeats; null"),
    ("xml", "<b><title>x</title><tags>y</tags><year>7</year></b>", fields(b=BOOK), 0, 1, "right", "integer or null"),
    ("xml", "<b><p><title>x</title></p><n>1</n></b>", SHELF, 0, 1, "right", "a list of one object without its element"),
    ("xml", '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', fields(a={"type": "string"}), 0, 0, "unreadable", "an entity"),
    ("xml", "<!DOCTYPE a><a>x</a>", fields(a={"type": "string"}), 1, 0, "unreadable", "any DOCTYPE"),
    ("xml", "<a><b>", fields(a={}), 0, 0, "unreadable", "cut off"),
    ("csv", "name,age\nAda,36\nBob,7", ROWS, 1, 1, "right", "CSV"),
    ("csv", "name,age\nAda,36", PERSON, 0, 1, "right", "an object takes one row"),
    ("csv", "name,age\nAda,36\nBob,7", PERSON, 0, 0, "schema_violated", "and not two"),
    ("csv", "age\n5", {"items": fields(age={"type": "integer"})}, 1, 1, "right", "a schema of items without a type"),
    ("csv", "name,age\nAda,36,1", ROWS, 0, 0, "unreadable", "a cell too many"),
    ("csv", "name,age\nAda", ROWS, 0, 0, "unreadable", "a cell too few"),
    ("csv", "name,name,age\nBob,Ada,36", ROWS, 1, 0, "repeated_name", "a name twice"),
    ("csv", 'title,tags,year\nx,"[""y""]",', BOOK, 0, 1, "right", "a list in a cell; an empty cell is null"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "schema", "nvidia", "due", "reason", "trap"), TRAPS)
def test_traps_of_the_public_verifier(text, schema, nvidia, due, reason, trap):
    assert judge(text, schema) == (due, reason), trap
    assert judge(text, schema, nvidia_rule=True).reward == (None if trap in BOUNDED else nvidia), trap


@pytest.mark.parametrize(("kind", "text", "schema", "nvidia", "due", "reason", "trap"), FORMATS)
def test_other_formats(kind, text, schema, nvidia, due, reason, trap):
    assert judge(text, schema, kind) == (due, reason), trap
    assert judge(text, schema, kind, nvidia_rule=True).reward == (0 if trap in BOUNDED else nvidia), trap


KNOWN = [  # reply, known values, reward, what the row is about
    ('{"name": "Ada", "age": 36}', {"name": "Ada"}, 1, "one field is known"),
    ('{"name": "Ada", "age": 36}', {"name": "Ada", "age": 36}, 1, "both are"),
    ('{"name": " ada", "age": 36}', {"name": "Ada"}, 1, "case and blanks"),
    ('{"name": "Ida", "age": 36}', {"name": "Ada"}, 0, "another name"),
    ('{"name": "Ada", "age": 35}', {"age": 36}, 0, "another number"),
    ('{"name": "", "age": 0}', {"name": "Ada"}, 0, "empty and valid"),
    ('{"name": "", "age": 36}', {"age": 36}, 1, "what is not known may be empty"),
    ('{"name": "Ada Bob Eve", "age": 36}', {"name": "Ada"}, 0, "all names at once"),
    ('{"name": "36", "age": 7}', {"age": 36}, 0, "the value in another place"),
    ('{"name": "Ada", "age": 36}', {"nick": "A"}, 0, "a field that the schema does not have"),
    ('{"name": "", "age": 0}', {}, 0, "nothing is known, and nothing said"),
    ('{"name": "Ada", "age": 36}', {}, 1, "nothing is known"),
    ('{"name": "Ada", "age": 36}', "no JSON", None, "an `expected` that cannot be read"),
    ('{"name": "Ada", "age": 36}', "[" * 100_000, None, "an `expected` that cannot be read"),
]  # fmt: skip
LISTS = [  # list in the reply, in `expected`, reward
    ("[1, 2]", [1, 2], 1), ("[2, 1]", [1, 2], 1), ("[1, 2, 3]", [1, 2], 0), ("[1]", [1, 2], 0), ("[1, 1]", [1, 2], 0),
    ("[1, 2]", [1, 1], 0), ("[1.0, 2]", [1, 2], 1), ("[true, 2]", [1, 2], 0), ("[null]", [None], 1),
    ("[0]", [False], 0), ("[false]", [0], 0), ('[{"a": 1, "b": 2}, {"a": 3}]', [{"a": 3}, {"b": 2}], 1),
    ('["1"]', [1], 0), ("{}", [1], 0), ("[{}]", [[]], 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "known", "due", "note"), KNOWN)
def test_known_values_must_stand_in_their_places(text, known, due, note):
    as_text = known if isinstance(known, str) else json.dumps(known)
    assert structured_output_reward([text], [json.dumps(PERSON)], expected=[as_text]) == [due], note
    assert judge(text, PERSON, expected=known).reward == due, note


@pytest.mark.parametrize(("text", "known", "due"), LISTS)
def test_known_lists_are_compared_in_any_order(text, known, due):
    assert judge(text, {}, expected=known).reward == due


def test_known_values_in_other_formats():
    xml = "<b><title>X</title><tags><tag>y</tag><tag>z</tag></tags><year>7</year></b>"
    assert judge(xml, BOOK, "xml", expected={"tags": ["z", "y"], "year": 7}).reward == 1
    assert judge(xml, BOOK, "xml", expected={"year": 8}).reason == "wrong_content"
    empty = fields(
        a={"type": ["array", "null"]}, b={"type": ["string", "null"]}, c={"type": "array"}, d={"type": "string"}
    )
    known = {"a": None, "b": None, "c": [], "d": ""}
    assert judge("<r><a/><b/><c/><d/></r>", empty, "xml", expected=known).reward == 1
    assert judge("name,age\nAda,36\nBob,7", ROWS, "csv", expected=[{"age": 7}, {"name": "Ada"}]).reward == 1


FENCES = [  # reply, reward bare, in a fence, either
    ('{"a": 1}', 1, 0, 1), ('```\n{"a": 1}\n```', 0, 1, 1), ('```json\n{"a": 1}\n```', 0, 1, 1),
    ('```json\n{"a": 1}```', 0, 1, 1), ('\n```JSON \n{"a": 1}\n```\n', 0, 1, 1), ('```json {"a": 1}```', 0, 0, 0),
    ('```\n{"a": 1}', 0, 0, 0), ('So\n```\n{"a": 1}\n```', 0, 0, 0), ('{"a": "```"}', 1, 0, 1), ("```\n```", 0, 0, 0),
    ('```\n{"a": 1}\n```\nor\n```\n{"a": 2}\n```', 0, 0, 0), ("`" * 10_000, 0, 0, 0),
    ("```\n" + " " * 15_000 + "```", 0, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "bare", "within", "either"), FENCES)
def test_a_fence_is_refused_wanted_or_allowed(text, bare, within, either):
    schema = [json.dumps(fields(a={}))] * 3
    assert structured_output_reward([text] * 3, schema, fenced=[False, True, None]) == [bare, within, either]


def turn(content, role="assistant", **keys):
    return {"role": role, "content": content, **keys}


DOCUMENT = '{"a": 1}'
FORMS = [  # completion, reward when the prompt opened <think> and when not, what the row is about
    (DOCUMENT, 0, 1, "a bare document"),
    (f"so</think>{DOCUMENT}", 1, 1, "text"),
    (f"so</think>\n\n{DOCUMENT}<|im_end|>", 1, 1, "with the end of the turn"),
    ([turn(f"so</think>{DOCUMENT}")], 1, 1, "one message"),
    ([turn(DOCUMENT, reasoning_content="so")], 1, 1, "thinking that TRL took off"),
    (turn(DOCUMENT, reasoning_content=""), 1, 1, "a message outside a list"),
    ([turn(DOCUMENT, reasoning_content=None)], 0, 1, "a thought that was not closed"),
    (f"<think>so {DOCUMENT}", 0, 0, "nor here"),
    (f"{DOCUMENT}</think>", 0, 0, "a document in the thinking"),
    ([turn([{"type": "text", "text": DOCUMENT}], reasoning_content="so")], 1, 1, "content in blocks"),
    ([turn('{"a": []'), turn("No.", "user"), turn(f"so</think>{DOCUMENT}")], 1, 1, "the last of several turns"),
    ([turn(f"so</think>{DOCUMENT}"), turn("Sure?", "user"), turn("so</think>no")], 0, 0, "one that was given up"),
    ([turn(DOCUMENT, "user")], 0, 0, "no turn of the assistant"),
    ([], 0, 0, "no turn at all"),
    (None, 0, 0, "no completion"),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "opened", "unopened", "note"), FORMS)
def test_the_document_of_the_last_assistant_turn_is_judged(completion, opened, unopened, note):
    schema = [json.dumps(fields(a={}))] * 2
    rewards = structured_output_reward([completion] * 2, schema, prompt_opened_think=[True, False])
    assert rewards == [opened, unopened], note


def test_rows_of_other_rewards_are_left_out():
    schema = json.dumps(fields(a={}))
    assert structured_output_reward([DOCUMENT] * 2) == [None, None]
    assert structured_output_reward([DOCUMENT] * 2, [None, schema]) == [None, 1.0]
    assert structured_output_reward([DOCUMENT] * 2, [schema] * 2, response_mode=["tool_call", "text"]) == [None, 1.0]
    assert structured_output_reward([DOCUMENT] * 2, [schema] * 2, schema_type=["JSON", "ini"]) == [1.0, None]
    assert structured_output_reward([DOCUMENT] * 3, [b"{}", 5, fields(a={})]) == [None] * 3


def test_columns_of_another_length_raise():
    with pytest.raises(ValueError, match="2 completions and 1 values of schema_str; each .* needs its own. Pass"):
        structured_output_reward([DOCUMENT] * 2, ["{}"])
    with pytest.raises(ValueError, match="1 completions and 2 values of fenced"):
        structured_output_reward([DOCUMENT], ["{}"], fenced=[True, False])


def test_the_share_of_each_reason_is_logged():
    logged = {}
    schema = [json.dumps(PERSON), json.dumps(PERSON), None, "{"]
    structured_output_reward(['{"name": "Ada", "age": 1}', "{", "", ""], schema, log_metric=logged.__setitem__)
    assert {name.removeprefix("structured_output/") for name in logged} == set(STRUCTURED_REASONS)
    assert {name: share for name, share in logged.items() if share} == {
        "structured_output/right": 0.25, "structured_output/unreadable": 0.25, "structured_output/unusable": 0.5,
    }  # fmt: skip


# Hostile rows: nothing is fetched or read, and time and memory are bounded.
ADDRESSES = [
    "file:///etc/passwd", "http://localhost:9/x", "https://localhost/x#/a", "x.json", "//localhost/#/a", "#a", "#/a/b",
    "#/required/0",
]  # fmt: skip


@pytest.fixture
def nothing_is_opened(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError(f"opened {arguments}")

    judge('{"a": 1}', fields(a={"pattern": "1"}))  # imports what it needs
    judge("a: 1", fields(a={}), "yaml")
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.mark.parametrize("nvidia_rule", [False, True])
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_reference_to_anything_outside_the_schema_is_unusable(address, nvidia_rule, nothing_is_opened):
    for schema in ({"$ref": address}, fields(a={"$ref": address}), {"not": {"anyOf": [{"$ref": address}]}}):
        assert judge('{"a": 1}', schema | {"required": ["a"]}, nvidia_rule=nvidia_rule) == (None, "unusable")


def test_addresses_that_only_name_the_schema_fetch_nothing(nothing_is_opened):
    named = {"$id": "http://localhost:9/x", "$schema": "http://localhost:9/y"}
    schema = named | fields(a={"$ref": "#/definitions/A"}) | {"definitions": {"A": {"type": "integer"}}}
    assert judge('{"a": 1}', schema).reward == judge('{"a": 1}', schema, nvidia_rule=True).reward == 1
    assert judge('{"a": "x"}', schema).reward == judge('{"a": "x"}', schema, nvidia_rule=True).reward == 0
    xml = '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a>&b;</a>'
    assert judge(xml, fields(a={}), "xml") == (0, "unreadable")


def chain(keyword, target):
    """A schema of forty steps, each of which asks the next one twice: 2^40 questions."""
    steps = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    return {"$defs": steps | {"d40": target}, "$ref": "#/$defs/d0"}


SCHEMA_BOMBS = [  # reply, schema, verdict, what the row is about
    ("1", chain("allOf", {"type": "integer"}), (0, "too_costly"), "2^40 questions that are all answered with yes"),
    ('{"a": "x"}', chain("anyOf", fields(a={"type": "integer"})), (0, "too_costly"), "and with no"),
    ("1", {"$defs": {"A": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"}, (None, "unusable"), "a circle"),
    ("1", {"allOf": [{"$ref": "#"}]}, (None, "unusable"), "a circle"),
    ("1", {"enum": list(range(1_000_000))}, (None, "unusable"), "a million values"),
    pytest.param(
        "{}", {"allOf": [{"required": ["a"]}] * 1000}, (0, "schema_violated"), "a thousand", marks=pytest.mark.slow
    ),
    ("1", '{"items":' * 11_000 + "1" + "}" * 11_000, (None, "unusable"), "deep"),
    ("1", "[" * 99_000, (None, "unusable"), "deep and cut off"),
    ('"x"', {"pattern": "("}, (None, "unusable"), "no pattern"),
    ('"x"', {"pattern": "(((a{1000}){1000}){1000})"}, (None, "unusable"), "a pattern that fills the memory"),
    ('"' + "a" * 40 + '!"', {"pattern": r"^(a|aa)+$"}, (0, "too_costly"), "a pattern of exponential time"),
    ('"aaa"', {"pattern": r"^(a|aa)+$"}, (1, "right"), "which is quick on what it wants"),
    (json.dumps({"a" * 40 + "!": 1}), {"propertyNames": {"pattern": r"^(a|aa)+$"}}, (0, "too_costly"), "on a name"),
    ("1" + "0" * 400, {"multipleOf": 0.1}, (0, "schema_violated"), "a division beyond all floats"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("text", "schema", "verdict", "note"), SCHEMA_BOMBS)
def test_schema_bombs_are_bounded(text, schema, verdict, note):
    assert judge(text, schema) == verdict, note
    assert judge(text, schema, nvidia_rule=True).reward in (verdict[0], 0, None), note


HUGE = LONGEST_DOCUMENT - 20
HOSTILE = [
    "[" * 100_000, "{" * 100_000, '{"a":' * 100_000, "<a>" * 100_000, "a = " + "[" * 100_000, "x" * 1_000_000,
    "- " * 500_000, " " * 1_000_000, "\n" * 1_000_000, "<think>" * 100_000, "</think>" * 100_000, "```\n" * 100_000,
    "\0" * 1000, "[" * HUGE, "{" * HUGE, '{"a":' * (HUGE // 5), "<a>" * (HUGE // 3), "a = " + "[" * HUGE,
    "- " * (HUGE // 2), "? " * (HUGE // 2), "&a " * (HUGE // 3), "!!set " * (HUGE // 6), "!!binary x", "!!timestamp x",
    "!!bool x", "!!int ''", "a: " * (HUGE // 3), "[a: " * (HUGE // 4), "a." * (HUGE // 2) + "a = 1",
    "[" + "a." * (HUGE // 2) + "a]", '"' * HUGE, "[" + "1," * (HUGE // 2) + "1]", "a = [" + "1," * (HUGE // 2) + "]",
    "a\n" + "1\n" * (HUGE // 2 - 2), "," * HUGE, "<r>" + "<a>1</a>" * (HUGE // 8 - 1) + "</r>",
    "<r " + 'a="1" ' * 2 + "/>", "<r>&a;</r>", "<r>&#0;</r>", "<r>]]></r>",
    "".join(f"{' ' * i}a:\n" for i in range(190)), "a: |\n" + " x\n" * 6000, "#\n" * 9000, "%YAML 9.9\n--- 1",
    "%TAG ! x\n---\n!y 1", "1" * 5000, "[" + "1" * 4000 + "]", "-" * 1000, "1e" + "9" * 1000, "0x" + "f" * 10_000,
    "1:" * 5000 + "1", '"\\ud800"', '"\\u0000"', "\ud800", "\u202e{}\u202c", "\ufeff{}", "{}\u2028", '{"a": 1}\x00',
    "NaN", "-Infinity", "nan", ".inf", "null", "~", "''", '""', '{"__class__": 1}', '{"$ref": "file:///etc/passwd"}',
    "!!python/name:os.system", "<<: {a: 1}", "=", "=: 1", "a: =", "? a", "{? [a] : 1}", "[? {a: 1}]", "2024-99-99",
    "2024-01-01T00:00:00Z", "a = 2024-01-01", "a = 99:99:99", "a\rb", "a,b\r\n1,2\r\n\r\n", '"a\n',
    "<?xml version='1.0' encoding='utf-16'?><a/>", "<a xmlns:x='y'><x:b/></a>", "<a><!-- --></a>",
    "<a><![CDATA[1]]></a>", "<a b='1'/>",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["json", "yaml", "toml", "xml", "csv"])
@pytest.mark.parametrize("nvidia_rule", [False, True])
def test_hostile_replies_neither_raise_nor_read_a_file(kind, nvidia_rule, nothing_is_opened):
    columns = {"schema_type": [kind] * len(HOSTILE), "nvidia_rule": nvidia_rule}
    for schema in ({}, PERSON):
        rewards = structured_output_reward(HOSTILE, [json.dumps(schema)] * len(HOSTILE), **columns)
        assert set(rewards) <= {0.0, 1.0}
        assert 0.0 in rewards


def test_depth_and_length_have_a_limit():
    deepest = "[" * (DEEPEST_DOCUMENT + 1) + "1" + "]" * (DEEPEST_DOCUMENT + 1)
    assert judge(deepest[1:-1], {}).reason == "right" and judge(deepest, {}).reason == "too_deep"
    longest = '"' + "x" * (LONGEST_DOCUMENT - 2) + '"'
    assert judge(longest, {}).reason == "right" and judge(longest[:-1] + 'x"', {}).reason == "too_long"


def test_parsers_keep_the_faults_that_this_file_guards_against():
    assert json.loads('{"a": 1, "a": NaN}') != json.loads("{}")  # neither is refused by itself
    assert tomllib.loads("a = nan").keys() == {"a"}
    assert list(csv.DictReader(["a,b", "1,2,3"])) == [{"a": "1", "b": "2", None: ["3"]}]
    assert structured_output._yaml_loader(False).yaml_implicit_resolvers["2"] != []
