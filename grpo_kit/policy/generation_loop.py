"""A generation loop that uses what GRPO knows: a group shares its prompt, and a finished row needs no more work.

`install_loop` puts it in place of the loop inside `model.generate`. Equal prompts of a batch are read once and their
cache is copied to every row. Rows that are finished leave the batch and the cache. After the prompts a Nemotron-H takes
the forward pass of `nemotron/decoding`, any other model its own. transformers does everything else: preparation, logits
processors, stopping criteria, and drawing the tokens, which happens for the whole batch. So the same seed gives the
same tokens as transformers' own loop, except where rounding differs: matrices have other sizes, sums another order.

The loop handles sampling and greedy decoding from token ids with a growing cache. The rest is left to transformers:
beams, assistants, streamers, stop strings, returned scores or dictionaries, a cache or embeddings from the caller,
static, quantised and offloaded caches, prefill in chunks, and several processes in step.

Checked with transformers 5.23. The loop is passed by the public argument `custom_generate`; like transformers' own
loops it uses the private names in `PRIVATE_NAMES`. Where one of them is missing, transformers' loop is used.
"""

import contextlib
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerationMode

from grpo_kit.nemotron.decoding import one_token
from grpo_kit.nemotron.placement.relief import with_relief
from grpo_kit.policy import thinking_budget
from grpo_kit.runs import interrupts

# Arguments of `generate` that a custom loop does not receive, or that make the cache the caller's.
UNSUPPORTED = ("custom_generate", "streamer", "assistant_model", "synced_gpus", "tokenizer", "past_key_values")
PRIVATE_NAMES = {
    GenerationConfig: ("_pad_token_tensor",),  # set while `generate` prepares the loop
    GenerationMixin: ("_update_model_kwargs_for_generation", "_optimize_model_for_decode"),
}


@dataclass(frozen=True)
class SamplingStats:
    """What one call of `generate` did.

    Attributes:
        rows: rows of the batch.
        prompts: distinct prompts, each read once.
        tokens: tokens drawn, up to the end of each row.
        row_steps: rows in the model's batch, summed over the decoding steps; reading the prompts does not count.
        row_steps_of_all: the same sum if no row had left the batch.
        logps: (rows, drawn) float32 log-probabilities of the drawn tokens in nats, as they were sampled; None unless
            `model.keep_logps` is set. Values after a row's end have no meaning.
    """

    rows: int
    prompts: int
    tokens: int
    row_steps: int
    row_steps_of_all: int
    logps: torch.Tensor | None = None


def install_loop(model: Any) -> Any:
    """Let `model.generate` use this file's loop from now on, also from inside a PEFT model around it.

    Where the GPU runs out of memory, more routed experts go to the host, and the call begins again from the same random
    state (`relief.with_relief`).

    Sets five attributes: `model.last_sampling` is the `SamplingStats` of the last call, or None if transformers' loop
    ran; `model.keep_logps` (False) asks for log-probabilities; `model.part_of` (None) says that the batches are parts
    of larger ones, see `draw_tokens`; `model.row_limits` (None) is the largest number of tokens of each row, where a
    row has less room than the longest one; `model.thinking_limits` (None) are the rows' budgets of thinking.

    Args:
        model: a transformers model that generates.

    Returns:
        The same model.
    """
    model.generate = types.MethodType(_generate, model)  # bound, so that a deep copy of the model calls itself
    model.last_sampling, model.keep_logps, model.part_of = None, False, None
    model.row_limits = model.thinking_limits = None
    return model


