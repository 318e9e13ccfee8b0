"""Completions by transformers: prompts in portions of a few batches, and a seed for each portion.

The completions of a portion depend on the settings and the portion's number, not on what the process sampled before.
Sampling restores torch's random state. So an evaluation can be interrupted and continued after any portion, or run
during a training. Within a portion the batch stays full (continuous_batch.py).
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import transformers

from grpo_kit.config import Evaluation
from grpo_kit.policy import continuous_batch
from grpo_kit.policy.chat import Messages
from grpo_kit.policy.generation_loop import row_limits
from grpo_kit.policy.thinking_budget import Limits, count_thinking, is_open, make_limits, read_closing

# Batches in a portion. Its last rows decode almost alone, so more of them would save steps; but an interruption loses
# what a portion has until then (benchmarks/full_batch.py).
BATCHES = 8


class Sample(NamedTuple):
    """One completion: its text, its length in tokens, and whether it ended by itself (otherwise it was cut).

    `turns` are its turns in a world, tools' results among them, which `tokens` does not count; None without a world.
    `thinking` are its tokens of thinking; None where they are not counted.
    """

    text: str
    tokens: int
    finished: bool
    turns: Messages | None = None
    thinking: int | None = None


def make_portions(prompt_ids: list[list[int]], batch_size: int) -> list[list[int]]:
    """Group prompts of similar length into portions, the longest first, so that what does not fit fails at once.

    Args:
        prompt_ids: token ids of each prompt.
        batch_size: completions that are sampled at a time; a portion has up to `BATCHES` times as many.

    Returns:
        For each portion the positions of its prompts in `prompt_ids`.
    """
    longest_first, size = sorted(range(len(prompt_ids)), key=lambda i: -len(prompt_ids[i])), BATCHES * batch_size
    return [longest_first[start : start + size] for start in range(0, len(longest_first), size)]


def portion_seed(seed: int, number: int) -> int:
    """The seed of portion `number`, in [0, 2**63), made from the evaluation's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "big") >> 1


