"""Routed experts in groups, for many tokens: reading prompts, training, and decoding where the kernel cannot run.

The rows of all tokens are sorted by expert, and experts of about as many rows form a group. A group's matrices are
dequantised together and multiplied in one batched product, its rows padded with zeros to those of its largest expert.
So a layer of 128 experts takes a few hundred operations, not thousands, and the padding at most doubles the rows.

The backward pass dequantises again, but does not compute the first product again: its result, in the type that the
policy computes in, is kept from the forward pass. With checkpointing that is the repeated forward pass, so it is kept
for one layer at a time.
"""

from typing import Any, NamedTuple

import torch

from grpo_kit.nemotron import expert_lora, nf4
from grpo_kit.nemotron.expert_lora import ExpertLora, ExpertLoras
from grpo_kit.nemotron.expert_workbench import GROUP_ROWS
from grpo_kit.nemotron.patches import activate, output_dtype

# An expert's rows up to which the fused 4-bit product of CUDA reads less memory than dequantising does.
MAX_FUSED_ROWS = 8


class Group(NamedTuple):
    """Experts that are computed together: each has `rows` rows, with padding; `start` is the first of all of them."""

    experts: list[int]
    rows: int
    start: int

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + len(self.experts) * self.rows)


class Routing(NamedTuple):
    """Which rows the groups compute.

    `tokens` (rows,) int64 is the token of each row, and one more than the last token for padding. `places`
    (tokens * k,) int64 is the row of each choice of the router.
    """

    groups: list[Group]
    tokens: torch.Tensor
    places: torch.Tensor


def form_groups(counts: list[int], tokens: int, together: int) -> list[Group]:
    """Put the experts that have rows into groups, the largest first.

    Args:
        counts: each expert's rows.
        tokens: how many tokens there are.
        together: how many experts a group has at most.

    Returns:
        The groups. No expert of a group has less than half of the rows of its largest.
    """
    groups: list[Group] = []
    for expert in sorted(filter(counts.__getitem__, range(len(counts))), key=lambda expert: -counts[expert]):
        experts, rows, _ = groups[-1] if groups else ([], 0, 0)
        fits = len(experts) < together and (len(experts) + 1) * rows <= max(tokens, GROUP_ROWS)
        if experts and fits and 2 * counts[expert] >= rows:
            experts.append(expert)
        else:
            groups.append(Group([expert], counts[expert], groups[-1].span.stop if groups else 0))
    return groups


def plan_rows(index: torch.Tensor, counts: list[int], together: int) -> Routing:
    """Sort the router's choice into groups.

    Args:
        index: (tokens, k) int64, the chosen experts.
        counts: each expert's rows in `index`.
        together: how many experts a group has at most.
    """
    groups = form_groups(counts, len(index), together)
    ranks, shifts, before = [0] * len(counts), [0] * len(counts), 0
    for expert, row in ((e, g.start + i * g.rows) for g in groups for i, e in enumerate(g.experts)):
        ranks[expert], shifts[expert] = row, row - before  # from a place in sorted order to one with padding
        before += counts[expert]
    ranks, shifts = torch.tensor([ranks, shifts]).to(index.device)
    flat = index.flatten()
    numbers, order = torch.arange(len(flat), device=index.device), ranks[flat].argsort(stable=True)
    places = torch.empty_like(flat)
    places[order] = numbers + shifts[flat[order]]
    tokens = torch.full((groups[-1].span.stop if groups else 0,), len(index), device=index.device)
    tokens[places] = numbers // index.shape[1]
    return Routing(groups, tokens, places)


