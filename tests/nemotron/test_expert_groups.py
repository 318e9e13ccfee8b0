"""Experts in groups: which rows belong together; every grouping and placement gives the sum over the experts."""

import pytest
import torch

from grpo_kit.nemotron import expert_groups, expert_lora, expert_workbench, experts, nf4
from grpo_kit.nemotron.expert_groups import Group
from grpo_kit.nemotron.expert_lora import ExpertLora
from tests.helpers.experts import IDS, load_tiered, load_with_expert_lora

SHAPE = experts.ExpertShape(64, 128)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- which experts belong together ---


@pytest.mark.parametrize(
    ("counts", "tokens", "together", "groups"),
    [
        ([0, 0, 0], 4, 8, []),
        ([3, 0, 3, 3], 9, 8, [Group([0, 2, 3], 3, 0)]),
        ([3, 0, 3, 3], 9, 2, [Group([0, 2], 3, 0), Group([3], 3, 6)]),
        ([1, 4, 2, 9], 16, 8, [Group([3], 9, 0), Group([1, 2], 4, 9), Group([0], 1, 17)]),  # 4 and 1 are below half
        ([2, 1], 3, 8, [Group([0, 1], 2, 0)]),  # a row of padding
        ([300, 300, 212], 406, 8, [Group([0], 300, 0), Group([1], 300, 300), Group([2], 212, 600)]),  # 600 > 512 rows
        ([300, 300, 300], 600, 8, [Group([0, 1], 300, 0), Group([2], 300, 600)]),  # as many rows as tokens
        ([5000], 5000, 1, [Group([0], 5000, 0)]),
    ],
)
def test_experts_of_about_as_many_rows_form_a_group(counts, tokens, together, groups):
    assert expert_groups.form_groups(counts, tokens, together) == groups


def test_a_choice_is_sorted_into_rows_with_padding():
    index = torch.tensor([[2, 0], [0, 2], [1, 0]])  # expert 0: tokens 0, 1, 2; expert 2: tokens 0, 1; expert 1: token 2
    routing = expert_groups.plan_rows(index, [3, 1, 2], 8)
    assert routing.groups == [Group([0, 2], 3, 0), Group([1], 1, 6)]
    assert routing.tokens.tolist() == [0, 1, 2, 0, 1, 3, 2]  # 3 is no token: padding
    assert routing.places.tolist() == [3, 0, 1, 4, 6, 2]


def test_a_group_is_bounded_by_its_bytes(monkeypatch):
    assert experts.ExpertShape(2688, 1856).count_together(torch.float16) == 6
    monkeypatch.setattr(expert_workbench, "GROUP_BYTES", 1)
    assert SHAPE.count_together(torch.float16) == 1


# --- the sum over the experts ---


def layer_of(count, on_host=(), slots=8):
    bench = experts.Workbench(SHAPE, torch.device("cpu"), torch.float32, slots)
    layer = experts.TieredExperts(SHAPE, count, lambda x: x.relu().square(), bench)
    layer.place(on_host)
    for e in range(count):
        layer.write_expert(e, draw(*SHAPE.up, seed=2 * e) / 8, draw(*SHAPE.down, seed=2 * e + 1) / 8)
    return layer


def route(tokens, seed):
    """Uneven: expert 0 gets most rows, the last ones few or none."""
    likes = draw(tokens, 8, seed=seed) - torch.arange(8.0) / 2
    return likes.topk(3).indices


def run(layer, tokens=50, seed=1):
    """(output, gradient of the tokens, gradient of the weights)."""
    x, weights = draw(tokens, 64, seed=seed).requires_grad_(), draw(tokens, 3, seed=seed + 1).requires_grad_()
    y = layer(x, route(tokens, seed), weights)
    y.backward(draw(tokens, 64, seed=seed + 2))
    return y.detach(), x.grad, weights.grad


def by_hand(layer, tokens=50, seed=1):
    """The same, expert by expert in float64, as autograd sees it."""
    x = draw(tokens, 64, seed=seed).double().requires_grad_()
    weights = draw(tokens, 3, seed=seed + 1).double().requires_grad_()
    y = torch.zeros(tokens, 64, dtype=torch.float64)
    for i, row in enumerate(route(tokens, seed).tolist()):
        for j, expert in enumerate(row):
            up, down = (
                nf4.dequantise_matrix(m, torch.empty(m.shape)).double() for m in SHAPE.views(layer.rows[expert])
            )
            y[i] = y[i] + weights[i, j] * (down @ (up @ x[i]).relu().square())
    y.backward(draw(tokens, 64, seed=seed + 2).double())
    return y.detach(), x.grad, weights.grad


