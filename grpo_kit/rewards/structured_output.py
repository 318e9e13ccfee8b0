r"""structured_output decides whether a reply is one document that obeys the row's schema and holds the row's known
values: 1.0 if it is, 0.0 if not, None where the row has no schema or none that can be judged.

Paste this file into a notebook cell as it is. It needs `pip install jsonschema`; for YAML PyYAML, and for a schema with
`pattern` the package regex, which transformers brings.

The columns are those of NVIDIA's rows (NeMo-Gym's structured_outputs), and one more:

    schema_str    a JSON schema (2020-12) as text
    schema_type   json, yaml, toml, xml or csv; json where it is missing
    expected      what is known of the content, as JSON text: a part of the reply with each value in its place

Judged is what follows the last </think>; a thought that is not closed earns 0. Nothing may stand around the document,
except a fence where `fenced` allows it.

The schema is made strict everywhere, also within lists, `anyOf` and `$ref`: an object has exactly the properties that
its schema names. A field that may be null (`nullable` too) may be left out in TOML, which has no null. Formats are
checked where that needs no further package (FORMATS_CHECKED). A name that is written twice and a number that is not
finite are refused. YAML is read without aliases, XML without DOCTYPE. Dates of YAML and TOML are texts. Cells of CSV
and texts of XML become what the schema asks for; a schema of an object takes a CSV with one row, and the root of XML
stands for the object unless the object's property has its name. An XML element that holds other elements only is a list
where the schema wants a list, and so are elements of one name; a CSV cell may hold a JSON list or object.

Content: every value of `expected` must stand in its place, texts in any case, lists of equal length in any order. A row
without `expected` pays for form alone, so a reply whose values are all empty ("", null, [], {}, also with 0 and false
beside them) earns 0 there: it is valid and says nothing. Content that nobody knows is not judged.

A row is unusable (None) where its schema is no schema, has `patternProperties`, `$dynamicRef` or a `$ref` to anything
but itself ("#/..."), is longer than LONGEST_SCHEMA, or leads back to itself without end; also where the answer is to be
a tool call (`response_mode`). Nothing is ever fetched.
"""

import contextlib
import csv
import io
import json
import math
import re
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from datetime import time as time_of_day
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote
from xml.parsers import expat

LONGEST_DOCUMENT = 20_000  # characters; a longer reply earns 0
LONGEST_SCHEMA = 100_000  # characters
LONGEST_PATTERN = 10_000  # characters, and the product of its repeat counts
DEEPEST_DOCUMENT = 40  # lists and objects within each other
SLOWEST_CHECK = 0.5  # seconds of processor time for holding a document against a schema
FORMATS_CHECKED = ("date", "email", "ipv4", "ipv6", "uuid")
STRUCTURED_REASONS = ("right", "unclosed_think", "empty", "too_long", "fenced", "not_fenced", "unreadable", "too_deep")
STRUCTURED_REASONS += ("repeated_name", "not_finite", "schema_violated", "too_costly", "hollow", "wrong_content")
STRUCTURED_REASONS += ("unusable",)


class StructuredVerdict(NamedTuple):
    """A reward (1.0, 0.0, or None for an unusable row) and the one of STRUCTURED_REASONS that led to it."""

    reward: float | None
    reason: str


class _DocumentRefused(Exception):
    """Why a reply earns nothing: one of STRUCTURED_REASONS."""


