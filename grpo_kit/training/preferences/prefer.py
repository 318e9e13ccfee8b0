"""The stage `prefer`: DPO on pairs of completions, after GRPO and on the same LoRA."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from grpo_kit.config import RunConfig
from grpo_kit.environments.worlds.loading import load_worlds
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.runs import activity, processes
from grpo_kit.runs.files import hash_of, to_json, write_lines, write_text
from grpo_kit.runs.installation import require_no_old_torchao
from grpo_kit.runs.metrics import last_figures
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_config_and_run
from grpo_kit.training import trackers
from grpo_kit.training.preferences import pairs as pairing
from grpo_kit.training.preferences.groups import read_groups
from grpo_kit.training.preferences.own_pairs import read_own_pairs
from grpo_kit.training.preferences.pairs import Pair
from grpo_kit.training.preferences.rows import Row, encode_pairs, leave_out_long
from grpo_kit.training.rows import longest_row
from grpo_kit.training.stage import TrainingStage
from grpo_kit.training.start import load_for_training

# Importing the policy silences warnings that the next imports would print.
# isort: split

from transformers import PrinterCallback

from grpo_kit.training import callbacks
from grpo_kit.training.metrics_log import MetricsCallback, OnStep
from grpo_kit.training.trl_settings import make_dpo_config

OWN = "completions"  # of dpo.source: the run's own
PRECISION = ("fp16", "bf16", "optim", "gradient_checkpointing")  # of `grpo`


def prefer(
    config: RunConfig,
    run: Run,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train the run's LoRA on pairs of a preferred and a rejected completion, or resume or recognise such a training.

    The pairs are made of the completions that GRPO kept: right without a call over wrong, or over a call of a tool that
    nobody offered. Or `dpo.source` names a file of pairs. The reference is the policy before this stage. Its log-probs
    are computed once and kept.

    Args:
        config: the run's configuration; `dpo` says how to train, precision and optimiser are those of `grpo`.
        run: a run whose data is prepared, and that GRPO has trained if the pairs are its own.
        on_step: is called with each metrics row, after it is written.
        should_stop: is called after each step; when it returns True, the training saves what it has and ends.

    Returns:
        The last row of `prefer/metrics.jsonl`. The folder `prefer` then also holds `adapter/`, `pairs.jsonl`,
        `summary.json`, `reference.json` and `checkpoints/`. Where no pair can be made, nothing is trained or recorded,
        and the result is {"nothing_to_learn": a sentence}.

    Raises:
        FileNotFoundError: the run's data or completions are missing, or the file of pairs.
        ValueError: the stage was trained or begun with other settings, or with another reference; the file of pairs
            holds none that can be used; a tracker is not installed; there are several processes.
        TypeError: an argument has another type.

    Source: DPO is Rafailov et al. 2023, arXiv:2305.18290; DPO against hallucinated calls is NVIDIA's, in the report on
        Nemotron 3 Nano, appendix C.

    Example:
        >>> from grpo_kit import open_run, prefer
        >>> config, run = open_run(name="first")
        >>> prefer(config, run)["rewards/accuracies"]  # doctest: +SKIP
        0.81
    """
    require_config_and_run(config, run)
    run.require_stage("data", "grpo-kit data")
    if config.dpo.source == OWN:
        run.require_stage("train", "grpo-kit train")
    trackers.check_trackers(config.run.report_to)
    if (count := processes.process_count()) > 1:
        raise ValueError(f"There are {count} processes; learning from pairs takes one. Start it without accelerate.")
    stage = prefer_stage(config, run)
    if stage.is_finished():
        return last_figures(stage.files.metrics)
    activity.announce("reading the completions")
    with run.lock(stage.name):
        pairs, rows, summary = find_pairs(config, run)
        if not pairs:
            return {"nothing_to_learn": summary["words"]}
        checkpoint = stage.find_checkpoint()
        print(summary["words"], flush=True)
        folder = stage.files.folder
        write_lines(folder / "pairs.jsonl", (pair._asdict() for pair in pairs))
        write_text(folder / "summary.json", to_json(summary, indent=2) + "\n")
        write_text(stage.files.forecast, to_json({"steps": stage.steps}) + "\n")
        trainer = make_trainer(stage, rows, checkpoint is not None, on_step, should_stop)
        stage.train(trainer, checkpoint)
        stop = callbacks.find_callback(trainer, callbacks.StopCallback)
        wrote = [folder / name for name in ("pairs.jsonl", "summary.json", "reference.json")]
        stage.save_results(trainer, stop.out_of_time, wrote)
    return last_figures(stage.files.metrics)


