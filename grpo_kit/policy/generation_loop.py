"""Sampling that uses what GRPO knows: a group shares its prompt, and a finished sequence needs no more work.

Stands behind `model.generate` in the place of transformers' loop (`install`). Equal prompts of a batch are read once and
their state copied to every row; rows that are finished leave the model's batch and its cache. Everything else is
transformers': the preparation, the logits processors, the stopping criteria, and the draw itself, which is made for the
whole batch. So the same seed draws the same tokens as transformers' loop, but for rounding in matrices of other sizes.

What is not plain sampling or greedy decoding from token ids with a cache that grows is left to transformers as it was
asked: beams, assistants, streamers, stop strings, scores or a dictionary to be returned, a cache or embeddings of the
caller's, static, quantised and offloaded caches, prefill in chunks, several processes in step.

Checked with transformers 5.23: the loop is handed over by its public `custom_generate`, and uses three private names
(`_pad_token_tensor`, `_update_model_kwargs_for_generation`, `_optimize_model_for_decode`), as its own loops do.
"""

import functools
import types
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerationMode

# Arguments of `generate` that a loop handed over is never told of, or that make the cache the caller's.
THEIRS = ("custom_generate", "streamer", "assistant_model", "synced_gpus", "tokenizer", "past_key_values")


@dataclass(frozen=True)
class SamplingStats:
    """What the last `generate` did: `rows` asked for, `prompts` read, `tokens` drawn up to each row's end.

    `row_steps` counts the rows of all decoding steps, the prompts' reading aside; `row_steps_of_all` those that they
    would be had no row left. `logps`, (rows, drawn) float32, are the log-probs of what was drawn, as the sampler saw them
    (whatever stands behind a row's end is to be passed over), where `model.keep_logps` asks for them.
    """

    rows: int
    prompts: int
    tokens: int
    row_steps: int
    row_steps_of_all: int
    logps: torch.Tensor | None = None


def install_loop(model: Any) -> Any:
    """`model`, whose `generate` goes through this file from now on, also from inside a PEFT model around it.

    `model.last_sampling` is the last call's `Sampled`, or None when that call was left to transformers. `model.part_of` may
    say that the batches are parts of larger ones (`_draw`).
    """
    model.generate = types.MethodType(_generate, model)  # bound, so that a deep copy of the model calls itself
    model.last_sampling, model.keep_logps, model.part_of = None, False, None
    return model


def draw_tokens(probabilities: torch.Tensor, part_of: tuple[int, int] | None) -> torch.Tensor:
    """One token a row, `(rows,)`. `part_of` = (first, all): the rows are some of a larger batch whose others are drawn
    elsewhere, from the same random state; each gets what `torch.multinomial` would have drawn for it in the whole batch,
    which is the argmax of p / q with q exponential (torch 2.13, `aten/native/Distributions.cpp`)."""
    if part_of is None:
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    first, rows = part_of
    noise = probabilities.new_empty(rows, probabilities.shape[1]).exponential_(1)
    return (probabilities / noise[first : first + len(probabilities)]).argmax(dim=-1)


@functools.wraps(GenerationMixin.generate)
def _generate(self, *args: Any, **kwargs: Any) -> Any:
    self.last_sampling = None
    plain = type(self).generate
    if len(args) <= 2 and all(kwargs.get(name) is None for name in THEIRS):  # by position: inputs, generation_config
        drawn = plain(self, *args, **kwargs, custom_generate=_decode)
        if drawn is not None:
            return drawn
    return plain(self, *args, **kwargs)


