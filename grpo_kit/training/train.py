"""GRPO on a run's training rows, by TRL's trainer with the kit's draw of prompts (`grpo.trainer.GroupTrainer`)."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_kit.adapters.lora import describe_lora
from grpo_kit.config import MATH, RunConfig
from grpo_kit.data.splits import check_mix
from grpo_kit.environments.worlds.loading import Worlds, load_worlds
from grpo_kit.evaluation import screening
from grpo_kit.evaluation.judge import check as judge_check
from grpo_kit.planning import calibrate
from grpo_kit.policy import tool_calls, vllm_engine
from grpo_kit.policy.thinking_budget import require_room
from grpo_kit.rewards.tools.calling import Reward, reward_names
from grpo_kit.rewards.tools.loading import fingerprint, resolve_rewards
from grpo_kit.rewards.tools.routing import Rewards, combine_rewards, environment_of, find_judges, make_verifier
from grpo_kit.runs import activity, processes
from grpo_kit.runs.files import to_json, write_text
from grpo_kit.runs.installation import require_no_old_torchao
from grpo_kit.runs.metrics import last_figures
from grpo_kit.runs.reward_layers import print_layers
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_config_and_run
from grpo_kit.training import trackers
from grpo_kit.training.grpo.worst_step import WorstStepCallback
from grpo_kit.training.held_out import measure_held_out
from grpo_kit.training.rows import longest_prompts, order_of_draw, training_rows
from grpo_kit.training.stage import TrainingStage
from grpo_kit.training.start import load_for_training

# Importing the policy silences warnings that the next imports would print.
# isort: split

import datasets
from transformers import PrinterCallback, TrainerCallback

from grpo_kit.training import callbacks
from grpo_kit.training.grpo.environment_sampler import EnvironmentSampler
from grpo_kit.training.grpo.prompt_sampler import PromptSampler
from grpo_kit.training.metrics_log import CompletionRecorder, MetricsCallback, OnStep
from grpo_kit.training.trl_settings import make_trl_config

if TYPE_CHECKING:  # importing TRL takes seconds; only training pays for it
    from grpo_kit.training.grpo.trainer import GroupTrainer

OnForecast = Callable[[dict[str, Any]], None]


def train(
    config: RunConfig,
    run: Run,
    reward_funcs: Reward | str | Path | Iterable[Reward | str | Path],
    on_step: OnStep | None = None,
    on_forecast: OnForecast | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train the policy's LoRA adapter with GRPO, or resume or recognise a training that was begun before.

    After the stage `sft` it begins with the adapter of that stage, and a new optimiser. An interrupted run resumes from
    its last checkpoint; one that was stopped keeps its adapter and continues when called again. A finished one is left
    as it is, unless `run.force` is set, or `grpo.max_steps` is higher than before: then it goes on from its adapter and
    optimiser, and `run.json` keeps the earlier training as `train to step N`.

    Args:
        config: the run's configuration; `grpo` and `lora` say how to train.
        run: a run whose data is prepared.
        reward_funcs: one function, or path of a reward file, for each of `grpo.reward_weights`, in its order; the first
            is the verifier. They judge the rows of math; those of other environments are judged by `environments`.
        on_step: is called with each metrics row, after it is written.
        on_forecast: is called before the first step with what the longest step takes, in seconds, tokens and bytes:
            `grpo.worst_step.Forecast` as a dict.
        should_stop: is called after each step; when it returns True, the training saves what it has and ends.

    Returns:
        The last row of `metrics.jsonl`; its `reward` is that of the last step that sampled, None where nothing could be
        judged. The run folder then holds `adapter/`, `metrics.jsonl`, `completions.jsonl`,
        `forecast.json`, `checkpoints/` and `evaluation/probe.safetensors`.

    Raises:
        FileNotFoundError: the run's data is missing.
        ValueError: the run was trained or begun with other settings; a tracker of `run.report_to` is not installed;
            the processes do not divide the completions of a step; there are not as many rewards as weights;
            `data.mix` names other environments than the rows have, or one has no rewards; a reward refuses to run on
            this machine; a judge among the rewards was not measured, or is not good enough.
        RuntimeError: the longest step does not fit the GPU; a LoRA pair gets no gradient; an old torchao is installed.
        TypeError: an argument has another type.

    Source: GRPO is DeepSeekMath's, arXiv:2402.03300; the losses are those of TRL's GRPOTrainer.

    Example:
        >>> from grpo_kit import open_run, train
        >>> config, run = open_run(name="first")
        >>> train(config, run, config.grpo.reward_funcs)["reward"]  # doctest: +SKIP
        0.97
    """
    require_config_and_run(config, run)
    reward_funcs, weights = resolve_rewards("reward_funcs", reward_funcs), config.grpo.reward_weights
    if len(reward_funcs) != len(weights):
        raise ValueError(
            f"The argument reward_funcs has {len(reward_funcs)} of the {len(weights)} rewards that grpo.reward_weights "
            f"({weights}) weighs. Pass config.grpo.reward_funcs, or give grpo.reward_weights one number for each "
            "reward."
        )
    run.require_stage("data", "grpo-kit data")
    trackers.check_trackers(config.run.report_to)
    processes.split_batch(config.grpo)
    stage = grpo_stage(config, run, reward_funcs)
    if stage.is_finished():
        return last_figures(run.metrics)
    rewards = combine_rewards(config, run.environments(), reward_funcs)
    record = judge_check.require_checked(config, run, find_judges(rewards.functions))
    record |= print_layers(rewards.functions)
    activity.announce("reading the run")
    with run.lock("train"):
        checkpoint = stage.find_checkpoint()
        trainer = make_trainer(config, run, reward_funcs, on_step, on_forecast, should_stop, stage=stage)
        stage.train(trainer, checkpoint)
        stage.save_results(
            trainer, callbacks.find_callback(trainer, callbacks.StopCallback).out_of_time, [run.completions], **record
        )
    return last_figures(run.metrics)


