"""How many of the challenge's puzzles the solvers explain, and how long their traces are, by family.

    python benchmarks/puzzle_traces.py [--tokenizer FOLDER] [--rows train.csv] [--quick] [--record]

FOLDER is a tokenizer as transformers loads it; without it the embedded policy's is taken, whose tokens are bytes. The
rows are the challenge's train.csv, by default the one in the folder that GRPO_KIT_SHARED names, or beside the
repository in `shared`; without a file the kit generates 1,200 puzzles. A row counts as explained if its trace ends in
the answer of the row. --quick takes every twentieth row; --record appends the figures to notes/benchmarks.md.
"""

import argparse
import csv
import os
import sys
from pathlib import Path

from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit.data.puzzles import make_rows
from grpo_kit.data.puzzles.traces import solver_traces, summarise_traces
from grpo_kit.nemotron import tiny

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("GRPO_KIT_SHARED") or REPOSITORY.parent / "shared")
LIMITS = {7680: "scorer", 2048: "80gb, t4-4b", 1024: "24gb", 512: "t4"}  # tokens: who has so many for a completion
SUFFIX = "\nPlease put your final answer inside `\\boxed{}`. For example: `\\boxed{your answer}`"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=tiny.FOLDER)
    parser.add_argument("--rows", type=Path, default=SHARED / "data/nemotron_challenge/train.csv")
    parser.add_argument("--quick", action="store_true", help="take every twentieth row")
    parser.add_argument("--record", action="store_true", help="append the figures, dated, to notes/benchmarks.md")
    return parser.parse_args()


def read_puzzles(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return make_rows(1200, seed=0)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    chosen = parse_arguments()
    puzzles = read_puzzles(chosen.rows)[:: 20 if chosen.quick else 1]
    tokenizer = AutoTokenizer.from_pretrained(chosen.tokenizer)

    def count_tokens(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    rows, left_out = solver_traces(puzzles, count_tokens, suffix=SUFFIX)
    table = []
    for entry in summarise_traces(rows, left_out, list(LIMITS)):
        total = entry["rows"] + sum(entry["left_out"].values())
        line = {"family": entry["family"] or "other", "rows": total, "explained": f"{entry['rows'] / total:.1%}"}
        line["left out"] = ", ".join(f"{count} {reason}" for reason, count in entry["left_out"].items()) or "none"
        line |= {name: entry.get(name, "") for name in ("median", "ninetieth", "longest")}
        line |= {f"within {limit:,}": f"{share:.1%}" for limit, share in entry.get("within", {}).items()}
        table.append(line)
    fitting = sum(row["tokens"] <= max(LIMITS) for row in rows)
    figures = {"puzzles": len(puzzles), "explained": len(rows), f"within_{max(LIMITS)}": fitting}
    figures["vocabulary"] = len(tokenizer)
    report.finish("puzzle_traces", table, figures, chosen.record)


if __name__ == "__main__":
    main()
