"""GRPO's advantage, how much better than its group a completion is: than the group's mean, or than the others' mean.

The figures are NeMo-RL's (`calculate_baseline_and_std_per_prompt`): with one right in 8, 2.475 and -0.354 by the group,
1.000 and -0.378 by the others. TRL 1.16 has only the first, with another epsilon.
"""

import torch

EPSILON = 1e-6
KINDS = ("group", "leave_one_out")


def compute_advantages(
    rewards: torch.Tensor, num_generations: int, kind: str = "group", normalize: bool = True
) -> torch.Tensor:
    """Advantages of completions whose groups lie side by side.

    Args:
        rewards: `(completions,)`. A reward that is NaN counts in no mean and gets the advantage 0.
        num_generations: completions per group; it divides `completions`.
        kind: `group`: reward less the mean of its group. `leave_one_out`: reward less the mean of the others.
        normalize: whether to divide by the standard deviation (denominator n - 1) of the rewards in the mean; if that
            is 0, the difference stays as it is.

    Returns:
        `(completions,)`, in the type of `rewards`.

    Source: `group` DeepSeekMath, arXiv:2402.03300, section 4.1; `leave_one_out` RLOO, arXiv:2402.14740.

    Example:
        >>> [round(a, 3) for a in compute_advantages(torch.tensor([1.0] + [0.0] * 7), 8).tolist()[:2]]
        [2.475, -0.354]
        >>> [round(a, 3) for a in compute_advantages(torch.tensor([1.0] + [0.0] * 7), 8, "leave_one_out").tolist()[:2]]
        [1.0, -0.378]
    """
    r = rewards.double().view(-1, num_generations)
    judged = ~r.isnan()
    r = r.nan_to_num(0.0)
    counted = judged.unsqueeze(1).expand(-1, num_generations, -1).double()  # (groups, whose advantage, over whom)
    if kind == "leave_one_out":
        counted = counted * (1 - torch.eye(num_generations, dtype=torch.double, device=r.device))
    count = counted.sum(-1)
    mean = (counted * r.unsqueeze(1)).sum(-1) / count.clamp(min=1)
    variance = (counted * (r.unsqueeze(1) - mean.unsqueeze(-1)) ** 2).sum(-1) / (count - 1).clamp(min=1)
    advantages = torch.where(judged & (count > 0), r - mean, 0.0)
    if normalize:
        std = variance.sqrt()
        # Equal rewards may differ in their last bits; divided by such a spread the difference would become thousands.
        trivial = std <= 1e-6 * (1 + mean.abs())
        advantages = torch.where(trivial, advantages, advantages / (std + EPSILON))
    return advantages.view(-1).to(rewards.dtype)


def is_flat(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """`(groups,)` bool: whether all rewards of a group that are not NaN are equal, so that it has no gradient."""
    r = rewards.view(-1, num_generations)
    low, high = r.nan_to_num(float("inf")).amin(1), r.nan_to_num(float("-inf")).amax(1)
    return ~(high - low > 1e-6 * (1 + high.abs()))  # all NaN: inf - inf is NaN, and the group flat