def structured_output_reward(
    completions: Sequence,
    schema_str: Sequence | None = None,
    schema_type: Sequence | None = None,
    expected: Sequence | None = None,
    response_mode: Sequence | None = None,
    prompt_opened_think: bool | Sequence[bool] = False,
    fenced: bool | None | Sequence[bool | None] = False,
    nvidia_rule: bool = False,
    **kwargs,
) -> list[float | None]:
    r"""1.0 for a document that obeys the schema and holds the known values, 0.0 for another reply, None without schema.

    Args:
        completions: texts or message lists; of several turns the last one of the assistant is judged. TRL's
            `reasoning_content` counts as thinking that is closed.
        schema_str: for each completion its schema as JSON text; None where the row belongs to another reward.
        schema_type: for each completion "json", "yaml", "toml", "xml" or "csv"; None means json.
        expected: for each completion the known part of the content as JSON text (or as what JSON holds), or None. As
            text, because a table of objects fills every key that another row has with None.
        response_mode: NVIDIA's column; rows with "tool_call" are unusable here.
        prompt_opened_think: whether the chat template put <think> into the prompt, so that a completion without
            </think> is unfinished and earns 0. A bool, or a column of the dataset.
        fenced: False: the reply is the bare document, as NVIDIA's prompts want it; True: it stands in one fence of
            three backticks; None: either. Or a column.
        nvidia_rule: judge as NeMo-Gym does, with its holes: `anyOf` and lists of schemas stay lax, NaN and repeated
            names pass, an empty value is as good as any, `expected` and `fenced` are not read, and a schema that is no
            schema earns 0. Only the bounds of this file and its refusal of YAML aliases and DOCTYPE hold there too.
        kwargs: other columns. If `log_metric` is among them (TRL passes it), the share of each reason is logged as
            `structured_output/<reason>`.

    Returns:
        One reward for each completion.

    Raises:
        ValueError: the lengths differ.
        ImportError: jsonschema (or PyYAML, or regex, where a row needs it) is not installed.

    Example:
        >>> schema = '{"properties": {"city": {"type": "string"}}}'
        >>> replies = ['{"city": "Oslo"}', '{"city": ""}', '{"city": "Rome"}']
        >>> structured_output_reward(replies, [schema] * 3, expected=[None, None, '{"city": "Oslo"}'])
        [1.0, 0.0, 0.0]
    """
    count = len(completions)
    columns = {"schema_str": schema_str, "schema_type": schema_type, "expected": expected}
    columns |= {"response_mode": response_mode, "prompt_opened_think": prompt_opened_think, "fenced": fenced}
    for name, column in columns.items():
        if column is None or isinstance(column, bool):
            columns[name] = [column] * count
        elif len(column) != count:
            raise ValueError(
                f"structured_output_reward got {count} completions and {len(column)} values of {name}; each completion "
                "needs its own. Pass the dataset's columns repeated once per completion."
            )
    verdicts = [
        StructuredVerdict(None, "unusable")
        if mode == "tool_call"
        else structured_output_verdict(completion, schema, kind, known, bool(opened), fence, nvidia_rule)
        for completion, schema, kind, known, mode, opened, fence in zip(completions, *columns.values(), strict=True)
    ]
    if log_metric := kwargs.get("log_metric"):
        counts = Counter(verdict.reason for verdict in verdicts)
        for reason in STRUCTURED_REASONS:
            log_metric(f"structured_output/{reason}", counts[reason] / max(count, 1))
    return [verdict.reward for verdict in verdicts]


def structured_output_verdict(
    completion: str | list,
    schema_str: str | None,
    schema_type: str | None = "json",
    expected: Any = None,
    prompt_opened_think: bool = False,
    fenced: bool | None = False,
    nvidia_rule: bool = False,
) -> StructuredVerdict:
    """The reward of one completion and its reason; the arguments are those of `structured_output_reward`.

    >>> structured_output_verdict('{"n": 1, "n": 2}', '{"properties": {"n": {"type": "integer"}}}')
    StructuredVerdict(reward=0.0, reason='repeated_name')
    """
    kind = str(schema_type or "json").lower()
    schema = _load_schema(schema_str, kind, nvidia_rule) if isinstance(schema_str, str) else None
    try:
        if schema is None:
            raise _DocumentRefused("unusable")
        known = None if nvidia_rule else _load_known(expected)
        text = _cut_document(_join_contents(completion), prompt_opened_think)
        if nvidia_rule:
            _check_document(_read_as_nvidia(text, kind, schema.written), schema, when_endless="schema_violated")
        else:
            document = _read_document(_take_off_fence(text.strip("\r\n"), fenced), kind, schema.written)
            _check_document(document, schema)
            if known is None and _is_hollow(document):
                raise _DocumentRefused("hollow")
            if known is not None and not _holds_known(document, known):
                raise _DocumentRefused("wrong_content")
    except _DocumentRefused as refused:
        reason = str(refused)
        return StructuredVerdict(None if reason == "unusable" else 0.0, reason)
    return StructuredVerdict(1.0, "right")