def _decode(
    model: Any, input_ids: torch.Tensor, logits_processor: LogitsProcessorList, stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig, **inputs: Any,
) -> torch.Tensor | None:  # fmt: skip
    """The loop: (rows, prompt) token ids in, (rows, prompt + drawn) out, padded after each end. None: not for us."""
    inputs = {name: value for name, value in inputs.items() if value is not None}
    if not _is_ours(input_ids, generation_config, inputs):
        return None
    rows, device = len(input_ids), input_ids.device
    pad, ends = generation_config._pad_token_tensor, any(hasattr(c, "eos_token_id") for c in stopping_criteria)

    firsts, source = _distinct([input_ids, *(v for v in inputs.values() if isinstance(v, torch.Tensor))])
    at = torch.tensor(firsts, device=device)
    inputs, logits = _forward(model, input_ids[at], _take(inputs, at), is_first_iteration=True)
    if len(firsts) < rows:
        at = torch.tensor(source, device=device)
        inputs, logits = _take(inputs, at), logits[at]

    running = alive = list(range(rows))  # rows in the model's batch; those of them that are not finished
    unfinished = torch.ones(rows, dtype=torch.bool, device=device)
    tokens = row_steps = steps = idle = 0
    logps: list[torch.Tensor] = []
    with model._optimize_model_for_decode():
        while True:
            scores = logits_processor(input_ids, logits)
            if generation_config.do_sample:
                drawn = draw_tokens(scores.softmax(dim=-1), model.part_of)
            else:
                drawn = scores.argmax(dim=-1)
            if model.keep_logps:
                logps.append(scores.gather(1, drawn[:, None])[:, 0] - scores.logsumexp(-1))
            if ends:
                drawn = torch.where(unfinished, drawn, pad)
            input_ids = torch.cat([input_ids, drawn[:, None]], dim=1)
            unfinished = unfinished & ~stopping_criteria(input_ids, None)
            tokens += len(alive)
            going = unfinished.tolist()  # the step's one synchronisation
            if not any(going):
                break
            if ends:  # without an end token transformers draws on in every row until all are finished
                alive = [row for row in alive if going[row]]
            # A finished row costs a step's work, every step; to leave it costs a copy of the state of each row that stays,
            # which is less. Left is when the steps have added up to the copies: waiting never costs more than leaving.
            idle += len(running) - len(alive)
            if idle >= len(alive):
                where = {row: number for number, row in enumerate(running)}
                inputs = _take(inputs, torch.tensor([where[row] for row in alive], device=device))
                running, idle, at = alive, 0, torch.tensor(alive, device=device)
            whole = len(running) == rows
            inputs, logits = _forward(model, input_ids if whole else input_ids[at], inputs, next_sequence_length=1)
            if not whole:  # what processors see and what is drawn from has a line for every row
                logits = logits.new_zeros((rows, logits.shape[1])).index_copy_(0, at, logits)
            row_steps, steps = row_steps + len(running), steps + 1
    kept = torch.stack(logps, 1) if logps else None
    model.last_sampling = SamplingStats(rows, len(firsts), tokens, row_steps, steps * rows, kept)
    return input_ids


def _is_ours(input_ids: torch.Tensor, how: GenerationConfig, inputs: dict[str, Any]) -> bool:
    """Whether what `generate` has prepared is plain sampling or greedy decoding with a growing cache, still empty."""
    cache = inputs.get("past_key_values")
    return (
        how.get_generation_mode() in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
        and not how.return_dict_in_generate
        and how.prefill_chunk_size is None
        and type(cache) is DynamicCache
        and not cache.offloading
        and not cache.is_compileable  # of fixed shape throughout, which transformers compiles on a GPU
        and all(  # nothing by row but what is by token, as masks and positions are: no embeddings, no pictures
            value.shape == input_ids.shape if isinstance(value, torch.Tensor) else isinstance(value, int | DynamicCache)
            for value in inputs.values()
        )
    )


def _distinct(told: list[torch.Tensor]) -> tuple[list[int], list[int]]:
    """([first row of each distinct prompt], [number of its prompt, for each row]), by all that the model is told."""
    number_of: dict[tuple[int, ...], int] = {}
    source = [number_of.setdefault(tuple(row), len(number_of)) for row in torch.cat(told, dim=1).tolist()]
    return [source.index(number) for number in range(len(number_of))], source


def _take(inputs: dict[str, Any], at: torch.Tensor) -> dict[str, Any]:
    """The rows `at` of all that the model is told, its cache included; a row may be taken several times."""
    inputs["past_key_values"].reorder_cache(at)  # of all its batch operations the one that recurrent states know too
    return {name: value[at] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def _forward(
    model: Any, input_ids: torch.Tensor, inputs: dict[str, Any], **which: Any
) -> tuple[dict[str, Any], torch.Tensor]:
    """(inputs of the next step, the last position's logits in float32, (rows, vocabulary) on the tokens' device)."""
    out = model(**model.prepare_inputs_for_generation(input_ids, **which, **inputs), return_dict=True)
    logits = out.logits[:, -1].to(device=input_ids.device, dtype=torch.float32, copy=True)
    return model._update_model_kwargs_for_generation(out, inputs), logits
