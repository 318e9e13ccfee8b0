"""Screen training prompts by difficulty: measure their pass rates before training and keep those in a band.

Prompts that the policy solves always or never are left out. All their rewards are equal, so GRPO learns nothing from
them. `screening_rounds` samples them.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grpo_kit.config import Evaluation, RunConfig, to_yaml
from grpo_kit.data import curriculum
from grpo_kit.environments.worlds.loading import load_worlds
from grpo_kit.evaluation.scores import score_rows
from grpo_kit.evaluation.screening_rounds import Line, Progress, is_decided, latest_lines, read_rounds, sample_rounds
from grpo_kit.nemotron import tiny
from grpo_kit.planning import calibrate
from grpo_kit.policy.load import load_policy
from grpo_kit.rewards.tools.calling import Reward
from grpo_kit.rewards.tools.routing import describe_verifier, environment_of, list_judged, make_verifier
from grpo_kit.runs.files import hash_of, write_lines
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.reward_layers import print_layers
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_config_and_run
from grpo_kit.runs.texts import name_functions

HARD, EASY, UNUSABLE = "too hard", "too easy", "gold cannot be used"


def screen(
    config: RunConfig, run: Run, verifier: Reward | str | Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure the pass rates of the run's training prompts, and write which to keep and which to leave out.

    `screened.jsonl` gets the rows to keep, with `pass_rate`, in the order of a curriculum; `left_out.jsonl` the others,
    with their `reason`. A run that is already screened with the same settings is left as it is; an interrupted
    screening resumes.

    Args:
        config: the run's configuration: `data.pass_rate` is the band, `screening` says how many samples.
        run: a run with prepared data.
        verifier: the reward function that judges answers, or the path of its file; None loads `evaluation.verifier`.
        progress: called with (prompts settled, prompts in all, a note) after each round.

    Returns:
        A summary: how many `prompts` there are, how many are `kept` and left out by reason, how many `samples` were
        drawn and how many (`at_most`) it would take without stopping early, a `histogram` of pass rates in ten bins,
        and [kept, all] by source and by environment.

    Raises:
        FileNotFoundError: the run has no data.
        RuntimeError: no prompt would be kept.
        ValueError: the samples on file belong to another policy, verifier, data or sampling; `run.force` discards them.
            Or a verifier refuses to run on this machine.
        TypeError: an argument has another type.

    Example:
        >>> from grpo_kit import open_run, screen
        >>> config, run = open_run(name="first")
        >>> screen(config, run)["kept"]  # doctest: +SKIP
        1830
    """
    require_config_and_run(config, run)
    run.require_stage("data", "grpo-kit data")
    if judged := list_judged(config, run.environments()):
        raise ValueError(
            f"A judge rewards the environment {judged[0]}. It knows better and worse, not right and wrong, so its "
            "prompts have no pass rate. Train without `grpo-kit screen`, or take its source out of data.source."
        )
    verifier = make_verifier(config, run.environments(), verifier)
    sampling = training_sampling(config)
    before = run.stage_before("train")
    adapter = run.stage_files(before).adapter if before else None
    made_with = {
        "policy": config.policy.identity(),
        **({"adapter": hash_of(adapter)} if adapter else {}),
        "sampling": {key: asdict(sampling)[key] for key in ("max_completion_length", "temperature", "top_p", "top_k")},
        "verifier": describe_verifier(verifier),
        "rows": hash_of(run.data_file("train")),
        **load_worlds(config, run.environments()).describe(),
    }
    settings = {
        **made_with,
        "data": {"pass_rate": config.data.pass_rate},
        "screening": asdict(config.screening),
        "seed": config.run.seed,
    }
    rows = read_lines(run.data_file("train"))
    reads = [run.manifest, *([adapter] if adapter else [])]
    if run.is_done("screen", settings, reads, config.run.force, derived=True):
        return _summarise(config, rows, latest_lines(read_rounds(run.screening, made_with, force=False)))

    layers = print_layers([verifier])
    with run.lock("screen"):
        started = time.monotonic()
        earlier = read_rounds(run.screening, made_with, config.run.force)
        placed = replace(config, policy=calibrate.use_counts_of(run, config.policy))
        lines = sample_rounds(placed, adapter, sampling, rows, verifier, earlier, run.screening, progress)
        summary = _summarise(config, rows, lines)
        rated = [row | {"pass_rate": lines[row["id"]]["pass_rate"]} for row in rows]
        reasons = [_reason(lines[row["id"]], config.data.pass_rate) for row in rows]
        kept = [row for row, reason in zip(rated, reasons, strict=True) if not reason]
        left_out = [row | {"reason": reason} for row, reason in zip(rated, reasons, strict=True) if reason]
        if not kept:
            raise RuntimeError(
                f"None of {len(rows)} prompts has a pass rate in data.pass_rate {config.data.pass_rate} "
                f"({summary[HARD]} {HARD}, {summary[EASY]} {EASY}, {summary[UNUSABLE]} with an unusable reference "
                "answer). Widen the band, or take other problems."
            )
        kept_of = Counter(map(environment_of, kept))
        if emptied := [name for name in run.environments() if not kept_of[name]]:
            raise RuntimeError(
                f"No prompt of the environment {emptied[0]} has a pass rate in data.pass_rate {config.data.pass_rate}, "
                "so it could not have its share of the training. Widen the band, take other rows for it, or leave its "
                "source out of data.source."
            )
        write_lines(run.left_out, left_out)
        write_lines(run.screened, curriculum.order_rows(kept, len(kept), config.screening.sigma, config.run.seed))
        files = [run.screening, run.screened, run.left_out]
        run.record_stage("screen", settings, reads, files, time.monotonic() - started, to_yaml(config), **layers)
    return summary


