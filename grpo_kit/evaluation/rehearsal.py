"""The challenge's scorer, rehearsed: its prompt, template, token limits and last metric (v15) on rows it gave away.

The rows are those of the competition's train.csv that the run was not trained on, drawn by the run's seed, each family by its
share. What a score here cannot tell is how other puzzles go, and what another version of vLLM on another card says.
"""

import hashlib
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_kit.config import RunConfig
from grpo_kit.config.protocols import CHALLENGE_SUFFIX, PROTOCOLS
from grpo_kit.data import cleaning, puzzles, sources
from grpo_kit.data.files import read
from grpo_kit.evaluation import evaluate, problem_sets
from grpo_kit.policy.chat import build_messages
from grpo_kit.policy.load import base_name
from grpo_kit.runs.files import read_lines
from grpo_kit.runs.run import Run
from grpo_kit.submission import findings, inspect_zip, output_check

RECIPE, COLUMNS = "nemotron_challenge", ("id", "prompt", "answer")
VERIFIER = PROTOCOLS["challenge"].evaluation["verifier"]  # its `version` is the scorer's last unless it is told another
COMPETITION = "nvidia-nemotron-model-reasoning-challenge"


def score(
    config: RunConfig, run: Run, verifier: Callable[..., list[float | None]], count: int = 300,
    zip_path: Path | None = None, progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score the run's trained policy, or the submission `zip_path`; write and return `evaluation/score.json`.

    As `before.json`, with `pass@1` and `ci95` by family under `by`. Broken off, it goes on where it stood. Raises
    FileNotFoundError for an untrained run, a missing zip or a missing train.csv, ValueError for a zip that the doctor stops.
    """
    how = replace(config.evaluation, protocol="challenge", num_problems=None)
    if zip_path is None:
        run.require_stage("train", "grpo-kit train")
        return evaluate.measure(
            "score", config, run, verifier, run.adapter, progress, held_out(config, run, count), how
        )
    with tempfile.TemporaryDirectory() as folder:
        _check(zip_path, base_name(config.policy))
        output_check.unpack_adapter(zip_path, Path(folder))
        return evaluate.measure(
            "score", config, run, verifier, Path(folder), progress, held_out(config, run, count), how, zip_path
        )


def _check(zip_path: Path, base: str) -> None:
    wrong = [
        finding for finding in inspect_zip.inspect_submission(zip_path, base) if finding.severity == findings.FATAL
    ]
    if wrong:
        raise ValueError(f"{zip_path} must not be submitted: {wrong[0].what} `grpo-kit check {zip_path}` says more.")


def held_out(config: RunConfig, run: Run, count: int) -> list[problem_sets.Problem]:
    """`count` rows of train.csv that the run was not trained on, as the scorer asks them, each family by its share.

    All of them where there are fewer. The same for the same seed, in the file's order. Raises what `score` raises.
    """
    if count < 1:
        raise ValueError(f"{count} puzzles were asked for; a score needs at least one. Set --problems to 1 or more.")
    seen, families = _trained_on(run), {}
    for row in _rows(config):
        problem = cleaning.normalise_text(row["prompt"])
        if problem not in seen and hashlib.sha256(problem.encode()).hexdigest()[:16] not in seen:
            families.setdefault(puzzles.classify_prompt(row["prompt"]) or "other", []).append(row)
    if not families:
        raise ValueError(
            f"Run {run.name!r} was trained on every row of train.csv, so none is held out. Hold some back."
        )
    there = sum(map(len, families.values()))
    count, rng, drawn = min(count, there), random.Random(f"score {config.run.seed}"), []
    shares = {name: count * len(rows) / there for name, rows in families.items()}
    whole = {name: int(share) for name, share in shares.items()}
    for name in sorted(shares, key=lambda name: (whole[name] - shares[name], name))[: count - sum(whole.values())]:
        whole[name] += 1
    for name in sorted(families):
        drawn += [row | {"family": name} for row in rng.sample(families[name], whole[name])]
    suffix = PROTOCOLS["challenge"].prompt_suffix
    return [
        problem_sets.Problem(
            "train.csv", build_messages(row["prompt"], suffix), {k: row[k] for k in ("id", "answer", "family")}
        )
        for row in sorted(drawn, key=lambda row: row["line"])
    ]


def _rows(config: RunConfig) -> list[dict[str, Any]]:
    source = sources.locate_source(RECIPE, config.data)
    files = [path for path in source.files if path.name == "train.csv"] or list(source.files)
    if not files:
        raise FileNotFoundError(
            f"The competition's train.csv is not here. {sources.explain_attaching(source)} `kaggle competitions download -c {COMPETITION}` fetches it."
        )
    rows = []
    for line, row in read(files[0], list(COLUMNS)):
        if not all(isinstance(row.get(column), str) and row[column] for column in COLUMNS):
            raise ValueError(
                f"{files[0]}, line {line} has no {', '.join(COLUMNS)}; it is not the competition's train.csv. Attach that."
            )
        rows.append({column: row[column] for column in COLUMNS} | {"line": line})
    return rows


def _trained_on(run: Run) -> set[str]:
    """Problems of the run's training rows: their hashes, which its ids are, and their text, without what was put after it."""
    if not run.data_file("train").is_file():
        return set()
    suffix = run.stages().get("data", {}).get("settings", {}).get("data", {}).get("prompt_suffix", "")
    found = set()
    for row in read_lines(run.data_file("train")):
        text = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        text = text.removesuffix(suffix).removesuffix(CHALLENGE_SUFFIX)
        found |= {str(row.get("id")), cleaning.normalise_text(text)}
    return found
