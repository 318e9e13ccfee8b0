"""Completions of held-out problems by transformers: batches of prompts of like length, each drawn from a seed of its own.

What a batch says depends on the settings and on its place among the batches, never on what was drawn before in the same
process, and drawing leaves torch's own random state as it was: an evaluation may be broken off anywhere and go on, and
may stand in the middle of a training.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers

from grpo_kit.config import Evaluation
from grpo_kit.policy.chat import encode_prompt
from grpo_kit.runs import processes


class Sample(NamedTuple):
    """One completion: its text, its length in tokens, and whether it ended by itself (else it was cut)."""

    text: str
    tokens: int
    finished: bool


def make_batches(ids: list[list[int]], size: int) -> list[list[int]]:
    """Positions in `ids` by batches, the longest prompts first: what will not fit fails at once."""
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def batch_seed(seed: int, batch: int) -> int:
    """The seed of one batch, in [0, 2**63)."""
    return int.from_bytes(hashlib.sha256(f"{seed} {batch}".encode()).digest()[:8], "big") >> 1


def completion_limits(ids: list[list[int]], evaluation: Evaluation, max_model_len: int | None) -> list[int]:
    """How many tokens each completion may have. Raises ValueError for a prompt that leaves no room."""
    limit = evaluation.max_completion_length
    left = [min(limit, max_model_len - len(prompt)) if max_model_len else limit for prompt in ids]
    if min(left) < 1:
        raise ValueError(
            f"A prompt has {max(map(len, ids))} tokens and prompt and completion together may have {max_model_len}, so nothing "
            "can be answered. Leave such problems out of evaluation.sets."
        )
    return left


def find_end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a completion."""
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    return sorted(set(ends if isinstance(ends, list) else [ends]))


class TransformersEngine:
    """Draws by `model.generate`. Called with the token ids of one batch and its seed, gives a `Sample` for each."""

    def __init__(self, model: Any, tokenizer: Any, evaluation: Evaluation, max_model_len: int | None = None) -> None:
        self.model, self.tokenizer, self.evaluation, self.max_model_len = model, tokenizer, evaluation, max_model_len
        self.name = f"transformers {transformers.__version__}"

    def __call__(self, ids: list[list[int]], seed: int) -> list[Sample]:
        how, ends = self.evaluation, find_end_tokens(self.model, self.tokenizer)
        left = completion_limits(ids, how, self.max_model_len)
        drawing = {"do_sample": False}
        if how.temperature > 0:
            drawing = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k}
        padded = self.tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(self.model.device)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        training = self.model.training
        self.model.eval()
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            out = self.model.generate(
                **padded,
                max_new_tokens=max(left),
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=ends,
                **drawing,
            )
        self.model.train(training)
        drawn = out[:, padded["input_ids"].shape[1] :].tolist()
        return [make_sample(self.tokenizer, tokens[:most], ends) for tokens, most in zip(drawn, left, strict=True)]


def make_sample(tokenizer: Any, tokens: list[int], ends: list[int]) -> Sample:
    """The `Sample` that drawn tokens make, up to the first end token if there is one."""
    stop = next((at for at, token in enumerate(tokens) if token in ends), None)
    kept = tokens if stop is None else tokens[: stop + 1]
    return Sample(tokenizer.decode(kept, skip_special_tokens=True), len(kept), stop is not None)


def sample_completions(
    model: Any, tokenizer: Any, conversations: list[list[dict[str, str]]], evaluation: Evaluation, seed: int,
    enable_thinking: bool = True, progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:  # fmt: skip
    """One completion for each conversation, in order; `seed` fixes them all. `progress` is told (done, total). Of several
    processes each draws every so-manieth batch, and all have all."""
    ids = [encode_prompt(tokenizer, messages, enable_thinking) for messages in conversations]
    draw, found = TransformersEngine(model, tokenizer, evaluation), {}
    for number, batch in enumerate(make_batches(ids, evaluation.batch_size)):
        if number % processes.process_count() == processes.process_rank():
            found |= zip(batch, draw([ids[i] for i in batch], batch_seed(seed, number)), strict=True)
        if progress:
            progress(len(found), len(ids))
    found = dict(processes.all_gather(list(found.items())))
    return [found[i] for i in range(len(ids))]
