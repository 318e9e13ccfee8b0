"""Routed experts in NF4 and in tiers: most in the GPU's memory, the rest in host memory (or on a second GPU).

Stands in for transformers' `NemotronHExperts`, which keeps a layer's experts as two 3-D parameters that bitsandbytes
skips. Here an expert is one run of bytes (its up and its down matrix, `nf4`), so that bringing one over PCIe is one copy.
Only experts that a batch hits are brought, on a side stream, while those at hand are being worked on. Nothing is kept
in 16 bit: the forward pass writes a matrix into one reused buffer, or multiplies in 4 bit where rows are few; the
backward pass brings and dequantises again.

Which experts stay on the host is decided by routing statistics: `hits` counts what real prompts choose, `place` puts
the coldest on the host.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from grpo_kit import nf4, pinned

FEW = 8  # rows an expert gets; up to here the fused 4-bit product reads less memory than dequantising


class Geometry(NamedTuple):
    """Sizes of one expert: `up` is (intermediate, hidden), `down` is (hidden, intermediate)."""

    hidden: int
    intermediate: int

    @property
    def up(self) -> tuple[int, int]:
        return self.intermediate, self.hidden

    @property
    def down(self) -> tuple[int, int]:
        return self.hidden, self.intermediate

    @property
    def nbytes(self) -> int:
        """Bytes of one expert in NF4, up and down behind one another."""
        return nf4.nbytes(self.up) + nf4.nbytes(self.down)

    def views(self, data: torch.Tensor) -> tuple[nf4.Nf4, nf4.Nf4]:
        """(up, down) as views into an expert's bytes."""
        middle = nf4.nbytes(self.up)
        return nf4.unpack(data[:middle], self.up), nf4.unpack(data[middle:], self.down)


