r"""Does the reply keep to the budget of thinking that its prompt states?

Paste this file into a notebook cell as it is; it needs nothing but the standard library.

The prompt says, for example, "Think for at most 128 tokens.", and the row's column `token_budget` holds the 128. A
thought of up to 128 tokens earns 1, one of 160 earns 0.75, one of 256 or more earns 0. The slope gives a policy that is
over its budget a reason to get nearer; a step would pay all of its completions alike. Nothing is earned by being far
below the budget, so there is no reward for thinking less than allowed, and a thought that never ends earns 0.

A wrong reply keeps to a budget as easily as a right one. So weigh this below correctness, or pay it to right replies
only, as here; combine.py checks that no wrong reply can then score as much as a right one:

    reward = combine(math_reward, budget=Part(token_budget_reward, weight=0.3, gated=True))
"""

from collections.abc import Callable, Sequence

THINK_TAGS = ("<think>", "</think>")


def token_budget_reward(
    completions: Sequence,
    completion_ids: Sequence[Sequence[int]],
    token_budget: int | Sequence[int | None] | None = None,
    prompt_opened_think: bool | Sequence[bool] = True,
    think_ids: tuple[int, int] | None = None,
    log_metric: Callable | None = None,
    **kwargs,
) -> list[float | None]:
    r"""1.0 for t <= b, max(0, 2 - t / b) above, with t tokens of thinking and a budget of b; None without a budget.

    Args:
        completions: the replies; only their number counts, because tokens are counted and not text.
        completion_ids: token ids of each reply, as TRL passes them.
        token_budget: the budget in tokens, at least 1; None where the prompt states none. A number, or a column.
        prompt_opened_think: whether the prompt ends with <think>, as Nemotron's does. A bool, or a column.
        think_ids: the ids of <think> and </think>. None asks the tokenizer of the trainer whose method TRL passes as
            `log_metric`, so inside a GRPOTrainer nothing needs to be given.
        log_metric: TRL's; nothing is logged.
        kwargs: other columns, which are ignored.

    Returns:
        One reward for each reply.

    Raises:
        ValueError: a budget is no whole number of at least 1; a column has another length; the ids of the tags are
            neither given nor known to the tokenizer.

    Example:
        >>> tags = {"think_ids": (12, 13), "token_budget": 4}
        >>> token_budget_reward(["a", "b"], [[5, 6, 7, 9, 13, 8], [5, 6, 7, 7, 7, 9, 13, 8]], **tags)
        [1.0, 0.75]
    """
    budgets, opened = (_column_of(v, len(completions)) for v in (token_budget, prompt_opened_think))
    if not len(budgets) == len(opened) == len(completion_ids) == len(completions):
        raise ValueError(
            f"got {len(completions)} completions, {len(completion_ids)} completion_ids, {len(budgets)} budgets and "
            f"{len(opened)} values of prompt_opened_think; there is one of each for a reply. Pass TRL's own."
        )
    if all(budget is None for budget in budgets):
        return [None] * len(completions)
    opening, closing = think_ids or _ids_of_tags(log_metric)
    rewards: list[float | None] = []
    for ids, budget, is_open in zip(completion_ids, budgets, opened):
        if budget is None:
            rewards.append(None)
            continue
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget >= 1 or budget % 1 != 0:
            raise ValueError(f"token_budget is {budget!r}; it is a whole number of tokens from 1. Correct the row.")
        tokens = thinking_tokens(ids, opening, closing, bool(is_open))
        rewards.append(0.0 if tokens is None else min(1.0, max(0.0, 2 - tokens / budget)))
    return rewards


def thinking_tokens(ids: Sequence[int], opening: int, closing: int, is_open: bool) -> int | None:
    """How many tokens of a reply are thinking; None where a thought never ends.

    A thought begins where the prompt has opened it, and behind each <think>. It reaches to the last </think> before the
    next <think>, because what rewards judge stands behind that. One token less is counted for the line break that
    Nemotron's template, and so the policy, writes before </think>.

    >>> thinking_tokens([5, 6, 9, 13, 9, 7], 12, 13, True), thinking_tokens([5, 6], 12, 13, True)
    (2, None)
    """
    start, closed, tokens = -1 if is_open else None, None, 0
    for place, token in enumerate([*ids, opening]):  # one more thought, which ends the last one
        if token == closing:
            start, closed = -1 if start is None else start, place
        elif token == opening and (start is None or closed is not None):
            tokens += 0 if closed is None else max(0, closed - start - 2)
            start, closed = place, None
    return tokens if start == len(ids) else None


def _column_of(value: object, count: int) -> list:
    return list(value) if isinstance(value, Sequence) else [value] * count


def _ids_of_tags(log_metric: Callable | None) -> list[int]:
    """The ids of THINK_TAGS for the tokenizer of the trainer whose method `log_metric` is."""
    processing = getattr(getattr(log_metric, "__self__", None), "processing_class", None)
    tokenizer = getattr(processing, "tokenizer", processing)
    known = tokenizer.get_vocab() if tokenizer is not None else {}
    if any(tag not in known for tag in THINK_TAGS):
        raise ValueError(
            "token_budget_reward does not know the token ids of <think> and </think>, between which it counts. Pass "
            "think_ids=(12, 13), with the ids of your tokenizer, or call it in a trainer whose tokenizer has them."
        )
    return [known[tag] for tag in THINK_TAGS]