def completion_limits(prompt_ids: list[list[int]], evaluation: Evaluation, max_model_len: int | None) -> list[int]:
    """The largest number of tokens that each completion may have.

    Args:
        prompt_ids: token ids of each prompt.
        evaluation: its `max_completion_length` limits every completion.
        max_model_len: tokens that prompt and completion may have together; None for no such limit.

    Raises:
        ValueError: A prompt is empty or leaves no room for a completion.
    """
    if not all(map(len, prompt_ids)):
        raise ValueError(
            f"Prompt {[len(prompt) for prompt in prompt_ids].index(0) + 1} of {len(prompt_ids)} has no tokens, and a "
            "completion needs at least one to go on from. Leave it out, or give it a text or a chat template."
        )
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

    `counts_thinking` (False) asks for the tokens of thinking in each sample.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        evaluation: the sampling settings; a temperature of 0 decodes greedily.
        max_model_len: tokens that prompt and completion may have together; None for no such limit.
    """

    def __init__(self, model: Any, tokenizer: Any, evaluation: Evaluation, max_model_len: int | None = None) -> None:
        self.model, self.tokenizer, self.evaluation, self.max_model_len = model, tokenizer, evaluation, max_model_len
        self.name, self.counts_thinking = f"transformers {transformers.__version__}", False

    def __call__(
        self,
        prompt_ids: list[list[int]],
        seed: int,
        streamer: Any = None,
        on_finish: Callable[[int], None] | None = None,
        budgets: Sequence[int | None] | None = None,
    ) -> list[Sample]:
        """Sample one completion for each prompt, up to `evaluation.batch_size` at a time.

        Args:
            prompt_ids: token ids of each prompt.
            seed: determines all completions.
            streamer: a `transformers` streamer, which gets the tokens of a single prompt's completion as they are
                drawn.
            on_finish: called with the number of finished completions, each time that some are finished.
            budgets: tokens of thinking of each prompt after which a thought is closed by force, None for no budget.
        """
        ends = find_end_tokens(self.model, self.tokenizer)
        limits = completion_limits(prompt_ids, self.evaluation, self.max_model_len) if prompt_ids else []
        completions = self.sample_ids(prompt_ids, limits, seed, streamer, on_finish, budgets)
        samples = [make_sample(self.tokenizer, ids, ends) for ids in completions]
        return add_thinking(self.tokenizer, samples, prompt_ids, completions) if self.counts_thinking else samples

    def sample_ids(
        self,
        prompt_ids: list[list[int]],
        limits: list[int],
        seed: int,
        streamer: Any = None,
        on_finish: Callable[[int], None] | None = None,
        budgets: Sequence[int | None] | None = None,
    ) -> list[list[int]]:
        """The token ids of one completion for each prompt, up to and including its first end token.

        Args:
            prompt_ids, seed, streamer, on_finish, budgets: as for a call of the engine.
            limits: the largest number of tokens of each completion.
        """
        if not prompt_ids:
            return []
        settings, model, ends = self.evaluation, self.model, find_end_tokens(self.model, self.tokenizer)
        thinking = make_limits(self.tokenizer, prompt_ids, budgets)
        was_training = model.training
        model.eval()
        try:
            with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.inference_mode():
                torch.manual_seed(seed)
                completions = None
                if len(prompt_ids) > settings.batch_size:
                    completions = continuous_batch.sample_rows(
                        model, prompt_ids, limits, ends, self.tokenizer.pad_token_id, settings.batch_size, on_finish,
                        thinking, **self._sampling(),
                    )  # fmt: skip
                if completions is None:
                    completions = []
                    for start in range(0, len(prompt_ids), settings.batch_size):
                        batch = slice(start, start + settings.batch_size)
                        own = thinking and thinking._replace(budgets=thinking.budgets[batch])
                        completions += self._sample_batch(prompt_ids[batch], limits[batch], streamer, own)
                        if on_finish:
                            on_finish(len(completions))
        finally:
            model.train(was_training)
        return [_cut(ids[:limit], ends) for ids, limit in zip(completions, limits, strict=True)]

    def _sampling(self) -> dict[str, Any]:
        """The settings as `generate` takes them."""
        settings = self.evaluation
        if settings.temperature <= 0:
            return {"do_sample": False}
        return {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
        }

    def _sample_batch(
        self, prompt_ids: list[list[int]], limits: list[int], streamer: Any, thinking: Limits | None
    ) -> list[list[int]]:
        """The token ids of one completion for each prompt, all sampled together until the last one is finished."""
        padded = self.tokenizer.pad({"input_ids": prompt_ids}, padding_side="left", return_tensors="pt")
        with row_limits(self.model, limits, thinking):
            output = self.model.generate(
                **padded.to(self.model.device),
                max_new_tokens=max(limits),
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=find_end_tokens(self.model, self.tokenizer),
                streamer=streamer,
                **self._sampling(),
            )
        return output[:, padded["input_ids"].shape[1] :].tolist()


def add_thinking(
    tokenizer: Any, samples: list[Sample], prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
) -> list[Sample]:
    """The samples with their tokens of thinking.

    Args:
        tokenizer: the policy's.
        samples: the samples.
        prompt_ids: token ids of each prompt.
        completion_ids: token ids of each completion, without anything behind its end.

    Raises:
        ValueError: the policy's chat template opens no thought in the prompt.
    """
    closing = read_closing(tokenizer)
    each = zip(samples, prompt_ids, completion_ids, strict=True)
    return [s._replace(thinking=count_thinking(closing, ids, is_open(closing, prompt))) for s, prompt, ids in each]


def make_sample(tokenizer: Any, completion_ids: list[int], ends: list[int]) -> Sample:
    """The `Sample` of generated token ids, up to and including the first end token if there is one."""
    kept = _cut(completion_ids, ends)
    return Sample(tokenizer.decode(kept, skip_special_tokens=True), len(kept), bool(kept) and kept[-1] in ends)


def _cut(completion_ids: list[int], ends: list[int]) -> list[int]:
    first_end = next((at for at, token in enumerate(completion_ids) if token in ends), None)
    return completion_ids if first_end is None else completion_ids[: first_end + 1]
