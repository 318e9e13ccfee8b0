"""A batch that stays full: when rows are finished, the next prompts are read into their places.

Completions differ in length. Sampled batch by batch, the last rows of each batch decode almost alone, and a step costs
nearly as much for one row as for many. Here as many rows as the batch holds are on their way until the prompts run out.

The rows that are on their way draw their tokens together, so a completion's random numbers depend on the other prompts
and on the batch's size. The same prompts, size and random state give the same completions.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from grpo_kit.nemotron.decoding import one_token
from grpo_kit.nemotron.placement.relief import with_relief
from grpo_kit.policy import generation_loop, thinking_budget
from grpo_kit.runs import interrupts

# Share of the batch that must be free before further prompts are read. Reading takes about as long for one prompt as
# for many, since nearly every expert is dequantised for it; a decoding step is only a little shorter for fewer rows.
ENOUGH_FREE = 0.25
# Processors of logits that look at nothing else; others would need the tokens of every row.
KNOWN_PROCESSORS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)

KNOWN_CRITERIA = (MaxLengthCriteria, EosTokenCriteria)  # whose place `limits` and `ends` take


def sample_rows(
    model: Any,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    ends: Sequence[int],
    pad: int,
    together: int,
    on_finish: Callable[[int], None] | None = None,
    thinking: thinking_budget.Limits | None = None,
    **sampling: Any,
) -> list[list[int]] | None:
    """Sample one completion for each prompt, `together` rows at a time.

    Where the GPU runs out of memory, more routed experts go to the host, and all of it is done again from the same
    random state (`relief.with_relief`).

    Args:
        model: the policy, a transformers model or a PEFT model around it.
        prompts: token ids of each prompt.
        limits: the largest number of tokens of each completion.
        ends: ids of the tokens that end a completion.
        pad: the id that fills shorter prompts on the left.
        together: rows that are sampled at a time.
        on_finish: called with the number of finished completions each time that rows are finished.
        thinking: budgets of thinking of the prompts; None where no thought is cut.
        sampling: `do_sample`, `temperature` and so on, as `generate` takes them.

    Returns:
        The token ids of each completion, its end token included; None if the decoder of one new token does not know
        the model, or the sampling is a search or needs more than a row's logits. Then nothing was drawn.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base is not model and model.active_peft_config.is_prompt_learning:  # what it adds is not in the base model
        return None
    processors = _prepare_processors(base, pad, sampling)
    if processors is None or not all(isinstance(processor, KNOWN_PROCESSORS) for processor in processors):
        return None

    def draw(logits: torch.Tensor) -> torch.Tensor:
        scores = processors(None, logits)
        if not sampling.get("do_sample"):
            return scores.argmax(dim=-1)
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)

    def sample() -> list[list[int]] | None:
        return Batch(base, prompts, limits, ends, pad, together, draw, on_finish, thinking).sample()

    return with_relief(base, sample, "sampling")


def _prepare_processors(model: Any, pad: int, sampling: dict[str, Any]) -> LogitsProcessorList | None:
    """The processors of logits that `generate` makes of these settings and of the model's own.

    None where it would search, such as with beams, or stop by more than a length and end tokens.
    """
    prepared = []

    def keep(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **inputs: Any,
    ) -> torch.Tensor:
        given = {name: value for name, value in inputs.items() if value is not None}
        known = all(isinstance(criterion, KNOWN_CRITERIA) for criterion in stopping_criteria)
        known = known and generation_loop.can_decode(model, input_ids, generation_config, given)
        prepared.append(logits_processor if known else None)
        return input_ids

    one = torch.tensor([[pad]], device=model.device)
    model.generate(
        one, attention_mask=torch.ones_like(one), max_new_tokens=1, pad_token_id=pad, custom_generate=keep, **sampling
    )
    return prepared[0]