def prefer_stage(config: RunConfig, run: Run) -> TrainingStage:
    """The stage with all settings that decide its result."""
    settings = {
        "policy": config.policy.identity(),
        "lora": asdict(config.lora),
        "dpo": {key: value for key, value in asdict(config.dpo).items() if key != "save_steps"},
        "precision": {key: getattr(config.grpo, key) for key in PRECISION},
        "seed": config.run.seed,
    }
    source = run.completions if config.dpo.source == OWN else Path(config.dpo.source)
    if not source.is_file():
        raise FileNotFoundError(
            f"dpo.source is {config.dpo.source!r}, which is no file. Write {OWN} for the run's own completions, or the "
            "path of a JSON Lines file with prompt, chosen and rejected."
        )
    return TrainingStage(
        config, run, settings, config.dpo.max_steps, name="prefer", more_reads=[source, run.data_file("train")]
    )


def find_pairs(config: RunConfig, run: Run) -> tuple[list[Pair], list[Row], dict[str, Any]]:
    """The pairs to learn from, their token ids, and what `summary.json` says of them.

    Returns:
        Pairs and rows, empty where there is nothing to learn; `words` of the summary then say why.

    Raises:
        FileNotFoundError, ValueError: as `prefer`.
    """
    tokenizer = load_tokenizer(config.policy)
    limit = longest_row(config, run, tokenizer) if config.dpo.max_length is None else config.dpo.max_length
    summary: dict[str, Any] = {"source": config.dpo.source}
    if config.dpo.source == OWN:
        count_tokens = partial(_count_tokens, tokenizer)
        groups, left_out = read_groups(run, load_worlds(config, run.environments()), count_tokens)
        fitting, longest = leave_out_long(groups, tokenizer, config.policy.enable_thinking, limit)
        made, unbalanced = pairing.make_pairs(fitting, config.dpo.pairs_per_prompt)
        verdicts = {
            "groups": len(groups),
            "mixed": sum(bool(group.chosen and group.rejected) for group in groups),
            "right": sum(bool(group.chosen) and not group.rejected for group in groups),
        }
        left_out |= {"to balance the lengths": unbalanced} if unbalanced else {}
        if longest:
            replies = sum(len(group.replies) for group in groups) - sum(len(group.replies) for group in fitting)
            left_out[f"longer than {limit} tokens"] = replies
        summary |= verdicts
        pairs, rows, _ = encode_pairs(made, tokenizer, config.policy.enable_thinking, limit)
    else:
        made, left_out = read_own_pairs(Path(config.dpo.source), config, run, tokenizer)
        pairs, rows, longest = encode_pairs(made, tokenizer, config.policy.enable_thinking, limit)
        if longest:
            left_out[f"longer than {limit} tokens"] = len(made) - len(pairs)
        pairs, rows = _take_first(pairs, rows, config.dpo.pairs_per_prompt, left_out)
    summary["left_out"] = left_out
    if not pairs:
        return [], [], summary | {"words": _say_nothing(summary, limit, longest)}
    summary |= pairing.summarise_pairs(pairs)
    weight, tokens = config.dpo.sft_loss_weight, summary["chosen_tokens"]
    words = pairing.describe_pairs(summary)
    if left_out:
        words += f" Left out: {_list_counts(left_out)}."
    if longest:
        words += f" The longest has {longest}; raise dpo.max_length to learn from it too."
    if weight:
        words += (
            f" dpo.sft_loss_weight={weight:g} weighs the sum over a pair's chosen tokens, as in NeMo-RL; for TRL's "
            f"mean over tokens that is {weight * tokens:.3g} here."
        )
    return pairs, rows, summary | {"words": words}


