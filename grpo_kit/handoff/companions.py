"""The files of a base that belong to its weights: its settings, its tokenizer, its own code and its licence.

They are chosen by name. The folder that somebody trains from may also hold notes, pickles or a file of keys, and a
merged model is passed on.
"""

import json
import re
from pathlib import Path
from typing import Any

from grpo_kit.nemotron.checkpoint_files import SMALL_FILES, published_config

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
LICENCE = re.compile(r"(?:LICEN[CS]E|NOTICE|COPYING)(?:\.md|\.txt)?", re.IGNORECASE)
# What transformers writes of the machine that saved a configuration.
LOCAL_FIELDS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")


def list_companions(base: Path) -> list[Path]:
    """The files of a model's folder that go with its weights, sorted by name.

    They are SMALL_FILES, a licence, and the modules of Python that its configurations name (`auto_map`), with which
    older versions of transformers load it.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: a configuration is not a JSON object.
    """
    wanted = {*SMALL_FILES, *_find_modules(_read_object(base / CONFIG))}
    if (base / TOKENIZER).is_file():
        wanted |= _find_modules(_read_object(base / TOKENIZER))
    files = sorted(path for path in base.iterdir() if path.is_file())
    return [path for path in files if path.name in wanted or LICENCE.fullmatch(path.name)]


def read_companions(base: Path) -> dict[str, bytes]:
    """{name: content} of the files that go with a model's weights in bf16.

    config.json gets the published form and the new type. Fields about the machine that saved a configuration are left
    out.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: a configuration is not a JSON object.
    """
    contents = {path.name: path.read_bytes() for path in list_companions(base)}
    config = published_config(_drop_local(_read_object(base / CONFIG)))
    config |= {"torch_dtype" if "torch_dtype" in config else "dtype": "bfloat16"}
    contents[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
    if TOKENIZER in contents:
        fields = _read_object(base / TOKENIZER)
        if (kept := _drop_local(fields)) != fields:
            contents[TOKENIZER] = (json.dumps(kept, indent=2) + "\n").encode()
    return contents


def _read_object(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is not a JSON object; it is damaged. Fetch it again.")
    return fields


def _find_modules(fields: dict[str, Any]) -> set[str]:
    """The files of the classes that `auto_map` names; `REPO--module.Class` lies in another repository."""
    classes = fields.get("auto_map")
    if not isinstance(classes, dict):
        return set()
    # A tokenizer has two, a slow one and a fast one.
    entries = [entry for value in classes.values() for entry in (value if isinstance(value, list) else [value])]
    names = {entry.partition(".")[0] for entry in entries if isinstance(entry, str)}
    return {f"{name}.py" for name in names if name.isidentifier()}


def _drop_local(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in LOCAL_FIELDS}
