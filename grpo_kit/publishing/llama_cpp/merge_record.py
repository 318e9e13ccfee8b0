"""What a merged model was made of, in a file beside it, so that it is not merged twice."""

import json
import math
from pathlib import Path
from typing import Any

from grpo_kit.runs.files import hash_of

RECORD = "export.json"
LARGEST_RECORD = 1 << 20  # bytes; the 30B has 13 shards


def read_record(out: Path, made_of: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an export at `out`, if it was made of the same and each file of its model is as it was written."""
    path, model = out / RECORD, out / "model"
    try:
        if path.stat().st_size > LARGEST_RECORD:
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        files = {name: (int(size), str(digest)) for name, (size, digest) in record["files"].items()}
        is_same = record["made_of"] == made_of and math.isfinite(record["lost"])
        if not is_same or files.keys() != {path.name for path in model.iterdir()}:
            return None
        sizes = all((model / name).stat().st_size == size for name, (size, _) in files.items())
        return record if sizes and all(hash_of(model / name) == digest for name, (_, digest) in files.items()) else None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        return None  # there is none, or it is another's
