"""MLP and MoE layers of one new token a row."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.nemotron_h import modeling_nemotron_h as modeling

from grpo_kit.nemotron import nf4, patches
from grpo_kit.nemotron.decoding.graph import Step
from grpo_kit.nemotron.decoding.linear import Linear, UnknownModule, check_module
from grpo_kit.nemotron.decoding.router import choose
from grpo_kit.nemotron.experts import TieredExperts


class FeedForward:
    """An MLP layer, or the shared expert of an MoE layer.

    Args:
        mlp: transformers' `NemotronHMLP`, with or without `patches.keep_mlps_in_range`.

    Raises:
        UnknownModule: A projection is of a kind that is not known.
    """

    def __init__(self, mlp: nn.Module) -> None:
        check_module(mlp, modeling.NemotronHMLP)
        self.up, self.down = Linear(mlp.up_proj), Linear(mlp.down_proj)
        self.act = patches.relu2 if patches.is_kept_in_range(mlp) else mlp.act_fn

    def __call__(self, x: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """(rows, hidden) -> (rows, hidden), added to `into`, in the type of x, if there is one."""
        if x.dtype is not torch.float16:
            return self.down(self.act(self.up(x)), into)
        return nf4.add_into(into, patches.feed_forward(x, self.up, self.act, self.down))

    def take_rows(self, at: torch.Tensor) -> None:
        pass

    def put_rows(self, at: torch.Tensor, cached: Any, of: torch.Tensor) -> None:
        pass


class MixtureOfExperts:
    """An MoE layer: router, routed experts, shared expert.

    Args:
        moe: transformers' `NemotronHMoE`, its experts as they are or as `TieredExperts`.

    Raises:
        UnknownModule: It has a latent projection, or a part of it is of a kind that is not known.
    """

    def __init__(self, moe: nn.Module) -> None:
        check_module(moe.fc1_latent_proj, nn.Identity)
        check_module(moe.fc2_latent_proj, nn.Identity)
        router = moe.gate
        check_module(router, modeling.NemotronHTopkRouter)
        if router.num_group != 1 or not router.norm_topk_prob:
            raise UnknownModule(type(router).__name__)
        self.weight, self.bias = router.weight.float(), router.e_score_correction_bias.float()
        self.ones = self.weight.new_full((router.top_k, 1), 1 / router.routed_scaling_factor)
        self.choose = choose
        self.shared = FeedForward(moe.shared_experts)
        check_module(moe.experts)
        self.experts = moe.experts
        if isinstance(moe.experts, TieredExperts):
            self.experts = moe.experts.prepare()

    def step(self, x: torch.Tensor, into: torch.Tensor | None) -> Step:
        """(rows, hidden) -> (rows, hidden), added to `into`, in the type of x, if there is one."""
        choice = self.choose(F.linear(x.float(), self.weight), self.bias, self.ones)
        routed = yield lambda: self.experts(x, *choice)
        if into is None:
            return routed + self.shared(x)
        return self.shared(x, into.add_(routed))

    def take_rows(self, at: torch.Tensor) -> None:
        pass

    def put_rows(self, at: torch.Tensor, cached: Any, of: torch.Tensor) -> None:
        pass