def grpo_stage(config: RunConfig, run: Run, reward_funcs: list[Reward]) -> TrainingStage:
    """The stage with all settings that decide its result: policy, LoRA, GRPO, seed, rewards, order of screened rows.

    Raises:
        ValueError: the rows have changed since they were screened.
        FileNotFoundError: the screened rows are gone.
    """
    screened = screening.is_screened(run)
    of_worlds = "max_tool_calling_iterations"  # noted with them
    grpo = {
        key: value for key, value in asdict(config.grpo).items() if key not in ("save_steps", "on_alarm", of_worlds)
    }
    settings = {"screening": {"sigma": config.screening.sigma}} if screened else {}
    settings |= {
        "policy": config.policy.identity(),
        "lora": asdict(config.lora),
        "grpo": grpo,
        "seed": config.run.seed,
        "rewards": dict(zip(reward_names(reward_funcs), map(fingerprint, reward_funcs), strict=True)),
    }
    if (environments := run.environments()) != [MATH]:
        check_mix(config.data.mix, environments)
        combined = combine_rewards(config, environments, reward_funcs)
        settings["rewards"] = dict(
            zip(reward_names(combined.functions), map(fingerprint, combined.functions), strict=True)
        )
        settings["environments"] = {
            name: {key: value for key, value in asdict(config.rewards_of(name)).items() if value is not None}
            for name in environments
            if name != MATH
        }
        if find_judges(combined.functions):
            settings["judge"] = config.judge.identity()
        settings |= load_worlds(config, environments).describe()
        settings["mix"] = config.data.mix
    return TrainingStage(config, run, settings, config.grpo.max_steps, screened)


