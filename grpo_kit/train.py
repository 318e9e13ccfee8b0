"""GRPO on the run's training rows, by TRL's own trainer; the only file that knows TRL.

What is added to TRL: the worst step tried before the first, a metrics row per step and a line per completion in the run
folder, the adapter written whole or not at all, and a probe of the trained policy's logits, so that what is packed later
can be proved to be this policy.
"""

import functools
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_kit import prompts, submission, tiers, trackers, workspace
from grpo_kit.adapter import add_lora, save_adapter
from grpo_kit.config import RunConfig, to_yaml
from grpo_kit.policy import load_policy
from grpo_kit.probe import ProbeStep
from grpo_kit.reward_files import fingerprint

# The policy has quieted warnings that the next imports would print.
# isort: split

import datasets
from transformers import PrinterCallback, TrainerCallback

if TYPE_CHECKING:  # importing TRL takes seconds; only training pays for it
    from trl import GRPOConfig, GRPOTrainer

Reward = Callable[..., list[float | None]]
OnStep = Callable[[dict[str, Any]], None]
OnForecast = Callable[[dict[str, Any]], None]


def to_trl(config: RunConfig, output_dir: Path) -> "GRPOConfig":
    """The `trl.GRPOConfig` that this configuration means: the one place that knows TRL's constructor."""
    from trl import GRPOConfig

    grpo = asdict(config.grpo)
    del grpo["reward_funcs"]  # functions, passed to the trainer
    checkpointing = grpo.pop("gradient_checkpointing")  # TRL's name; transformers 5 calls it activation_checkpointing
    return GRPOConfig(
        **grpo,
        activation_checkpointing=checkpointing,
        output_dir=str(output_dir),
        seed=config.run.seed,
        chat_template_kwargs={"enable_thinking": config.policy.enable_thinking},
        logging_steps=1,
        save_strategy="no",
        report_to=trackers.told_to_transformers(config.run.report_to),
        project="grpo-kit",
        run_name=config.run.name,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def train(
    config: RunConfig, run: workspace.Run, reward_funcs: list[Reward], on_step: OnStep | None = None,
    on_forecast: OnForecast | None = None, should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train and write `adapter/`, `metrics.jsonl` and `completions.jsonl`; returns the last metrics row.

    `reward_funcs`: one function for each entry of `grpo.reward_weights`, in its order. `on_forecast` is called with what the
    probe step found (`probe.Forecast`), which is in `forecast.json` too, `on_step` with each metrics row; after each step `should_stop` is asked. A run that is trained already is left as it is. Raises FileNotFoundError when its data is missing.
    """
    run.need("data", "grpo-kit data")
    trackers.check(config.run.report_to)
    settings = {
        "policy": config.policy.identity(), "lora": asdict(config.lora), "grpo": asdict(config.grpo), "seed": config.run.seed,
        "rewards": {reward.__name__: fingerprint(reward) for reward in reward_funcs},
    }  # fmt: skip
    if run.is_done("train", settings, [run.manifest], config.run.force):
        return workspace.read_lines(run.metrics)[-1]

    started = time.monotonic()
    trainer = make_trainer(config, run, reward_funcs, on_step, on_forecast)
    if should_stop:
        trainer.add_callback(Stop(should_stop))
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    with workspace.new_folder(run.adapter) as folder:
        save_adapter(model, folder, config.policy.model)
    asked = [row["prompt"] for row in workspace.read_lines(run.rows("test"))[:8]]
    submission.write_probe(model, trainer.processing_class, asked, config.policy.enable_thinking, run.probe)
    wrote = [run.adapter, run.probe, run.metrics, run.completions]
    run.note("train", settings, [run.manifest], wrote, time.monotonic() - started, to_yaml(config))
    return workspace.read_lines(run.metrics)[-1]


def make_trainer(
    config: RunConfig, run: workspace.Run, reward_funcs: list[Reward], on_step: OnStep | None = None,
    on_forecast: OnForecast | None = None,
) -> "GRPOTrainer":  # fmt: skip
    """TRL's trainer on this run's policy, rows and rewards, recording into the run folder from its first step on."""
    from trl import GRPOTrainer

    model, tokenizer = load_policy(config.policy)
    model = add_lora(model, config.lora, config.run.seed)
    record = CompletionRecord(run.completions, reward_funcs)
    opened = prompts.opens_thinking(tokenizer, config.policy.enable_thinking)  # rewards may ask: what is unclosed then?
    rows = [row | {"prompt_opened_think": opened} for row in workspace.read_lines(run.rows("train"))]

    def foretell(found: dict[str, Any]) -> None:
        workspace.write_text(run.forecast, json.dumps(found, indent=2) + "\n")
        if on_forecast:
            on_forecast(found)

    trained = [(value, value.data) for value in model.parameters() if value.requires_grad]
    probe = ProbeStep(_longest(config, tokenizer, rows), foretell)
    metrics = MetricsRecord(run.metrics, on_step)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=record.watched,
        args=to_trl(config, run.path / "checkpoints"),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[probe, metrics, GradientCheck(), *trackers.callbacks(config.run.report_to, run.path)],
    )
    probe.trainer = metrics.trainer = trainer
    for value, data in trained:  # TRL casts the LoRA of a 4-bit model to bf16, which a T4 lacks
        value.data = data
    trainer.remove_callback(PrinterCallback)  # prints every row in full; `on_step` is the caller's to show
    return trainer


def _longest(config: RunConfig, tokenizer: Any, rows: list[dict[str, Any]]) -> list[list[int]]:
    """Token ids of the longest prompts, as many as a step asks, the longest first. Found by characters, then counted."""
    step = (
        config.grpo.per_device_train_batch_size * config.grpo.gradient_accumulation_steps // config.grpo.num_generations
    )
    longest = sorted(rows, key=lambda row: -len(prompts.text_of(row["prompt"])))[: max(step, 64)]
    thinking = config.policy.enable_thinking
    texts = [
        tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        for row in longest
    ]
    ids = sorted((tokenizer.encode(text, add_special_tokens=False) for text in texts), key=len, reverse=True)
    return [ids[i % len(ids)] for i in range(step)]


class MetricsRecord(TrainerCallback):
    """Appends TRL's figures to `metrics.jsonl`, one row a step: `step`, `seconds` since the first, and TRL's names.

    Ours beside them: `host_share`, of the rows routed so far, where experts lie on the host; `skipped_steps` so far, whose
    gradients overflowed in fp16 so that the scaler dropped them, where there is a scaler.
    """

    def __init__(self, path: Path, on_step: OnStep | None = None) -> None:
        self.path, self.on_step, self.started = path, on_step, 0.0
        self.trainer: GRPOTrainer | None = None
        self.skipped = 0

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.skipped += bool(self.trainer.accelerator.optimizer_step_was_skipped)

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()
        workspace.write_text(self.path, "")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "train_runtime" in logs:  # the closing summary is no step
            return
        row = {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 3), **logs}
        if (share := tiers.traffic(self.trainer.model)) is not None:
            row["host_share"] = round(share, 6)
        if self.trainer.accelerator.scaler is not None:
            row["skipped_steps"] = self.skipped
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.on_step:
            self.on_step(row)


class Stop(TrainerCallback):
    """Ends the run after a step when `asked` says so; what it has learned is saved as ever."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or self.asked()


class GradientCheck(TrainerCallback):
    """Stops a run whose LoRA is dead in part: before the first update that has a gradient, every pair must have one.

    A LoRA's B starts at 0, so at first only B gets a gradient. A batch without any (all groups alike) says nothing yet, nor
    does a routed expert that no token of weight chose.
    """

    def __init__(self) -> None:
        self.done = False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.done:
            return
        alive = {n: p.grad is not None and bool(p.grad.any()) for n, p in model.named_parameters() if ".lora_B." in n}
        if not any(alive.values()):
            return
        self.done = True
        waiting = tiers.unreached(model)
        pairs = {name.split(".lora_B.")[0]: has for name, has in alive.items() if not name.startswith(waiting)}
        dead = [name for name, has in pairs.items() if not has]
        if dead:
            raise RuntimeError(
                f"{len(dead)} of {len(pairs)} LoRA pairs get no gradient ({', '.join(dead[:3])}); training them changes "
                "nothing. Take them out of lora.target_modules."
            )


class CompletionRecord:
    """Stands between TRL and the rewards and keeps what each completion was paid, in `completions.jsonl`.

    TRL calls the rewards one after the other on the same batch; when the last has answered, the batch is written:
    `step`, `prompt`, `completion`, `answer` and `rewards` by name, one line a completion.
    """

    def __init__(self, path: Path, rewards: list[Reward]) -> None:
        self.path, self.paid = path, {}
        # An async reward is awaited by TRL, side by side with others; it works as ever and is not recorded.
        recorded = [reward for reward in rewards if not inspect.iscoroutinefunction(reward)]
        self.last = recorded[-1] if recorded else None
        self.watched = [self._watch(reward) if reward in recorded else reward for reward in rewards]
        workspace.write_text(path, "")

    def _watch(self, reward: Reward) -> Reward:
        @functools.wraps(reward)
        def watched(**batch: Any) -> list[float | None]:
            paid = list(reward(**batch))
            self.paid[reward.__name__] = paid
            if reward is self.last:
                self._write(batch)
            return paid

        return watched

    def _write(self, batch: dict[str, Any]) -> None:
        step, paid, self.paid = batch["trainer_state"].global_step + 1, self.paid, {}
        with self.path.open("a", encoding="utf-8") as file:
            for i, completion in enumerate(batch["completions"]):
                line = {
                    "step": step,
                    "prompt": prompts.text_of(batch["prompts"][i][-1:]),
                    "completion": prompts.text_of(completion),
                    "answer": batch["answer"][i],
                    "rewards": {name: values[i] for name, values in paid.items()},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
