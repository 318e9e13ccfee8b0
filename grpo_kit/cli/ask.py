"""`grpo-kit ask`: a question of your own to the untrained and the trained policy. `main` registers it."""

import re

from rich.markup import escape

from grpo_kit import config as configuration
from grpo_kit.cli import options
from grpo_kit.cli.next_steps import show_next
from grpo_kit.display import console, replies
from grpo_kit.runs.session import open_run


def ask(
    words: options.Question = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    thinking: options.Thinking = None,
    budget: options.Budget = None,
) -> None:
    """Ask a question of your own: the untrained and the trained policy answer side by side, while you watch."""
    from grpo_kit.evaluation import ask as asking
    from grpo_kit.policy.chat import template_opens_thinking

    overrides = [word for word in words or () if re.match(r"[a-z_]+\.[a-z_]+=", word)]
    question = " ".join(word for word in words or () if word not in overrides)
    config, run = open_run(sources or (), overrides, name, "evaluate")
    asking.require_question(question)
    if budget and thinking is False:
        raise ValueError(f"--budget {budget} closes a thought, and with --no-thinking there is none. Leave one out.")
    if name and not sources and not run.stages():  # a preset would answer under a name that was mistyped
        raise FileNotFoundError(
            f"There is no run {run.name!r} in {run.path.parent}. Check the name, or ask a preset, as with -c tiny."
        )
    if sources:
        asking.require_base_of(run, configuration.load_config(sources, overrides).policy.model)
    with console.show_progress("loading the policy"):
        model, tokenizer = asking.load_trained(config, run)
    thinks = config.policy.enable_thinking if thinking is None else thinking
    opened = template_opens_thinking(tokenizer, thinks)
    with replies.show_in_terminal(opened) as show:
        answered = asking.ask(model, tokenizer, config, question, thinks, show, budget)
    replies.print_replies(answered, opened)
    if asking.TRAINED not in answered:
        console.out.print(escape(f"Run {run.name!r} has no trained policy yet."))
    show_next(run, sources, overrides, name)