class _Loading:
    """Hands out the matrices of groups of a layer (`TieredExperts`) in order. Copies from the host start at once."""

    def __init__(self, experts: Any, groups: list[Group]) -> None:
        far = [experts.rows[expert] for group in groups for expert in group.experts if expert in experts.on_host]
        self.experts, self.arriving = experts, experts.bench.bring_experts(far)

    def find(self, group: Group) -> tuple[list[nf4.Nf4], list[nf4.Nf4]]:
        """(up, down): the matrices of a group's experts in 4 bit; what arrived is copied, which frees its slot."""
        near, views = self.experts.near, self.experts.geometry.views
        pairs = [near.get(expert) or views(next(self.arriving)[0].clone()) for expert in group.experts]
        up, down = zip(*pairs)
        return list(up), list(down)

    def dequantise(self, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        """(up (experts, intermediate, hidden), down (experts, hidden, intermediate)) of a group."""
        up, down = self.find(group)
        geometry, count = self.experts.geometry, len(up)
        values = nf4.dequantise_matrices(up + down, self.experts.bench.dtype)
        return values[:count].view(count, *geometry.up), values[count:].view(count, *geometry.down)

    def finish(self) -> None:
        """Free the last slot."""
        next(self.arriving, None)


def _multiply(x: torch.Tensor, matrices: torch.Tensor | list[nf4.Nf4], lora: ExpertLora | None) -> torch.Tensor:
    """(experts, rows, out): rows (experts, rows, in) by matrices (experts, out, in), with LoRA."""
    if isinstance(matrices, torch.Tensor):
        product = torch.bmm(x, matrices.mT)
    else:
        product = torch.stack([nf4.multiply_rows(rows, matrix) for rows, matrix in zip(x, matrices)])
    return expert_lora.add_update(lora, x, product)


def _stack_pairs(loras: dict[int, ExpertLoras], group: Group) -> ExpertLoras:
    """The LoRAs of a group's up and down matrices, stacked."""
    pairs = [loras.get(expert, (None, None)) for expert in group.experts]
    up, down = zip(*pairs)
    return expert_lora.stack_loras(up), expert_lora.stack_loras(down)


def _with_zero_row(rows: torch.Tensor) -> torch.Tensor:
    """`rows` and one more of zeros, from which padding is read."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


class RoutedExperts(torch.autograd.Function):
    """The sum of the chosen experts' weighted outputs.

    `keep` says whether a backward pass may follow. The LoRAs' tensors are inputs too (`trained`, in the order of
    `loras`), so that they get their gradients.
    """

    @staticmethod
    def forward(ctx, hidden, index, weights, experts, loras, keep, *trained):
        routing, dtype = experts.group_by_expert(index), experts.bench.dtype
        scale = weights.new_zeros(len(routing.tokens))
        scale[routing.places] = weights.flatten()
        x, kept = _with_zero_row(hidden.to(dtype)), []
        total = torch.zeros(x.shape, dtype=weights.dtype, device=x.device)  # its last row is the padding's
        loading = _Loading(experts, routing.groups)
        for group in routing.groups:
            tokens, (up_lora, down_lora) = routing.tokens[group.span], _stack_pairs(loras, group)
            fused = x.is_cuda and not keep and group.rows <= MAX_FUSED_ROWS
            up, down = loading.find(group) if fused else loading.dequantise(group)
            rows = x[tokens].view(len(group.experts), group.rows, -1)
            inner = _multiply(rows, up, up_lora)
            if keep:
                kept.append(inner)
            inner, factor = activate(inner, experts.act)
            output = _multiply(inner, down, down_lora)
            del rows, inner, up, down  # before the next group's come
            output = (output if factor is None else output * factor).flatten(0, 1)
            total.index_add_(0, tokens, (output * scale[group.span, None]).to(total.dtype))
        loading.finish()
        ctx.save_for_backward(hidden, routing.tokens, routing.places, scale, *kept)
        ctx.experts, ctx.loras, ctx.groups, ctx.k = experts, loras, routing.groups, index.shape[1]
        return total[:-1].to(output_dtype(hidden.dtype))

    @staticmethod
    def backward(ctx, grad):
        hidden, all_tokens, places, scale, *kept = ctx.saved_tensors
        experts, loras, dtype = ctx.experts, ctx.loras, ctx.experts.bench.dtype
        x, grad = _with_zero_row(hidden.to(dtype)), _with_zero_row(grad)
        d_hidden = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        d_scale = torch.empty_like(scale)
        d_loras: dict[int, list[torch.Tensor]] = {}
        reached: list[torch.Tensor] = []
        loading = _Loading(experts, ctx.groups)
        for group in ctx.groups:
            tokens, shape = all_tokens[group.span], (len(group.experts), group.rows, -1)
            up_lora, down_lora = _stack_pairs(loras, group)
            up, down = loading.dequantise(group)
            inner = kept.pop(0).detach().requires_grad_()
            with torch.enable_grad():
                middle, factor = activate(inner, experts.act)
            d_output = grad[tokens].view(shape)
            d_output = (d_output if factor is None else d_output * factor).to(dtype)
            d_middle = expert_lora.add_input_gradient(down_lora, d_output, torch.bmm(d_output, down))
            # The gradient of a weight is the gradient times the unweighted output, or the same one product earlier.
            d_scale[group.span] = (d_middle.float() * middle.detach()).sum(-1).flatten().to(d_scale.dtype)
            weight = scale[group.span].view(shape)
            (d_inner,) = torch.autograd.grad(middle, inner, (d_middle * weight).to(dtype))
            d_rows = expert_lora.add_input_gradient(up_lora, d_inner, torch.bmm(d_inner, up))
            d_hidden.index_add_(0, tokens, d_rows.flatten(0, 1).float())
            if loras:
                d_output = d_output * weight
                rows = x[tokens].view(shape)
                d_pairs = [
                    lora and expert_lora.differentiate_update(lora, before, after)
                    for lora, before, after in ((up_lora, rows, d_inner), (down_lora, middle.detach(), d_output))
                ]
                d_loras |= _split_gradients(group, loras, d_pairs)
                reached.append((d_output != 0).flatten(1).any(1))
            del up, down, inner, middle, d_middle, d_inner, d_rows  # before the next group's come
        loading.finish()
        if loras and reached:
            experts.reached[[expert for group in ctx.groups for expert in group.experts]] |= torch.cat(reached)
        d_trained = []
        for expert, pairs in loras.items():
            d_trained += d_loras.get(expert, [None] * 2 * sum(map(bool, pairs)))
        d_weights = d_scale[places].view(-1, ctx.k)
        return d_hidden[:-1].to(hidden.dtype), None, d_weights, None, None, None, *d_trained


def _split_gradients(
    group: Group, loras: dict[int, ExpertLoras], gradients: list[tuple[torch.Tensor, torch.Tensor] | None]
) -> dict[int, list[torch.Tensor]]:
    """{expert: the gradients of its LoRAs' tensors} of a group, from those of the stacked up and down LoRAs."""
    return {
        expert: [
            half
            for lora, (d_a, d_b) in ((lora, both) for lora, both in zip(loras[expert], gradients) if lora)
            for half in (d_a[i, : len(lora.a)], d_b[i, :, : len(lora.a)])
        ]
        for i, expert in enumerate(group.experts)
        if expert in loras
    }
