"""Small sources written by tests, and what is read of them."""

import json

from grpo_kit import config
from grpo_kit.data import sources


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(item, data=None, **options):
    """(problem, gold, reason) of each row of the source `item`."""
    data = data or config.Data()
    source = sources.locate_source(item, data, **options)
    return [(row.problem, row.gold, row.reason) for row in sources.read_source(source, data, 0)]
