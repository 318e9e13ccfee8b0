"""Do the stages `sft` and `prefer` fit, up to which length, and how long is their step: GRPO's training on other rows.

A text, and each of the two completions of a pair, is trained like a prompt with a completion, without sampling. So the
plan is that of a GRPO step with these rows, and of its phases only the training has a duration. DPO's reference costs
no memory: its log-probs are computed once, before the first step, by the policy as it is then.
"""

from dataclasses import replace
from typing import NamedTuple

from grpo_kit.config import RunConfig
from grpo_kit.planning import plan
from grpo_kit.planning.fit import Plan, assess_fit
from grpo_kit.planning.host_time import model_seconds
from grpo_kit.planning.model_size import Architecture
from grpo_kit.planning.sessions import format_range
from grpo_kit.planning.step_time import training_seconds


class TextStep(NamedTuple):
    """What a step of the stage `sft` or `prefer` needs, computed and not measured.

    Attributes:
        tokens: of a row, at most. A pair is two rows.
        rows: of a step.
        at_once: rows of a micro-batch.
        fits: whether rows of this length fit.
        largest: the longest row that fits, in tokens, as a multiple of 64 beyond the prompt; 0 without a search or
            where none does.
        seconds: of a step where every row has that length, at least and at most; None without bandwidths.
    """

    tokens: int
    rows: int
    at_once: int
    fits: bool
    largest: int
    seconds: tuple[float, float] | None


def plan_texts(planned: Plan, search: bool = True) -> TextStep:
    """Plan the stage `sft` of a run, which takes one process.

    Args:
        planned: the plan of its GRPO, which gives configuration, machine, prompts and bandwidths.
        search: whether to look for the longest row that fits, which takes most of the time.

    Returns:
        The step. A row has `sft.max_length` tokens, else those of the plan's prompts and of a completion.

    Example:
        >>> from grpo_kit.config import load_config
        >>> from grpo_kit.planning.plan import plan
        >>> plan_texts(plan(load_config("tiny"), "t4", search=False), search=False).tokens
        296
    """
    sft = planned.config.sft
    return _plan_rows(planned, sft.max_length, sft.per_device_train_batch_size, sft.gradient_accumulation_steps, search)


def plan_pairs(planned: Plan, search: bool = True) -> TextStep:
    """Plan the stage `prefer` of a run, which takes one process.

    Args:
        planned: the plan of its GRPO, which gives configuration, machine, prompts and bandwidths.
        search: whether to look for the longest row that fits, which takes most of the time.

    Returns:
        The step. Prompt and completion have `dpo.max_length` tokens, else those of the plan's prompts and of a
        completion; both completions of a pair are as long.

    Example:
        >>> from grpo_kit.config import load_config
        >>> from grpo_kit.planning.plan import plan
        >>> plan_pairs(plan(load_config("tiny"), "t4", search=False), search=False).at_once
        16
    """
    dpo = planned.config.dpo
    return _plan_rows(
        planned, dpo.max_length, 2 * dpo.per_device_train_batch_size, dpo.gradient_accumulation_steps, search
    )


def _plan_rows(planned: Plan, max_length: int | None, at_once: int, accumulation: int, search: bool) -> TextStep:
    """Plan a step of `accumulation` micro-batches of `at_once` rows, which have `max_length` tokens or GRPO's."""
    config = planned.config
    model, device = Architecture.of(config.policy), replace(planned.device, processes=1)
    lengths = [stage.max_completion_length for stage in config.grpo.stages] or [config.grpo.max_completion_length]
    tokens = max_length or planned.prompt_tokens + max(lengths)
    prompt = min(planned.prompt_tokens, tokens - 1)
    fit = assess_fit(model, _as_completions(config, at_once, tokens - prompt), device, prompt)
    largest = plan.largest_setting(model, fit, "max_completion_length") if search else 0
    seconds = None
    if bandwidths := planned.bandwidths:
        times = accumulation / fit.config.grpo.gradient_accumulation_steps
        on_device = times * training_seconds(model, fit, bandwidths)
        host = bandwidths.host
        on_host = accumulation * model_seconds(host.micro_batch, model) if host else 0.0
        seconds = (max(on_device, on_host) if device.gpu else on_device + on_host, on_device + on_host)
    fitting = prompt + largest if largest else 0
    return TextStep(tokens, at_once * accumulation, at_once, fit.fits, fitting, seconds)


def describe_texts(step: TextStep) -> str:
    """One sentence on a step of `sft`.

    >>> describe_texts(TextStep(768, 8, 1, True, 1024, (20.0, 40.0)))
    'sft: 8 texts a step, 1 x 768 tokens at once, fit; up to 1,024 tokens would; a step takes 20 to 40 s'
    """
    return f"sft: {step.rows} texts a step, {_describe(step)}"


def describe_pairs(step: TextStep) -> str:
    """One sentence on a step of `prefer`.

    >>> describe_pairs(TextStep(768, 16, 2, False, 0, None))
    'prefer: 8 pairs a step, 2 x 768 tokens at once, do not fit'
    """
    return f"prefer: {step.rows // 2} pairs a step, {_describe(step)}"


def _describe(step: TextStep) -> str:
    words = f"{step.at_once} x {step.tokens:,} tokens at once, {'fit' if step.fits else 'do not fit'}"
    words += f"; up to {step.largest:,} tokens would" if step.largest else ""
    return words + (f"; a step takes {format_range(*step.seconds)}" if step.seconds else "")


def _as_completions(config: RunConfig, size: int, length: int) -> RunConfig:
    """The configuration of a GRPO step that trains on micro-batches of `size` rows, and samples as few as GRPO can."""
    accumulation = 1 if size > 1 else 2
    grpo = replace(
        config.grpo,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        num_generations=size * accumulation,
        max_completion_length=length,
        resample_budget=0.0,
        stages=[],
    )
    return replace(config, grpo=grpo)
