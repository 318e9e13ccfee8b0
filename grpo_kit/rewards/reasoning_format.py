r"""Does the reply think, close its thinking once, and then answer? 1.0 yes, 0.0 no.

Paste this file into a notebook cell as it is; it needs nothing but the standard library.

Nemotron's chat template ends the prompt with `<think>`, so a good completion is `thinking </think>
answer`, with no opening tag. A reward that waits for both tags in the completion, as TRL's
think_format_reward does, pays 0 for ever. Only the shape is judged and any wrong answer can have
it: weigh it far below correctness (see combine.py), or gate it.
"""

from collections.abc import Sequence


def reasoning_format_reward(
    completions: Sequence,
    prompt_opened_think: bool | Sequence[bool] = True,
    enable_thinking: bool | Sequence[bool | None] | None = None,
    **kwargs,
) -> list[float]:
    r"""1.0 for exactly one </think> with thinking before it and an answer after it, else 0.0.

    completions: strings or message lists. prompt_opened_think: whether the prompt ends with
    <think>, as Nemotron's does; then a <think> in the completion is a second one and earns 0. If
    False, the completion must begin with it. enable_thinking: False where the prompt asked for an
    answer without thinking; then one without either tag earns 1.0. Both may be columns, with one
    entry a completion. Blank text, and text of tags alone, is neither thinking nor an answer. No
    reply raises.

    >>> reasoning_format_reward(["6*7=42\n</think>\n42", "</think> 42", "6*7=42, so 42"])
    [1.0, 0.0, 0.0]
    """
    opened, thinks = (_column(v, len(completions)) for v in (prompt_opened_think, enable_thinking))
    shapes = zip(map(_text, completions), opened, thinks, strict=True)
    return [float(_bare(text) if think is False else _well_formed(text, o)) for text, o, think in shapes]


def _column(value: object, count: int) -> list:
    return list(value) if isinstance(value, Sequence) else [value] * count


def _bare(text: str) -> bool:
    return "think>" not in text and any(map(str.isalnum, text.replace("<|im_end|>", "")))


def _well_formed(text: str, opened: bool) -> bool:
    if not opened:
        if not text.lstrip().startswith("<think>"):
            return False
        text = text.lstrip()[len("<think>") :]
    thinking, _, answer = text.partition("</think>")
    once = text.count("</think>") == 1 and "<think>" not in text
    return once and any(map(str.isalnum, thinking)) and any(map(str.isalnum, answer.replace("<|im_end|>", "")))


def _text(completion: str | list) -> str:
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)
