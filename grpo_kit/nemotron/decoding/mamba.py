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


class MambaUpdate:
    """Everything between a mixer's in_proj and its out_proj, for one token a row. It keeps the states.

    What is the same for every token, such as views of the states, is made once.

    Args:
        sums: of the convolution, as `begin_sums` gives them; changed in place.
        ssm: (rows, heads, head_dim, state), the state space; changed in place.
        weights: the mixer's.
    """

    def __init__(self, sums: torch.Tensor, ssm: torch.Tensor, weights: MambaWeights) -> None:
        (rows, heads, head_dim, size), inner = ssm.shape, len(weights.norm_weight)
        channels = len(weights.conv_weight)
        groups = (channels - inner) // (2 * size)
        self.sums, self.ssm, self.weights = sums, ssm, weights
        self.taps, self.later = weights.conv_weight.float().T.flip(0)[:, None], sums[:-1]
        self.parts, self.mixed_parts = [inner, channels, heads], [inner, groups * size, groups * size]
        # The heads of a group share B and C.
        self.by_head = ssm.view(rows, groups, heads // groups, head_dim, size)
        self.by_group = ssm.view(rows, groups, -1, size)
        self.d, self.normed_size = weights.d[:, None], (weights.group_size,)

    def __call__(self, projected: torch.Tensor) -> torch.Tensor:
        """Read one more token.

        Args:
            projected: (rows, inner + channels + heads), in_proj's result: gate, the convolution's input, time step.

        Returns:
            (rows, inner) in the type of `projected`.
        """
        weights, (rows, groups, heads, head_dim, size) = self.weights, self.by_head.shape
        gate, new, dt = projected.float().split_with_sizes(self.parts, dim=-1)

        sums = torch.addcmul(self.sums, new, self.taps)
        self.later.copy_(sums[1:])  # in place, since a graph finds them where they were
        x, b, c = F.silu(sums[0]).split_with_sizes(self.mixed_parts, dim=-1)

        dt, x = F.softplus(dt + weights.dt_bias), x.view(rows, -1, head_dim)
        self.ssm.mul_((dt * weights.a).exp_().view(rows, -1, 1, 1))
        added = (x * dt.view(rows, -1, 1)).view(rows, groups, heads, head_dim, 1)
        self.by_head.addcmul_(added, b.view(rows, groups, 1, 1, size))
        read = self.by_group.float() @ c.view(rows, groups, size, 1)
        y = torch.addcmul(read.view(rows, -1, head_dim), x, self.d)

        gated = y.view(rows, -1) * F.silu(gate)
        normed = F.rms_norm(gated.view(rows, -1, weights.group_size), self.normed_size, eps=weights.eps)
        return (normed.view(rows, -1).to(projected.dtype) * weights.norm_weight).to(projected.dtype)

    def take_rows(self, at: torch.Tensor) -> "MambaUpdate":
        """The same for the rows `at`, (taken,) int64, alone, which may be repeated."""
        return MambaUpdate(self.sums[:, at], self.ssm[at], self.weights)

    def put_rows(self, at: torch.Tensor, state: MambaState) -> None:
        """Put newly read rows in the place of the rows `at`, (put,) int64."""
        self.sums[:, at], self.ssm[at] = begin_sums(state.conv, self.weights), state.ssm


def begin_sums(conv: torch.Tensor, weights: MambaWeights) -> torch.Tensor:
    """What the inputs read so far add to the convolution's next outputs.

    With these sums kept instead of the inputs, a token takes one product and sum for all outputs that it adds to.

    Args:
        conv: (rows, channels, width), as in `MambaState`.
        weights: the mixer's.

    Returns:
        (width, rows, channels) float32, with the bias in it. In the last one is nothing but the bias.
    """
    inputs, taps, width = conv.float(), weights.conv_weight.float(), conv.shape[-1]
    sums = torch.stack([(inputs[..., k + 1 :] * taps[:, : width - 1 - k]).sum(-1) for k in range(width)])
    return sums if weights.conv_bias is None else sums + weights.conv_bias


def update_mamba(projected: torch.Tensor, state: MambaState, weights: MambaWeights) -> torch.Tensor:
    """`MambaUpdate` of one token for a state that keeps the convolution's inputs, and is changed in place."""
    output = MambaUpdate(begin_sums(state.conv, weights), state.ssm, weights)(projected)
    channels, heads = len(weights.conv_weight), len(weights.a)
    new = projected.split_with_sizes([projected.shape[1] - channels - heads, channels, heads], dim=-1)[1]
    state.conv.copy_(torch.cat([state.conv[..., 1:], new[..., None]], dim=-1))
    return output


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
    return F.rms_norm(
        residual if residual.dtype is weight.dtype else residual.to(weight.dtype), weight.shape, weight, eps
    )
