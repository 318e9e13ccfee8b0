"""What a Mamba-2 layer computes for one new token a row, and the norm that stands before every layer.

The same as transformers' `NemotronHMamba2Mixer` and `NemotronHRMSNorm` with a cache, in fewer operations and in float32
throughout, also between 16-bit layers.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class MambaWeights(NamedTuple):
    """A mixer's weights beside its two projections, contiguous, on the model's device.

    Attributes:
        conv_weight: (channels, width) of the convolution over x, B and C.
        conv_bias: (channels,), or None.
        dt_bias: (heads,) float32, added to the time step.
        a: (heads,) float32, -exp(A_log).
        d: (heads,) float32, the factor of the connection past the state.
        norm_weight: (inner,) of the norm at the end.
        eps: its epsilon.
        group_size: the values that it normalises together; inner is a multiple of it.
    """

    conv_weight: torch.Tensor
    conv_bias: torch.Tensor | None
    dt_bias: torch.Tensor
    a: torch.Tensor
    d: torch.Tensor
    norm_weight: torch.Tensor
    eps: float
    group_size: int


class MambaState(NamedTuple):
    """What a mixer remembers of each row, in the types of transformers' cache.

    Attributes:
        conv: (rows, channels, width), the convolution's last inputs, oldest first.
        ssm: (rows, heads, head_dim, state), the state space.
    """

    conv: torch.Tensor
    ssm: torch.Tensor


def update_mamba(projected: torch.Tensor, state: MambaState, weights: MambaWeights) -> torch.Tensor:
    """Everything between a mixer's in_proj and its out_proj, for one token a row.

    Args:
        projected: (rows, inner + channels + heads), the result of in_proj: gate, the convolution's input, time step.
        state: changed in place.
        weights: the mixer's.

    Returns:
        (rows, inner) in the type of `projected`.
    """
    (channels, _), (rows, heads, head_dim, size) = weights.conv_weight.shape, state.ssm.shape
    inner = heads * head_dim
    groups = (channels - inner) // (2 * size)
    gate, new, dt = projected.split_with_sizes([inner, channels, heads], dim=-1)

    window = torch.cat([state.conv[..., 1:], new[..., None]], dim=-1)
    state.conv.copy_(window)
    # A product for each channel; conv1d takes six times as long on a CPU.
    taps, bias = weights.conv_weight.float()[..., None], weights.conv_bias
    bias = taps.new_zeros(()) if bias is None else bias.float()[:, None, None]
    mixed = torch.baddbmm(bias, window.float().transpose(0, 1), taps)[..., 0].T
    x, b, c = F.silu(mixed).split_with_sizes([inner, groups * size, groups * size], dim=-1)

    dt = F.softplus(dt.float() + weights.dt_bias)
    x = x.view(rows, heads, head_dim)
    # The heads of a group share B and C.
    ssm = state.ssm.view(rows, groups, heads // groups, head_dim, size)
    state.ssm.mul_((dt * weights.a).exp()[..., None, None])
    ssm.addcmul_((x * dt[..., None]).reshape(*ssm.shape[:-1], 1), b.view(rows, groups, 1, 1, size))
    read = ssm.view(rows, groups, -1, size).float() @ c.view(rows, groups, size, 1)
    y = torch.addcmul(read.view(rows, heads, head_dim), x, weights.d[:, None])

    gated = y.view(rows, inner) * F.silu(gate.float())
    normed = F.rms_norm(gated.view(rows, -1, weights.group_size), (weights.group_size,), eps=weights.eps)
    return (normed.view(rows, inner).to(projected.dtype) * weights.norm_weight).to(projected.dtype)


def add_norm(residual: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add a layer's output to the residual, in place, and give the next layer its input.

    Args:
        residual: (rows, hidden), float32 between 16-bit layers; changed in place.
        update: (rows, hidden), the layer's output; None only normalises.
        weight: (hidden,) of the next layer's norm.
        eps: its epsilon.

    Returns:
        (rows, hidden), the sum rounded to the type of `weight` and normalised, in that type.
    """
    if update is not None:
        residual.add_(update)
    return F.rms_norm(residual.to(weight.dtype), weight.shape, weight, eps)
