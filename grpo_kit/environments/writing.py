"""Writes known contents as JSON, YAML, TOML, XML or CSV, so that the reward reads the same contents back."""

import csv
import io
import json
from typing import Any
from xml.sax.saxutils import escape

import yaml

KINDS = ("json", "yaml", "toml", "xml", "csv")


def write_document(contents: Any, kind: str) -> str:
    """Write contents in a format.

    Args:
        contents: dicts with names as keys, lists, texts, finite numbers, bools, and None (not in TOML, which leaves it
            out). CSV takes a list of flat dicts with the same keys, XML a dict with one key, the root element.
        kind: one of `KINDS`.

    Returns:
        The document.

    Example:
        >>> print(write_document({"town": {"name": "Oslo", "parks": ["Frogner"]}}, "xml"))
        <town>
          <name>Oslo</name>
          <parks>
            <item>Frogner</item>
          </parks>
        </town>
    """
    if kind == "json":
        return json.dumps(contents, indent=2, ensure_ascii=False)
    if kind == "yaml":
        return yaml.safe_dump(contents, sort_keys=False, allow_unicode=True).strip()
    if kind == "toml":
        return "\n".join(_list_toml_lines(contents, "")).strip()
    if kind == "csv":
        return _write_csv(contents)
    ((root, inner),) = contents.items()
    return _write_element(root, inner, 0)


def _list_toml_lines(table: dict[str, Any], path: str) -> list[str]:
    """Plain values first, since all that follows a header belongs to its table."""
    lines, below = [], []
    for name, value in table.items():
        where = f"{path}{name}"
        if isinstance(value, dict):
            below += ["", f"[{where}]", *_list_toml_lines(value, f"{where}.")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                below += ["", f"[[{where}]]", *_list_toml_lines(item, f"{where}.")]
        elif value is not None:  # JSON's texts, numbers, bools and lists of them are TOML's too
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return lines + below


def _write_element(name: str, value: Any, depth: int) -> str:
    if isinstance(value, dict):
        inner = [_write_element(key, item, depth + 1) for key, item in value.items()]
    elif isinstance(value, list):
        inner = [_write_element("item", item, depth + 1) for item in value]
    else:
        return f"{'  ' * depth}<{name}>{escape(write_cell(value))}</{name}>"
    return "\n".join([f"{'  ' * depth}<{name}>", *inner, f"{'  ' * depth}</{name}>"])


def _write_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([write_cell(value) for value in row.values()] for row in rows)
    return out.getvalue().strip()


def write_cell(value: Any) -> str:
    """A value as a cell of CSV or a text of XML has it.

    >>> write_cell(True), write_cell(None), write_cell(2.5)
    ('true', '', '2.5')
    """
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