@contextlib.contextmanager
def row_limits(model: Any, limits: list[int], thinking: thinking_budget.Limits | None = None) -> Iterator[None]:
    """Let each row of a batch that is sampled here end at its own largest number of tokens.

    Args:
        model: a model, also PEFT's around it, with the loop of `install_loop`. Others sample up to the largest limit.
        limits: of the rows.
        thinking: budgets of thinking of the rows; None where no thought is cut.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.row_limits, base.thinking_limits = limits if len(set(limits)) > 1 else None, thinking
    try:
        yield
    finally:
        base.row_limits = base.thinking_limits = None


def draw_tokens(probabilities: torch.Tensor, part_of: tuple[int, int] | None) -> torch.Tensor:
    """Draw one token for each row.

    Args:
        probabilities: (rows, vocabulary).
        part_of: None, or (first, all): the rows are part of a larger batch of `all` rows, starting at `first`, whose
            other rows are drawn by other processes from the same random state. Each row then gets the token that
            `torch.multinomial` would draw for it in the whole batch.

    Returns:
        (rows,) int64 token ids.

    Source:
        `torch.multinomial` takes the argmax of p / q with q exponential: torch 2.13,
        `aten/src/ATen/native/Distributions.cpp`.
    """
    if part_of is None:
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    first, rows = part_of
    noise = probabilities.new_empty(rows, probabilities.shape[1]).exponential_(1)
    return (probabilities / noise[first : first + len(probabilities)]).argmax(dim=-1)


@functools.wraps(GenerationMixin.generate)
def _generate(self, *args: Any, **kwargs: Any) -> Any:
    generate = functools.partial(_generate_once, self, *args, **kwargs)
    # What a streamer has shown cannot be taken back; then no expert moves, and the error only says what helps.
    movable = self if kwargs.get("streamer") is None else torch.nn.Module()
    return with_relief(movable, generate, "sampling")


def _generate_once(self, *args: Any, **kwargs: Any) -> Any:
    self.last_sampling = None
    plain_generate = type(self).generate
    if self.thinking_limits is not None:  # transformers' own loop cuts thoughts too
        others = kwargs.get("logits_processor") or ()
        kwargs["logits_processor"] = LogitsProcessorList([*others, thinking_budget.CutThoughts(self.thinking_limits)])
    # By position come inputs and generation_config only; more positional arguments are left to transformers.
    if len(args) <= 2 and all(kwargs.get(name) is None for name in UNSUPPORTED):
        sequences = plain_generate(self, *args, **kwargs, custom_generate=_decode)
        if sequences is not None:
            return sequences
    return plain_generate(self, *args, **kwargs)


def _decode(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **inputs: Any,
) -> torch.Tensor | None:
    """The loop: (rows, prompt) token ids in, (rows, prompt + drawn) out, padded after each row's end.

    Returns None if transformers' loop should run instead.
    """
    inputs = {name: value for name, value in inputs.items() if value is not None}
    if not can_decode(model, input_ids, generation_config, inputs):
        return None
    rows, device, pad = len(input_ids), input_ids.device, generation_config._pad_token_tensor
    has_end_token = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)

    firsts, prompt_of_row = _find_distinct([input_ids, *(v for v in inputs.values() if isinstance(v, torch.Tensor))])
    at = torch.tensor(firsts, device=device)
    inputs, logits = _forward(model, input_ids[at], take_rows(inputs, at), is_first_iteration=True)
    if len(firsts) < rows:
        at = torch.tensor(prompt_of_row, device=device)
        inputs, logits = take_rows(inputs, at), logits[at]
    decoder = _make_decoder(model, input_ids, generation_config, inputs)

    running = alive = list(range(rows))  # rows in the model's batch; those of them that are not finished
    unfinished = torch.ones(rows, dtype=torch.bool, device=device)
    width, limits = input_ids.shape[1], None if model.row_limits is None else torch.tensor(model.row_limits).to(device)
    tokens = row_steps = steps = idle = 0
    logps: list[torch.Tensor] = []
    with model._optimize_model_for_decode():
        while True:
            interrupts.check()
            scores = logits_processor(input_ids, logits)
            if generation_config.do_sample:
                drawn = draw_tokens(scores.softmax(dim=-1), model.part_of)
            else:
                drawn = scores.argmax(dim=-1)
            if model.keep_logps:
                logps.append(scores.gather(1, drawn[:, None])[:, 0] - scores.logsumexp(-1))
            if has_end_token:
                drawn = torch.where(unfinished, drawn, pad)
            input_ids = torch.cat([input_ids, drawn[:, None]], dim=1)
            unfinished = unfinished & ~stopping_criteria(input_ids, None)
            if limits is not None:
                unfinished = unfinished & (limits > input_ids.shape[1] - width)
            tokens += len(alive)
            goes_on = unfinished.tolist()  # the only synchronisation of the step
            if not any(goes_on):
                break
            if has_end_token:  # without an end token transformers continues every row until all are finished
                alive = [row for row in alive if goes_on[row]]
            # A finished row costs the work of a step, at every step. Removing finished rows costs a copy of the cache
            # of each row that stays, which is less. They are removed when the idle steps have added up to the copies,
            # so that waiting never costs more than removing.
            idle += len(running) - len(alive)
            if idle >= len(alive):
                place = {row: number for number, row in enumerate(running)}
                decoder.take_rows(torch.tensor([place[row] for row in alive], device=device))
                running, idle, at = alive, 0, torch.tensor(alive, device=device)
            all_run = len(running) == rows
            logits = decoder.step(drawn if all_run else drawn[at])
            if not all_run:  # processors and drawing expect a line for every row
                logits = logits.new_zeros((rows, logits.shape[1])).index_copy_(0, at, logits)
            row_steps, steps = row_steps + len(running), steps + 1
    kept = torch.stack(logps, 1) if logps else None
    model.last_sampling = SamplingStats(rows, len(firsts), tokens, row_steps, steps * rows, kept)
    return input_ids


def can_decode(
    model: Any, input_ids: torch.Tensor, generation_config: GenerationConfig, inputs: dict[str, Any]
) -> bool:
    """Whether this loop can do what `generate` has prepared: sampling or greedy decoding, with an empty growing cache.

    Args:
        model: the model whose `generate` was called.
        input_ids: (rows, prompt) token ids.
        generation_config: the settings of this call, as `generate` has prepared them.
        inputs: the model's other inputs by name, the cache included.
    """
    cache = inputs.get("past_key_values")
    return (
        generation_config.get_generation_mode() in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
        and not generation_config.return_dict_in_generate
        and generation_config.prefill_chunk_size is None
        and type(cache) is DynamicCache
        and not cache.offloading
        and not cache.is_compileable  # of fixed shape, which transformers compiles on a GPU
        and all(hasattr(generation_config, name) for name in PRIVATE_NAMES[GenerationConfig])
        and all(hasattr(model, name) for name in PRIVATE_NAMES[GenerationMixin])
        and all(  # per row only what is also per token, such as masks and positions: no embeddings, no images
            value.shape == input_ids.shape if isinstance(value, torch.Tensor) else isinstance(value, int | DynamicCache)
            for value in inputs.values()
        )
    )


class _Forward:
    """Transformers' own forward pass as a decoder, for models that `one_token` does not know."""

    def __init__(self, model: Any, input_ids: torch.Tensor, inputs: dict[str, Any]) -> None:
        self.model, self.input_ids, self.inputs = model, input_ids, inputs

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.input_ids = torch.cat([self.input_ids, tokens[:, None]], dim=1)
        self.inputs, logits = _forward(self.model, self.input_ids, self.inputs, next_sequence_length=1)
        return logits

    def take_rows(self, at: torch.Tensor) -> None:
        self.input_ids, self.inputs = self.input_ids[at], take_rows(self.inputs, at)