def _take_first(
    pairs: list[Pair], rows: list[Row], most: int, left_out: dict[str, int]
) -> tuple[list[Pair], list[Row]]:
    """The first `most` pairs of each prompt, and their rows; `left_out` gets the number of the others."""
    by_prompt: Counter[str] = Counter()
    kept = []
    for pair, row in zip(pairs, rows, strict=True):
        by_prompt[pair.asks] += 1
        if by_prompt[pair.asks] <= most:
            kept.append((pair, row))
    if len(kept) < len(pairs):
        left_out[f"more than dpo.pairs_per_prompt={most}"] = len(pairs) - len(kept)
    return [pair for pair, _ in kept], [row for _, row in kept]


def _count_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def _list_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _say_nothing(summary: dict[str, Any], limit: int, longest: int) -> str:
    left_out = f" Left out: {_list_counts(summary['left_out'])}." if summary["left_out"] else ""
    if longest and summary.get("mixed", True):
        return f"Nothing to learn: every pair is longer than {limit} tokens (dpo.max_length).{left_out}"
    if not summary.get("groups"):
        return f"Nothing to learn: there is no completion that could be compared.{left_out}"
    right, wrong = summary["right"], summary["groups"] - summary["right"]
    harder = "harder" if right >= wrong else "easier"
    return (
        f"Nothing to learn: of {summary['groups']} groups {right} are all right without a call and {wrong} all wrong, "
        f"so no reply to a prompt is better than another.{left_out} The policy stays as it is: train on {harder} "
        "prompts (`grpo-kit screen`), or name a file of pairs (dpo.source)."
    )


def make_trainer(
    stage: TrainingStage,
    rows: list[Row],
    goes_on: bool,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] | None = None,
    policy: tuple[Any, Any] | None = None,
) -> Any:
    """The trainer for these rows; it records into the folder of the stage from its first step on.

    Args:
        stage: from `prefer_stage`.
        rows: token ids of the pairs, which lie in `pairs.jsonl`.
        goes_on: whether steps were taken already.
        on_step, should_stop: as `prefer` takes them.
        policy: (model, tokenizer) if they are loaded already; None loads them.
    """
    require_no_old_torchao()
    from grpo_kit.training.preferences.reference import keep_reference
    from grpo_kit.training.preferences.trainer import PreferenceTrainer
    from grpo_kit.training.trl_internals import machine, versions

    versions.check_versions()
    machine.fit_log_probs()
    config, files = stage.config, stage.files
    model, tokenizer = load_for_training(stage, policy)
    made_from = {
        "policy": stage.settings["policy"],
        "adapter": hash_of(stage.start) if stage.start else None,
        "pairs": hash_of(files.folder / "pairs.jsonl"),
    }
    trainer = PreferenceTrainer(
        rows,
        config.dpo.sft_loss_weight,
        model=model,
        args=make_dpo_config(config, stage.checkpoints),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    activity.announce("asking the policy before this stage")
    path = files.folder / "reference.json"
    trainer.use_reference(keep_reference(path, made_from, len(rows), goes_on, trainer.score_pairs))
    metrics = MetricsCallback(trainer, files.metrics, stage.settings["dpo"] | {"section": "dpo"}, on_step)
    deadline = callbacks.session_deadline(config.run.time_limit, stage.reserved_seconds())
    for callback in (
        callbacks.InterruptCallback(),
        callbacks.AlignCallback(trainer),
        metrics,
        callbacks.GradientCheckCallback(),
        callbacks.StopCallback(metrics, deadline, should_stop, config.grpo.on_alarm),
        callbacks.CheckpointCallback(
            trainer, stage.checkpoints, config.dpo.save_steps, stage.identity, config.policy.model
        ),
        *trackers.make_callbacks(trainer, config.run.report_to, files.folder),
    ):
        trainer.add_callback(callback)
    return trainer
