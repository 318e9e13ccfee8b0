"""How a problem becomes a prompt, and what the chat template adds to it.

Nemotron's template opens `<think>` at the end of the prompt when thinking is on. The completion therefore starts
inside the thinking and holds only the closing tag; a reward that waits for `<think>` in the completion pays 0 for ever.
"""

from typing import Any

# The challenge's scorer appends exactly this, back-ticks included, to every problem (one user turn, no system text).
CHALLENGE_SUFFIX = "\nPlease put your final answer inside `\\boxed{}`. For example: `\\boxed{your answer}`"


def messages(problem: str, suffix: str = "", system: str = "") -> list[dict[str, str]]:
    """The conversation that asks one problem: an optional system turn, then one user turn.

    >>> messages("What is 2 + 2?")
    [{'role': 'user', 'content': 'What is 2 + 2?'}]
    """
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": problem + suffix}]


def opens_thinking(tokenizer: Any, enable_thinking: bool) -> bool:
    """Whether the prompts this tokenizer's chat template makes end inside an open `<think>`."""
    text = tokenizer.apply_chat_template(
        messages("?"), tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
    )
    return text.rfind("<think>") > text.rfind("</think>")


def split_thinking(completion: str) -> tuple[str, str]:
    """(thinking, answer) of a completion whose prompt opened `<think>`; no closing tag: it is all thinking.

    >>> split_thinking("7+8=15\\n</think>\\n\\\\boxed{15}")
    ('7+8=15', '\\\\boxed{15}')
    """
    thinking, closed, answer = completion.rpartition("</think>")
    if not closed:
        return completion.strip(), ""
    return thinking.removeprefix("<think>").strip(), answer.strip()


def text_of(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion, be it a string or TRL's list of one assistant message."""
    return completion if isinstance(completion, str) else "".join(message["content"] or "" for message in completion)
