"""reasoning_format_reward: 1.0 for a reply that thinks, closes its thinking once, and then answers.

Paste this file into a notebook cell as it is; it needs nothing but the standard library.

Nemotron's chat template has opened `<think>` in the prompt already, so the completion must not open it again, and
holds only `</think>`. (A reward that waits for both tags in the completion, as TRL's `think_format_reward` does,
always pays 0 here.) Only the shape is judged: this is a nudge, to be weighted far below correctness.
"""


def reasoning_format_reward(completions, **kwargs) -> list[float]:
    """1.0 when the completion is `some thinking </think> some answer`, with exactly one tag; else 0.0.

    `completions`: strings or TRL's message lists. Any reply is judged, none raises.
    """
    return [_shape(completion) for completion in completions]


def _shape(completion) -> float:
    text = completion if isinstance(completion, str) else "".join(turn.get("content") or "" for turn in completion)
    thinking, closed, answer = text.partition("</think>")
    opened_again = "<think>" in text
    return float(
        bool(closed)
        and not opened_again
        and "</think>" not in answer
        and bool(thinking.strip())
        and bool(answer.strip())
    )
