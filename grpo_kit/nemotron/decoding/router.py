"""Which experts a token's router chooses."""

import torch


def choose(logits: torch.Tensor, bias: torch.Tensor, ones: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The choice of transformers' `NemotronHTopkRouter` with one group of experts.

    Args:
        logits: (rows, experts) float32.
        bias: (experts,) float32, added to the scores for the choice only.
        ones: (k, 1) float32, each 1 / the sum that a row's weights shall have; k experts are chosen.

    Returns:
        ((rows, k) int64 experts in any order, (rows, k) float32 weights, in proportion to their scores).
    """
    scores = logits.sigmoid()
    index = (scores + bias).topk(len(ones), dim=-1, sorted=False).indices
    chosen = scores.gather(1, index)
    return index, chosen.div_(chosen @ ones)
