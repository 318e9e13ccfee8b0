"""A guess of the experts that a layer will choose, made one MoE layer early, so that their copies start earlier.

What a layer adds to the residual changes little. So the next layer's router, applied to this layer's input, names most
of the experts that it will choose: of those on the host 78 % with random weights, and 36 % were those of the last token
(notes/design.md). The host reads the guess together with the choice that it waits for anyway.

A guess only starts copies. It changes no result, whether it is right or wrong.
"""

from collections import Counter
from typing import Any

import torch


def connect(block: Any, following: Any) -> None:
    """Let an MoE block guess what the next one chooses.

    Args:
        block, following: transformers' `NemotronHBlock` with `TieredExperts`. Experts that read a projection of the
            block's input (`moe_latent_size`) are left alone.
    """
    if all(isinstance(each.mixer.fc1_latent_proj, torch.nn.Identity) for each in (block, following)):
        router = EarlyRouter(block.norm, following)
        block.mixer.experts.following = following.mixer.experts.guessed_by = router


class EarlyRouter:
    """Guesses the choice of a layer from the input of the MoE layer before it.

    Args:
        norm: the norm that the input has passed.
        following: the MoE block whose choice is guessed.

    Attributes:
        expected: the experts that are copied ahead.
        most: how many of them there may be.
    """

    def __init__(self, norm: Any, following: Any) -> None:
        self.norm, self.next_norm, self.gate = norm, following.norm, following.mixer.gate
        self.experts = following.mixer.experts
        self.exchange: torch.Tensor | None = None  # takes one norm's weight out of its result and puts the other's in
        self.expected: list[int] = []
        self.most = max(1, len(self.experts.bench.slots) // 2)

    def guess(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """(tokens, k) int64, the likely choice for normed inputs, (tokens, hidden); None if nothing is on the host."""
        if not self.experts.on_host:
            return None
        if self.exchange is None or self.exchange.dtype != hidden.dtype:
            with torch.inference_mode(False), torch.no_grad():
                ratio = self.next_norm.weight / self.norm.weight
                self.exchange = ratio.nan_to_num(0.0, 0.0, 0.0).to(hidden.dtype)
        scores = torch.nn.functional.linear(hidden * self.exchange, self.gate.weight.to(hidden.dtype)).sigmoid()
        return (scores + self.gate.e_score_correction_bias).topk(self.gate.top_k).indices

    def copy_ahead(self, guessed: list[int]) -> None:
        """Start to copy the experts on the host that a guess names most often, at most `most`."""
        on_host = self.experts.on_host
        likely = Counter(expert for expert in guessed if expert in on_host).most_common(self.most)
        self.expected = [expert for expert, _ in likely]
        self.experts.bench.copy_ahead([self.experts.rows[expert] for expert in self.expected])

    def compare(self, choice: list[int]) -> None:
        """Count which of the expected experts are chosen, and how many have arrived.

        As many may be copied ahead the next time, and one more if all have: so wrong ones only use idle time.
        """
        if not self.expected:
            return
        bench = self.experts.bench
        arrived = sum(bench.has_arrived(self.experts.rows[expert]) for expert in self.expected)
        if arrived == len(self.expected):
            self.most = min(max(self.most, arrived + 1), len(bench.slots))
        else:
            self.most = max(1, arrived)
        bench.ahead[1] += len(set(self.expected).intersection(choice))
        self.expected = []
