"""GRPO on the run's training rows, by TRL's own trainer with the kit's draw of prompts (`trainer`).

A run is resumed where its last checkpoint stands, by the same call. What is left behind: a metrics row per step and a line
per completion, the adapter written whole or not at all, and a probe of the trained policy's logits, so that what is
packed later can be proved to be this policy.
"""

import functools
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_kit.adapters.lora import add_lora, save_adapter
from grpo_kit.config import RunConfig, to_yaml
from grpo_kit.data import curriculum
from grpo_kit.evaluation import evaluate, screening
from grpo_kit.evaluation.intervals import mean_interval
from grpo_kit.planning import memory
from grpo_kit.policy import vllm_engine
from grpo_kit.policy.chat import completion_text, encode_prompt, prompts_open_thinking, template_conversations
from grpo_kit.policy.load import load_policy
from grpo_kit.rewards.tools.loading import fingerprint
from grpo_kit.runs import processes
from grpo_kit.runs.files import hash_of, new_folder, read_lines, write_text
from grpo_kit.runs.metrics import read_metrics
from grpo_kit.runs.run import Run
from grpo_kit.submission import output_check
from grpo_kit.training import checkpoints, trackers
from grpo_kit.training.time_limit import deadline
from grpo_kit.training.worst_step import WorstStepCallback

# The policy has quieted warnings that the next imports would print.
# isort: split

import datasets
from transformers import PrinterCallback

from grpo_kit.training import callbacks
from grpo_kit.training.metrics_log import CompletionRecorder, MetricsCallback, OnStep, Reward
from grpo_kit.training.prompt_sampler import PromptSampler
from grpo_kit.training.trl_settings import make_trl_config

if TYPE_CHECKING:  # importing TRL takes seconds; only training pays for it
    from grpo_kit.training.trainer import GroupTrainer

RESERVED = 120.0  # seconds of a session left for packing when its time is up, beside what measuring took before

OnForecast = Callable[[dict[str, Any]], None]


