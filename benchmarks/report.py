"""What every benchmark prints: a table, one line of JSON, and with --record a row in the notes."""

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

NOTES = Path(__file__).resolve().parents[1] / "notes" / "benchmarks.md"


def arguments(doc: str, **choices: tuple[str, ...]) -> argparse.Namespace:
    """Parse `--quick`, `--record`, and an option for each of `choices`, whose first value is the default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="end within a minute on two cores")
    parser.add_argument("--record", action="store_true", help="append the figures, dated, to notes/benchmarks.md")
    for name, values in choices.items():
        parser.add_argument(f"--{name}", choices=values, default=values[0], help=f"default: {values[0]}")
    return parser.parse_args()


def finish(name: str, rows: list[dict[str, Any]], figures: dict[str, Any], record: bool) -> None:
    """Print `rows` as a table and `figures` as the last line; with `record`, append both to notes/benchmarks.md."""
    table = Table(*rows[0], title=name)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    if record:
        lines = [
            f"\n### {name}, {date.today()}, {hardware()}\n",
            "| " + " | ".join(rows[0]) + " |",
            "|---" * len(rows[0]) + "|",
        ]
        lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
        lines += ["", ", ".join(f"{key} {value}" for key, value in figures.items()), ""]
        with NOTES.open("a", encoding="utf-8") as notes:
            notes.write("\n".join(lines))
    print(json.dumps({"benchmark": name, **figures}))


def hardware() -> str:
    """This machine in a few words: GPU if there is one, cores, Python, torch."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores {platform.machine()}, {gpu}, {versions}"
