"""Generates tasks of structured output: a document with known contents, a schema, and the format of the reply.

Three kinds of task, after NVIDIA's prompt families: extract a record from a document, translate data from one format
into another, mend data that breaks its schema. NVIDIA's rows without a document are left out, since nothing is known of
their contents, and so are those with earlier turns. The schema stands in front of the document, behind it, or in the
system message; whole, wrapped as an API wraps it, as its bare `properties`, or in words. Some schemas list only a few
properties as required, use `$ref`, or have a field that nobody knows (`summary`), which `expected` leaves out.

Every prompt says that all properties are wanted and that nothing may stand around the document, because the reward asks
for both.
"""

import copy
import json
import random
from typing import Any

from grpo_kit.environments.names import spell_date
from grpo_kit.environments.records.lists import LISTS
from grpo_kit.environments.records.objects import OBJECTS
from grpo_kit.environments.records.record import Record, Schema
from grpo_kit.environments.task import Task, collect_tasks, make_task
from grpo_kit.environments.writing import KINDS, write_document

VERSION = 1  # goes up whenever a seed and number give another task than before
NAMES = {"json": "JSON", "yaml": "YAML", "toml": "TOML", "xml": "XML", "csv": "CSV"}
_CHANCES = {"json": 60, "yaml": 12, "toml": 10, "xml": 10, "csv": 8}  # NVIDIA's first set has JSON only
_FORMS = {  # what a reader of the schema cannot know
    "json": "",
    "yaml": "",
    "toml": "",
    "xml": " Each property is an element of that name, the outermost one the root, and each item of a list stands in "
    "an element of its own within it.",
    "csv": " The first line holds the names of the properties, and each further line is one row, separated by commas.",
}
_ALONE = (
    "Reply with the {kind} document and nothing else: no code fence, no explanation.",
    "Your whole reply must be the {kind} document, without Markdown and without any other text.",
    "Write only the {kind}, bare, with no text in front of it or behind it.",
)
_ALL = (
    "Every property of the schema must be there, and no other.",
    "Fill in each property that the schema names and add none.",
    "Leave out no property, also none that is not marked as required, and invent no further one.",
)
_ASK = (
    "Extract the {noun} from the document as {kind} that obeys the schema.",
    "Turn the text into {kind} by the schema that is given.",
    "Read the document and give its contents as {kind}, following the schema.",
    "Here is a document about one {noun}. Represent it in {kind} according to the schema.",
)
_TRANSLATE = (
    "Convert this {source} into {kind} that obeys the schema.",
    "The data below is {source}. Write the same data as {kind}, following the schema.",
)
_MEND = (
    "The {kind} below breaks its schema. Correct it without changing what it says.",
    "Somebody wrote this {kind} by hand and made mistakes. Give the corrected {kind}: it must obey the schema.",
)


def make_tasks(count: int, seed: int, longest_prompt: int | None = None) -> list[Task]:
    """Make tasks with different prompts.

    Args:
        count: number of tasks.
        seed: decides the tasks; a larger count begins with the tasks of a smaller one.
        longest_prompt: largest number of characters of a prompt; None for any.

    Returns:
        Tasks with the columns `schema_str`, `schema_type` and `expected`.

    Raises:
        ValueError: the count is below 1, or too few tasks are so short.

    Example:
        >>> task = make_tasks(1, seed=7)[0]
        >>> sorted(task.columns)
        ['expected', 'schema_str', 'schema_type']
    """
    return collect_tasks(
        lambda number: draw_task(random.Random(f"{VERSION} structured {seed} {number}")), count, longest_prompt
    )


def draw_task(rng: random.Random) -> Task:
    """Draw one task."""
    kind = rng.choices(list(_CHANCES), list(_CHANCES.values()))[0]
    record = _draw_record(rng, kind)
    source = rng.choice([other for other in KINDS if other != kind and _can_hold(record, other)])
    family = rng.choices(("extract", "translate", "mend"), (70, 15, 15 if kind == "json" else 0))[0]
    known = record.contents
    if family == "extract":
        ask, document = rng.choice(_ASK), record.text
        if isinstance(known, dict) and rng.random() < 0.2:
            record.schema["properties"]["summary"] = {
                "type": "string", "minLength": 1, "description": "one sentence about the document",
            }  # fmt: skip
            record.schema["required"].append("summary")
    elif family == "translate":
        ask, document = rng.choice(_TRANSLATE), write_document(_name_root(record, known, source), source)
    else:
        ask, document = rng.choice(_MEND), _damage(known, rng)
    schema = _vary_schema(record.schema, rng, has_references=kind != "xml")
    if kind == "xml":  # NVIDIA's checker wants the root as a property, and follows no $ref when it reads numbers
        schema = {"type": "object", "properties": {record.noun: schema}, "required": [record.noun]}
    words = {"kind": NAMES[kind], "source": NAMES[source], "noun": record.noun.replace("_", " ")}
    rules = f"{rng.choice(_ALL)} {rng.choice(_ALONE)}{_FORMS[kind]}".format(**words)
    prompt = _lay_out(ask.format(**words), _show_schema(record.noun, schema, rng), rules, document, rng)
    expected = json.dumps(_name_root(record, known, kind), ensure_ascii=False)
    return make_task("structured", prompt, schema_str=json.dumps(schema), schema_type=kind, expected=expected)


def _name_root(record: Record, contents: Any, kind: str) -> Any:
    """The contents under the name of XML's root element; in other formats as they are."""
    return {record.noun: contents} if kind == "xml" else contents


