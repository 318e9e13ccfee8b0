"""Options of single rows: asked for an answer without thinking, or told a budget of tokens to think in.

A share of the training rows of each kind keeps a policy able to do both. Which rows, is a matter of seed and row id alone,
so a row keeps its option when others come or go. Nemotron-3-Nano got both from supervised data (report, 3.1.5: traces
taken out of a tenth of the samples, cut short in 3 %); here the prompt asks and the reward judges the answer.
"""

import hashlib
from typing import Any


def add_row_option(row: dict[str, Any], data: Any, seed: int) -> dict[str, Any]:
    """The row, with `enable_thinking` (False: not asked to think) and `token_budget` (None: none) where `data` wants such rows.

    `data`: `config.Data`. A budget is stated in a sentence at the end of the prompt.
    """
    if not data.no_thinking and not data.budgeted:
        return row
    digest = hashlib.sha256(f"row option {seed} {row['id']}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    thinks, budget, asked = place >= data.no_thinking, None, row["prompt"]
    if thinks and place < data.no_thinking + data.budgeted:
        budget = data.token_budgets[int.from_bytes(digest[8:16]) % len(data.token_budgets)]
        asked = [*asked[:-1], asked[-1] | {"content": f"{asked[-1]['content']}\nThink for at most {budget} tokens."}]
    return row | {"prompt": asked, "enable_thinking": thinks, "token_budget": budget}
