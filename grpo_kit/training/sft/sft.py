"""The stage `sft`: the policy learns from texts, before GRPO, through the run's one LoRA."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from grpo_kit.adapters.lora import describe_lora
from grpo_kit.config import RunConfig
from grpo_kit.planning import calibrate
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.policy.model_source import build_config
from grpo_kit.runs import activity, processes
from grpo_kit.runs.files import to_json, write_text
from grpo_kit.runs.installation import require_no_old_torchao
from grpo_kit.runs.metrics import read_metrics
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_config_and_run
from grpo_kit.training import trackers
from grpo_kit.training.rows import longest_row
from grpo_kit.training.sft import sources
from grpo_kit.training.sft.rows import Row, apply_recipe, describe_rows, encode_examples
from grpo_kit.training.stage import TrainingStage
from grpo_kit.training.start import load_for_training

# isort: split

from grpo_kit.training import callbacks
from grpo_kit.training.metrics_log import MetricsCallback, OnStep
from grpo_kit.training.trl_settings import make_sft_config

if TYPE_CHECKING:  # importing TRL takes seconds; only training pays for it
    from grpo_kit.training.sft.trainer import TextTrainer

ROWS_FILE, WEAKEST_FILE = "rows.json", "weakest.json"  # of the stage's folder


def sft(
    config: RunConfig,
    run: Run,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_rows: Callable[[dict[str, Any]], None] | None = None,
    on_forecast: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train the policy's LoRA on texts, or resume or recognise a training that was begun before.

    `train` goes on from the adapter that this stage writes, with a new optimiser. An interrupted training resumes from
    its last checkpoint. A finished one is left as it is, unless `run.force` is set or `sft.max_steps` is higher.

    Args:
        config: the run's configuration; `sft` says on what and how, `grpo` in which precision.
        run: a run whose data is prepared.
        on_step: is called with each metrics row, after it is written.
        should_stop: is called after each step; when it returns True, the training saves what it has and ends.
        on_rows: is called before the policy is loaded with what is trained on, as `sft/rows.json` has it.
        on_forecast: is called before the first step with what the longest step takes.

    Returns:
        The last row of `sft/metrics.jsonl`. The folder `sft` then also holds the adapter, `rows.json`, `weakest.json`
        (the places where greedy decoding fails first) and checkpoints.

    Raises:
        FileNotFoundError: the run's data or a source is missing.
        ValueError: a source cannot be read or gives no text that fits; the stage was made with other settings; there
            are several processes.
        RuntimeError: the longest texts do not fit the GPU; a LoRA pair gets no gradient.
        TypeError: an argument has another type.

    Source: rejection sampling is the first stage of Llama 2 (arXiv:2307.09288, section 3.2); the recipe for thoughts is
        NVIDIA Nemotron 3 Nano's technical report, section 3.1.

    Example:
        >>> from grpo_kit import open_run, sft
        >>> config, run = open_run(["tiny"], ["sft.source=texts.jsonl"], name="first")
        >>> sft(config, run)["loss"]  # doctest: +SKIP
        0.04
    """
    require_config_and_run(config, run)
    if (count := processes.process_count()) > 1:
        raise ValueError(
            f"`grpo-kit sft` was started in {count} processes, and it trains in one. Start it once, without a launcher."
        )
    run.require_stage("data", "grpo-kit data")
    trackers.check_trackers(config.run.report_to)
    stage = sft_stage(config, run, sources.locate_sources(config, run))
    if stage.is_finished():
        return read_metrics(stage.files.metrics)[-1]
    activity.announce("reading the texts")
    with run.lock("sft"):
        checkpoint = stage.find_checkpoint()
        trainer = make_trainer(stage, on_step, should_stop, on_rows, on_forecast)
        stage.train(trainer, checkpoint)
        _save_weakest(stage, trainer)
        wrote = [stage.files.folder / name for name in (ROWS_FILE, WEAKEST_FILE)]
        stage.save_results(trainer, callbacks.find_callback(trainer, callbacks.StopCallback).out_of_time, wrote)
    return read_metrics(stage.files.metrics)[-1]


def sft_stage(config: RunConfig, run: Run, located: list[sources.TextSource]) -> TrainingStage:
    """The stage with all settings that decide its result.

    Args:
        config: the run's configuration.
        run: the run.
        located: the sources, as `sources.locate_sources` gives them.
    """
    precision = ("optim", "fp16", "bf16", "gradient_checkpointing")
    settings = {
        "policy": config.policy.identity(),
        "lora": asdict(config.lora),
        "sft": {key: value for key, value in asdict(config.sft).items() if key != "save_steps"},
        "seed": config.run.seed,
        "precision": {key: getattr(config.grpo, key) for key in precision},
    }
    files = [path for source in located for path in source.files]
    return TrainingStage(config, run, settings, config.sft.max_steps, name="sft", more_reads=files)


