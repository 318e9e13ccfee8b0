"""Every private name of TRL and transformers that the kit uses, behind names of its own.

They were read in the versions in VERSIONS, which requirements.txt pins; `tests/training/test_trl_internals.py` fails
when one of them moves.
"""

import dataclasses
import functools
import logging
import time
import types
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments
from trl import DPOTrainer, GRPOTrainer, SFTTrainer, chat_template_utils
from trl.kernels import chunked_logprob

from grpo_kit.adapters import lora
from grpo_kit.nemotron import expert_placement
from grpo_kit.planning import memory
from grpo_kit.policy import chat, generation_loop, thinking_budget, tool_calls
from grpo_kit.runs.files import to_json

T = TypeVar("T")
Batch = dict[str, torch.Tensor]
VERSIONS = {"trl": "1.16.0", "transformers": "5.23.0"}


def find_untested() -> dict[str, str]:
    """{library: its installed version} where TRL or transformers is not the version in VERSIONS."""
    installed = {library: metadata.version(library) for library in VERSIONS}
    return {library: version for library, version in installed.items() if version != VERSIONS[library]}


def check_versions() -> None:
    """Warn when TRL or transformers is not the version whose private names are used here."""
    for library, installed in find_untested().items():
        version = VERSIONS[library]
        warnings.warn(
            f"{library} is {installed}; training uses names that are private in {library} and was tested with "
            f"{version}. Install that version: pip install {library}=={version}",
            stacklevel=2,
        )


# TRL prints a row in full, at each step, where no reward judges it. The kit's alarm says it in one sentence.
logging.getLogger("trl.trainer.grpo_trainer").addFilter(
    lambda record: "All reward functions returned None" not in record.getMessage()  # accelerate puts [RANK 0] before
)


def use_one_gpu(args: TrainingArguments) -> None:
    """Undo that transformers 5.23 multiplies the batch by the number of GPUs: a second GPU only holds experts."""
    args._n_gpu = min(1, args.n_gpu)


def fit_log_probs() -> None:
    """Make TRL compute log-probs without Triton below sm_80, and in small tiles if it has no Triton.

    TRL 1.16 takes Triton wherever it is installed; Triton 3.3 dropped sm_75. Without it TRL holds 7.25 float32 copies
    of a tile of logits, 3.6 GiB of them at its own 4096 tokens. A token's log-prob needs no other token's, so the
    tile's size changes nothing but memory.
    """
    gpu = torch.cuda.is_available()
    if gpu and torch.cuda.get_device_capability() < (8, 0):
        chunked_logprob._TRITON_AVAILABLE = False
    if not gpu or not chunked_logprob._TRITON_AVAILABLE:
        chunked_logprob.TOKEN_CHUNK_SIZE = memory.TILE_TOKENS


def leave_sampling(model: Any) -> None:
    """Tell the decoder of one new token (nemotron/decoding/linear.py) that TRL's fused head leaves sampling as it is.

    Args:
        model: the causal language model, inside PEFT's, that a trainer of TRL has taken.
    """
    head = vars(model).get("forward")
    if head is not None:  # it calls the model's own forward pass, which it names by `functools.wraps`
        head.__func__.only_training = True


def set_response_template(tokenizer: Any) -> None:
    """Tell TRL how to read replies into thinking, tool calls and content, before a trainer with tools is built.

    Replies in Nemotron's form are read by the kit, which takes whole calls only (`tool_calls.read_reply`). TRL
    recognises chat templates letter by letter, and so none that `chat.template_conversations` has extended. A response
    template that the tokenizer has already stays.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Raises:
        ValueError: TRL knows no response template for this chat template, and it does not open thinking as Nemotron's.
    """
    if tool_calls.reads_as_nemotron(tokenizer):
        tool_calls.install(tokenizer)
        return
    if getattr(tokenizer, "response_template", None) is not None:
        return
    extended = tokenizer.chat_template
    tokenizer.chat_template = extended.replace(chat.THINKING_SWITCH, "")
    try:
        chat_template_utils.add_response_schema(tokenizer)
    except ValueError:
        raise ValueError(
            "TRL does not know how to read tool calls and thinking from replies of this chat template. Set "
            "tokenizer.response_template, or train without tools."
        ) from None
    finally:
        tokenizer.chat_template = extended


