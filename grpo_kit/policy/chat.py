"""How a problem becomes a prompt, and what the chat template adds to it.

Nemotron's template opens `<think>` at the end of the prompt when thinking is on. The completion therefore starts
inside the thinking and holds only the closing tag; a reward that waits for `<think>` in the completion pays 0 for ever.
"""

from collections.abc import Callable
from typing import Any

from grpo_kit.config import Policy
from grpo_kit.config.checks import require


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


# TRL 1.16 hands the chat template one set of keywords for all rows, so a row's own word rides on its last turn.
SWITCH = (
    "{%- if messages and messages[-1].enable_thinking is boolean -%}"
    "{%- set enable_thinking = messages[-1].enable_thinking -%}{%- endif -%}"
)


def conversations(tokenizer: Any, rows: list[dict[str, Any]], enable_thinking: bool) -> list[list[dict[str, Any]]]:
    """The rows' prompts as the chat template is to see them, and `tokenizer`'s template taught to heed their options.

    A row with an `enable_thinking` of its own is asked so, whatever the run asks of the others. Raises ValueError where a
    row differs from the run and the template knows no such word.
    """
    own = [row.get("enable_thinking") for row in rows]
    if all(word is None for word in own):
        return [row["prompt"] for row in rows]
    if SWITCH not in tokenizer.chat_template:
        tokenizer.chat_template = SWITCH + tokenizer.chat_template
    marked = [
        row["prompt"] if word is None else [*row["prompt"][:-1], row["prompt"][-1] | {"enable_thinking": word}]
        for row, word in zip(rows, own, strict=True)
    ]
    other = next((turns for turns, word in zip(marked, own, strict=True) if word not in (None, enable_thinking)), None)
    if other is not None:
        plain = [{key: value for key, value in turn.items() if key != "enable_thinking"} for turn in other]
        texts = {
            tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
            )
            for turns in (other, plain)
        }
        require(
            len(texts) == 2,
            "Some rows ask for an answer without thinking, and the policy's chat template makes the same prompt of them as of "
            "the others; it knows no enable_thinking. Set data.no_thinking=0 and prepare the data again.",
        )
    return marked


def opened_think(tokenizer: Any, rows: list[dict[str, Any]], enable_thinking: bool) -> list[bool]:
    """For each row, whether its prompt ends inside an open `<think>`; the column of that name that rewards ask for."""
    own = [row.get("enable_thinking") for row in rows]
    asked = [enable_thinking if word is None else word for word in own]
    opens = {word: opens_thinking(tokenizer, word) for word in set(asked)}
    return [opens[word] for word in asked]


def token_counter(policy: Policy) -> Callable[[list[list[dict[str, str]]]], list[int]]:
    """A function from prompts (message lists) to their lengths in tokens, the policy's chat template included."""
    from grpo_kit.policy.load import load_tokenizer

    tokenizer = load_tokenizer(policy)

    def count(asked: list[list[dict[str, str]]]) -> list[int]:
        texts = tokenizer.apply_chat_template(
            asked, tokenize=False, add_generation_prompt=True, enable_thinking=policy.enable_thinking
        )
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    return count