def _draw_record(rng: random.Random, kind: str) -> Record:
    if kind == "csv":
        return rng.choice(LISTS)(rng)
    record = rng.choice(OBJECTS if kind in ("toml", "xml") else OBJECTS + LISTS)(rng)
    while not _can_hold(record, kind):
        record = rng.choice(OBJECTS)(rng)
    return record


def _can_hold(record: Record, kind: str) -> bool:
    """CSV holds flat lists only, TOML and XML no list at the top; TOML has no null."""
    is_list = isinstance(record.contents, list)
    if kind == "csv" or (kind in ("toml", "xml") and is_list):
        return kind == "csv" and is_list
    return kind != "toml" or None not in record.contents.values()


def _damage(contents: Any, rng: random.Random) -> str:
    """The contents as JSON with one to three mistakes that anybody can undo."""
    broken = copy.deepcopy(contents)
    row = broken[0] if isinstance(broken, list) else broken
    numbers = [name for name, value in row.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    dates = [name for name in row if name.endswith("_on")]
    mistakes = [("extra", "checked_by"), *(("text", name) for name in numbers), *(("date", name) for name in dates)]
    mistakes += [("word", name) for name, value in row.items() if isinstance(value, bool)]
    for mistake, name in rng.sample(mistakes, rng.randint(1, min(3, len(mistakes)))):
        if mistake == "extra":
            row["checked_by"] = "hand"
        elif mistake == "text":
            row[name] = str(row[name])
        else:
            row[name] = spell_date(row[name]) if mistake == "date" else "yes" if row[name] else "no"
    text = json.dumps(broken, indent=2, ensure_ascii=False)
    return rng.choice((text, text.replace(",\n", "\n", 1), text[:-1].rstrip(), text.replace('"', "'")))


def _vary_schema(schema: Schema, rng: random.Random, has_references: bool) -> Schema:
    """The schema in another form that means the same to the reward."""
    if "properties" not in schema:
        return schema
    schema = {**schema, "properties": dict(schema["properties"])}
    required = schema["required"]
    if rng.random() < 0.3:
        schema["required"] = rng.sample(required, rng.randint(1, len(required)))
    elif rng.random() < 0.2:
        del schema["required"]
    if rng.random() < 0.3:
        schema["additionalProperties"] = False
    inner = [name for name, field in schema["properties"].items() if "properties" in field]
    if has_references and inner and rng.random() < 0.4:
        name = rng.choice(inner)
        schema["$defs"] = {name: schema["properties"][name]}
        schema["properties"][name] = {"$ref": f"#/$defs/{name}"}
    for name, field in schema["properties"].items():
        if isinstance(field.get("type"), list) and rng.random() < 0.4:
            schema["properties"][name] = {"anyOf": [{"type": kind} for kind in field["type"]]}
    return schema


def _show_schema(noun: str, schema: Schema, rng: random.Random) -> str:
    way = rng.choices(("whole", "wrapped", "bare", "words"), (45, 20, 20, 15))[0]
    is_plain = "properties" in schema and "$defs" not in schema
    if way == "words" and "$defs" not in schema:
        return "The schema in words:\n" + "\n".join(_describe("the document", schema, 0))
    if way == "bare" and is_plain:
        return f"Schema (properties):\n{json.dumps(schema['properties'])}"
    if way == "wrapped":
        return (
            f"Response format:\n{json.dumps({'type': 'json_schema', 'json_schema': {'name': noun, 'schema': schema}})}"
        )
    return f"Schema:\n{json.dumps(schema, indent=rng.choice((None, 2)))}"


def _describe(name: str, schema: Schema, depth: int) -> list[str]:
    """Lines that say in words what a schema asks for."""
    indent = "  " * depth
    if "properties" in schema:
        fields = [line for key, field in schema["properties"].items() for line in _describe(key, field, depth + 1)]
        return [f"{indent}- {name}: an object with exactly these properties", *fields]
    if schema.get("type") == "array":
        items = schema["items"]
        if "properties" not in items:
            return [f"{indent}- {name}: a list, each element {_say_type(items)}"]
        return [f"{indent}- {name}: a list", *_describe("each element", items, depth + 1)]
    return [f"{indent}- {name}: {_say_type(schema)}"]


def _say_type(schema: Schema) -> str:
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    types = schema.get("type") or [part["type"] for part in schema["anyOf"]]
    says = {
        "string": "a text", "integer": "a whole number", "number": "a number", "boolean": "true or false",
        "null": "null where there is none",
    }  # fmt: skip
    form = {"date": " that is a date as YYYY-MM-DD", "ipv4": " that is an IPv4 address"}.get(
        schema.get("format", ""), ""
    )
    bounds = [
        f", {word} {schema[key]}" for key, word in (("minimum", "at least"), ("maximum", "at most")) if key in schema
    ]
    about = f" ({schema['description']})" if "description" in schema else ""
    return (
        " or ".join(says[kind] for kind in ([types] if isinstance(types, str) else types))
        + form
        + "".join(bounds)
        + about
    )


def _lay_out(ask: str, schema: str, rules: str, document: str, rng: random.Random) -> list[dict[str, str]]:
    """The messages: the schema in front of the document, behind it, or in the system message."""
    document = f"Document:\n{document}"
    layouts: tuple[tuple[list[str], list[str]], ...] = (
        ([], [ask, schema, rules, document]),
        ([], [document, ask, schema, rules]),
        ([], [ask, rules, document, schema]),
        ([f"{ask} {rules}", schema], [document]),
        ([rules], [ask, schema, document]),
        ([rules], [document, ask, schema]),
    )
    turns = zip(("system", "user"), rng.choice(layouts))
    return [{"role": role, "content": "\n\n".join(parts)} for role, parts in turns if parts]