def _make_decoder(
    model: Any, input_ids: torch.Tensor, generation_config: GenerationConfig, inputs: dict[str, Any]
) -> one_token.Decoder | _Forward:
    """What goes on, one token a row, after the forward pass of the prompts that has left these inputs."""
    decoder = None
    if generation_config.max_length is not None:
        mask = inputs.get("attention_mask", torch.ones_like(input_ids))  # it is left out where nothing is padded
        read, cache = mask[:, : input_ids.shape[1]], inputs["past_key_values"]
        decoder = one_token.make_decoder(model, cache, read, generation_config.max_length)
    return decoder or _Forward(model, input_ids, inputs)


def take_rows(inputs: dict[str, Any], at: torch.Tensor) -> dict[str, Any]:
    """The rows `at`, (taken,) int64, of the model's inputs and their cache. A row may be taken several times."""
    # Of the cache's operations on rows, `reorder_cache` is the only one that recurrent states implement too.
    inputs["past_key_values"].reorder_cache(at)
    return {name: value[at] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def _find_distinct(tensors: list[torch.Tensor]) -> tuple[list[int], list[int]]:
    """([first row of each distinct prompt], [the number of its prompt, for each row]).

    Two rows have the same prompt if all `tensors`, each (rows, prompt), are equal there: token ids, mask, positions.
    """
    numbers: dict[tuple[int, ...], int] = {}
    prompt_of_row = [numbers.setdefault(tuple(row), len(numbers)) for row in torch.cat(tensors, dim=1).tolist()]
    return [prompt_of_row.index(number) for number in range(len(numbers))], prompt_of_row


def _forward(
    model: Any, input_ids: torch.Tensor, inputs: dict[str, Any], **step: Any
) -> tuple[dict[str, Any], torch.Tensor]:
    """(inputs of the next step, the last position's logits: (rows, vocabulary) float32 on the tokens' device)."""
    output = model(**model.prepare_inputs_for_generation(input_ids, **step, **inputs), return_dict=True)
    logits = output.logits[:, -1].to(device=input_ids.device, dtype=torch.float32, copy=True)
    return model._update_model_kwargs_for_generation(output, inputs), logits
