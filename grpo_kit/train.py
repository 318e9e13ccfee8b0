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

from grpo_kit import curriculum, memory, prompts, row_options, screening, submission, tiers, workspace
from grpo_kit.adapter import add_lora, save_adapter
from grpo_kit.config import RunConfig, to_yaml
from grpo_kit.policy import load_policy
from grpo_kit.probe import ProbeStep
from grpo_kit.reward_files import fingerprint

# The policy has quieted warnings that the next imports would print.
# isort: split

import datasets
import torch
from transformers import PrinterCallback, TrainerCallback

if TYPE_CHECKING:  # importing TRL takes seconds; only training pays for it
    from trl import GRPOConfig, GRPOTrainer

Reward = Callable[..., list[float | None]]
OnStep = Callable[[dict[str, Any]], None]
OnForecast = Callable[[dict[str, Any]], None]


def to_trl(config: RunConfig, output_dir: Path, shuffle_dataset: bool = True) -> "GRPOConfig":
    """The `trl.GRPOConfig` that this configuration means: the one place that knows TRL's constructor."""
    from trl import GRPOConfig

    grpo = asdict(config.grpo)
    del grpo["reward_funcs"]  # functions, passed to the trainer
    checkpointing = grpo.pop("gradient_checkpointing")  # TRL's name; transformers 5 calls it activation_checkpointing
    args = GRPOConfig(
        **grpo,
        activation_checkpointing=checkpointing,
        output_dir=str(output_dir),
        seed=config.run.seed,
        chat_template_kwargs={"enable_thinking": config.policy.enable_thinking},
        shuffle_dataset=shuffle_dataset,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    # transformers 5.23 multiplies the batch by the GPUs it sees. We train on one; a second one holds experts.
    args._n_gpu = min(1, args.n_gpu)
    return args


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
    config: RunConfig, run: workspace.Run, reward_funcs: list[Reward], on_step: OnStep | None = None,
    on_forecast: OnForecast | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train and write `adapter/`, `metrics.jsonl` and `completions.jsonl`; returns the last metrics row.

    `reward_funcs`: one function for each entry of `grpo.reward_weights`, in its order. `on_forecast` is called with what the
    probe step found (`probe.Forecast`), which is in `forecast.json` too, `on_step` with each metrics row. A run that is trained already is left as it is. Raises FileNotFoundError when its data is missing.
    """
    run.need("data", "grpo-kit data")
    settings = {
        "policy": config.policy.identity(), "lora": asdict(config.lora), "grpo": asdict(config.grpo), "seed": config.run.seed,
        "rewards": {reward.__name__: fingerprint(reward) for reward in reward_funcs},
    }  # fmt: skip
    reads = [run.manifest]
    if screening.is_screened(run):
        settings["screening"] = {"sigma": config.screening.sigma}  # as the order hangs on it
        reads.append(run.screened)
    if run.is_done("train", settings, reads, config.run.force):
        return workspace.read_lines(run.metrics)[-1]

    started = time.monotonic()
    trainer = make_trainer(config, run, reward_funcs, on_step, on_forecast)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    with workspace.new_folder(run.adapter) as folder:
        save_adapter(model, folder, config.policy.model)
    asked = [row["prompt"] for row in workspace.read_lines(run.rows("test"))[:8]]
    submission.write_probe(model, trainer.processing_class, asked, config.policy.enable_thinking, run.probe)
    wrote = [run.adapter, run.probe, run.metrics, run.completions]
    run.note("train", settings, reads, wrote, time.monotonic() - started, to_yaml(config))
    return workspace.read_lines(run.metrics)[-1]


def make_trainer(
    config: RunConfig, run: workspace.Run, reward_funcs: list[Reward], on_step: OnStep | None = None,
    on_forecast: OnForecast | None = None, policy: tuple[Any, Any] | None = None,
) -> "GRPOTrainer":  # fmt: skip
    """TRL's trainer on this run's policy, rows and rewards, recording into the run folder from its first step on.

    `policy` is what `load_policy` would load, (model, tokenizer), where it is there already.
    """
    from trl import GRPOTrainer

    fit_log_probs()
    model, tokenizer = policy or load_policy(config.policy)
    model = add_lora(model, config.lora, config.run.seed)
    record = CompletionRecord(run.completions, reward_funcs)
    in_order = screening.is_screened(run)
    rows = workspace.read_lines(run.screened if in_order else run.rows("train"))
    if in_order:
        rows = curriculum.order(rows, _prompts_asked(config), config.screening.sigma, config.run.seed)
    thinking = config.policy.enable_thinking
    opened = row_options.opened_think(tokenizer, rows, thinking)  # rewards may ask: what is unclosed then?
    asked = row_options.conversations(tokenizer, rows, thinking)
    rows = [
        row | {"prompt": turns, "prompt_opened_think": opens}
        for row, turns, opens in zip(rows, asked, opened, strict=True)
    ]

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
        args=to_trl(config, run.path / "checkpoints", shuffle_dataset=not in_order),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[probe, metrics, GradientCheck()],
    )
    probe.trainer = metrics.trainer = trainer
    for value, data in trained:  # TRL casts the LoRA of a 4-bit model to bf16, which a T4 lacks
        value.data = data
    trainer.remove_callback(PrinterCallback)  # prints every row in full; `on_step` is the caller's to show
    return trainer


def _prompts_asked(config: RunConfig) -> int:
    """How many prompts the run asks in all, a prompt that comes again counted again."""
    grpo = config.grpo
    step = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps // grpo.num_generations
    return -(-grpo.max_steps // grpo.num_iterations) * step


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
