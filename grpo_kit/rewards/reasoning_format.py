r"""Does the reply think, close its thinking once, and then answer? 1.0 yes, 0.0 no.

Paste this file into a notebook cell as it is; it needs nothing but the standard library.

Nemotron's chat template ends the prompt with `<think>`, so a good completion is `thinking </think>
answer`, with no opening tag. A reward that waits for both tags in the completion, as TRL's
think_format_reward does, pays 0 for ever. Only the shape is judged and any wrong answer can have
it: weigh it far below correctness (see combine.py), or gate it. A long thought that says nothing has
it too: `least` only stops the shortest.
"""

from collections.abc import Sequence


def reasoning_format_reward(
    completions: Sequence,
    prompt_opened_think: bool | Sequence[bool] = True,
    enable_thinking: bool | Sequence[bool | None] | None = None,
    least: int = 5,
    **kwargs,
) -> list[float]:
    r"""1.0 for exactly one </think> with thinking before it and an answer after it, else 0.0.

    Blank text, and text of tags alone, is neither thinking nor an answer. No reply raises.

    Args:
        completions: texts or message lists; of several turns the last one of the assistant is judged. TRL's
            `reasoning_content` counts as thinking that was opened and closed. TRL leaves the key away where a thought
            is empty or not closed, and keeps only the last of several thoughts.
        prompt_opened_think: whether the prompt ends with <think>, as Nemotron's does; then a <think> in the completion
            is a second one and earns 0. If False, the completion must begin with it. A bool, or a column.
        enable_thinking: False where the prompt asked for an answer without thinking; then one without either tag earns
            1.0. A bool, or a column.
        least: characters of thinking, blanks not counted, below which a reply earns 0. The default lets "2+2=4" pass,
            as the embedded policy thinks; for a large model some hundreds are sensible.
        kwargs: other columns, which are ignored.

    Returns:
        One reward for each completion.

    Raises:
        ValueError: a column has another length.

    Example:
        >>> reasoning_format_reward(["6*7=42\n</think>\n42", "a</think>b", "6*7=42, so 42"])
        [1.0, 0.0, 0.0]
    """
    opened, thinks = (_column(v, len(completions)) for v in (prompt_opened_think, enable_thinking))
    rewards = []
    for completion, flag, think in zip(completions, opened, thinks, strict=True):
        text = _join_contents(completion)
        if think is False:
            rewards.append(float(_is_answer_alone(text)))
        else:
            rewards.append(float(_well_formed(text, flag or _is_split(completion, text), least)))
    return rewards


def _column(value: object, count: int) -> list:
    return list(value) if isinstance(value, Sequence) else [value] * count


def _is_answer_alone(text: str) -> bool:
    return "think>" not in text and any(map(str.isalnum, text.replace("<|im_end|>", "")))


def _is_split(completion: str | list | dict | None, text: str) -> bool:
    """Whether TRL has taken the thinking, and its tags, off the turn that is judged."""
    turns = [completion] if isinstance(completion, dict) else [] if isinstance(completion, str) else completion or []
    contents = [turn.get("content") for turn in turns if turn.get("role", "assistant") == "assistant"]
    return bool(contents) and "</think>" not in str(contents[-1]) and "</think>" in text


def _well_formed(text: str, opened: bool, least: int) -> bool:
    if not opened:
        if not text.lstrip().startswith("<think>"):
            return False
        text = text.lstrip()[len("<think>") :]
    thinking, _, answer = text.partition("</think>")
    once = text.count("</think>") == 1 and "<think>" not in text
    thought = any(map(str.isalnum, thinking)) and len("".join(thinking.split())) >= least
    return once and thought and any(map(str.isalnum, answer.replace("<|im_end|>", "")))


def _join_contents(completion: str | list | dict | None) -> str:
    """The last assistant turn as the model wrote it; thinking that TRL has taken off stands before </think> again."""
    if completion is None or isinstance(completion, str):
        return completion or ""
    turns = [completion] if isinstance(completion, dict) else completion
    turn = next((turn for turn in reversed(turns) if turn.get("role", "assistant") == "assistant"), {})
    content = turn.get("content") or ""
    if not isinstance(content, str):
        content = "".join(block if isinstance(block, str) else str(block.get("text") or "") for block in content)
    thinking = turn.get("reasoning_content", turn.get("thinking"))
    return content if thinking is None else f"{thinking}</think>{content}"