def _join_contents(completion: str | list | dict | None) -> str:
    """The last assistant turn as the model wrote it; thinking that TRL has taken off stands before </think> again."""
    if completion is None or isinstance(completion, str):
        return completion or ""
    turns = [completion] if isinstance(completion, dict) else completion
    turn = next((turn for turn in reversed(turns) if turn.get("role", "assistant") == "assistant"), {})
    content = turn.get("content") or ""
    if not isinstance(content, str):
        content = "".join(block if isinstance(block, str) else str(block.get("text") or "") for block in content)
    thinking = turn.get("reasoning_content", turn.get("thinking"))
    return content if thinking is None else f"{thinking}</think>{content}"


def _cut_document(text: str, opened: bool) -> str:
    """What follows the thinking."""
    close = text.rfind("</think>")
    if text.rfind("<think>") > close or (opened and close < 0):
        raise _DocumentRefused("unclosed_think")
    text = text[close + len("</think>") :] if close >= 0 else text
    text = text.rstrip().removesuffix("<|im_end|>").rstrip()
    if not text:
        raise _DocumentRefused("empty")
    if len(text) > LONGEST_DOCUMENT:
        raise _DocumentRefused("too_long")
    return text


def _take_off_fence(text: str, fenced: bool | None) -> str:
    opening, _, body = text.partition("\n")
    if not re.fullmatch(r"```[\w+-]{0,20}\s{0,5}", opening) or not body.endswith("```"):
        if fenced:
            raise _DocumentRefused("not_fenced")
        return text
    if fenced is False:
        raise _DocumentRefused("fenced")
    return body[:-3].rstrip()


# The schema.


class _Schema(NamedTuple):
    """The schema as the row has it (by NVIDIA's rule: as that rule changes it), and a validator of the strict one."""

    written: Any
    validator: Any


@lru_cache(maxsize=128)  # a group's replies share a schema, which takes longer to check than a reply
def _load_schema(text: str, kind: str, nvidia_rule: bool) -> _Schema | None:
    """None where the row cannot be judged. By NVIDIA's rule an invalid schema has no validator: every reply fails."""
    try:
        from jsonschema import Draft202012Validator, FormatChecker
        from jsonschema.exceptions import SchemaError
        from referencing import Registry
    except ImportError as error:
        raise ImportError(f"A schema needs jsonschema ({error}). Install it with: pip install jsonschema") from error

    if len(text) > LONGEST_SCHEMA or kind not in _READERS:
        return None
    broken = (ValueError, TypeError, AttributeError, LookupError, RecursionError, SchemaError)
    written = None
    try:
        written = json.loads(text)
        if nvidia_rule:
            _make_strict_as_nvidia(written)
            Draft202012Validator.check_schema(written)
    except broken:
        return _Schema(None, None) if nvidia_rule else None
    try:
        strict = _make_strict(written, has_null=kind != "toml")
        Draft202012Validator.check_schema(strict)
    except (_DocumentRefused, *broken):
        return None
    formats = None if nvidia_rule else FormatChecker(FORMATS_CHECKED)
    schema = written if nvidia_rule else strict
    return _Schema(written, _validator_class()(schema, registry=Registry(), format_checker=formats))


_SAME_OBJECT = ("allOf", "anyOf", "oneOf", "then", "else", "dependentSchemas")
_OWN_PLACE = ("properties", "items", "prefixItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties")
_UNCHANGED = ("not", "if", "contains", "propertyNames")
_DROPPED = ("$id", "$schema", "$anchor", "$dynamicAnchor", "$defs", "definitions")


