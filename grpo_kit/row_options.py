"""Options of single rows: asked for an answer without thinking, or told a budget of tokens to think in.

A share of the training rows of each kind keeps a policy able to do both. Which rows, is a matter of seed and row id alone,
so a row keeps its option when others come or go. Nemotron-3-Nano got both from supervised data (report, 3.1.5: traces
taken out of a tenth of the samples, cut short in 3 %); here the prompt asks and the reward judges the answer.
"""

import hashlib
from typing import Any

from grpo_kit import prompts
from grpo_kit.checks import at_least, require, share

# TRL 1.16 hands the chat template one set of keywords for all rows, so a row's own word rides on its last turn.
SWITCH = (
    "{%- if messages and messages[-1].enable_thinking is boolean -%}"
    "{%- set enable_thinking = messages[-1].enable_thinking -%}{%- endif -%}"
)


def check(no_thinking: float, budgeted: float, token_budgets: list[int]) -> None:
    """Raise ValueError unless the shares leave room for each other and there are budgets to draw from."""
    share("data.no_thinking", no_thinking)
    share("data.budgeted", budgeted)
    require(
        no_thinking + budgeted <= 1,
        f"data.no_thinking {no_thinking} and data.budgeted {budgeted} are more than all rows together; a row is of one kind. "
        "Lower one of them.",
    )
    require(
        not budgeted or bool(token_budgets),
        f"data.budgeted is {budgeted} and data.token_budgets is empty; a budget is drawn from it. Set "
        "data.token_budgets=[128,256,512], in tokens.",
    )
    for tokens in token_budgets:
        at_least("data.token_budgets", tokens, 1, "a budget is a number of tokens")


def with_option(row: dict[str, Any], data: Any, seed: int) -> dict[str, Any]:
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
    opens = {word: prompts.opens_thinking(tokenizer, word) for word in set(asked)}
    return [opens[word] for word in asked]