def train(
    config: RunConfig, run: Run, reward_funcs: list[Reward], on_step: OnStep | None = None,
    on_forecast: OnForecast | None = None, should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train and write `adapter/`, `metrics.jsonl` and `completions.jsonl`; returns the last metrics row.

    `reward_funcs`: one function for each entry of `grpo.reward_weights`, in its order; the first is the verifier.
    `on_forecast` is called with what the probe step found (`probe.Forecast`, in `forecast.json` too), `on_step` with each
    metrics row; after each step `should_stop` is asked. An interrupted run goes on from its last checkpoint; one that was
    stopped keeps what it has and goes on when called again; one that is through is left as it is. Raises
    FileNotFoundError when its data is missing, ValueError when it was begun with other settings.
    """
    run.require_stage("data", "grpo-kit data")
    trackers.check_trackers(config.run.report_to)
    settings, reads = settings_of(config, run, reward_funcs), [run.manifest]
    if screening.is_screened(run):
        reads.append(run.screened)
    processes.split_batch(config.grpo)
    known = run.stages().get("train", {}).get("steps")
    if (
        processes.broadcast_from_first(lambda: run.is_done("train", settings, reads, config.run.force))
        and known == config.grpo.max_steps
    ):
        return read_metrics(run.metrics)[-1]

    started = time.monotonic()
    folder = run.path / "checkpoints"

    def last_kept() -> tuple[int, Path] | None:
        found = None if config.run.force else checkpoints.find_checkpoint(folder, settings | _hashes(reads))
        if found is None:
            checkpoints.clear_checkpoints(folder)
        return found

    found = processes.broadcast_from_first(last_kept)
    trainer = make_trainer(config, run, reward_funcs, on_step, on_forecast, should_stop)
    if (
        found and found[0] >= config.grpo.max_steps
    ):  # killed between its last step and its note; transformers would go on
        trainer.restore(*found)
        for path in (run.metrics, run.completions):
            processes.broadcast_from_first(functools.partial(checkpoints.drop_rows_after, path, found[0]))
    else:
        trainer.train(resume_from_checkpoint=str(found[1]) if found else None)

    def write() -> None:
        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        with new_folder(run.adapter) as aside:
            save_adapter(model, aside, config.policy.model)
        asked = [row["prompt"] for row in read_lines(run.data_file("test"))[:8]]
        output_check.write_probe(model, trainer.processing_class, asked, config.policy.enable_thinking, run.probe)
        wrote = [run.adapter, run.probe, run.metrics, run.completions]
        steps = trainer.state.global_step
        late = steps < config.grpo.max_steps and trainer.stop.out_of_time
        seconds = time.monotonic() - started
        run.record_stage("train", settings, reads, wrote, seconds, to_yaml(config), steps=steps, out_of_time=late)

    processes.broadcast_from_first(write)
    return read_metrics(run.metrics)[-1]


def settings_of(config: RunConfig, run: Run, reward_funcs: list[Reward]) -> dict[str, Any]:
    """What decides a training's outcome, besides the data."""
    order = {"screening": {"sigma": config.screening.sigma}} if screening.is_screened(run) else {}
    grpo = {key: value for key, value in asdict(config.grpo).items() if key not in ("save_steps", "on_alarm")}
    return order | {
        "policy": config.policy.identity(), "lora": asdict(config.lora), "grpo": grpo, "seed": config.run.seed,
        "rewards": {reward.__name__: fingerprint(reward) for reward in reward_funcs},
    }  # fmt: skip


def make_trainer(
    config: RunConfig, run: Run, reward_funcs: list[Reward], on_step: OnStep | None = None,
    on_forecast: OnForecast | None = None, should_stop: Callable[[], bool] | None = None,
    policy: tuple[Any, Any] | None = None,
) -> "GroupTrainer":  # fmt: skip
    """The trainer on this run's policy, rows and rewards, recording into the run folder from its first step on.

    `policy` is what `load_policy` would load, (model, tokenizer), where it is there already.
    """
    from grpo_kit.training.trainer import GroupTrainer
    from grpo_kit.training.trl_internals import fit_log_probs

    fit_log_probs()
    drawn_by, why = processes.broadcast_from_first(lambda: vllm_engine.sampler(config))
    if why:
        warnings.warn(
            f"grpo.vllm={config.grpo.vllm} is not used ({why}); transformers draws the completions.", stacklevel=2
        )
    model, tokenizer = policy or load_policy(config.policy)
    model = add_lora(model, config.lora, config.run.seed)
    record = CompletionRecorder(run.completions, reward_funcs)
    in_order, draw = screening.is_screened(run), config.grpo.draw
    rows = read_lines(run.screened if in_order else run.data_file("train"))
    if in_order:
        draw = "in_order" if draw == "useful" else draw  # the curriculum goes by pass rates already
        rows = curriculum.order_rows(rows, _prompts_asked(config), config.screening.sigma, config.run.seed)
    thinking = config.policy.enable_thinking
    opened = prompts_open_thinking(tokenizer, rows, thinking)  # rewards may ask: what is unclosed then?
    asked = template_conversations(tokenizer, rows, thinking)
    rows = [
        row | {"prompt": turns, "prompt_opened_think": opens}
        for row, turns, opens in zip(rows, asked, opened, strict=True)
    ]

    def foretell(found: dict[str, Any]) -> None:
        if not processes.is_first():
            return
        write_text(run.forecast, json.dumps(found, indent=2) + "\n")
        if on_forecast:
            on_forecast(found)

    def held_out() -> dict[str, Any]:
        found = evaluate.score_rows(model, tokenizer, read_lines(run.data_file("val")), reward_funcs[0], config)
        known = [score for score in found.values() if score is not None]
        interval = list(mean_interval(known, config.run.seed)) if known else None
        return {"held_out": sum(known) / len(known), "held_out_ci95": interval} if known else {}

    settings = settings_of(config, run, reward_funcs)
    metrics = MetricsCallback(run.metrics, settings["grpo"], on_step)
    probe = WorstStepCallback(_longest(config, tokenizer, rows), foretell)
    stages = callbacks.StageCallback(config.grpo, metrics)
    keeper = callbacks.CheckpointCallback(
        run.path / "checkpoints", config.grpo.save_steps,
        settings | _hashes([run.manifest, *([run.screened] if in_order else [])]), config.policy.model,
    )  # fmt: skip
    left = run.stages().get("before", {}).get("seconds", 0.0) + RESERVED
    stop = callbacks.StopCallback(metrics, deadline(config.run.time_limit, left), should_stop, config.grpo.on_alarm)
    trained = [(value, value.data) for value in model.parameters() if value.requires_grad]
    args = make_trl_config(config, run.path / "checkpoints", **drawn_by)
    # For a KL TRL would keep a copy of the fresh adapter; it says what the base says, which is had by switching ours off.
    beta, args.beta = args.beta, 0.0
    trainer = GroupTrainer(
        model=model,
        reward_funcs=record.watched,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[
            probe, metrics, record, stages, callbacks.GradientCheckCallback(),
            callbacks.HeldOutCallback(config.grpo.eval_steps, held_out, metrics), stop, keeper,
            *trackers.make_tensorboard(config.run.report_to, run.path),
        ],
        grpo=config.grpo,
        book=PromptSampler([row.get("pass_rate") for row in rows], config.grpo.num_generations, config.run.seed, draw),
    )  # fmt: skip
    trainer.beta = args.beta = beta
    probe.trainer = metrics.trainer = stages.trainer = keeper.trainer = trainer
    trainer.keep, trainer.stop = keeper.keep, stop
    for value, data in trained:  # TRL casts the LoRA of a 4-bit model to bf16, which a T4 lacks
        value.data = data
    trainer.remove_callback(PrinterCallback)  # prints every row in full; `on_step` is the caller's to show
    return trainer


def _hashes(reads: list[Path]) -> dict[str, Any]:
    return {"reads": {path.name: hash_of(path) for path in reads}}


def _prompts_asked(config: RunConfig) -> int:
    """How many prompts the run asks in all, a prompt that comes again counted again."""
    grpo = config.grpo
    step = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps // grpo.num_generations
    return -(-grpo.max_steps // grpo.num_iterations) * step


def _longest(config: RunConfig, tokenizer: Any, rows: list[dict[str, Any]]) -> list[list[int]]:
    """Token ids of the longest prompts, as many as a step asks at most, the longest first. Found by characters, then counted."""
    step = memory.sampled_at_once(config.grpo) // config.grpo.num_generations
    longest = sorted(rows, key=lambda row: -len(completion_text(row["prompt"])))[: max(step, 64)]
    thinking = config.policy.enable_thinking
    ids = sorted((encode_prompt(tokenizer, row["prompt"], thinking) for row in longest), key=len, reverse=True)
    return [ids[i % len(ids)] for i in range(step)]