def _make_strict(root: Any, has_null: bool) -> Any:
    """The schema in which every object has exactly the properties that are named for it.

    An object is closed where it has a place of its own: at the root, as a property, as an item. Schemas that speak
    about one object together (allOf, or properties beside anyOf) stay open, and the object is closed around them. So
    a target of $ref is made once for each way in which it is used. Within `not`, `if` and the like nothing changes:
    what is stricter there is laxer outside.
    """
    made: dict[str, Any] = {}
    names: dict[tuple[str, str], str] = {}

    def follow(reference: str, way: str) -> dict:
        name = names.setdefault((reference, way), f"{len(names)}")
        if name not in made:
            made[name] = True  # it may lead back to itself
            made[name] = build(_resolve(root, reference), way)
        return {"$ref": f"#/$defs/{name}"}

    def build_all(name: str, value: Any, way: str) -> Any:
        if name in ("properties", "dependentSchemas"):
            return {key: build(part, way) for key, part in value.items()}
        return [build(part, way) for part in value] if isinstance(value, list) else build(value, way)

    def build(schema: Any, way: str) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict) or "patternProperties" in schema or "$dynamicRef" in schema:
            raise _DocumentRefused("unusable")
        speakers = [name for name in ("properties", "$ref", *_SAME_OBJECT) if name in schema]
        alone = len(speakers) == 1 and len(schema.get("allOf", [0])) == 1
        same = way if alone or way == "written" else "open"
        own = "written" if way == "written" else "closed"
        ways = dict.fromkeys(_SAME_OBJECT, same) | dict.fromkeys(_OWN_PLACE, own) | dict.fromkeys(_UNCHANGED, "written")
        strict: dict[str, Any] = {}
        for name, value in schema.items():
            if name == "$ref":
                strict |= follow(value, same)
            elif name in ways:
                strict[name] = build_all(name, value, ways[name])
            elif name not in _DROPPED:
                strict[name] = value
        if "pattern" in strict:
            _compile_pattern(strict["pattern"])
        if way == "written":
            return strict
        if "properties" in schema:
            strict.setdefault("type", "object")
            fields = schema["properties"]
            needed = [name for name in fields if has_null or "null" not in _list_types(fields[name], root)]
            elsewhere = [] if alone else [name for name in schema.get("required", []) if name not in fields]
            strict["required"] = needed + elsewhere
            strict.pop("additionalProperties", None)
        if way == "closed" and speakers == ["properties"]:
            strict["additionalProperties"] = False
        elif way == "closed" and not alone and _list_fields(schema, root):
            strict["unevaluatedProperties"] = False
        return {"anyOf": [strict, {"type": "null"}]} if schema.get("nullable") is True else strict

    strict = build(root, "closed")
    return strict | {"$defs": made} if made else strict


def _resolve(root: Any, reference: str) -> Any:
    """The part of the schema that a $ref within it names."""
    if reference != "#" and not reference.startswith("#/"):
        raise _DocumentRefused("unusable")
    part = root
    for step in reference.split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        part = part[int(step) if isinstance(part, list) else step]
    return part


def _list_alternatives(schema: Any, root: Any) -> list[dict]:
    """The schema and those that speak about the same value, through $ref, allOf, anyOf and the like; the first 200."""
    found: list[dict] = []
    waiting = [schema]
    while waiting and len(found) < 200:
        part = waiting.pop(0)
        if isinstance(part, dict) and not any(part is other for other in found):
            found.append(part)
            waiting += [_resolve(root, part["$ref"])] if "$ref" in part else []
            for name in _SAME_OBJECT:
                value = part.get(name, [])
                value = value.values() if name == "dependentSchemas" and value else value
                waiting += [value] if isinstance(value, dict | bool) else value
    return found


def _list_types(schema: Any, root: Any) -> set[str]:
    types: set[str] = set()
    for part in _list_alternatives(schema, root):
        named = part.get("type", ["object"] if "properties" in part else [])
        types.update([named] if isinstance(named, str) else named)
        if part.get("nullable") is True or None in [*part.get("enum", []), part.get("const", 0)]:
            types.add("null")
    return types


def _list_fields(schema: Any, root: Any) -> dict[str, Any]:
    parts = _list_alternatives(schema, root)
    return {name: field for part in parts for name, field in part.get("properties", {}).items()}


# Holding a document against it.

_clock = threading.local()


