"""What a stage would do, printed instead of done: `--dry-run`."""

import shlex
import sys
from pathlib import Path

from rich.markup import escape

from grpo_kit.config import RunConfig, to_yaml
from grpo_kit.display import console
from grpo_kit.runs.run import Run


def is_dry_run(dry_run: bool, config: RunConfig, run: Run, reads: Path | str, writes: list[Path]) -> bool:
    """Whether this is a dry run; if so, print what would be done."""
    if dry_run:
        console.out.print(escape(to_yaml(config)), end="")
        places = f"# run folder: {run.path}\n# reads {reads}\n# writes {', '.join(map(str, writes))}"
        console.out.print(escape(places))
        console.out.print("# dry run: nothing was touched")
        words = [word for word in sys.argv[1:] if word != "--dry-run"]
        console.out.print(escape(f"# next: {console.program_name()} {shlex.join(words)}"))
    return dry_run


def name_reads(run: Run, source: str) -> str:
    """What a stage reads beside the run's data, which it needs too; where that is missing, the remedy."""
    data = run.data_file("train")
    return f"{source} and {data}{'' if data.exists() else ' (missing: run `grpo-kit data` first)'}"
