"""Completions by transformers: prompts of similar length in a batch, and a seed for each batch.

The completions of a batch depend on the settings and the batch's number, not on what the process sampled before.
Sampling restores torch's random state. So an evaluation can be interrupted and continued anywhere, or run during a
training.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers

from grpo_kit.config import Evaluation
from grpo_kit.policy.chat import Messages, encode_prompt
from grpo_kit.runs import processes


class Sample(NamedTuple):
    """One completion: its text, its length in tokens, and whether it ended by itself (otherwise it was cut)."""

    text: str
    tokens: int
    finished: bool


def make_batches(prompt_ids: list[list[int]], batch_size: int) -> list[list[int]]:
    """Group prompts of similar length into batches, the longest first, so that what does not fit fails at once.

    Args:
        prompt_ids: token ids of each prompt.
        batch_size: prompts in a batch.

    Returns:
        For each batch the positions of its prompts in `prompt_ids`.
    """
    longest_first = sorted(range(len(prompt_ids)), key=lambda i: -len(prompt_ids[i]))
    return [longest_first[start : start + batch_size] for start in range(0, len(longest_first), batch_size)]


def batch_seed(seed: int, number: int) -> int:
    """The seed of batch `number`, in [0, 2**63), made from the evaluation's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "big") >> 1


def completion_limits(prompt_ids: list[list[int]], evaluation: Evaluation, max_model_len: int | None) -> list[int]:
    """The largest number of tokens that each completion may have.

    Args:
        prompt_ids: token ids of each prompt.
        evaluation: its `max_completion_length` limits every completion.
        max_model_len: tokens that prompt and completion may have together; None for no such limit.

    Raises:
        ValueError: A prompt leaves no room for a completion.
    """
    limit = evaluation.max_completion_length
    limits = [min(limit, max_model_len - len(prompt)) if max_model_len else limit for prompt in prompt_ids]
    if min(limits) < 1:
        raise ValueError(
            f"A prompt has {max(map(len, prompt_ids))} tokens; prompt and completion together may have "
            f"{max_model_len}, so there is no room for an answer. Leave such problems out of evaluation.sets."
        )
    return limits


def find_end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The ids of the tokens that end a completion, sorted."""
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    return sorted(set(ends if isinstance(ends, list) else [ends]))


class TransformersEngine:
    """Samples completions with `model.generate`.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        evaluation: the sampling settings; a temperature of 0 decodes greedily.
        max_model_len: tokens that prompt and completion may have together; None for no such limit.
    """

    def __init__(self, model: Any, tokenizer: Any, evaluation: Evaluation, max_model_len: int | None = None) -> None:
        self.model, self.tokenizer, self.evaluation, self.max_model_len = model, tokenizer, evaluation, max_model_len
        self.name = f"transformers {transformers.__version__}"

    def __call__(self, prompt_ids: list[list[int]], seed: int, streamer: Any = None) -> list[Sample]:
        """Sample one completion for each prompt of a batch. `seed` determines all of them.

        A `transformers` streamer gets the tokens of a single prompt's completion as they are drawn.
        """
        settings, ends = self.evaluation, find_end_tokens(self.model, self.tokenizer)
        limits = completion_limits(prompt_ids, settings, self.max_model_len)
        sampling: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "top_k": settings.top_k,
            }
        device = self.model.device
        padded = self.tokenizer.pad({"input_ids": prompt_ids}, padding_side="left", return_tensors="pt").to(device)
        was_training = self.model.training
        self.model.eval()
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
            torch.manual_seed(seed)
            output = self.model.generate(
                **padded,
                max_new_tokens=max(limits),
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=ends,
                streamer=streamer,
                **sampling,
            )
        self.model.train(was_training)
        completions = output[:, padded["input_ids"].shape[1] :].tolist()
        return [make_sample(self.tokenizer, ids[:limit], ends) for ids, limit in zip(completions, limits, strict=True)]


def make_sample(tokenizer: Any, completion_ids: list[int], ends: list[int]) -> Sample:
    """The `Sample` of generated token ids, up to and including the first end token if there is one."""
    first_end = next((at for at, token in enumerate(completion_ids) if token in ends), None)
    kept = completion_ids if first_end is None else completion_ids[: first_end + 1]
    return Sample(tokenizer.decode(kept, skip_special_tokens=True), len(kept), first_end is not None)


def sample_completions(
    model: Any,
    tokenizer: Any,
    conversations: list[Messages],
    evaluation: Evaluation,
    seed: int,
    enable_thinking: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:
    """Sample one completion for each conversation, in order.

    With several processes, each samples every n-th batch, and all of them return all completions.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        conversations: the prompts as messages.
        evaluation: sampling settings and batch size.
        seed: determines all completions.
        enable_thinking: passed to the chat template.
        progress: called with (completions so far, all completions) after each batch.
    """
    prompt_ids = [encode_prompt(tokenizer, messages, enable_thinking) for messages in conversations]
    engine, samples = TransformersEngine(model, tokenizer, evaluation), {}
    for number, batch in enumerate(make_batches(prompt_ids, evaluation.batch_size)):
        if number % processes.process_count() == processes.process_rank():
            batch_ids = [prompt_ids[i] for i in batch]
            samples |= zip(batch, engine(batch_ids, batch_seed(seed, number)), strict=True)
        if progress:
            progress(len(samples), len(prompt_ids))
    samples = dict(processes.all_gather(list(samples.items())))
    return [samples[i] for i in range(len(prompt_ids))]
