"""Joins and pads TRL's batches of tensors, and cuts them to groups or to the rows that have a gradient.

A tensor of two dimensions is `(completions, tokens)`: prompts are padded on the left, everything else on the right.
One of one dimension is `(completions,)`; a scalar belongs to the batch as a whole.
"""

import torch

Batch = dict[str, torch.Tensor]
LEFT_PADDED = ("prompt_ids", "prompt_mask")


def pad_columns(value: torch.Tensor, width: int, fill: int, left: bool) -> torch.Tensor:
    """`value`, `(rows, tokens)`, widened to `(rows, width)` with `fill`, on the left or on the right."""
    missing = width - value.shape[1]
    return torch.nn.functional.pad(value, (missing, 0) if left else (0, missing), value=fill)


def join_batches(first: Batch, second: Batch, pad_token: int) -> Batch:
    """The rows of both batches, the narrower one padded. Scalars are dropped, because they count one batch only."""
    joined = {}
    for name, value in first.items():
        other = second[name]
        if value.ndim == 2:
            width, fill = max(value.shape[1], other.shape[1]), pad_token if name.endswith("_ids") else 0
            value, other = (pad_columns(tensor, width, fill, name in LEFT_PADDED) for tensor in (value, other))
        if value.ndim:
            joined[name] = torch.cat([value, other])
    return joined


def take_groups(batch: Batch, groups: torch.Tensor, num_generations: int) -> Batch:
    """The rows of some groups, in the order of `groups`, with TRL's count of their tokens.

    Args:
        batch: rows whose groups of `num_generations` completions lie side by side.
        groups: `(chosen,)`, numbers of groups.
        num_generations: completions per group.
    """
    rows = (groups[:, None] * num_generations + torch.arange(num_generations, device=groups.device)).flatten()
    chosen = {name: value[rows] for name, value in batch.items() if value.ndim}
    return chosen | {"num_items_in_batch": loss_mask(chosen).sum().float()}


def loss_mask(batch: Batch) -> torch.Tensor:
    """`(rows, tokens)`: the tokens that the loss counts, those that the policy drew; results of tools do not count."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def gather_groups(micro_batches: list[Batch]) -> list[Batch]:
    """The same rows in as many micro-batches, those of equal prompts side by side.

    A micro-batch reads each of its prompts once (training/shared_prompts.py), so few prompts should be in several.
    """
    first = micro_batches[0]
    joined = {name: torch.cat([each[name] for each in micro_batches]) for name, value in first.items() if value.ndim}
    prompts = torch.cat([joined["prompt_mask"], joined["prompt_ids"] * joined["prompt_mask"]], dim=1)
    order = prompts.unique(dim=0, return_inverse=True)[1].argsort(stable=True)
    parts = order.split(len(first["prompt_ids"]))
    return [first | {name: value[rows] for name, value in joined.items()} for rows in parts]


def has_gradient(batch: Batch) -> torch.Tensor:
    """`(rows,)` bool: whether a row has an advantage and at least one token that counts."""
    return (batch["advantages"] != 0) & loss_mask(batch).bool().any(1)


def drop_rows_without_gradient(batch: Batch, loss_type: str, at_least: int) -> tuple[Batch | None, float]:
    """A micro-batch without the rows that change nothing, and the factor that keeps its loss the same.

    Args:
        batch: a micro-batch as TRL's loss takes it.
        loss_type: TRL's name of the loss, which decides what it divides by.
        at_least: how many rows must remain, even without a gradient.

    Returns:
        The remaining rows, without columns that are padding in all of them; and the factor that turns the mean over
        them into the mean over all rows. (None, 0) when no row remains.
    """
    mask, useful = batch["completion_mask"].bool(), has_gradient(batch)
    kept = (~useful).long().argsort(stable=True)[: max(at_least, int(useful.sum()))].sort().values
    if not len(kept):
        return None, 0.0
    last = int(mask[kept].any(0).nonzero()[-1]) + 1 if mask[kept].any() else 1
    first = int(batch["prompt_mask"][kept].any(0).nonzero()[0])
    smaller = {name: value[kept] if value.ndim else value for name, value in batch.items()}
    for name, value in smaller.items():
        if value.ndim == 2:
            smaller[name] = value[:, first:] if name in LEFT_PADDED else value[:, :last]
    # dapo and cispo divide by the tokens of the whole batch, which `num_items_in_batch` holds.
    counted, share_of_rows = loss_mask(batch), len(kept) / len(mask)
    share_of_tokens = counted[kept].sum() / counted.sum().clamp(min=1)
    return smaller, {"dapo": 1.0, "cispo": 1.0, "bnpo": float(share_of_tokens)}.get(loss_type, share_of_rows)
