"""Options of single training rows: an answer without thinking, or a stated budget of thinking tokens.

A share of training rows with each option keeps a policy able to do both. The seed and the row's id alone decide which
rows, so a row keeps its option when others are added or removed. Nemotron-3-Nano learned both from supervised data
(report, 3.1.5: the thinking was removed from a tenth of the samples and cut short in 3 %); here the prompt asks for
it, and the reward judges the answer.
"""

import hashlib
from typing import Any

from grpo_kit.config import Data


def add_row_option(row: dict[str, Any], data: Data, seed: int) -> dict[str, Any]:
    """Give a row its option.

    Args:
        row: a training row with `id` and `prompt` (messages).
        data: gives the shares `no_thinking` and `budgeted`, and `token_budgets` in tokens.
        seed: another seed chooses other rows.

    Returns:
        The row with `enable_thinking` (False: answer without thinking) and `token_budget` (tokens, or None). A budget
        is stated in a sentence at the end of the prompt. Where both shares are 0, the row is returned as it is.

    Example:
        >>> row = {"id": "a", "prompt": [{"role": "user", "content": "1 + 1?"}]}
        >>> add_row_option(row, Data(budgeted=1.0, token_budgets=[64]), seed=1)["prompt"][0]["content"]
        '1 + 1?\\nThink for at most 64 tokens.'
    """
    if not data.no_thinking and not data.budgeted:
        return row
    digest = hashlib.sha256(f"row option {seed} {row['id']}".encode()).digest()
    position = int.from_bytes(digest[:8]) / 2**64  # in [0, 1): no thinking first, then budgets, then the rest
    thinks, budget, prompt = position >= data.no_thinking, None, row["prompt"]
    if thinks and position < data.no_thinking + data.budgeted:
        budget = data.token_budgets[int.from_bytes(digest[8:16]) % len(data.token_budgets)]
        content = f"{prompt[-1]['content']}\nThink for at most {budget} tokens."
        prompt = [*prompt[:-1], prompt[-1] | {"content": content}]
    return row | {"prompt": prompt, "enable_thinking": thinks, "token_budget": budget}
