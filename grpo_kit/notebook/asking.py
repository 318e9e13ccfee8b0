"""Replies of the policy to a problem or to a question of one's own, in a notebook."""

from typing import Any

from grpo_kit.config import RunConfig
from grpo_kit.notebook.fields import require_switch
from grpo_kit.runs.run import Run

_loaded: dict[str, tuple[Any, Any]] = {}  # {what was loaded: (model, tokenizer)}, at most one


def render_prompt(tokenizer: Any, config: RunConfig, problem: str) -> str:
    """The text that the policy reads when it is asked `problem`, chat template included."""
    from grpo_kit.policy import chat

    return chat.render_prompt(tokenizer, _conversation(config, problem), config.policy.enable_thinking)


def sample_reply(model: Any, tokenizer: Any, config: RunConfig, problem: str) -> Any:
    """One reply to `problem`, sampled as in the evaluation: `text`, length in `tokens`, and whether it `finished`."""
    return _sample(model, tokenizer, config, config.evaluation, problem, 1)[0]


def sample_group(model: Any, tokenizer: Any, config: RunConfig, problem: str) -> list[Any]:
    """A group of `grpo.num_generations` replies to `problem`, sampled as in the training."""
    from grpo_kit.evaluation.screening import training_sampling

    return _sample(model, tokenizer, config, training_sampling(config), problem, config.grpo.num_generations)


def _conversation(config: RunConfig, problem: str) -> list[dict[str, str]]:
    from grpo_kit.policy.chat import build_messages

    return build_messages(problem, config.data.prompt_suffix, config.data.system_prompt)


def _sample(model: Any, tokenizer: Any, config: RunConfig, evaluation: Any, problem: str, count: int) -> list[Any]:
    from grpo_kit.policy.episodes import sample_completions

    conversations, thinking = [_conversation(config, problem)] * count, config.policy.enable_thinking
    budgets = [config.policy.budget_of()] * count
    return sample_completions(model, tokenizer, conversations, evaluation, config.run.seed, thinking, budgets=budgets)


def ask(config: RunConfig, run: Run, question: str, thinking: bool | None = None) -> None:
    """Show how the untrained and the trained policy answer a question, side by side, while they write.

    The policy is loaded for the first question and stays loaded for the next ones.

    Args:
        config: the run's configuration.
        run: the run; without a finished training only the untrained policy answers.
        question: any question.
        thinking: whether the policy thinks before it answers; None: as the run is configured.

    Raises:
        ValueError: the question is empty, or too long for an answer.
        TypeError: the question is no text, or `thinking` neither True nor False.
    """
    from grpo_kit.display.replies import NotebookReplies
    from grpo_kit.evaluation import ask as asking
    from grpo_kit.policy.chat import template_opens_thinking

    asking.require_question(question)
    if thinking is not None:
        require_switch("thinking", thinking)
    trained = [run.stages()[stage] for stage in run.trained_stages()]
    wanted = repr((run.path, config.policy, trained))
    if wanted not in _loaded:
        _loaded.clear()  # the memory holds one policy
        _loaded[wanted] = asking.load_trained(config, run)
    model, tokenizer = _loaded[wanted]
    thinking = config.policy.enable_thinking if thinking is None else thinking
    shown = NotebookReplies(question, template_opens_thinking(tokenizer, thinking))
    shown.finish(asking.ask(model, tokenizer, config, question, thinking, shown.show))