def make_trainer(
    config: RunConfig,
    run: Run,
    reward_funcs: list[Reward],
    on_step: OnStep | None = None,
    on_forecast: OnForecast | None = None,
    should_stop: Callable[[], bool] | None = None,
    policy: tuple[Any, Any] | None = None,
    stage: TrainingStage | None = None,
) -> "GroupTrainer":
    """The trainer for this run's policy, rows and rewards; it records into the run folder from its first step on.

    Args:
        config, run, reward_funcs, on_step, on_forecast, should_stop: as `train` takes them.
        policy: (model, tokenizer) if they are loaded already; None loads them.
        stage: the result of `grpo_stage` if there is one already; None calls it.
    """
    require_no_old_torchao()
    stage = stage or grpo_stage(config, run, reward_funcs)
    vllm, reason = processes.broadcast_from_first(lambda: vllm_engine.choose_trainer_engine(config))
    if reason:
        warnings.warn(
            f"grpo.vllm={config.grpo.vllm} is not used ({reason}); transformers draws the completions.", stacklevel=2
        )
    model, tokenizer = load_for_training(stage, policy)
    rows = training_rows(config, run, tokenizer, stage.screened, stage.parts)
    environments = run.environments()
    lengths = [stage.max_completion_length for stage in config.grpo.stages] or [config.grpo.max_completion_length]
    require_room(tokenizer, map(config.policy.budget_of, rows), max(lengths), "grpo.max_completion_length")
    rewards = combine_rewards(config, environments, reward_funcs)
    if judges := find_judges(rewards.functions):
        judge_check.hand_over(config, run, judges, judge_check.load_judge(config, (model, tokenizer)))
    recorder = CompletionRecorder(
        run.completions, config.grpo.num_generations, rewards.functions, environments != [MATH]
    )
    worlds = load_worlds(config, environments)
    if worlds.classes:
        tool_calls.require_nemotron(tokenizer)
    rewards = rewards._replace(functions=recorder.watched)
    trainer = _build_trainer(stage, model, tokenizer, rows, rewards, worlds, vllm)

    def save_forecast(forecast: dict[str, Any]) -> None:
        if processes.is_first():
            forecast = forecast | {"lora": describe_lora(model)}
            if experts := calibrate.describe_placement(model):
                forecast["experts"] = experts
            write_text(run.forecast, to_json(forecast, indent=2) + "\n")
            if on_forecast:
                on_forecast(forecast)

    def measure() -> dict[str, Any]:
        verifier = make_verifier(config, environments, reward_funcs[0])
        return measure_held_out(config, run, model, tokenizer, verifier)

    grpo, metrics = config.grpo, MetricsCallback(trainer, run.metrics, stage.settings["grpo"], on_step)
    deadline = callbacks.session_deadline(config.run.time_limit, stage.reserved_seconds())
    in_order: list[TrainerCallback] = [
        callbacks.InterruptCallback(),
        WorstStepCallback(trainer, longest_prompts(config, tokenizer, rows, worlds), save_forecast),
        metrics,
        recorder,
        callbacks.StageCallback(trainer, grpo, metrics),
        callbacks.GradientCheckCallback(),
        callbacks.HeldOutCallback(grpo.eval_steps, measure, metrics),
        callbacks.StopCallback(metrics, deadline, should_stop, grpo.on_alarm),
        callbacks.CheckpointCallback(trainer, stage.checkpoints, grpo.save_steps, stage.identity, config.policy.model),
        *trackers.make_callbacks(trainer, config.run.report_to, run.path),
    ]
    for callback in in_order:
        trainer.add_callback(callback)
    return trainer


def _build_trainer(
    stage: TrainingStage,
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    rewards: Rewards,
    worlds: Worlds,
    vllm: dict[str, Any],
) -> "GroupTrainer":
    from grpo_kit.training.grpo.trainer import GroupTrainer
    from grpo_kit.training.trl_internals import machine, versions

    versions.check_versions()
    machine.fit_log_probs()
    config = stage.config
    pass_rates, draw = [row.get("pass_rate") for row in rows], order_of_draw(config, stage.screened)
    args = make_trl_config(config, stage.checkpoints, **vllm)
    args.reward_weights = rewards.weights
    # TRL takes no step when a step has more prompts than there are rows. The kit draws, whichever rows TRL takes.
    prompts_per_step = args.generation_batch_size // args.num_generations
    enough_rows = rows * -(-prompts_per_step // len(rows))
    # For a KL, TRL keeps a copy of the adapter; a fresh one needs none, since the base model computes the same.
    beta = args.beta
    if stage.start is None:
        args.beta = 0.0
    trained = [(value, value.data) for value in model.parameters() if value.requires_grad]
    draws = {"num_generations": config.grpo.num_generations, "seed": config.run.seed, "kind": draw}
    names = [environment_of(row) for row in rows]
    trainer = GroupTrainer(
        model=model,
        reward_funcs=rewards.functions,
        args=args,
        train_dataset=datasets.Dataset.from_list(
            [{name: row.get(name) for name in ("id", "prompt", "pass_rate")} for row in enough_rows]
        ),
        rows=rows,
        processing_class=tokenizer,
        grpo=config.grpo,
        verifiers=rewards.verifiers,
        worlds=worlds,
        policy=config.policy,
        prompt_sampler=EnvironmentSampler(names, config.data.mix, pass_rates, **draws)
        if len(rewards.verifiers) > 1
        else PromptSampler(pass_rates, **draws),
    )
    trainer.beta = args.beta = beta
    for value, data in trained:  # TRL casts the LoRA of a 4-bit model to bf16, which a T4 lacks
        value.data = data
    trainer.remove_callback(PrinterCallback)  # it prints every row in full; `on_step` is the caller's to show
    return trainer
