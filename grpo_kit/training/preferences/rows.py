"""Pairs as token ids: the prompt as the policy is asked it, the completions as it writes them. Nothing is cut."""

from collections.abc import Sequence
from typing import Any

from grpo_kit.policy.chat import encode_prompt
from grpo_kit.training.preferences.groups import Group
from grpo_kit.training.preferences.pairs import Pair

Row = dict[str, list[int]]


def leave_out_long(
    groups: Sequence[Group], tokenizer: Any, enable_thinking: bool, max_length: int
) -> tuple[list[Group], int]:
    """The groups without the replies that are too long, so that no pair takes the place of one that fits.

    Args:
        groups: judged completions.
        tokenizer, enable_thinking, max_length: as `encode_pairs`.

    Returns:
        The groups, some of them perhaps without replies; and the length of the longest prompt with a reply that does
        not fit, 0 where all do.
    """
    fitting, longest = [], 0
    for group in groups:
        thinking = group.row.get("enable_thinking")
        prompt = len(encode_prompt(tokenizer, group.row["prompt"], enable_thinking if thinking is None else thinking))
        replies = [reply for reply in group.replies if prompt + reply.tokens <= max_length]
        longest = max([longest, *(prompt + reply.tokens for reply in group.replies if reply not in replies)])
        fitting.append(group._replace(replies=replies))
    return fitting, longest


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Any, enable_thinking: bool, max_length: int
) -> tuple[list[Pair], list[Row], int]:
    """Write pairs as token ids, and leave out those that are too long.

    Args:
        pairs: the pairs.
        tokenizer: the policy's.
        enable_thinking: the run's setting, for pairs without their own.
        max_length: the most tokens of a prompt with a completion.

    Returns:
        The pairs that fit; of each its `prompt_ids`, `chosen_ids` and `rejected_ids`, the completions with the token
        that ends them, unless they were cut; and the length of the longest pair that does not fit, 0 where all do.
    """
    kept, rows, longest = [], [], 0
    for pair in pairs:
        thinking = enable_thinking if pair.enable_thinking is None else pair.enable_thinking
        prompt = encode_prompt(tokenizer, pair.prompt, thinking, pair.tools)
        chosen, rejected = (
            tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] * ends
            for text, ends in ((pair.chosen, True), (pair.rejected, pair.rejected_ends))
        )
        length = len(prompt) + max(len(chosen), len(rejected))
        if length > max_length:
            longest = max(longest, length)
            continue
        lengths = {"chosen_tokens": len(chosen), "rejected_tokens": len(rejected)}
        kept.append(pair._replace(**lengths))
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return kept, rows, longest
