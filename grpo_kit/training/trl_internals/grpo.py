"""TRL's GRPOTrainer with public names for the steps that the kit changes."""

import functools
import logging
import time
import warnings
from typing import Any

import torch
from trl import GRPOTrainer

from grpo_kit.policy import chat, generation_loop, thinking_budget
from grpo_kit.training.trl_internals.machine import leave_sampling
from grpo_kit.training.trl_internals.replies import set_response_template
from grpo_kit.training.trl_internals.resumable import Batch, ResumableTrainer

# TRL prints a row in full, at each step, where no reward judges it. The kit's alarm says it in one sentence.
logging.getLogger("trl.trainer.grpo_trainer").addFilter(
    lambda record: "All reward functions returned None" not in record.getMessage()  # accelerate puts [RANK 0] before
)


class OpenGRPOTrainer(ResumableTrainer, GRPOTrainer):
    """TRL's GRPOTrainer with public names for the steps that the kit changes. By itself it does what TRL does.

    With tools, rows that set `enable_thinking` themselves keep it after a tool's turn, a turn has room for what the
    completion has left, and a completion whose last result found no room counts as cut.
    """

    cuts_thoughts = False  # whether `budget_of` may give a row a budget

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("tools") or kwargs.get("environment_factory"):
            set_response_template(kwargs["processing_class"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'environment_factory', which is an experimental feature")
            super().__init__(*args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        leave_sampling(getattr(model, "get_base_model", lambda: model)())
        self.episodes: list[list[dict[str, Any]]] = []  # conversations of a batch with tools, as they grow
        # The prompts, as token ids, of a batch whose further turns are sampled, with their budgets of thinking
        self._asked: dict[tuple[int, ...], int | None] = {}
        self._budgets: list[int | None] = []  # of thinking, for each row of the batch that is sampled
        self.reward_table: torch.Tensor | None = None  # (completions, reward functions), of the batch last scored
        self.scored_ids: list[list[int]] = []  # token ids of this process's completions of that batch
        self.trained_logps: torch.Tensor | None = None  # (rows, tokens), of the last micro-batch in the model
        self._prepared: Batch | None = None  # the micro-batch of the step that is being taken

    def align_with_step(self) -> None:
        """Let a resumed training also sample at the steps of one that was not interrupted."""
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        super().align_with_step()

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        """TRL's micro-batch. It is sampled once, also where its passes are repeated because memory ran out."""
        began = time.perf_counter()
        model.train()
        self._prepared = self._prepare_inputs(inputs)
        self._current_train_step_time += time.perf_counter() - began  # which TRL would measure itself
        take_step = functools.partial(super().training_step, model, inputs, num_items_in_batch)
        try:
            return self.with_relief(take_step)
        finally:
            self._prepared = None

    def arrange(self, micro_batches: list[Batch]) -> list[Batch]:
        """The micro-batches of a newly sampled generation batch, whose rows TRL has shuffled."""
        return micro_batches

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        if self._prepared is not None:
            return dict(self._prepared)
        before, inputs = self._buffered_inputs, super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is not before:
            self._buffered_inputs = self.arrange(self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def make_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """The generation batch of a training step. `rows` are those that TRL's own sampler has chosen."""
        return self.sample_batch(rows)

    def sample_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """TRL's scored batch of one completion per row; `reward_table` and `scored_ids` then describe this batch."""
        self._budgets = [self.budget_of(row) for row in rows]
        return super()._generate_and_score_completions(rows)

    def budget_of(self, row: dict[str, Any]) -> int | None:
        """Tokens of thinking after which a row's thought is closed by force (`thinking_budget`); None: none is."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        return self.make_batch(inputs) if self.model.training else self.sample_batch(inputs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        self.reward_table = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.scored_ids = completion_ids_list
        return self.reward_table

    def judge_episodes(self, completions: list[list[dict[str, Any]]]) -> None:
        """Look at the completions of a batch with tools, as lists of turns, before they are scored."""

    def _generate(self, prompts: list[Any]) -> Any:
        prompt_ids, completion_ids, mask, *rest = super()._generate(prompts)
        if self.cuts_thoughts:  # what was forced is no choice of the policy, as a tool's result is none
            closing = thinking_budget.read_closing(self.processing_class)
            mask = mask or [[1] * len(ids) for ids in completion_ids]
            forced = map(
                functools.partial(thinking_budget.find_forced, closing), prompt_ids, completion_ids, self._budgets, mask
            )
            mask = [[int(is_own and not f) for is_own, f in zip(*pair)] for pair in zip(mask, forced, strict=True)]
        return prompt_ids, completion_ids, mask, *rest

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if self.use_vllm:  # it has settings of its own, and TRL cuts what has no room
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        settings, before = self.generation_config, self.generation_config.max_new_tokens
        prompts = [self._find_prompt(ids) for ids in prompt_ids]
        rooms = [self._find_room(ids, prompt) for ids, prompt in zip(prompt_ids, prompts)]
        budgets = [self._asked.get(prompt) for prompt in prompts] if self._asked else self._budgets
        thinking = thinking_budget.make_limits(self.processing_class, prompt_ids, budgets)
        settings.max_new_tokens = max(rooms)
        try:
            with generation_loop.row_limits(self.accelerator.unwrap_model(self.model), rooms, thinking):
                completion_ids, logps = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        finally:
            settings.max_new_tokens = before
        if logps is None and self.tools and (kept := self._sampled_logps()) is not None:
            logps = [row[: len(ids)].tolist() for row, ids in zip(kept, completion_ids, strict=True)]
        return completion_ids, logps

    def _find_prompt(self, ids: list[int]) -> tuple[int, ...]:
        """The prompt that a completion with the tokens `ids` began with."""
        return next((prompt for prompt in self._asked if tuple(ids[: len(prompt)]) == prompt), tuple(ids))

    def _find_room(self, ids: list[int], prompt: tuple[int, ...]) -> int:
        """Tokens that a completion has left behind `ids`; TRL itself would sample a whole length at every turn."""
        return max(1, len(prompt) + self.generation_config.max_new_tokens - len(ids))

    def _sampled_logps(self) -> torch.Tensor | None:
        """(rows, drawn) log-probs of the turn that was sampled last; None where the kit's loop kept none."""
        model = self.accelerator.unwrap_model(self.model)
        sampling = getattr(getattr(model, "get_base_model", lambda: model)(), "last_sampling", None)
        return sampling.logps if sampling is not None else None

    def _tool_call_loop(self, prompts: list[list[dict[str, Any]]], prompt_ids: list[list[int]], *args: Any) -> Any:
        self.episodes = prompts
        self._asked = dict(zip(map(tuple, prompt_ids), self._budgets, strict=True))
        try:
            tool_mask, completions, completion_ids, logps, *counts = super()._tool_call_loop(prompts, prompt_ids, *args)
        finally:
            self._asked = {}
        for number, turns in enumerate(completions):
            turns_taken = sum(turn["role"] == "assistant" for turn in turns)
            found_no_room = turns[-1].get("tool_calls") and turns_taken <= self.max_tool_calling_iterations
            if found_no_room and completion_ids[number][-1] in self.eos_token_ids:
                # TRL calls a completion cut whose last token does not end it.
                for column in filter(None, (tool_mask, completion_ids, logps)):
                    column[number] = column[number][:-1]
        self.judge_episodes(completions)
        return tool_mask, completions, completion_ids, logps, *counts

    def _get_tool_suffix_ids(self, tool_messages: list[dict[str, Any]]) -> list[int]:
        # TRL renders the tool's turn behind a conversation that it makes up, which lacks the row's own setting.
        last = tool_messages[-1]
        own = (turns for turns in self.episodes if any(turn is last for turn in turns))
        setting = chat.row_thinking(next(own, []))
        marked = tool_messages if setting is None else [*tool_messages[:-1], last | {"enable_thinking": setting}]
        return super()._get_tool_suffix_ids(marked)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        compute = functools.partial(super()._get_per_token_logps_and_entropies, *args, **kwargs)
        # Within the loss, forward and backward pass are repeated together.
        outputs = compute() if torch.is_grad_enabled() else self.with_relief(compute)
        self.trained_logps = outputs[0].detach()
        return outputs
