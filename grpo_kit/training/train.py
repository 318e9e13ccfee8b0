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
from grpo_kit.training.worst_step import ProbeStep

# The policy has quieted warnings that the next imports would print.
# isort: split

import datasets
import torch
from transformers import PrinterCallback

from grpo_kit.training import callbacks
from grpo_kit.training.metrics_log import CompletionRecord, MetricsRecord, OnStep, Reward
from grpo_kit.training.prompt_book import PromptBook

if TYPE_CHECKING:  # importing TRL takes seconds; only training pays for it
    from trl import GRPOConfig

    from grpo_kit.training.trainer import UsefulTrainer

# Of `grpo`, what is passed elsewhere: reward functions to the trainer, the rest to what is ours.
OURS = (
    "reward_funcs", "advantage", "normalize_rewards", "draw", "resample_budget", "stages", "save_steps", "eval_steps", "on_alarm",
    "vllm",
)  # fmt: skip
RESERVED = 120.0  # seconds of a session left for packing when its time is up, beside what measuring took before

OnForecast = Callable[[dict[str, Any]], None]


def to_trl(config: RunConfig, output_dir: Path, **more: Any) -> "GRPOConfig":
    """The `trl.GRPOConfig` that this configuration means, on this machine, for each of its processes; `more` keywords beside."""
    from trl import GRPOConfig

    batch, accumulation = processes.split_batch(config.grpo)
    args = GRPOConfig(
        **trl_arguments(config) | {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation},
        use_cpu=processes.process_device() == "cpu",
        # An expert that no token of a process's part chose has no gradient there; elsewhere every LoRA has one.
        ddp_find_unused_parameters=any(t in ("up_proj", "down_proj") for t in config.lora.target_modules),
        output_dir=str(output_dir),
        shuffle_dataset=False,  # prompts are drawn when they are needed (`drawing`), whatever TRL hands over
        logging_steps=1,
        save_strategy="no",  # `resume.save` says when
        ignore_data_skip=True,
        report_to=trackers.told_to_transformers(config.run.report_to),
        project="grpo-kit",
        run_name=config.run.name,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **more,
    )
    # transformers 5.23 multiplies the batch by the GPUs it sees. We train on one; a second one holds experts.
    args._n_gpu = min(1, args.n_gpu)
    return args


