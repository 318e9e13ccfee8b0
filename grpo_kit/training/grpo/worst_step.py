"""A trial of the longest step before the first step: whether it fits, and how long the run takes at most.

The longest prompts of the run are sampled from, and a micro-batch of full length goes forward and backward, on the
prepared model and by TRL's own loss. A run that does not fit into memory fails in the first minute and not in the
fourth hour. The trial changes nothing: it drops its gradients and restores random numbers and figures. Where memory
runs out and routed experts can go to the host, they do, and stay there for the run.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from grpo_kit.nemotron.placement.tiered_layers import experts_on_host, reset_counts
from grpo_kit.runs import activity

TOKENS = 16  # sampled to time one; `grpo-kit plan` computes the memory that full length takes


@dataclass(frozen=True)
class Forecast:
    """What the trial measured.

    Args:
        prompt_tokens: tokens of the longest prompt.
        completion_tokens: tokens of every completion of the step.
        sampling_seconds: seconds of sampling in a step.
        training_seconds: seconds of training in a step.
        steps: steps that are left.
        peak_bytes: the most GPU memory that PyTorch held, in bytes; None without a GPU.
    """

    prompt_tokens: int
    completion_tokens: int
    sampling_seconds: float
    training_seconds: float
    steps: int
    peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """Seconds of the whole run, at most."""
        return self.steps * (self.sampling_seconds + self.training_seconds)


class WorstStepCallback(TrainerCallback):
    """Tries the longest step when the first is about to begin.

    Args:
        trainer: a `trl_internals.grpo.OpenGRPOTrainer`.
        longest: token ids of the run's longest prompts, as many as a step has.
        on_forecast: called with the `Forecast` as a dict, which also has `seconds`.
    """

    def __init__(self, trainer: Any, longest: list[list[int]], on_forecast: Callable[[dict[str, Any]], None]) -> None:
        self.trainer, self.longest, self.on_forecast, self.done = trainer, longest, on_forecast, False

    def on_step_begin(self, args, state, control, **kwargs):
        if self.done:
            return
        self.done = True
        activity.announce("measuring the longest step")
        try:
            forecast = try_longest_step(self.trainer, self.longest, args.max_steps - state.global_step)
        except torch.OutOfMemoryError as error:
            prompt_tokens, completion_tokens = len(self.longest[0]), args.max_completion_length
            sizes = f"{args.per_device_train_batch_size} x ({prompt_tokens} + {completion_tokens}) tokens"
            raise RuntimeError(
                f"The longest step of this run ({sizes} in training) does not fit the GPU; nothing was trained. {error}"
            ) from None
        self.on_forecast(asdict(forecast) | {"seconds": forecast.seconds})


def try_longest_step(trainer: Any, longest: list[list[int]], steps: int) -> Forecast:
    """Sample from `longest` and train on one micro-batch of full length; `trainer` is an `OpenGRPOTrainer` that trains.

    Raises torch.OutOfMemoryError when it does not fit.
    """
    args, cuda = trainer.args, torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    training = trainer.model.training
    with torch.random.fork_rng():
        first, each = _time_sampling(trainer, longest)
        trainer.model.train(training)
        once = time_work(trainer, lambda: _train_micro_batch(trainer, len(longest[0])))
    trainer.model.zero_grad(set_to_none=True)
    trainer.figures.clear()  # what the loss noted is not a figure of the run
    reset_counts(trainer.model)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    if cuda:
        torch.cuda.empty_cache()
    return Forecast(
        prompt_tokens=len(longest[0]),
        completion_tokens=args.max_completion_length,
        sampling_seconds=first + each * (args.max_completion_length - 1),
        training_seconds=once * args.gradient_accumulation_steps,
        steps=steps,
        peak_bytes=peak,
    )


def _time_sampling(trainer: Any, longest: list[list[int]]) -> tuple[float, float]:
    """Seconds until a generation batch has its first token, and for each further one."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    padded = trainer.processing_class.pad({"input_ids": longest}, padding_side="left", return_tensors="pt")
    batch = {
        name: value.repeat_interleave(trainer.num_generations, 0).to(model.device) for name, value in padded.items()
    }

    def sample(tokens: int) -> None:
        settings = copy.deepcopy(trainer.generation_config)
        settings.max_new_tokens = settings.min_new_tokens = tokens
        with torch.no_grad():
            model.generate(**batch, generation_config=settings)

    few = min(TOKENS, trainer.args.max_completion_length)
    first, several = time_work(trainer, lambda: sample(1)), time_work(trainer, lambda: sample(few))
    return first, max(0.0, several - first) / max(1, few - 1)


def _train_micro_batch(trainer: Any, prompt_tokens: int) -> None:
    """One forward and backward pass of TRL's loss, every row as long as a row can be."""
    args, device = trainer.args, trainer.accelerator.device
    rows, length = args.per_device_train_batch_size, args.max_completion_length
    token = trainer.processing_class.eos_token_id
    groups = torch.arange(rows) // trainer.num_generations  # a group's prompt is read once
    ids = {
        "prompt_ids": groups[:, None].expand(rows, prompt_tokens),
        "prompt_mask": torch.ones(rows, prompt_tokens),
        "completion_ids": torch.full((rows, length), token),
        "completion_mask": torch.ones(rows, length),
    }
    inputs = {name: value.long().to(device) for name, value in ids.items()}
    inputs |= {
        "advantages": torch.ones(rows, device=device),
        "num_items_in_batch": torch.tensor(float(rows * length * args.steps_per_generation), device=device),
        "old_per_token_logps": torch.zeros(rows, length, device=device),
        "ref_per_token_logps": torch.zeros(rows, length, device=device),
    }

    def forward_and_backward() -> None:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model_wrapped, inputs)
        trainer.accelerator.backward(loss)

    trainer.with_relief(forward_and_backward)


def time_work(trainer: Any, work: Callable[[], None]) -> float:
    """Seconds of the work, measured again if experts had to move meanwhile."""
    while True:
        before, started = experts_on_host(trainer.model), time.monotonic()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if experts_on_host(trainer.model) == before:
            return time.monotonic() - started
