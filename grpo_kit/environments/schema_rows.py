"""Reading the schema of a row of structured output: whether the reward can judge by it.

A look at the shape of the usual keywords finds the broken schemas of public rows (`"additionalProperties": "false"`,
`"required": {"item": [...]}`) in no time; a check against the metaschema takes longer than judging a reply.
"""

import json
import re
from typing import Any

from grpo_kit.environments.reading import Refused, read_text, show, write_json

LONGEST_SCHEMA = 100_000  # characters; the reward reads no more
SCHEMA_TYPES = ("json", "yaml", "toml", "xml", "csv")
_TYPE_NAMES = ("string", "number", "integer", "boolean", "object", "array", "null")
_NAMED = ("properties", "$defs", "definitions", "dependentSchemas")  # objects whose keys are the schema's own names
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = (
    "items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "contains", "propertyNames", "not",
    "if", "then", "else",
)  # fmt: skip
_NUMBERS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems",
    "maxItems", "minProperties", "maxProperties",
)  # fmt: skip


def read_schema(schema_str: Any, schema_type: Any = None, expected: Any = None) -> dict[str, Any]:
    """The columns of a row of structured output.

    Args:
        schema_str: a JSON schema as text, or as an object.
        schema_type: one of `SCHEMA_TYPES`; nothing means "json".
        expected: the known contents as JSON text, or nothing.

    Returns:
        `schema_str`, `schema_type` and `expected`.

    Raises:
        Refused: the schema cannot be read, has keywords of another shape than a schema's, or asks for what the reward
            does not judge.
    """
    text = schema_str if isinstance(schema_str, str) or schema_str is None else write_json(schema_str, "schema_str")
    text = read_text(text, "schema_str", LONGEST_SCHEMA)
    schema = _load(text, "schema")
    kind = schema_type or "json"
    if kind not in SCHEMA_TYPES:
        raise Refused("schema", f"schema_type is {show(kind)}, and the reward reads {', '.join(SCHEMA_TYPES)}")
    if not isinstance(schema, dict) or not schema:
        raise Refused("schema", "the schema is no object, or one that asks for nothing")
    _look_at(schema)
    if expected is not None:
        expected = read_text(expected, "expected")
        if not isinstance(_load(expected, "expected"), dict | list):
            raise Refused("expected", "the column expected is neither a JSON object nor a list")
    return {"schema_str": text, "schema_type": kind, "expected": expected}


def _load(text: str, reason: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise Refused(reason, f"the {reason} is no JSON ({str(error)[:100]})") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _look_at(schema: Any) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise Refused("schema", f"a schema within the schema is {show(schema)}, and neither an object nor a bool")
    for name in ("patternProperties", "$dynamicRef"):
        if name in schema:
            raise Refused("schema", f"the schema has {name}, which the reward does not judge")
    reference = schema.get("$ref", "#")
    if not isinstance(reference, str) or not re.match(r"#(?:/|$)", reference):
        raise Refused("schema", f"the schema refers to {show(reference)}, and nothing is fetched")
    types = schema.get("type", [])
    names = types if isinstance(types, list) else [types]
    _require(all(name in _TYPE_NAMES for name in names), "type", types)
    for name, value in schema.items():
        if name in _NAMED:
            _require(isinstance(value, dict), name, value)
            for part in value.values():
                _look_at(part)
        elif name in _LISTED:
            _require(isinstance(value, list) and len(value) > 0, name, value)
            for part in value:
                _look_at(part)
        elif name in _SCHEMAS:
            _look_at(value)
        elif name in _NUMBERS:
            _require(isinstance(value, int | float) and not isinstance(value, bool), name, value)
        elif name == "required":
            _require(isinstance(value, list) and all(isinstance(field, str) for field in value), name, value)
        elif name == "enum":
            _require(isinstance(value, list), name, value)
        elif name == "pattern":
            _require(isinstance(value, str), name, value)


def _require(holds: bool, name: str, value: Any) -> None:
    if not holds:
        raise Refused("schema", f"the schema's {name} is {show(value)}, which no schema may have there")