def trl_arguments(config: RunConfig) -> dict[str, Any]:
    """What this configuration means wherever TRL runs it, as keywords of `GRPOConfig`: the one place that knows them."""
    grpo = asdict(config.grpo)
    if stages := grpo["stages"]:  # the longest, which the probe step tries; `callbacks.Stages` sets each step's
        grpo["max_completion_length"] = max(stage["max_completion_length"] for stage in stages)
    for ours in OURS:
        del grpo[ours]
    if grpo["loss_type"] == "gspo":  # arXiv:2507.18071: ratio and clipping by sequence
        grpo |= {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    grpo["epsilon_high"] = callbacks.trl_epsilon_high(config.grpo)
    checkpointing = grpo.pop("gradient_checkpointing")  # TRL's name; transformers 5 calls it activation_checkpointing
    return grpo | {
        "scale_rewards": "group" if config.grpo.normalize_rewards else "none",  # for TRL's own figures
        "activation_checkpointing": checkpointing,
        "seed": config.run.seed,
        "chat_template_kwargs": {"enable_thinking": config.policy.enable_thinking},
    }


def fit_log_probs() -> None:
    """Let TRL compute log-probs in what this machine has: no Triton below sm_80, and without Triton in small tiles.

    TRL 1.16 takes Triton wherever it is installed; Triton 3.3 dropped sm_75. Without it TRL holds 7.25 float32 copies of a
    tile of logits, 3.6 GiB of them at its own 4096 tokens. A token's log-prob needs no other token's, so the tile's
    size changes nothing but memory.
    """
    from trl.kernels import chunked_logprob

    gpu = torch.cuda.is_available()
    if gpu and torch.cuda.get_device_capability() < (8, 0):
        chunked_logprob._TRITON_AVAILABLE = False
    if not gpu or not chunked_logprob._TRITON_AVAILABLE:
        chunked_logprob.TOKEN_CHUNK_SIZE = memory.TILE_TOKENS


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
    trackers.check(config.run.report_to)
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
        found = None if config.run.force else checkpoints.latest(folder, settings | _hashes(reads))
        if found is None:
            checkpoints.clear(folder)
        return found

    found = processes.broadcast_from_first(last_kept)
    trainer = make_trainer(config, run, reward_funcs, on_step, on_forecast, should_stop)
    if (
        found and found[0] >= config.grpo.max_steps
    ):  # killed between its last step and its note; transformers would go on
        trainer.restore(*found)
        for path in (run.metrics, run.completions):
            processes.broadcast_from_first(functools.partial(checkpoints.cut_back, path, found[0]))
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
) -> "UsefulTrainer":  # fmt: skip
    """The trainer on this run's policy, rows and rewards, recording into the run folder from its first step on.

    `policy` is what `load_policy` would load, (model, tokenizer), where it is there already.
    """
    from grpo_kit.training.trainer import UsefulTrainer

    fit_log_probs()
    drawn_by, why = processes.broadcast_from_first(lambda: vllm_engine.sampler(config))
    if why:
        warnings.warn(
            f"grpo.vllm={config.grpo.vllm} is not used ({why}); transformers draws the completions.", stacklevel=2
        )
    model, tokenizer = policy or load_policy(config.policy)
    model = add_lora(model, config.lora, config.run.seed)
    record = CompletionRecord(run.completions, reward_funcs)
    in_order, draw = screening.is_screened(run), config.grpo.draw
    rows = read_lines(run.screened if in_order else run.data_file("train"))
    if in_order:
        draw = "in_order" if draw == "useful" else draw  # the curriculum goes by pass rates already
        rows = curriculum.order(rows, _prompts_asked(config), config.screening.sigma, config.run.seed)
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
        found = evaluate.scores(model, tokenizer, read_lines(run.data_file("val")), reward_funcs[0], config)
        known = [score for score in found.values() if score is not None]
        interval = list(mean_interval(known, config.run.seed)) if known else None
        return {"held_out": sum(known) / len(known), "held_out_ci95": interval} if known else {}

    settings = settings_of(config, run, reward_funcs)
    metrics = MetricsRecord(run.metrics, settings["grpo"], on_step)
    probe = ProbeStep(_longest(config, tokenizer, rows), foretell)
    stages = callbacks.Stages(config.grpo, metrics)
    keeper = callbacks.Keeper(
        run.path / "checkpoints", config.grpo.save_steps,
        settings | _hashes([run.manifest, *([run.screened] if in_order else [])]), config.policy.model,
    )  # fmt: skip
    left = run.stages().get("before", {}).get("seconds", 0.0) + RESERVED
    stop = callbacks.Stop(metrics, deadline(config.run.time_limit, left), should_stop, config.grpo.on_alarm)
    trained = [(value, value.data) for value in model.parameters() if value.requires_grad]
    args = to_trl(config, run.path / "checkpoints", **drawn_by)
    # For a KL TRL would keep a copy of the fresh adapter; it says what the base says, which is had by switching ours off.
    beta, args.beta = args.beta, 0.0
    trainer = UsefulTrainer(
        model=model,
        reward_funcs=record.watched,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[
            probe, metrics, record, stages, callbacks.GradientCheck(),
            callbacks.HeldOut(config.grpo.eval_steps, held_out, metrics), stop, keeper,
            *trackers.callbacks(config.run.report_to, run.path),
        ],
        grpo=config.grpo,
        book=PromptBook([row.get("pass_rate") for row in rows], config.grpo.num_generations, config.run.seed, draw),
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
