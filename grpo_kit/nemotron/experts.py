"""Routed experts in NF4 and in tiers: most in the GPU's memory, the rest in host memory (or on a second GPU).

Stands in for transformers' `NemotronHExperts`, which keeps a layer's experts as two 3-D parameters that bitsandbytes
skips. Here an expert is one run of bytes (its up and its down matrix, `nf4`), so that bringing one over PCIe is one
copy. Only experts that a batch hits are brought, on a side stream, while those at hand are being worked on. Nothing is
kept in 16 bit: the forward pass writes a matrix into one reused buffer, or multiplies in 4 bit where rows are few; the
backward pass brings and dequantises again. A decoding step takes all experts at hand at once (`grouped`).

Which experts stay on the host is decided by routing statistics: `hits` counts what real prompts choose, `layout` puts
the coldest on the host. The experts are frozen; a LoRA on them is PEFT's, one pair a matrix (`open_for_lora`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from grpo_kit.nemotron import expert_kernel, nf4, pinned_memory
from grpo_kit.nemotron.expert_lora import ExpertLoras, ExpertMatrix, active_lora, add_update

MAX_FUSED_ROWS = 8  # rows an expert gets; up to here the fused 4-bit product reads less memory than dequantising
MAX_DECODING_TOKENS = (
    32  # tokens whose experts `grouped` takes all at once, reading one again for every two of its rows
)


class ExpertShape(NamedTuple):
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
        return nf4.packed_nbytes(self.up) + nf4.packed_nbytes(self.down)

    def views(self, data: torch.Tensor) -> tuple[nf4.Nf4, nf4.Nf4]:
        """(up, down) as views into an expert's bytes."""
        middle = nf4.packed_nbytes(self.up)
        return nf4.unpack_matrix(data[:middle], self.up), nf4.unpack_matrix(data[middle:], self.down)


