"""Arithmetic on low-rank updates, from their factors alone: joined exactly, or brought down to a rank with the loss known.

An update is B A with A (r, in) and B (out, r); the product, as large as the base's own matrix, is never formed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Part(NamedTuple):
    """Factors of one summand: `a` (r, in), `b` (rows, r), a factor, and the first of the sum's rows that it adds to."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float = 1.0
    first_row: int = 0


def join_updates(parts: Sequence[Part], out: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B), float32, whose product is the sum of `scale * b a` over the parts, exactly; its rank is the sum of theirs.

    `out`: rows of the sum; a part with fewer fills its own rows and leaves the others at zero.
    """
    a = torch.cat([part.a.float() for part in parts])
    b, column = torch.zeros(out, a.shape[0]), 0
    for part in parts:
        rows, rank = part.b.shape
        b[part.first_row : part.first_row + rows, column : column + rank] = part.b.float() * part.scale
        column += rank
    return a, b


def reduce_rank(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(A, B, loss) of the best update of `rank` (Eckart and Young 1936), A and B float32.

    `loss`: |BA - B'A'| / |BA| in the Frobenius norm, in [0, 1]; 0 for an update of zero. By QR of both factors and an SVD
    of an (r, r) matrix, in float64. Raises ValueError for factors that are not finite.
    """
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("A LoRA pair holds NaN or infinity, so its rank cannot be brought down. Train again.")
    left, upper = torch.linalg.qr(b.double())
    right, lower = torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    root = s[:rank].sqrt()
    kept_b, kept_a = left @ (u[:, :rank] * root), (right @ (v[:rank].T * root)).T
    whole = s.square().sum()
    loss = (s[rank:].square().sum() / whole).sqrt().item() if whole > 0 else 0.0
    return kept_a.float().contiguous(), kept_b.float().contiguous(), loss