def remember_optimizer(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Copy the optimiser's parameters and state to the host; returns a function that sets them back."""
    values = [value for group in optimizer.param_groups for value in group["params"]]
    copies = [value.detach().cpu().clone() for value in values]
    states = [
        {key: item.cpu().clone() if isinstance(item, torch.Tensor) else item for key, item in state.items()}
        for state in (optimizer.state.get(value, {}) for value in values)
    ]

    def restore() -> None:
        for value, copy, state in zip(values, copies, states, strict=True):
            value.data.copy_(copy)
            now = optimizer.state.pop(value, {})
            for key, item in state.items():
                if isinstance(item, torch.Tensor):
                    now[key].copy_(item)
                    item = now[key]
                optimizer.state[value][key] = item

    return restore


class ResumableTrainer:
    """A mixin for a trainer of TRL: its checkpoints hold the adapter in the kit's own form.

    The frozen copy `ref`, which TRL makes of an adapter that was trained before, is no part of them.
    `callbacks.CheckpointCallback` writes them; the state of the stage itself goes through `save_extra` and
    `load_extra`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with lora.allow_mamba_targets():
            super().__init__(*args, **kwargs)

    def write_checkpoint(self, folder: Path, base: str) -> None:
        """Write all that resuming needs: adapter, optimiser, schedule, scaler, random numbers, trainer and stage state.

        Args:
            folder: an existing folder.
            base: the base model's name, for `adapter_config.json`.
        """
        lora.save_adapter(self.accelerator.unwrap_model(self.model), folder, base)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.save_extra(folder)
        # As `TrainerState.save_to_json` writes it, without the NaN of a step that had no gradient.
        state = to_json(dataclasses.asdict(self.state), indent=2, sort_keys=True)
        (folder / "trainer_state.json").write_text(state + "\n", encoding="utf-8")

    def load_checkpoint(self, folder: Path, step: int) -> None:
        """Load the policy of a checkpoint after `step` steps, without further training."""
        self._load_from_checkpoint(str(folder))
        self.state.global_step = step

    def undo_step(self) -> None:
        """Forget what the stage has noted since its last whole step, so that a checkpoint can be written."""

    def save_extra(self, folder: Path) -> None:
        """Write what the stage itself has to remember."""

    def load_extra(self, folder: Path) -> None:
        """Read what `save_extra` wrote."""

    def align_with_step(self) -> None:
        """Let a resumed training go on with the learning rate of one that was not interrupted.

        Without it the first step would have the rate of the checkpoint, whose `max_steps` may have been lower.
        """
        schedule = self.lr_scheduler
        if isinstance(schedule, LambdaLR):
            groups = zip(self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, base, factor in groups:
                group["lr"] = base * factor(schedule.last_epoch)
            schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def figures(self) -> dict[str, list[float]]:
        """What TRL has noted for the next row of the log: values by name."""
        return self._metrics["train"]

    def with_relief(self, work: Callable[[], T]) -> T:
        """Do a part of a step, such as a micro-batch's forward and backward pass; again if the GPU's memory runs out.

        See `expert_placement.with_relief`. Gradients and figures are then as they were before.
        """
        return expert_placement.with_relief(self.model, work, "training", self._remember)

    def _remember(self) -> Callable[[], None]:
        trained = [value for value in self.model.parameters() if value.requires_grad]
        gradients = [None if value.grad is None else value.grad.cpu().clone() for value in trained]
        lengths = {name: len(values) for name, values in self.figures.items()}

        def restore() -> None:
            for value, gradient in zip(trained, gradients, strict=True):
                if gradient is None:
                    value.grad = None
                else:
                    value.grad.copy_(gradient)
            for name in list(self.figures):
                if name in lengths:
                    del self.figures[name][lengths[name] :]
                else:
                    del self.figures[name]

        return restore

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimiser of transformers; a step of it that finds no memory is taken again from where it began."""
        is_new, optimizer = self.optimizer is None, super().create_optimizer(*args, **kwargs)
        if is_new:
            plain = type(optimizer).step

            def step(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
                take_step = functools.partial(plain, optimizer, *args, **kwargs)
                remember = functools.partial(remember_optimizer, optimizer)
                return expert_placement.with_relief(self.model, take_step, "training", remember)

            optimizer.step = types.MethodType(step, optimizer)
        return optimizer

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Nothing: transformers calls `on_save` of the callbacks next, and `CheckpointCallback` writes there."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # PEFT's own reader would stack the experts' pairs.
        folder = Path(resume_from_checkpoint)
        lora.load_adapter_values(self.accelerator.unwrap_model(self.model), folder)
        self.load_extra(folder)


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


class RowsTrainer(ResumableTrainer):
    """A mixin for a trainer of TRL that learns from rows as they are, and samples none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        leave_sampling(self._base_model())

    def _base_model(self) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        return getattr(model, "get_base_model", lambda: model)()

    @property
    def tokens_seen(self) -> int:
        """Tokens of all steps so far, prompts included, padding not: the figure `num_tokens`."""
        return self._total_train_tokens

    @tokens_seen.setter
    def tokens_seen(self, count: int) -> None:
        self._total_train_tokens = count

    def _remember(self) -> Callable[[], None]:
        restore, tokens = super()._remember(), self.tokens_seen

        def restore_all() -> None:
            restore()
            self.tokens_seen = tokens

        return restore_all

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's micro-batch; its passes are repeated where memory ran out."""
        return self.with_relief(functools.partial(super().training_step, model, inputs, num_items_in_batch))


class OpenSFTTrainer(RowsTrainer, SFTTrainer):
    """TRL's SFTTrainer with public names for the steps that the kit changes. By itself it does what TRL does."""

    @torch.no_grad()
    def score_tokens(self, ids: list[int], labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """How likely the policy finds the tokens of one row.

        Args:
            ids: the row's tokens.
            labels: the same, -100 where a token is not scored.

        Returns:
            `(tokens - 1,)` log-probs of the tokens after the first one, in nats, 0 where a token is not scored; and as
            many bools, whether the token is the most likely one.
        """
        device = self.accelerator.device
        row = {"input_ids": torch.tensor([ids], device=device), "labels": torch.tensor([labels], device=device)}
        with self.compute_loss_context_manager():
            outputs = self.with_relief(functools.partial(self._base_model(), **row, fused_lm_head=True))
        return outputs.log_probs[0].float().cpu(), outputs.is_top1[0].bool().cpu()


class OpenDPOTrainer(RowsTrainer, DPOTrainer):
    """TRL's DPOTrainer on rows of token ids, with the log-probs of the reference in two columns of them.

    TRL keeps a frozen copy `ref` of an adapter that was trained before. It is removed: the columns say what the
    reference, the policy before its first step, finds. Rows are taken as they are; TRL would write them by the chat
    template once more.

    Args:
        args, kwargs: TRL's. `model` is PEFT's; rows have `prompt_ids`, `chosen_ids` and `rejected_ids`, and
            `ref_chosen_logps` and `ref_rejected_logps` before the first step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        trained = [(value, value.data) for value in kwargs["model"].parameters() if value.requires_grad]
        super().__init__(*args, **kwargs)
        for value, data in trained:  # TRL casts the LoRA of a 4-bit model to bf16, which a T4 lacks
            value.data = data
        lora.drop_copies(self.accelerator.unwrap_model(self.model))
        self.precompute_ref_logps = True

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset

    @torch.no_grad()
    def score_batch(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The policy's log-probs of a batch, computed as its loss computes them.

        Args:
            batch: of the trainer's own collator.

        Returns:
            `(pairs,)` of the chosen and of the rejected completions, in nats, each summed over the tokens.
        """
        inputs = self._prepare_inputs(batch)
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        rows = {key: inputs[key] for key in ("input_ids", "attention_mask")} | {"labels": labels, "use_cache": False}
        with self.compute_loss_context_manager():
            outputs = self.with_relief(functools.partial(self.model, **rows, fused_lm_head=True))
        chosen, rejected = outputs.log_probs.sum(dim=1).float().cpu().chunk(2)
        return chosen, rejected