@pytest.mark.parametrize("group_bytes", [1, 2 * 64 * 128 * 4 * 3, 2**28])  # one expert a group, three, any number
@pytest.mark.parametrize("tokens", [1, 50])
def test_every_grouping_gives_the_sum_over_the_experts_and_its_gradients(monkeypatch, group_bytes, tokens):
    monkeypatch.setattr(expert_workbench, "GROUP_BYTES", group_bytes)
    layer = layer_of(8)
    for ours, exact in zip(run(layer, tokens), by_hand(layer, tokens)):
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize("on_host", [[0], [1, 3, 5, 7], range(8)])
def test_no_bit_depends_on_where_an_expert_lies(slots, on_host):
    for ours, theirs in zip(run(layer_of(8, on_host, slots)), run(layer_of(8))):
        assert torch.equal(ours, theirs)


def test_no_tokens_give_nothing():
    x = torch.zeros(0, 64, requires_grad=True)
    y = layer_of(2)(x, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, 64) and x.grad.shape == (0, 64)


def test_a_token_that_is_not_a_number_spoils_no_other():
    layer, x, index = layer_of(8), draw(50, 64, seed=1), route(50, 1)
    clean = layer(x, index, torch.ones(50, 3))
    x[7] = torch.nan
    spoilt = layer(x, index, torch.ones(50, 3))
    assert spoilt[7].isnan().all()
    assert torch.equal(spoilt[torch.arange(50) != 7], clean[torch.arange(50) != 7])


def test_few_rows_in_4_bit_give_what_dequantised_matrices_give():
    layer, x = layer_of(3), draw(3, 2, 64, seed=5)
    up = [layer.near[e][0] for e in range(3)]
    full = nf4.dequantise_matrices(up, torch.float32).view(3, *SHAPE.up)
    assert torch.allclose(expert_groups._multiply(x, up, None), expert_groups._multiply(x, full, None), atol=1e-5)


def test_a_checkpointed_pass_multiplies_forward_twice_and_backward_once(monkeypatch):
    model, layers = load_tiered(0.5)
    model.requires_grad_(False).train().gradient_checkpointing_enable()
    model.get_input_embeddings().weight.requires_grad_(True)
    model.enable_input_require_grads()
    products, dequantised = [], []
    bmm, dequantise = torch.bmm, nf4.dequantise_matrices
    monkeypatch.setattr(torch, "bmm", lambda *two: products.append(two) or bmm(*two))
    monkeypatch.setattr(nf4, "dequantise_matrices", lambda *two: dequantised.append(two) or dequantise(*two))
    with torch.no_grad():
        model(IDS)
    groups = len(dequantised)
    products.clear(), dequantised.clear()
    model(IDS).logits.sum().backward()
    # Forward, the same again for a layer's backward pass, and there two products more, of gradients.
    assert len(dequantised) == 3 * groups and len(products) == 6 * groups


# --- LoRA ---


def test_stacked_loras_give_what_each_gives():
    loras = [
        ExpertLora(draw(2, 6, seed=1), draw(5, 2, seed=2), 0.5),
        None,
        ExpertLora(draw(4, 6, seed=3), draw(5, 4, seed=4), 2.0),
    ]
    x, d_result = draw(3, 7, 6, seed=5), draw(3, 7, 5, seed=6)
    stacked = expert_lora.stack_loras(loras)
    result = expert_lora.add_update(stacked, x, torch.zeros(3, 7, 5))
    d_a, d_b = expert_lora.differentiate_update(stacked, x, d_result)
    d_x = expert_lora.add_input_gradient(stacked, d_result, torch.zeros(3, 7, 6))
    assert not result[1].any() and not d_x[1].any()
    for i in (0, 2):
        a, b, rows = (v.clone().requires_grad_() for v in (loras[i].a, loras[i].b, x[i]))
        alone = rows @ a.T @ b.T * loras[i].scale
        alone.backward(d_result[i])
        ours = result[i], d_a[i, : len(a)], d_b[i, :, : len(a)], d_x[i]
        for mine, theirs in zip(ours, (alone, a.grad, b.grad, rows.grad)):
            assert torch.allclose(mine, theirs, atol=1e-5)


def test_without_a_lora_nothing_is_stacked_or_added():
    x = draw(2, 3, 4, seed=1)
    assert expert_lora.stack_loras([None, None]) is None
    assert expert_lora.add_update(None, x, x) is x and expert_lora.add_input_gradient(None, x, x) is x


@pytest.mark.slow
def test_gradients_of_expert_loras_are_the_same_wherever_experts_lie_and_every_time():
    gradients = []
    for share in (0.0, 0.5, 0.5):
        model = load_with_expert_lora(share).train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 48
    for others in gradients[1:]:
        assert set(others) == set(gradients[0])
        assert all(torch.equal(grad, others[name]) for name, grad in gradients[0].items())