def estimate_pass_rates(
    config: RunConfig, run: Run, verifier: Reward, num_prompts: int = 32, tries: int = 8
) -> list[float]:
    """Pass rates of training rows for a first look, without writing anything.

    Args:
        config: the run's configuration.
        run: a run with prepared data.
        verifier: the reward function that judges answers.
        num_prompts: how many of the first rows to try, where no rates are recorded.
        tries: samples for each of them.

    Returns:
        Rates in [0, 1]: those of `screen` or of the source if there are any, else those of a trial. Only the
        embedded policy is tried, which takes seconds; for a larger one the list is empty.

    Raises:
        FileNotFoundError: the run has no data.
    """
    run.require_stage("data", "grpo-kit data")
    rows = [row for path in (run.screened, run.left_out) if path.is_file() for row in read_lines(path)]
    rows = rows or read_lines(run.data_file("train"))
    recorded = [row["pass_rate"] for row in rows if row["pass_rate"] is not None]
    if recorded or config.policy.model not in tiny.FOLDERS:
        return recorded
    config = replace(config, evaluation=replace(training_sampling(config), num_generations=tries))
    scores = score_rows(*load_policy(config.policy), rows[:num_prompts], verifier, config)
    return [score for score in scores.values() if score is not None]


def is_screened(run: Run) -> bool:
    """Whether the run's training rows are the screened ones.

    Raises:
        ValueError: they were screened and a file has changed since.
        FileNotFoundError: a file that the screening wrote is missing.
    """
    note = run.stages().get("screen")
    if note is None:
        return False
    run.require_stage("screen", "grpo-kit screen")
    hashes = {**note["read"], **note["wrote"]}
    before = run.stage_before("train")
    if before and run.stage_files(before).adapter.relative_to(run.path).as_posix() not in note["read"]:
        raise ValueError(
            f"The prompts of run {run.name!r} were screened before its stage {before!r}, so their pass rates are those "
            "of another policy. " + name_functions("Run `grpo-kit screen --force` again.")
        )
    changed = [name for name, digest in hashes.items() if hash_of(run.path / name) != digest]
    if changed:
        raise ValueError(
            f"{run.path / changed[0]} has changed since the run's prompts were screened, so the screening is out of "
            "date. " + name_functions("Run `grpo-kit screen` again.")
        )
    return True


def training_sampling(config: RunConfig) -> Evaluation:
    """Evaluation settings that sample as training does; the batch size stays evaluation's."""
    grpo = config.grpo
    return replace(
        config.evaluation,
        max_completion_length=grpo.max_completion_length,
        temperature=grpo.temperature,
        top_p=grpo.top_p,
        top_k=grpo.top_k,
    )


def _reason(line: Line, band: list[float]) -> str | None:
    """The reason to leave a prompt out; None: it is kept."""
    if line["pass_rate"] is None:
        return UNUSABLE
    return HARD if line["pass_rate"] < band[0] else EASY if line["pass_rate"] > band[1] else None


def _summarise(config: RunConfig, rows: list[dict[str, Any]], lines: dict[str, Line]) -> dict[str, Any]:
    band, last = config.data.pass_rate, [lines[row["id"]] for row in rows]
    reasons = Counter(_reason(line, band) for line in last)
    bins = Counter(min(9, int(line["pass_rate"] * 10)) for line in last if line["pass_rate"] is not None)
    kept = [row for row, line in zip(rows, last, strict=True) if _reason(line, band) is None]

    def count_by(name_of: Callable[[dict[str, Any]], str]) -> dict[str, list[int]]:
        in_all, in_kept = Counter(map(name_of, rows)), Counter(map(name_of, kept))
        return {name: [in_kept[name], in_all[name]] for name in sorted(in_all)}

    return {
        "prompts": len(rows),
        "kept": reasons[None],
        **{reason: reasons[reason] for reason in (HARD, EASY, UNUSABLE)},
        "undecided": sum(not is_decided(line, band) and line["tried"] > 0 for line in last),
        "samples": sum(line["samples"] for line in last),
        "at_most": config.screening.num_generations * len(rows),
        "histogram": [bins[place] for place in range(10)],
        "sources": count_by(lambda row: row["source"]),
        "environments": count_by(environment_of),
    }