class Workbench:
    """What all layers of one device share: two buffers for dequantised matrices, and slots for experts on their way.

    `slots` experts can be in flight or in use at once; each takes `geometry.nbytes`.
    """

    def __init__(self, geometry: Geometry, device: torch.device, dtype: torch.dtype, slots: int = 8) -> None:
        self.geometry, self.device, self.dtype = geometry, device, dtype
        self.up = torch.empty(geometry.up, dtype=dtype, device=device)
        self.down = torch.empty(geometry.down, dtype=dtype, device=device)
        self.slots = torch.empty((slots, geometry.nbytes), dtype=torch.uint8, device=device)
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.free: list[Any] = [None] * slots  # event after which a slot may be overwritten

    def bring(self, rows: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The experts' bytes on this device, in order. The first `slots` copies start now, each next one when a slot
        is free, that is when the caller asks for the next expert; copies run beside the caller's work."""
        ready = [self._start(row, i) for i, row in enumerate(rows[: len(self.slots)])]
        return self._hand_out(rows, ready)

    def _hand_out(self, rows: list[torch.Tensor], ready: list[Any]) -> Iterator[torch.Tensor]:
        for i in range(len(rows)):
            slot = i % len(self.slots)
            if self.side is not None:
                torch.cuda.current_stream(self.device).wait_event(ready[i])
            yield self.slots[slot]
            if self.side is not None:
                self.free[slot] = torch.cuda.current_stream(self.device).record_event()
            if (following := i + len(self.slots)) < len(rows):
                ready.append(self._start(rows[following], following))

    def _start(self, row: torch.Tensor, number: int) -> Any:
        slot = number % len(self.slots)
        if self.side is None:
            self.slots[slot].copy_(row)
            return None
        with torch.cuda.stream(self.side):
            if self.free[slot] is not None:
                self.side.wait_event(self.free[slot])
            self.slots[slot].copy_(row, non_blocking=True)
            return self.side.record_event()


class TieredExperts(nn.Module):
    """A layer's routed experts. Its bytes are no parameters: they are frozen, and `model.to()` must not move them.

    `place` decides where they lie; `write` fills one. Rows routed here and to the host are counted in `hits`, int64
    `(num_experts,)` on the CPU, whenever `counting` is on.
    """

    def __init__(self, geometry: Geometry, num_experts: int, act: Callable, bench: Workbench) -> None:
        super().__init__()
        self.geometry, self.num_experts, self.act, self.bench = geometry, num_experts, act, bench
        self.hits, self.counting = torch.zeros(num_experts, dtype=torch.int64), False
        self.rows: list[torch.Tensor] = []
        self.on_host: frozenset[int] = frozenset()
        self.host = torch.device("cpu")

    def place(self, on_host: Sequence[int] = (), host: torch.device | None = None) -> None:
        """Lay the experts out: those named on the host tier (pinned where CUDA is), the others on the bench's device.

        `host` is where that tier lies, a second GPU perhaps; without it where it lay before, at first in host memory.
        Bytes that are there already move with them. Raises ValueError for a number that is no expert.
        """
        wrong = [e for e in on_host if not 0 <= e < self.num_experts]
        if wrong:
            raise ValueError(
                f"Expert {wrong[0]} was to go to the host; there are experts 0 to {self.num_experts - 1}. Name those."
            )
        self.host = host = host or self.host
        pin = host.type == "cpu" and self.bench.device.type != "cpu"
        far = sorted(set(on_host))
        near = [e for e in range(self.num_experts) if e not in set(far)]
        sizes = {True: (len(far), self.geometry.nbytes), False: (len(near), self.geometry.nbytes)}
        tiers = {
            True: pinned.empty(*sizes[True]) if pin else torch.empty(sizes[True], dtype=torch.uint8, device=host),
            False: torch.empty(sizes[False], dtype=torch.uint8, device=self.bench.device),
        }
        old, self.rows = self.rows, [None] * self.num_experts
        for is_far, experts in ((True, far), (False, near)):
            for slot, expert in enumerate(experts):
                self.rows[expert] = tiers[is_far][slot]
                if old:
                    self.rows[expert].copy_(old[expert])
        self.on_host = frozenset(far)

    def write(self, expert: int, up: torch.Tensor, down: torch.Tensor) -> None:
        """Quantise one expert's matrices, (intermediate, hidden) and (hidden, intermediate), into its place."""
        middle = nf4.nbytes(self.geometry.up)
        whole = torch.cat([nf4.pack(up.to(self.bench.device)), nf4.pack(down.to(self.bench.device))])
        assert middle + nf4.nbytes(self.geometry.down) == whole.numel()
        self.rows[expert].copy_(whole)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """(tokens, hidden) in and out; index and weights are (tokens, k), as transformers' router gives them."""
        return _Routed.apply(hidden_states, top_k_index, top_k_weights, self)

    def groups(self, index: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        """[(expert, positions in the flattened (tokens, k) index)], experts at hand first; one synchronisation."""
        flat = index.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=self.num_experts).cpu()
        if self.counting:
            self.hits += counts
        parts = zip(range(self.num_experts), order.split(counts.tolist()))
        hit = [(expert, positions) for expert, positions in parts if len(positions)]
        return sorted(hit, key=lambda group: group[0] in self.on_host)

    def each(self, groups: list[tuple[int, torch.Tensor]]) -> Iterator[tuple[torch.Tensor, nf4.Nf4, nf4.Nf4]]:
        """(positions, up, down) for each group; copies from the host begin before the first is worked on."""
        near = [(expert, positions) for expert, positions in groups if expert not in self.on_host]
        far = groups[len(near) :]
        coming = self.bench.bring([self.rows[expert] for expert, _ in far])
        for expert, positions in near:
            yield (positions, *self.geometry.views(self.rows[expert]))
        for (_, positions), data in zip(far, coming):
            yield (positions, *self.geometry.views(data))
        next(coming, None)  # lets the last slot be marked free

    def apply_expert(self, x: torch.Tensor, up: nf4.Nf4, down: nf4.Nf4) -> torch.Tensor:
        """down(act(up(x))) for the rows of one expert, (rows, hidden)."""
        if len(x) <= FEW and not torch.is_grad_enabled():
            return nf4.linear(self.act(nf4.linear(x, up)), down)
        inner = self.act(F.linear(x, nf4.dequantise(up, self.bench.up)))
        return F.linear(inner, nf4.dequantise(down, self.bench.down))


class _Routed(torch.autograd.Function):
    """Routed experts whose weights exist one at a time. Kept for the backward pass: inputs, nothing else."""

    @staticmethod
    def forward(ctx, hidden, index, weights, experts):
        ctx.save_for_backward(hidden, index, weights)
        ctx.experts = experts
        k, scale = index.shape[1], weights.flatten()
        out = torch.zeros(hidden.shape, dtype=weights.dtype, device=hidden.device)
        for positions, up, down in experts.each(experts.groups(index)):
            tokens = positions // k
            said = experts.apply_expert(hidden[tokens], up, down)
            out.index_add_(0, tokens, (said * scale[positions, None]).to(out.dtype))
        return out.to(hidden.dtype)

    @staticmethod
    def backward(ctx, grad):
        hidden, index, weights = ctx.saved_tensors
        experts, k, scale = ctx.experts, index.shape[1], weights.flatten()
        d_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        d_scale = torch.zeros_like(scale)
        counting, experts.counting = experts.counting, False
        groups = experts.groups(index)
        experts.counting = counting
        for positions, up, down in experts.each(groups):
            tokens = positions // k
            x = hidden[tokens].detach().requires_grad_()
            with torch.enable_grad():
                said = experts.apply_expert(x, up, down)
            incoming = grad[tokens]
            (d_x,) = torch.autograd.grad(said, x, (incoming * scale[positions, None]).to(said.dtype))
            d_hidden.index_add_(0, tokens, d_x.float())
            d_scale[positions] = (incoming * said.detach()).sum(-1).to(d_scale.dtype)
        return d_hidden.to(hidden.dtype), None, d_scale.view_as(weights), None


def install(
    model: nn.Module, share_on_host: float = 0.0, slots: int = 8, host: torch.device | None = None
) -> list[TieredExperts]:
    """Replace every `NemotronHExperts` of a loaded model by tiered NF4 experts made of its weights.

    `share_on_host` in [0, 1] of each layer's experts go to the host (or to `host`, a second GPU), the last ones first,
    until statistics say better.
    """
    layers, bench = [], None
    for mixer in [m for m in model.modules() if type(getattr(m, "experts", None)).__name__ == "NemotronHExperts"]:
        fused = mixer.experts
        count, intermediate, hidden = fused.up_proj.shape
        geometry = Geometry(hidden, intermediate)
        bench = bench or Workbench(geometry, fused.up_proj.device, fused.up_proj.dtype, slots)
        tiered = TieredExperts(geometry, count, fused.act_fn, bench)
        tiered.place(range(count - round(share_on_host * count), count), host)
        for expert in range(count):
            tiered.write(expert, fused.up_proj.data[expert], fused.down_proj.data[expert])
        mixer.experts = tiered
        layers.append(tiered)
    return layers


def place_by_hits(layers: list[TieredExperts], on_host: int) -> float:
    """Put the `on_host` coldest experts of all layers on the host; returns the share of counted rows that go there.

    Counted is what ran while `counting` was on. Raises ValueError when nothing was counted.
    """
    hits = torch.stack([layer.hits for layer in layers])
    if not hits.sum():
        raise ValueError(
            "No routed rows were counted; run real prompts with counting on before placing experts by hits."
        )
    coldest = hits.flatten().argsort(stable=True)[:on_host]
    for number, layer in enumerate(layers):
        layer.place([int(i) % hits.shape[1] for i in coldest if int(i) // hits.shape[1] == number])
    return (hits.flatten()[coldest].sum() / hits.sum()).item()