class Batch:
    """Rows of many prompts, some of them on their way.

    Args: those of `sample_rows`, and
        draw: gives (rows,) int64 tokens for (rows, vocabulary) float32 logits.

    Attributes:
        completions: the token ids drawn so far, for each prompt.
        steps: decoding steps.
        row_steps: rows in the model's batch, summed over the steps.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        limits: Sequence[int],
        ends: Sequence[int],
        pad: int,
        together: int,
        draw: Callable[[torch.Tensor], torch.Tensor],
        on_finish: Callable[[int], None] | None = None,
        thinking: thinking_budget.Limits | None = None,
    ) -> None:
        self.model, self.prompts, self.limits, self.ends, self.pad = model, prompts, limits, frozenset(ends), pad
        self.together, self.draw, self.on_finish, self.thinking = together, draw, on_finish, thinking
        self.capacity = max(map(len, prompts)) + max(limits)
        self.completions: list[list[int]] = [[] for _ in prompts]
        self.steps = self.row_steps = 0
        self._waiting, self._finished = deque(range(len(prompts))), 0
        self._rows: list[int] = []  # of the decoder: for each row the number of its prompt
        self._decoder: one_token.Decoder | None = None

    @torch.inference_mode()
    def sample(self) -> list[list[int]] | None:
        """Sample every completion; None if no decoder knows the model."""
        tokens = self._go_on([], None)
        if tokens is None:
            return None
        while self._rows:
            interrupts.check()
            drawn = self._force(range(len(self._rows)), self.draw(self._decoder.step(tokens)))
            self.steps, self.row_steps = self.steps + 1, self.row_steps + len(self._rows)
            tokens = self._go_on(self._keep(range(len(self._rows)), drawn), drawn)
        return self.completions

    def _force(self, at: Sequence[int], drawn: torch.Tensor) -> torch.Tensor:
        """What the rows `at` have drawn, with the tokens that close a thought in place of what these rows have."""
        if self.thinking is None:
            return drawn
        closing, budgets = self.thinking
        numbers = [self._rows[row] for row in at]
        forced = [thinking_budget.forced_token(closing, self.completions[n], budgets[n]) for n in numbers]
        places = [place for place, token in enumerate(forced) if token is not None]
        if places:
            drawn[places] = torch.tensor([forced[place] for place in places], device=drawn.device)
        return drawn

    def _keep(self, at: Sequence[int], drawn: torch.Tensor) -> list[int]:
        """Add a drawn token to each of the rows `at`; returns which of them are not finished."""
        going = []
        for row, token in zip(at, drawn.tolist(), strict=True):  # the only synchronisation of the step
            completion = self.completions[self._rows[row]]
            completion.append(token)
            if token not in self.ends and len(completion) < self.limits[self._rows[row]]:
                going.append(row)
        if len(going) < len(at):
            self._finished += len(at) - len(going)
            if self.on_finish:
                self.on_finish(self._finished)
        return going

    def _go_on(self, going: list[int], tokens: torch.Tensor | None) -> torch.Tensor | None:
        """Let go of finished rows and read further prompts where it is time.

        Args:
            going: the rows that are not finished.
            tokens: (rows,) what each row has drawn last.

        Returns:
            (rows,) what each of the rows that are now on their way has drawn last; None if no decoder knows the model.
        """
        while self._waiting and (not going or self.together - len(going) >= ENOUGH_FREE * self.together):
            fresh = [self._waiting.popleft() for _ in range(min(self.together - len(going), len(self._waiting)))]
            if (logits := self._read(going, fresh)) is None:
                return None
            self._rows = [self._rows[row] for row in going] + fresh
            at = range(len(going), len(self._rows))
            drawn = self._force(at, self.draw(logits))
            tokens = drawn if tokens is None else torch.cat([tokens[going], drawn])
            going = [*range(len(going)), *self._keep(at, drawn)]
        if len(going) < len(self._rows):
            self._rows = [self._rows[row] for row in going]
            tokens = tokens[going]
            if going:
                self._decoder.take_rows(torch.tensor(going, device=tokens.device))
        return tokens

    def _read(self, going: list[int], fresh: list[int]) -> torch.Tensor | None:
        """Read the prompts `fresh` into rows behind those that are going on.

        Returns:
            (fresh, vocabulary) float32 logits of their first tokens; None if no decoder knows the model.
        """
        device = self.model.device
        numbers: dict[tuple[int, ...], int] = {}
        place = [numbers.setdefault(tuple(self.prompts[number]), len(numbers)) for number in fresh]
        width = max(map(len, numbers))
        padded = [[self.pad] * (width - len(prompt)) + list(prompt) for prompt in numbers]
        ids = torch.tensor(padded, device=device)
        lengths = torch.tensor([len(prompt) for prompt in numbers], device=device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        cache = DynamicCache(config=self.model.config)
        output = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        of = torch.tensor(place, device=device)
        if self._decoder is None:
            self._decoder = one_token.make_decoder(self.model, cache, mask, self.capacity)
            if self._decoder is None:
                return None
            self._decoder.take_rows(of)
        else:
            # What the rows behind those that go on hold is written over.
            rows = torch.tensor([*going, *[0] * len(fresh)], device=device)
            self._decoder.take_rows(rows)
            self._decoder.put_rows(torch.arange(len(going), len(rows), device=device), cache, mask, of)
        return output.logits[:, -1].float()[of]
