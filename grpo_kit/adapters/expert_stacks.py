"""How other trainers stack the LoRA pairs of all experts of a layer into one pair.

- Flat, as PEFT's `target_parameters`: A is (E r, in), expert by expert, and B is (out, r E), rank by rank, for E
  experts. Newer Unsloth writes B expert by expert. Before PEFT 0.19 in and out were exchanged.
- With an axis for experts: A (E, r, in), and B (E, out, r) or (out, E, r); either may have one expert for all.
"""

from collections.abc import Callable

import torch

View = Callable[[torch.Tensor], torch.Tensor]


def recognize_stacking(
    a: tuple[int, ...], b: tuple[int, ...], num_experts: int, shape: tuple[int, int], layout: str
) -> tuple[int, bool, tuple[View, View]] | None:
    """How a pair for all experts is stacked, by its shapes.

    Args:
        a, b: the shapes of the saved A and B.
        num_experts: how many experts the layer has.
        shape: (out, in) of an expert's matrix.
        layout: how a flat B is read, `rank-first` or `expert-first`; the shapes do not tell.

    Returns:
        (rank, whether A and B are exchanged, how to view A and B as (experts, ...)), or None when no known way fits,
        or two do.

    Example:
        >>> rank, exchanged, _ = recognize_stacking((16, 5), (3, 16), 8, (3, 5), "rank-first")
        >>> rank, exchanged
        (2, False)
    """
    out, inside = shape
    if len(a) == len(b) == 2:
        rank, rest = divmod(a[0], num_experts)
        exchanged = (a[1], b[0]) == (out, inside) != (inside, out)
        if rest or not rank or b[1] != a[0] or not (exchanged or (a[1], b[0]) == (inside, out)):
            return None

        def split_a(stack: torch.Tensor) -> torch.Tensor:
            return stack.view(num_experts, rank, -1)

        def split_b(stack: torch.Tensor) -> torch.Tensor:
            if layout == "rank-first":
                return stack.view(-1, rank, num_experts).permute(2, 0, 1)
            return stack.view(-1, num_experts, rank).transpose(0, 1)

        return rank, exchanged, (split_a, split_b)
    if len(a) != 3 or len(b) != 3 or a[0] not in (1, num_experts) or a[2] != inside or not a[1]:
        return None
    rank, views = a[1], []
    if b[1:] == (out, rank) and b[0] in (1, num_experts):
        views.append(_unchanged)
    if b == (out, num_experts, rank):
        views.append(lambda t: t.transpose(0, 1))
    return (rank, False, (_unchanged, views[0])) if len(views) == 1 else None  # both fit: ambiguous


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
