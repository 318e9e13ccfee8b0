"""Routed experts in NF4 and in two tiers: most in the GPU's memory, the rest in host memory (or on a second GPU).

`TieredExperts` replaces transformers' `NemotronHExperts`, which keeps a layer's experts as two 3-D parameters that
bitsandbytes does not quantise. Here an expert is one run of bytes (its up and its down matrix, see nf4.py), so that
bringing it over PCIe is one copy. Only the experts that a batch uses are brought, on a stream of their own, while the
experts on the GPU are being computed.

No weight is kept in 16 bit. Many tokens are computed by groups of experts that are dequantised together
(expert_groups.py), a decoding step on a GPU by a kernel for all experts at once (expert_kernel.py). The experts are
frozen; LoRA on them is PEFT's, one pair per matrix (expert_lora.py).
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from grpo_kit.nemotron import expert_groups, expert_kernel, expert_lora, expert_workbench, nf4
from grpo_kit.nemotron.decoding.early_router import EarlyRouter
from grpo_kit.nemotron.expert_lora import ExpertLoras, LoraTable
from grpo_kit.nemotron.expert_workbench import ExpertShape, Workbench
from grpo_kit.nemotron.patches import output_dtype, recognise_relu2, relu2

# Tokens up to which the kernel computes all experts at once; it reads an expert again for every two of its rows.
MAX_DECODING_TOKENS = 32


class TieredExperts(nn.Module):
    """A layer's routed experts. Their bytes are not parameters: they are frozen, and `model.to()` must not move them.

    `place` decides where the experts are, and `write_expert` fills one.

    Args:
        geometry: the experts' sizes.
        num_experts: how many experts the layer has.
        act: the activation between up and down.
        bench: the memory that all layers of the device share.

    Attributes:
        rows: the experts' bytes, (nbytes,) uint8 each, wherever they are.
        near: {expert on the device: its up and its down matrix, as views into its bytes}.
        on_host: numbers of the experts on the host tier.
        counting: whether every row that is routed is added to `hits`, which begin with the counts that placed the
            experts.
        traffic: [rows, rows to the host tier] since `place`, counted only while some expert is on the host tier.
        following, guessed_by: guess the choice of the next layer with experts, and of this one
            (decoding/early_router.py); None: there is no such layer.
        reached: (num_experts,) bool: whether a non-zero gradient has reached the expert's LoRA; None without LoRA.
    """

    def __init__(self, geometry: ExpertShape, num_experts: int, act: Callable, bench: Workbench) -> None:
        super().__init__()
        self.geometry, self.num_experts, self.bench = geometry, num_experts, bench
        self.act = recognise_relu2(act)
        self.counting, self.hits_on_cpu = False, torch.zeros(num_experts, dtype=torch.int64)
        self.rows: list[torch.Tensor] = []
        self.near: dict[int, tuple[nf4.Nf4, nf4.Nf4]] = {}
        self.on_host: frozenset[int] = frozenset()
        self.host = torch.device("cpu")
        with torch.inference_mode(False):  # a tensor that is made there cannot be written to outside
            self.near_addresses = torch.zeros(num_experts, dtype=torch.int64, device=bench.device)  # for the kernel
            self.hits_on_device = torch.zeros_like(self.near_addresses)  # counted where the host need not wait for them
        self.traffic = [0, 0]
        self.following: EarlyRouter | None = None
        self.guessed_by: EarlyRouter | None = None
        self.reached: torch.Tensor | None = None
        self.matrices: list[nn.ModuleDict] = []  # by expert, once open for LoRA

    @property
    def hits(self) -> torch.Tensor:
        """(num_experts,) int64 on the CPU: rows that each expert got."""
        return self.hits_on_cpu + self.hits_on_device.cpu()

    @hits.setter
    def hits(self, hits: torch.Tensor) -> None:
        self.hits_on_cpu = hits
        self.hits_on_device.zero_()

    def place(self, on_host: Sequence[int] = (), host: torch.device | None = None) -> None:
        """Put the experts into the two tiers. Existing bytes move with them, by way of ordinary host memory.

        The GPU never holds a tier and its successor at a time. Where a new tier finds no room, the experts stay in
        host memory, all of them, and the layer works on.

        Args:
            on_host: numbers of the experts for the host tier; the others go to the bench's device.
            host: device of the host tier, for example a second GPU. None: where it was before, at first host memory,
                which is page-locked for a GPU.

        Raises:
            ValueError: A number is not that of an expert.
        """
        wrong = [expert for expert in on_host if not 0 <= expert < self.num_experts]
        if wrong:
            raise ValueError(
                f"There is no expert {wrong[0]} to put on the host; this layer has experts 0 to "
                f"{self.num_experts - 1}. Name one of those."
            )
        far, host = frozenset(on_host), host or self.host
        self.traffic = [0, 0]
        if self.rows and (far, host) == (self.on_host, self.host):
            return
        with torch.inference_mode(False):
            if self.rows:  # by way of host memory, so that no tier needs room beside the one that it replaces
                self._hold(self._copy_to_host(), frozenset(range(self.num_experts)))
                if self.bench.device.type == "cuda":
                    torch.cuda.empty_cache()  # or the new tier takes a part of the old one, and the rest lies idle
            near = [expert for expert in range(self.num_experts) if expert not in far]
            rows = dict(zip(sorted(far), self._allocate_host_tier(len(far), host), strict=True))
            rows |= zip(near, self._allocate_near_tier(len(near)), strict=True)
            for row, old in zip([rows[expert] for expert in range(self.num_experts)], self.rows):
                row.copy_(old)
            self._hold([rows[expert] for expert in range(self.num_experts)], far)
            self.host = host

    def _hold(self, rows: list[torch.Tensor], on_host: frozenset[int]) -> None:
        """Take the experts' bytes from `rows`; what held them before is freed."""
        self.rows, self.on_host = rows, on_host
        self.bench.forget()
        self.near = {expert: self.geometry.views(row) for expert, row in enumerate(rows) if expert not in on_host}
        addresses = [0 if expert in on_host else row.data_ptr() for expert, row in enumerate(rows)]
        self.near_addresses.copy_(torch.tensor(addresses))

    def _copy_to_host(self) -> list[torch.Tensor]:
        copies = torch.empty((self.num_experts, self.geometry.nbytes), dtype=torch.uint8, device="cpu")
        for copy, row in zip(copies, self.rows):
            copy.copy_(row)
        return list(copies)

    def _allocate_host_tier(self, count: int, host: torch.device) -> torch.Tensor:
        if host.type == "cpu" and self.bench.device.type != "cpu":
            return expert_workbench.allocate_pinned(count, self.geometry.nbytes)
        return torch.empty((count, self.geometry.nbytes), dtype=torch.uint8, device=host)

    def _allocate_near_tier(self, count: int) -> torch.Tensor:
        return torch.empty((count, self.geometry.nbytes), dtype=torch.uint8, device=self.bench.device)

    def write_expert(self, expert: int, up: torch.Tensor, down: torch.Tensor) -> None:
        """Quantise one expert's matrices, (intermediate, hidden) and (hidden, intermediate), into its place."""
        device = self.bench.device
        self.rows[expert].copy_(torch.cat([nf4.pack_matrix(up.to(device)), nf4.pack_matrix(down.to(device))]))
        self.bench.forget()

    def open_for_lora(self) -> None:
        """Show each expert to PEFT as modules `experts.N.up_proj` and `experts.N.down_proj`, the published names."""
        if self.reached is not None:
            return
        bench = self.bench
        self.reached = torch.zeros(self.num_experts, dtype=torch.bool, device=bench.device)
        for expert in range(self.num_experts):
            matrices = {
                name: expert_lora.ExpertMatrix(shape, bench.device, bench.dtype)
                for name, shape in (("up_proj", self.geometry.up), ("down_proj", self.geometry.down))
            }
            self.matrices.append(nn.ModuleDict(matrices))
            self.add_module(str(expert), self.matrices[-1])

    def active_loras(self) -> dict[int, ExpertLoras]:
        """{expert: its LoRA pairs}; empty without LoRA, or while adapters are disabled."""
        find = expert_lora.active_lora
        pairs = [(find(matrices["up_proj"]), find(matrices["down_proj"])) for matrices in self.matrices]
        return {expert: pair for expert, pair in enumerate(pairs) if any(pair)}

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Sum of the chosen experts' weighted outputs, with the signature of transformers' `NemotronHExperts`.

        Args:
            hidden_states: (tokens, hidden).
            top_k_index: (tokens, k) int64, the experts that the router chose.
            top_k_weights: (tokens, k), their weights.

        Returns:
            (tokens, hidden) in the type of `hidden_states`, for float16 in float32: a sum may pass float16's range.
        """
        return self.prepare()(hidden_states, top_k_index, top_k_weights)

    def prepare(self) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
        """`forward` with the LoRA that is active now, for several calls: to read it takes up to 4 ms."""
        loras = self.active_loras()
        # Once for all calls, and not for training, which needs no table.
        tabulate = functools.cache(
            lambda: expert_lora.tabulate_layer(loras, self.num_experts, self.near_addresses.device)
        )

        def forward(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            if torch.is_autocast_enabled(hidden.device.type):
                # Under mixed precision, autocast would use other types in the backward pass than in the forward pass.
                with torch.autocast(hidden.device.type, enabled=False):
                    return forward(hidden, index, weights)
            dtype = self._decoding_dtype(hidden)
            if dtype and (tables := tabulate()) is not None:
                output = self.decode(hidden.to(dtype), index, weights.float(), tables)
                return output.to(output_dtype(hidden.dtype))
            trained = [value for pairs in loras.values() for lora in pairs if lora for value in (lora.a, lora.b)]
            return expert_groups.RoutedExperts.apply(
                hidden, index, weights, self, loras, torch.is_grad_enabled(), *trained
            )

        return forward

    def _decoding_dtype(self, hidden: torch.Tensor) -> torch.dtype | None:
        """The type in which the kernel computes these tokens; None if it cannot: many tokens, or a gradient."""
        few = 0 < len(hidden) <= MAX_DECODING_TOKENS
        if torch.is_grad_enabled() or not few or self.act is not relu2:  # the only activation the kernel computes
            return None
        dtype = torch.float16 if hidden.dtype == torch.float16 else torch.float32  # the kernel has no bf16
        return dtype if expert_kernel.is_usable(hidden.device, self.geometry.up, dtype) else None

    def decode(
        self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, loras: Sequence[LoraTable] = ()
    ) -> torch.Tensor:
        """`forward` by the kernel, for a few tokens without a gradient.

        All experts on the device take two launches, with LoRA up to four. Experts from the host arrive in portions of
        half of the bench's slots, and each portion takes as many launches more. The host waits for the router's choice
        only if it has experts. With the choice it reads a guess of what the next layer will choose, and copies that
        behind the experts of this layer.

        Args:
            hidden: (tokens, hidden) float16 or float32.
            index: (tokens, k) int64.
            weights: (tokens, k) float32.
            loras: the tables of the up and the down matrices; empty without LoRA.

        Returns:
            (tokens, hidden) float32.
        """
        outputs = torch.empty((*index.shape, self.geometry.hidden), dtype=torch.float32, device=hidden.device)
        guess = self.following.guess(hidden) if self.following and self.on_host else None
        read_choice = self.start_reading_choice(index, guess) if self.on_host else lambda: ([], [])
        if self.counting and not self.on_host:
            chosen = index.flatten()
            self.hits_on_device.index_add_(0, chosen, torch.ones_like(chosen))
        # The launches are queued before the host waits.
        expert_kernel.run_experts(hidden, index, weights, self.near_addresses, self.geometry.up, outputs, loras)
        choice, guessed = read_choice()
        if self.guessed_by:
            self.guessed_by.compare(choice)
        held = self.bench.is_held
        if far := sorted(self.on_host.intersection(choice), key=lambda expert: (not held(self.rows[expert]), expert)):
            together, rows = max(1, len(self.bench.slots) // 2), [self.rows[expert] for expert in far]
            slots = self.bench.take_slots(rows)
            # The tables first: a GPU copies in the order in which it was asked.
            tables = self._send_slot_tables(far, slots, together)
            arriving = self.bench.bring_experts(rows, together, slots)
            for table, _ in zip(tables, arriving):
                expert_kernel.run_experts(hidden, index, weights, table, self.geometry.up, outputs, loras)
            next(arriving, None)  # frees the last slots
        if guessed:
            self.following.copy_ahead(guessed)
        return outputs.sum(1)

    def _send_slot_tables(self, far: list[int], slots: list[int], together: int) -> torch.Tensor:
        """(portions, experts) int64 on the device: for each portion of `far` its slots' addresses, else 0."""
        device = self.bench.device
        tables = [[0] * self.num_experts for _ in range(0, len(far), together)]
        for i, (expert, slot) in enumerate(zip(far, slots)):
            tables[i // together][expert] = self.bench.slots[slot].data_ptr()
        return torch.tensor(tables, pin_memory=device.type == "cuda").to(device, non_blocking=True)

    def start_reading_choice(
        self, index: torch.Tensor, guess: torch.Tensor | None = None
    ) -> Callable[[], tuple[list[int], list[int]]]:
        """Start to copy the router's choice, (tokens, k) int64, and a guess of the next one's to the host.

        Returns:
            A function that waits for the copy, counts the choice and returns both as flat lists, of the guess each
            token's first expert first.
        """
        on_cpu = (index if guess is None else torch.cat([index, guess])).to("cpu", non_blocking=True)
        copied = torch.cuda.current_stream(index.device).record_event() if index.is_cuda else None

        def read_choice() -> tuple[list[int], list[int]]:
            if copied is not None:
                copied.synchronize()
            choice, guessed = on_cpu[: len(index)].flatten(), on_cpu[len(index) :].T.flatten()
            self._count(torch.bincount(choice, minlength=self.num_experts))
            return choice.tolist(), guessed.tolist()

        return read_choice

    def group_by_expert(self, index: torch.Tensor) -> expert_groups.Routing:
        """The choice, (tokens, k) int64, in groups of experts. Synchronises once, and counts the choice.

        Which experts form a group depends on the choice alone, and so no result on where an expert lies.
        """
        counts = torch.bincount(index.flatten(), minlength=self.num_experts).cpu()
        self._count(counts)
        return expert_groups.plan_rows(index, counts.tolist(), self.bench.together)

    def _count(self, counts: torch.Tensor) -> None:
        """Add the rows that each expert got, (num_experts,) int64 on the CPU, to `hits` and `traffic`."""
        if self.counting:
            self.hits_on_cpu = self.hits_on_cpu + counts
        if self.on_host:
            self.traffic[0] += int(counts.sum())
            self.traffic[1] += int(counts[list(self.on_host)].sum())
