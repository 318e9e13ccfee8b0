"""Ask the policy a question of your own: the untrained and the trained policy answer it, one after the other."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from transformers import TextStreamer

from grpo_kit.config import RunConfig
from grpo_kit.config.arguments import require_type
from grpo_kit.config.checks import require
from grpo_kit.planning import calibrate
from grpo_kit.policy.chat import build_messages, encode_prompt
from grpo_kit.policy.generate import Sample, TransformersEngine, portion_seed
from grpo_kit.policy.load import load_policy
from grpo_kit.policy.thinking_budget import require_room
from grpo_kit.runs.run import Run

UNTRAINED, TRAINED = "untrained", "trained"


class _TextSoFar(TextStreamer):
    """Calls `show` with the whole text so far whenever a word is complete."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text, self.show = "", show

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        self.show(self.text)


def require_question(question: str) -> None:
    """Raise ValueError for a question without text, TypeError for another kind of value."""
    remedy = 'Write one, such as "What is 7 + 8?".'
    require_type("question", question, str, "a text", remedy)
    require(bool(question.strip()), f"The question is empty; there is nothing to answer. {remedy}")


def require_base_of(run: Run, model: str) -> None:
    """Raise ValueError where the run has an adapter that was trained on another model than `model`."""
    last = run.trained_stages()[-1:]
    trained_on = run.stages()[last[0]]["settings"].get("policy", {}).get("model", model) if last else model
    require(
        trained_on == model,
        f"policy.model is {model!r} and the adapter of run {run.name!r} was trained on {trained_on!r}, the only model "
        "that it fits. Leave policy.model and the preset out.",
    )


def load_trained(config: RunConfig, run: Run) -> tuple[Any, Any]:
    """Load the run's policy with its adapter, so that both the untrained and the trained policy can be asked.

    Args:
        config: the run's configuration.
        run: the run, as `open_run` returns it.

    Returns:
        (model, tokenizer); the model has no adapter while the run has none.

    Raises:
        ValueError: the configuration names another model than the adapter was trained on.
    """
    require_base_of(run, config.policy.model)
    model, tokenizer = load_policy(calibrate.use_counts_of(run, config.policy))
    if run.trained_stages():
        from grpo_kit.adapters.lora import attach_adapter

        model = attach_adapter(model, run.result.adapter)
    return model, tokenizer


def ask(
    model: Any,
    tokenizer: Any,
    config: RunConfig,
    question: str,
    enable_thinking: bool | None = None,
    show: Callable[[str, str], None] | None = None,
    thinking_budget: int | None = None,
) -> dict[str, Sample]:
    """Let the untrained policy answer a question, then the trained one, each sampled as in the evaluation.

    Args:
        model: the policy, as `load_trained` returns it.
        tokenizer: its tokenizer.
        config: the run's configuration; `evaluation` says how to sample, `data` what stands around the question.
        question: the question.
        enable_thinking: whether the policy thinks before it answers; None: as the run is configured.
        show: called with ("untrained" or "trained", the reply so far) whenever a word is complete.
        thinking_budget: tokens after which a thought is closed by force; None: as the run is configured.

    Returns:
        {"untrained": the reply, "trained": the reply}; only the first one for a model without an adapter.

    Raises:
        ValueError: the question is empty, or so long that no room for an answer is left; or the budget leaves none.

    Example:
        >>> from grpo_kit import open_run
        >>> config, run = open_run("tiny", name="first")
        >>> replies = ask(*load_trained(config, run), config, "What is 47 + 38?")  # doctest: +SKIP
        >>> replies["untrained"].text  # doctest: +SKIP
        'looks like 83.\\n</think>\\n\\\\boxed{83}'
    """
    require_question(question)
    thinking = config.policy.enable_thinking if enable_thinking is None else enable_thinking
    messages = build_messages(question, config.data.prompt_suffix, config.data.system_prompt)
    prompt = encode_prompt(tokenizer, messages, thinking)
    budget = config.policy.budget_of() if thinking_budget is None else thinking_budget
    require_room(tokenizer, [budget], config.evaluation.max_completion_length, "evaluation.max_completion_length")
    forced = {"budgets": [budget]} if budget else {}
    engine = TransformersEngine(model, tokenizer, replace(config.evaluation, num_generations=1))
    has_adapter, replies = hasattr(model, "disable_adapter"), {}
    for name in (UNTRAINED, TRAINED) if has_adapter else (UNTRAINED,):
        streamer = _TextSoFar(tokenizer, lambda text, name=name: show(name, text)) if show else None
        with model.disable_adapter() if has_adapter and name == UNTRAINED else nullcontext():
            replies[name] = engine([prompt], portion_seed(config.run.seed, 0), streamer, **forced)[0]
    return replies
