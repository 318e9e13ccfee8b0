"""Arithmetic on low-rank updates by their factors: exact sums, and the best approximation of a smaller rank.

An update is B A with A (r, in) and B (out, r). The product, as large as the base's own matrix, is never computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

MOST_LOST = 0.01  # of an adapter's norm, when its type is changed; 11 bits lose some 0.0003 of it and 8 bits 0.003


class Part(NamedTuple):
    """One summand: `a` (r, in), `b` (rows, r), its factor, and the first row of the sum that it adds to."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float = 1.0
    first_row: int = 0


def join_updates(parts: Sequence[Part], out: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact sum of several updates.

    Args:
        parts: the summands; one with fewer rows than `out` leaves the other rows at zero.
        out: rows of the sum.

    Returns:
        A (R, in) and B (out, R) in float32, R the sum of the ranks, with B A the sum of `scale * b a`.

    Example:
        >>> one = Part(torch.ones(1, 2), torch.ones(3, 1), 2.0)
        >>> a, b = join_updates([one, one], 3)
        >>> (b @ a)[0].tolist()
        [4.0, 4.0]
    """
    a = torch.cat([part.a.float() for part in parts])
    b, column = torch.zeros(out, a.shape[0]), 0
    for part in parts:
        rows, rank = part.b.shape
        b[part.first_row : part.first_row + rows, column : column + rank] = part.b.float() * part.scale
        column += rank
    return a, b


def reduce_rank(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The best approximation of an update by one of at most `rank`.

    Computed from the QR decompositions of both factors and an SVD of an (r, r) matrix, in float64.

    Args:
        a: (r, in).
        b: (out, r).
        rank: the largest rank of the result.

    Returns:
        A and B in float32, and |BA - B'A'| / |BA| in the Frobenius norm, in [0, 1]; 0 for an update of zero.

    Raises:
        ValueError: a factor holds NaN or infinity.

    Source: Eckart and Young (1936).

    Example:
        >>> a, b, loss = reduce_rank(torch.eye(2), torch.diag(torch.tensor([4.0, 3.0])), 1)
        >>> round(loss, 3)  # 3 / 5 is lost
        0.6
    """
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("A LoRA pair holds NaN or infinity, so its rank cannot be reduced. Train again.")
    left, upper = torch.linalg.qr(b.double())
    right, lower = torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    root = s[:rank].sqrt()
    kept_b, kept_a = left @ (u[:, :rank] * root), (right @ (v[:rank].T * root)).T
    total = s.square().sum()
    loss = (s[rank:].square().sum() / total).sqrt().item() if total > 0 else 0.0
    return kept_a.float().contiguous(), kept_b.float().contiguous(), loss


def compare_updates(
    halves: tuple[torch.Tensor, torch.Tensor], stored: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, float]:
    """What changing the type of both factors does to an update, or to several.

    With G = B^T B and H = A A^T the squared norm of B A is the sum of the products of the elements of G and H.

    Args:
        halves: A (..., r, in) and B (..., out, r).
        stored: the same in another type.

    Returns:
        The squared Frobenius norms of B A, and of what the stored update differs by.

    Example:
        >>> one = torch.ones(1, 2), torch.tensor([[3.0], [1e-9]])
        >>> update, lost = compare_updates(one, tuple(half.half() for half in one))
        >>> update, f"{lost:.1e}"  # 2 * 3**2, and twice the square of 1e-9, which float16 has not
        (18.0, '2.0e-18')
    """
    (a, b), (stored_a, stored_b) = ([half.double() for half in pair] for pair in (halves, stored))
    update = ((b.mT @ b) * (a @ a.mT)).sum().item()
    if halves[0].dtype == stored[0].dtype and halves[1].dtype == stored[1].dtype:
        return update, 0.0
    # B A - B' A' = (B - B') A + B' (A - A')
    left, right = torch.cat([b - stored_b, stored_b], -1), torch.cat([a, a - stored_a], -2)
    return update, ((left.mT @ left) * (right @ right.mT)).sum().item()