@lru_cache(maxsize=1)
def _validator_class() -> Any:
    """jsonschema's validator of 2020-12, which stops when the time is over."""
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend

    def limit(check: Callable) -> Callable:
        def keyword(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            if time.thread_time() > _clock.deadline:
                raise _DocumentRefused("too_costly")
            return check(validator, value, instance, schema)

        return keyword

    def pattern(validator: Any, value: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not _matches(value, instance):
            yield ValidationError("the text does not match the pattern")

    def unique_items(validator: Any, value: bool, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if value and isinstance(instance, list) and len(set(map(_freeze, instance))) < len(instance):
            yield ValidationError("an item stands twice")

    checks = Draft202012Validator.VALIDATORS | {"pattern": pattern, "uniqueItems": unique_items}
    return extend(Draft202012Validator, {name: limit(check) for name, check in checks.items()})


def _check_document(document: Any, schema: _Schema, when_endless: str = "unusable") -> None:
    """Raises _DocumentRefused unless the document obeys the schema."""
    _clock.deadline = time.thread_time() + SLOWEST_CHECK
    try:
        if schema.validator is not None and schema.validator.is_valid(document):
            return
    except RecursionError:  # documents are not that deep: the schema leads back to itself
        raise _DocumentRefused(when_endless) from None
    except (ArithmeticError, ValueError, TypeError):  # of 10**400 / 0.1, of a NaN that NVIDIA's rule lets in
        pass
    raise _DocumentRefused("schema_violated")


@lru_cache(maxsize=256)
def _compile_pattern(pattern: str) -> Any:
    import regex

    counts = [int(count) for count in re.findall(r"\{(?:\d*,)?(\d{1,9})", pattern)]
    if len(pattern) > LONGEST_PATTERN or math.prod(filter(None, counts)) > LONGEST_PATTERN:
        raise _DocumentRefused("unusable")  # repeats within repeats are written out when a pattern is compiled
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError):
        raise _DocumentRefused("unusable") from None


def _matches(pattern: str, text: str) -> bool:
    """Like re.search, but it gives up when the time is over, as (a+)+$ needs."""
    try:
        return bool(_compile_pattern(pattern).search(text, timeout=max(_clock.deadline - time.thread_time(), 0.001)))
    except TimeoutError:
        raise _DocumentRefused("too_costly") from None


def _freeze(value: Any) -> Any:
    """The value so that equal ones have one hash, as JSON schema compares: 1 is 1.0, and True is not 1."""
    if isinstance(value, dict):
        return frozenset((key, _freeze(item)) for key, item in value.items())
    if isinstance(value, list):
        return tuple(map(_freeze, value))
    return (value,) if isinstance(value, bool) else value


# Reading documents.


def _read_document(text: str, kind: str, schema: Any) -> Any:
    """The document as JSON would have it: texts as dict keys, no dates, nothing that is not finite."""
    try:
        document = _READERS[kind](text)
    except (_DocumentRefused, ImportError):
        raise
    except Exception:  # noqa: BLE001 (whatever a parser raises, the reply cannot be read)
        raise _DocumentRefused("unreadable") from None
    document = _settle(document)
    if kind == "xml":
        ((name, value),) = document.items()
        fields = _list_fields(schema, schema)
        document = document if list(fields) == [name] else ({} if value is None and fields else value)
    if kind == "csv" and "array" not in _list_types(schema, schema):
        if len(document) != 1:
            raise _DocumentRefused("schema_violated")
        (document,) = document
    return _fit(document, schema, schema, kind == "csv") if kind in ("csv", "xml") else document


def _read_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_join_pairs)


def _join_pairs(pairs: list[tuple[str, Any]]) -> dict:
    joined = dict(pairs)
    if len(joined) < len(pairs):
        raise _DocumentRefused("repeated_name")
    return joined


def _read_yaml(text: str, nvidia_rule: bool = False) -> Any:
    import yaml

    return yaml.load(text, Loader=_yaml_loader(nvidia_rule))  # noqa: S506 (a SafeLoader)


@lru_cache(maxsize=2)
def _yaml_loader(nvidia_rule: bool) -> Any:
    """PyYAML's SafeLoader without aliases, of which ten lines make a document of gigabytes."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise _DocumentRefused("unreadable")
            return super().compose_node(parent, index)

        def fetch_flow_collection_start(self, token: Any) -> None:
            if self.flow_level > DEEPEST_DOCUMENT:  # a thousand brackets take PyYAML a second
                raise _DocumentRefused("too_deep")
            super().fetch_flow_collection_start(token)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(names)) < len(names) and not nvidia_rule:
                raise _DocumentRefused("repeated_name")
            return super().construct_mapping(node, deep)

    if not nvidia_rule:
        Loader.yaml_implicit_resolvers = {
            first: [(tag, test) for tag, test in tests if tag != "tag:yaml.org,2002:timestamp"]
            for first, tests in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
    return Loader


def _read_toml(text: str) -> dict[str, Any]:
    if max(line.count(".") for line in text.split("\n")) > 2000:  # tomllib's time is their square in a key
        raise _DocumentRefused("too_costly")
    return tomllib.loads(text)


def _read_xml(text: str) -> dict[str, Any]:
    """{root: value}: an element's elements by name, a list where a name repeats, "@name" for an attribute."""
    stack: list[tuple[dict, list[str]]] = [({}, [])]

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(stack) > DEEPEST_DOCUMENT:
            raise _DocumentRefused("too_deep")
        stack.append(({f"@{key}": value for key, value in attributes.items()}, []))

    def end(name: str) -> None:
        children, texts = stack.pop()
        text = "".join(texts).strip()
        value = children | ({"#text": text} if text else {}) if children else text or None
        beside = stack[-1][0]
        if name not in beside:
            beside[name] = value
        elif isinstance(beside[name], list):
            beside[name].append(value)
        else:
            beside[name] = [beside[name], value]

    def refuse(*declaration: Any) -> None:
        raise _DocumentRefused("unreadable")

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = lambda data: stack[-1][1].append(data)
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(text.lstrip(), True)
    return stack[0][0]


def _read_csv(text: str) -> list[dict[str, str]]:
    header, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    if len(set(header)) < len(header):
        raise _DocumentRefused("repeated_name")
    return [dict(zip(header, row, strict=True)) for row in rows]


_READERS = {"json": _read_json, "yaml": _read_yaml, "toml": _read_toml, "xml": _read_xml, "csv": _read_csv}


def _settle(value: Any, depth: int = 0) -> Any:
    if depth > DEEPEST_DOCUMENT:
        raise _DocumentRefused("too_deep")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise _DocumentRefused("schema_violated")
        return {key: _settle(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_settle(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise _DocumentRefused("not_finite")
    return value.isoformat() if isinstance(value, date | time_of_day) else value


def _fit(value: Any, schema: Any, root: Any, is_cell: bool) -> Any:
    """What XML or CSV has as text, as the schema wants it where it can be read so."""
    types, fields = _list_types(schema, root), _list_fields(schema, root)
    if is_cell and isinstance(value, str) and value[:1] in ("[", "{") and types & {"array", "object"}:
        with contextlib.suppress(ValueError, RecursionError):
            return _settle(_read_json(value))
    if "array" in types and not (isinstance(value, str) and "string" in types):
        if value in (None, "") and "null" in types:
            return None
        items = next((part["items"] for part in _list_alternatives(schema, root) if "items" in part), True)
        if isinstance(value, dict) and len(value) == 1 and not value.keys() & _list_fields(items, root).keys():
            (value,) = value.values()
        listed = value if isinstance(value, list) else [] if value in (None, "") else [value]
        return [_fit(item, items, root, is_cell) for item in listed]
    if isinstance(value, dict):
        return {name: _fit(item, fields.get(name, True), root, is_cell) for name, item in value.items()}
    return value if isinstance(value, list) else _fit_text(value or "", types)


def _fit_text(text: str, types: set[str]) -> Any:
    word = text.strip()
    if not word and "null" in types:
        return None
    if "integer" in types and re.fullmatch(r"[+-]?[0-9]{1,400}", word):
        return int(word)
    digits = r"[+-]?(?:[0-9]{1,300}(?:\.[0-9]{0,300})?|\.[0-9]{1,300})(?:[eE][+-]?[0-9]{1,2})?"
    if "number" in types and re.fullmatch(digits, word):
        return float(word)
    if "boolean" in types and word.lower() in ("true", "false", "1", "0"):
        return word.lower() in ("true", "1")
    return text


# The content.


def _load_known(expected: Any) -> Any:
    """The known part of the content, None where nothing is known."""
    try:
        known = json.loads(expected) if isinstance(expected, str) and expected.strip() else expected
    except (ValueError, RecursionError):
        raise _DocumentRefused("unusable") from None
    return None if known in ("", {}, []) else known


def _holds_known(document: Any, known: Any) -> bool:
    """Whether every known value stands in its place in the document."""
    if isinstance(known, dict):
        return isinstance(document, dict) and all(
            name in document and _holds_known(document[name], value) for name, value in known.items()
        )
    if isinstance(known, list):
        if not isinstance(document, list) or len(document) != len(known):
            return False
        left = list(document)
        for value in known:
            place = next((i for i, item in enumerate(left) if _holds_known(item, value)), None)
            if place is None:
                return False
            del left[place]
        return True
    if isinstance(known, str):
        return isinstance(document, str) and known.casefold().split() == document.casefold().split()
    if known is None or isinstance(known, bool):
        return document is known
    return isinstance(document, int | float) and not isinstance(document, bool) and document == known


def _is_hollow(document: Any) -> bool:
    """Whether the document has empty values and no others, but for 0 and false."""
    has_empty, waiting = False, [document]
    while waiting:
        value = waiting.pop()
        value = value.strip() if isinstance(value, str) else value
        if isinstance(value, dict | list) and value:
            waiting += value.values() if isinstance(value, dict) else value
        elif value:
            return False
        else:
            has_empty |= value is None or value in ("", [], {})
    return has_empty


# NVIDIA's rule, as NeMo-Gym's structured_outputs server has it (commit 07d6b0d, the same in 0.7.0).


def _make_strict_as_nvidia(schema: Any) -> None:
    """In place: whatever has `properties` gets all of them as `required` and no others. Lists are not entered."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema["required"] = list(schema["properties"])
            schema["additionalProperties"] = False
        for part in schema.values():
            _make_strict_as_nvidia(part)


def _read_as_nvidia(text: str, kind: str, schema: Any) -> Any:
    try:
        if kind == "json":
            return json.loads(text)
        if kind == "yaml":
            return _read_yaml(text, nvidia_rule=True)
        if kind == "xml":
            return _fit_xml_as_nvidia(_read_xml(text), schema)
        if kind == "toml":
            return _read_toml(text)
        items = schema.get("items", schema)
        fields = items.get("properties", {})
        rows = list(csv.DictReader(io.StringIO(text)))
        types = {name: fields.get(name, {}).get("type", "string") for row in rows for name in row}
        return [{name: _fit_cell_as_nvidia(cell, types[name]) for name, cell in row.items()} for row in rows]
    except (_DocumentRefused, ImportError):
        raise
    except Exception:  # noqa: BLE001 (as above)
        raise _DocumentRefused("unreadable") from None


def _fit_xml_as_nvidia(value: Any, schema: Any) -> Any:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "object" and isinstance(value, dict):
        fields = schema.get("properties", {})
        return {name: _fit_xml_as_nvidia(item, fields.get(name)) for name, item in value.items()}
    if kind == "array":
        if isinstance(value, dict) and len(value) == 1:
            (value,) = value.values()
        listed = value if isinstance(value, list) else [] if value is None else [value]
        return [_fit_xml_as_nvidia(item, schema.get("items", {})) for item in listed]
    if kind == "string" and value is None:
        return ""
    return _fit_scalar_as_nvidia(value, kind)


def _fit_cell_as_nvidia(cell: Any, kind: Any) -> Any:
    if not isinstance(kind, list):
        return _fit_scalar_as_nvidia(cell, kind)
    if cell in (None, "") and "null" in kind:
        return None
    for one in kind:
        fitted = _fit_scalar_as_nvidia(cell, one)
        if one != "null" and (not isinstance(fitted, str) or one == "string"):
            return fitted
    return cell


def _fit_scalar_as_nvidia(text: Any, kind: Any) -> Any:
    """Python's int and float, so "1_000" and " 7 " are integers, and "nan" is a number."""
    if not isinstance(text, str) or not text:
        return text
    with contextlib.suppress(ValueError):
        if kind in ("integer", "number"):
            return int(text) if kind == "integer" else float(text)
    word = text.lower()
    return word in ("true", "1") if kind == "boolean" and word in ("true", "false", "1", "0") else text
