"""Rehearse the challenge's scorer: its prompt, template, token limits and latest metric (v15) on its training rows.

The puzzles are those rows of the competition's train.csv that the run was not trained on, sampled by the run's seed,
each family in proportion. A LoRA that the scorer drops is left out. A rehearsed score does not predict the score on the
hidden puzzles, nor what another version of vLLM answers on another card.
"""

import hashlib
import random
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_kit.adapters import scorer
from grpo_kit.adapters.findings import fatal
from grpo_kit.config import RunConfig
from grpo_kit.config.protocols import CHALLENGE_SUFFIX, PROTOCOLS
from grpo_kit.data import cleaning, puzzles, sources
from grpo_kit.data.files import read_rows
from grpo_kit.evaluation.evaluate import Measurement, run_measurement
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.policy.chat import build_messages
from grpo_kit.policy.model_source import base_model_name
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run
from grpo_kit.submission import inspect_zip, output_check

RECIPE, COLUMNS = "nemotron_challenge", ("id", "prompt", "answer")
VERIFIER = PROTOCOLS["challenge"].evaluation["verifier"]  # its default `version` is the scorer's latest
COMPETITION = "nvidia-nemotron-model-reasoning-challenge"


def rehearse_score(
    config: RunConfig,
    run: Run,
    num_puzzles: int = 300,
    zip_path: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score the run's trained policy, or a submission zip, as the challenge's scorer would.

    A score that is finished with the same settings is not repeated, and an interrupted one resumes.

    Args:
        config: the run's configuration.
        run: the run folder; its training rows are left out of the puzzles.
        num_puzzles: how many puzzles to ask, or all of them if there are fewer.
        zip_path: the submission to score; None scores the run's adapter.
        progress: called with (samples drawn, samples in all) each time that some are finished.

    Returns:
        What `evaluation/score.json` holds, as `evaluate.measure` describes it; `by` has the accuracy of each family.

    Raises:
        FileNotFoundError: the run is untrained, or the zip or train.csv is missing.
        ValueError: the zip has a fatal finding, or no puzzle is left to ask.

    Example:
        >>> rehearse_score(config, run, 60)["pass@1"]               # doctest: +SKIP
        0.35
    """
    settings = replace(config.evaluation, protocol="challenge", num_problems=None, modes=[])
    measurement = Measurement("score", settings=settings)
    verifier = load_reward(VERIFIER)
    trained = None if zip_path else run.result
    with tempfile.TemporaryDirectory() as unpacked, tempfile.TemporaryDirectory() as scored:
        if trained:
            measurement = replace(measurement, adapter=trained.adapter)
        else:
            _refuse_fatal_zip(zip_path, base_model_name(config.policy))
            inspect_zip.unpack_adapter(zip_path, Path(unpacked))
            measurement = replace(measurement, adapter=Path(unpacked), source=zip_path)
        if use := output_check.copy_as_scored(measurement.adapter, Path(scored)):
            warnings.warn(f"{use} The score is measured without what it drops.", stacklevel=2)
            source = measurement.source or measurement.adapter
            measurement = replace(measurement, adapter=Path(scored), source=source, engine=scorer.ENGINE)
        measurement = replace(measurement, problems=held_out_puzzles(config, run, num_puzzles))
        return run_measurement(config, run, measurement, verifier, progress)


def held_out_puzzles(config: RunConfig, run: Run, count: int) -> list[Problem]:
    """`count` rows of train.csv that the run was not trained on, as the scorer asks them, each family in proportion.

    Args:
        config: its `data.paths` says where train.csv lies, its `run.seed` decides which rows.
        run: the run whose training rows are left out.
        count: how many rows, or all of them if there are fewer.

    Returns:
        The puzzles in the file's order.

    Raises:
        FileNotFoundError: train.csv is missing.
        ValueError: `count` is below 1, the file is another one, or the run was trained on every row.
    """
    if count < 1:
        raise ValueError(f"--problems is {count}; a score needs at least one puzzle. Set --problems to 1 or more.")
    trained_on, families = _training_problems(run), {}
    for row in _read_train_csv(config):
        problem = cleaning.normalise_text(row["prompt"])
        if problem not in trained_on and hashlib.sha256(problem.encode()).hexdigest()[:16] not in trained_on:
            families.setdefault(puzzles.classify_prompt(row["prompt"]) or "other", []).append(row)
    if not families:
        raise ValueError(
            f"Run {run.name!r} was trained on every row of train.csv, so none is held out. Train without some of them."
        )
    total = sum(map(len, families.values()))
    count, rng, chosen = min(count, total), random.Random(f"score {config.run.seed}"), []
    shares = {name: count * len(rows) / total for name, rows in families.items()}
    counts = {name: int(share) for name, share in shares.items()}
    # Largest remainders: the puzzles that rounding down leaves over go to the families that lost most.
    for name in sorted(shares, key=lambda name: (counts[name] - shares[name], name))[: count - sum(counts.values())]:
        counts[name] += 1
    for name in sorted(families):
        chosen += [row | {"family": name} for row in rng.sample(families[name], counts[name])]
    suffix = PROTOCOLS["challenge"].prompt_suffix
    return [
        Problem("train.csv", build_messages(row["prompt"], suffix), {k: row[k] for k in ("id", "answer", "family")})
        for row in sorted(chosen, key=lambda row: row["line"])
    ]


def _refuse_fatal_zip(zip_path: Path, base: str) -> None:
    wrong = fatal(inspect_zip.inspect_submission(zip_path, base))
    if wrong:
        raise ValueError(
            f"{zip_path} must not be submitted: {wrong[0].what} See `grpo-kit check {zip_path}` for all findings."
        )


def _read_train_csv(config: RunConfig) -> list[dict[str, Any]]:
    source = sources.locate_source(RECIPE, config.data)
    files = [path for path in source.files if path.name == "train.csv"] or list(source.files)
    if not files:
        raise FileNotFoundError(
            f"The competition's train.csv is missing. {sources.explain_attaching(source)} "
            f"`kaggle competitions download -c {COMPETITION}` downloads it."
        )
    rows = []
    for line, row in read_rows(files[0], list(COLUMNS)):
        if not all(isinstance(row.get(column), str) and row[column] for column in COLUMNS):
            raise ValueError(
                f"{files[0]}, line {line} has no {', '.join(COLUMNS)}, so it is not the competition's train.csv. "
                "Point data.paths.nemotron_challenge to that file."
            )
        rows.append({column: row[column] for column in COLUMNS} | {"line": line})
    return rows


def _training_problems(run: Run) -> set[str]:
    """The run's training problems, by id (a hash of the text) and by text without the suffix that was added."""
    stages = run.stages()
    if "data" in stages:
        run.require_stage("data", "grpo-kit data")  # without its rows, trained ones would count as held out
    elif not run.data_file("train").is_file():
        return set()
    suffix = stages.get("data", {}).get("settings", {}).get("data", {}).get("prompt_suffix", "")
    problems = set()
    for row in read_lines(run.data_file("train")):
        text = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        text = text.removesuffix(suffix).removesuffix(CHALLENGE_SUFFIX)
        problems |= {str(row.get("id")), cleaning.normalise_text(text)}
    return problems
