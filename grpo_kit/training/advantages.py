"""How much better than its group a completion was: GRPO's advantage, by the group's mean or by the others' mean.

The figures are NeMo-RL's (`calculate_baseline_and_std_per_prompt`): with one right in 8, 2.475 and -0.354 by the group,
1.000 and -0.378 by the others. TRL 1.16 has the first only, with another epsilon.
"""

import torch

EPSILON = 1e-6
KINDS = ("group", "leave_one_out")


def compute_advantages(
    rewards: torch.Tensor, num_generations: int, kind: str = "group", normalize: bool = True
) -> torch.Tensor:
    """Advantages, `(completions,)`, of `rewards`, `(completions,)`, whose groups of `num_generations` lie side by side.

    `group`: r - mean of its group (DeepSeekMath, arXiv:2402.03300, section 4.1). `leave_one_out`: r - mean of the others
    (RLOO, arXiv:2402.14740). With `normalize`, over the standard deviation (n - 1 below) of those whose mean it was; one
    that is 0 leaves the difference as it is. A reward that is NaN counts in no mean and gets 0.

    >>> [round(a, 3) for a in compute_advantages(torch.tensor([1.0] + [0.0] * 7), 8).tolist()[:2]]
    [2.475, -0.354]
    >>> [round(a, 3) for a in compute_advantages(torch.tensor([1.0] + [0.0] * 7), 8, "leave_one_out").tolist()[:2]]
    [1.0, -0.378]
    """
    r = rewards.double().view(-1, num_generations)
    known = ~r.isnan()
    r = r.nan_to_num(0.0)
    others = known.unsqueeze(1).expand(-1, num_generations, -1).double()  # (groups, of whom, over whom)
    if kind == "leave_one_out":
        others = others * (1 - torch.eye(num_generations, dtype=torch.double, device=r.device))
    count = others.sum(-1)
    mean = (others * r.unsqueeze(1)).sum(-1) / count.clamp(min=1)
    spread = (others * (r.unsqueeze(1) - mean.unsqueeze(-1)) ** 2).sum(-1) / (count - 1).clamp(min=1)
    found = torch.where(known & (count > 0), r - mean, 0.0)
    if normalize:
        std = spread.sqrt()
        # Equal rewards may differ in their last bits; over such a spread the difference would become thousands.
        trivial = std <= 1e-6 * (1 + mean.abs())
        found = torch.where(trivial, found, found / (std + EPSILON))
    return found.view(-1).to(rewards.dtype)


def is_flat(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """`(groups,)` bool: whether all rewards of a group that are known are equal, so that it teaches nothing."""
    r = rewards.view(-1, num_generations)
    low, high = r.nan_to_num(float("inf")).amin(1), r.nan_to_num(float("-inf")).amax(1)
    return ~(high - low > 1e-6 * (1 + high.abs()))  # all unknown: inf - inf is no number, and flat