def read_rows(config: RunConfig, run: Run) -> tuple[list[Row], dict[str, Any]]:
    """The texts that the stage trains on, in tokens, and what `describe_rows` says of them.

    Args:
        config: the run's configuration.
        run: a run whose data is prepared.

    Raises:
        ValueError: no text fits, or as `sources.read_sources`.
        FileNotFoundError: the policy's tokenizer or a source is missing.
    """
    tokenizer = load_tokenizer(config.policy)
    longest = config.sft.max_length or longest_row(config, run, tokenizer)
    _require_context(config, longest)

    def count_tokens(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    located = sources.locate_sources(config, run)
    examples, left_out, families = sources.read_sources(config, run, located, count_tokens)
    if config.sft.reasoning == "recipe":
        examples = apply_recipe(examples, tokenizer, config.run.seed)
    rows, refused = encode_examples(tokenizer, examples, longest)
    left_out += refused
    if not rows:
        raise ValueError(
            f"Not one of the {len(examples)} texts of sft.source={config.sft.source} can be trained on, of up to "
            f"{longest} tokens. {sources.describe_left_out(left_out)} Raise sft.max_length, or correct the texts."
        )
    return rows, describe_rows(rows, left_out, families)


def make_trainer(
    stage: TrainingStage,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_rows: Callable[[dict[str, Any]], None] | None = None,
    on_forecast: Callable[[dict[str, Any]], None] | None = None,
    policy: tuple[Any, Any] | None = None,
) -> "TextTrainer":
    """The trainer of this stage; it records into the stage's folder from its first step on.

    Args:
        stage: the result of `sft_stage`.
        on_step, should_stop, on_rows, on_forecast: as `sft` takes them.
        policy: (model, tokenizer) if they are loaded already; None loads them.
    """
    config, run, files = stage.config, stage.run, stage.files
    require_no_old_torchao()
    rows, summary = read_rows(config, run)
    write_text(files.folder / ROWS_FILE, to_json(summary, indent=2) + "\n")
    if on_rows:
        on_rows(summary)
    model, tokenizer = load_for_training(stage, policy)
    from grpo_kit.training.sft.trainer import LongestTextsCallback, TextTrainer
    from grpo_kit.training.trl_internals import machine, versions

    versions.check_versions()
    machine.fit_log_probs()
    trainer = TextTrainer(model, make_sft_config(config, files.checkpoints), rows, tokenizer)

    def save_forecast(forecast: dict[str, Any]) -> None:
        forecast = forecast | {"lora": describe_lora(model)}
        if experts := calibrate.describe_placement(model):
            forecast["experts"] = experts
        write_text(files.forecast, to_json(forecast, indent=2) + "\n")
        if on_forecast:
            on_forecast(forecast)

    metrics = MetricsCallback(trainer, files.metrics, stage.settings["sft"] | {"section": "sft"}, on_step)
    deadline = callbacks.session_deadline(config.run.time_limit, stage.reserved_seconds())
    base = config.policy.model
    for callback in (
        callbacks.InterruptCallback(),
        LongestTextsCallback(trainer, save_forecast),
        metrics,
        callbacks.AlignCallback(trainer),
        callbacks.GradientCheckCallback(),
        callbacks.StopCallback(metrics, deadline, should_stop, config.grpo.on_alarm),
        callbacks.CheckpointCallback(trainer, files.checkpoints, config.sft.save_steps, stage.identity, base),
        *trackers.make_callbacks(trainer, config.run.report_to, files.folder),
    ):
        trainer.add_callback(callback)
    return trainer


def _save_weakest(stage: TrainingStage, trainer: "TextTrainer") -> None:
    from grpo_kit.training.sft.weakest import find_weakest

    activity.announce("scoring the texts")
    began = time.monotonic()
    found = find_weakest(trainer, trainer.rows, stage.config.run.seed)
    seconds = round(time.monotonic() - began, 1)
    write_text(stage.files.folder / WEAKEST_FILE, to_json(found | {"seconds": seconds}, indent=2) + "\n")


def _require_context(config: RunConfig, longest: int) -> None:
    context = getattr(build_config(config.policy), "max_position_embeddings", None)
    if context and longest > context:
        raise ValueError(
            f"A text may have {longest} tokens (sft.max_length, or GRPO's longest row), and the context of "
            f"{config.policy.model} has {context}. Set sft.max_length to {context} or less."
        )
