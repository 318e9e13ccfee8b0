"""A record, and the words of its schema and its text."""

import random
from typing import Any, NamedTuple

Schema = dict[str, Any]


class Record(NamedTuple):
    """A record: what it is, its contents, their schema, and a text that says them."""

    noun: str
    contents: Any
    schema: Schema
    text: str


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
YES_NO: Schema = {"type": "boolean"}
DATE: Schema = {"type": "string", "format": "date"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}


def object_of(**properties: Schema) -> Schema:
    """The schema of an object, all of whose properties are required."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def join_words(parts: list[str]) -> str:
    """Things that are listed: "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def draw_price(rng: random.Random, highest: int) -> float:
    """A price from 2 to `highest`, in hundredths."""
    return rng.randint(200, highest * 100) / 100


def spell_money(amount: float) -> str:
    """An amount with its hundredths and a comma for thousands."""
    return f"{amount:,.2f}"