class Workbench:
    """What all layers of one device share: two buffers for dequantised matrices, and slots for experts on their way.

    `slots` experts can be in flight or in use at once; each takes `geometry.nbytes`.
    """

    def __init__(self, geometry: ExpertShape, device: torch.device, dtype: torch.dtype, slots: int = 8) -> None:
        self.geometry, self.device, self.dtype = geometry, device, dtype
        self.up = torch.empty(geometry.up, dtype=dtype, device=device)
        self.down = torch.empty(geometry.down, dtype=dtype, device=device)
        self.slots = torch.empty((slots, geometry.nbytes), dtype=torch.uint8, device=device)
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.free: list[Any] = [None] * slots  # event after which a slot may be overwritten
        self.brought = 0  # bytes copied into slots so far

    def bring(self, rows: list[torch.Tensor], together: int = 1) -> Iterator[list[torch.Tensor]]:
        """The experts' bytes on this device, in order, `together` (at most `slots`) at a time; the i-th is in slot
        i % slots. The first `slots` copies start now, each next one when a slot is free, that is when the caller asks
        for the next experts; copies run beside the caller's work."""
        ready = [self._start(row, i) for i, row in enumerate(rows[: len(self.slots)])]
        return self._hand_out(rows, ready, together)

    def _hand_out(self, rows: list[torch.Tensor], ready: list[Any], together: int) -> Iterator[list[torch.Tensor]]:
        for first in range(0, len(rows), together):
            numbers = range(first, min(first + together, len(rows)))
            if self.side is not None:
                torch.cuda.current_stream(self.device).wait_event(ready[numbers[-1]])  # copies end in order
            yield [self.slots[i % len(self.slots)] for i in numbers]
            used = self.side and torch.cuda.current_stream(self.device).record_event()
            for i in numbers:
                self.free[i % len(self.slots)] = used
                if (following := i + len(self.slots)) < len(rows):
                    ready.append(self._start(rows[following], following))

    def _start(self, row: torch.Tensor, number: int) -> Any:
        slot = number % len(self.slots)
        self.brought += row.nbytes
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

    `place` decides where they lie; `write` fills one. Rows routed to each expert are counted in `hits`, int64
    `(num_experts,)` on the CPU, while `counting` is on; `traffic` is [rows, rows to the host] since some expert lies
    there.
    """

    def __init__(self, geometry: ExpertShape, num_experts: int, act: Callable, bench: Workbench) -> None:
        super().__init__()
        self.geometry, self.num_experts, self.act, self.bench = geometry, num_experts, act, bench
        self.hits, self.counting = torch.zeros(num_experts, dtype=torch.int64), False
        self.rows: list[torch.Tensor] = []
        asked = torch.tensor([-2.0, 0.0, 3.0], device="cpu")
        self.is_relu2 = torch.equal(act(asked), asked.relu().square())  # what `grouped` computes
        self.on_host: frozenset[int] = frozenset()
        self.host = torch.device("cpu")
        self.traffic = [0, 0]
        self.reached: torch.Tensor | None = None  # (num_experts,) bool: whose LoRA some gradient came to

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
            True: pinned_memory.allocate_pinned(*sizes[True])
            if pin
            else torch.empty(sizes[True], dtype=torch.uint8, device=host),
            False: torch.empty(sizes[False], dtype=torch.uint8, device=self.bench.device),
        }
        old, self.rows = self.rows, [None] * self.num_experts
        for is_far, experts in ((True, far), (False, near)):
            for slot, expert in enumerate(experts):
                self.rows[expert] = tiers[is_far][slot]
                if old:
                    self.rows[expert].copy_(old[expert])
        self.on_host, self.traffic = frozenset(far), [0, 0]
        at_hand = [0 if e in self.on_host else row.data_ptr() for e, row in enumerate(self.rows)]
        self.at_hand = torch.tensor(at_hand, device=self.bench.device)  # int64 addresses, what `grouped` goes by

    def open_for_lora(self) -> None:
        """Show each expert to PEFT as `experts.N.up_proj` and `experts.N.down_proj`, the published names."""
        if self.reached is not None:
            return
        self.reached = torch.zeros(self.num_experts, dtype=torch.bool, device=self.bench.device)
        for expert in range(self.num_experts):
            shapes = {"up_proj": self.geometry.up, "down_proj": self.geometry.down}
            matrices = {
                name: ExpertMatrix(shape, self.bench.device, self.bench.dtype) for name, shape in shapes.items()
            }
            self.add_module(str(expert), nn.ModuleDict(matrices))

    def loras(self) -> dict[int, ExpertLoras]:
        """{expert: its LoRA pairs as they are now}; empty where there are none or they are switched off."""
        if self.reached is None:
            return {}
        matrices = {expert: self.get_submodule(str(expert)) for expert in range(self.num_experts)}
        found = {
            expert: (active_lora(pair["up_proj"]), active_lora(pair["down_proj"])) for expert, pair in matrices.items()
        }
        return {expert: pairs for expert, pairs in found.items() if any(pairs)}

    def write(self, expert: int, up: torch.Tensor, down: torch.Tensor) -> None:
        """Quantise one expert's matrices, (intermediate, hidden) and (hidden, intermediate), into its place."""
        middle = nf4.packed_nbytes(self.geometry.up)
        whole = torch.cat([nf4.pack_matrix(up.to(self.bench.device)), nf4.pack_matrix(down.to(self.bench.device))])
        assert middle + nf4.packed_nbytes(self.geometry.down) == whole.numel()
        self.rows[expert].copy_(whole)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """(tokens, hidden) in and out; index and weights are (tokens, k), as transformers' router gives them."""
        loras = self.loras()
        # Under mixed precision autocast would compute the backward pass in other types than the forward pass.
        with torch.autocast(hidden_states.device.type, enabled=False):
            few = (
                not torch.is_grad_enabled()
                and 0 < len(hidden_states) <= MAX_DECODING_TOKENS
                and self.is_relu2
                and not loras
            )
            kind = torch.float16 if hidden_states.dtype == torch.float16 else torch.float32  # the kernel knows no bf16
            if few and expert_kernel.is_usable(hidden_states.device, self.geometry.up, kind):
                said = self.decode(hidden_states.to(kind), top_k_index, top_k_weights.float())
                return said.to(hidden_states.dtype)
            trained = [value for pairs in loras.values() for lora in pairs if lora for value in (lora.a, lora.b)]
            return _Routed.apply(hidden_states, top_k_index, top_k_weights, self, loras, *trained)

    def decode(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`forward` for few tokens and no gradient: two launches for all experts at hand, two for every half of the
        bench's slots that experts from the host fill. The host waits to learn what was chosen only if some lie there."""
        said = torch.empty((*index.shape, self.geometry.hidden), dtype=torch.float32, device=hidden.device)
        known = self.chosen(index) if self.on_host or self.counting else list
        expert_kernel.run_experts(
            hidden, index, weights, self.at_hand, self.geometry.up, said
        )  # queued before the host waits
        if far := sorted(self.on_host.intersection(known())):
            slots, together = self.bench.slots, max(1, len(self.bench.slots) // 2)
            coming = self.bench.bring([self.rows[expert] for expert in far], together)
            tables = torch.zeros((len(far), self.num_experts), dtype=torch.int64, pin_memory=hidden.is_cuda)
            for i, expert in enumerate(far):
                tables[i // together, expert] = slots[i % len(slots)].data_ptr()
            for table, _ in zip(tables.to(hidden.device, non_blocking=True), coming):
                expert_kernel.run_experts(hidden, index, weights, table, self.geometry.up, said)
            next(coming, None)  # lets the last slots be marked free
        return said.sum(1).to(hidden.dtype)

    def chosen(self, index: torch.Tensor) -> Callable[[], list[int]]:
        """Start to bring the router's choice to the host; call what is returned to wait for it. Counts it, too."""
        here = index.to("cpu", non_blocking=True)
        arrived = torch.cuda.current_stream(index.device).record_event() if index.is_cuda else None

        def known() -> list[int]:
            if arrived is not None:
                arrived.synchronize()
            self._count(torch.bincount(here.flatten(), minlength=self.num_experts))
            return here.flatten().tolist()

        return known

    def groups(self, index: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        """[(expert, positions in the flattened (tokens, k) index)], experts at hand first; one synchronisation."""
        flat = index.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=self.num_experts).cpu()
        self._count(counts)
        parts = zip(range(self.num_experts), order.split(counts.tolist()))
        hit = [(expert, positions) for expert, positions in parts if len(positions)]
        return sorted(hit, key=lambda group: group[0] in self.on_host)

    def _count(self, counts: torch.Tensor) -> None:
        """Note how many rows each expert got, int64 `(num_experts,)` on the CPU."""
        if self.counting:
            self.hits += counts
        if self.on_host:
            self.traffic[0] += int(counts.sum())
            self.traffic[1] += int(counts[list(self.on_host)].sum())

    def each(self, groups: list[tuple[int, torch.Tensor]]) -> Iterator[tuple[int, torch.Tensor, nf4.Nf4, nf4.Nf4]]:
        """(expert, positions, up, down) for each group; copies from the host begin before the first is worked on."""
        near = [(expert, positions) for expert, positions in groups if expert not in self.on_host]
        far = groups[len(near) :]
        coming = self.bench.bring([self.rows[expert] for expert, _ in far])
        for expert, positions in near:
            yield (expert, positions, *self.geometry.views(self.rows[expert]))
        for (expert, positions), (data,) in zip(far, coming):
            yield (expert, positions, *self.geometry.views(data))
        next(coming, None)  # lets the last slot be marked free

    def apply_expert(
        self, x: torch.Tensor, up: nf4.Nf4, down: nf4.Nf4, loras: ExpertLoras = (None, None)
    ) -> torch.Tensor:
        """down(act(up(x))) for the rows of one expert, (rows, hidden)."""
        if len(x) <= MAX_FUSED_ROWS and not torch.is_grad_enabled():
            inner = self.act(add_update(loras[0], x, nf4.multiply_rows(x, up)))
            return add_update(loras[1], inner, nf4.multiply_rows(inner, down))
        inner = self.act(add_update(loras[0], x, F.linear(x, nf4.dequantise_matrix(up, self.bench.up))))
        return add_update(loras[1], inner, F.linear(inner, nf4.dequantise_matrix(down, self.bench.down)))


class _Routed(torch.autograd.Function):
    """Routed experts whose weights exist one at a time. Kept for the backward pass: inputs, nothing else.

    The LoRAs' tensors are inputs too (`trained`, in the order of `loras`), so that they get their gradients.
    """

    @staticmethod
    def forward(ctx, hidden, index, weights, experts, loras, *trained):
        ctx.save_for_backward(hidden, index, weights)
        ctx.experts, ctx.loras = experts, loras
        k, scale = index.shape[1], weights.flatten()
        x = hidden.to(experts.bench.dtype)
        out = torch.zeros(hidden.shape, dtype=weights.dtype, device=hidden.device)
        for expert, positions, up, down in experts.each(experts.groups(index)):
            tokens = positions // k
            said = experts.apply_expert(x[tokens], up, down, loras.get(expert, (None, None)))
            out.index_add_(0, tokens, (said * scale[positions, None]).to(out.dtype))
        return out.to(hidden.dtype)

    @staticmethod
    def backward(ctx, grad):
        hidden, index, weights = ctx.saved_tensors
        experts, loras, k, scale = ctx.experts, ctx.loras, index.shape[1], weights.flatten()
        d_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        d_scale = torch.zeros_like(scale)
        d_loras: dict[int, tuple[torch.Tensor, ...]] = {}
        counting, traffic = experts.counting, list(experts.traffic)
        experts.counting = False
        groups = experts.groups(index)
        experts.counting, experts.traffic = counting, traffic
        for expert, positions, up, down in experts.each(groups):
            tokens, pairs = positions // k, loras.get(expert, (None, None))
            x = hidden[tokens].detach().to(experts.bench.dtype).requires_grad_()
            trained = [value for lora in pairs if lora for value in (lora.a, lora.b)]
            with torch.enable_grad():
                said = experts.apply_expert(x, up, down, pairs)
            incoming = grad[tokens]
            came = (incoming * scale[positions, None]).to(said.dtype)
            d_x, *d_loras[expert] = torch.autograd.grad(said, [x, *trained], came)
            d_hidden.index_add_(0, tokens, d_x.float())
            d_scale[positions] = (incoming * said.detach()).sum(-1).to(d_scale.dtype)
            if trained:
                experts.reached[expert].logical_or_(came.any())
        d_trained = [
            g for expert, pairs in loras.items() for g in d_loras.get(expert, [None] * 2 * sum(map(bool, pairs)))
        ]
        return d_hidden.to(hidden.dtype), None, d_scale.view_as(weights), None, None, *d_trained
