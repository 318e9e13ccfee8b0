"""In float16 an MLP, a shared expert and a routed expert give what float32 gives, past the range of relu2."""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import NemotronHConfig
from transformers.models.nemotron_h import modeling_nemotron_h as modeling

from grpo_kit import config
from grpo_kit.nemotron import expert_workbench, experts, nf4, patches
from grpo_kit.nemotron.patches import relu2
from grpo_kit.policy.load import load_policy

HALF, INF, NAN = torch.float16, torch.inf, torch.nan
HIDDEN, INNER = 64, 128
CLOSE = 4e-3  # of the largest value; float16 rounds by 5e-4, several times


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def off(ours, truth):
    assert ours.isfinite().all()
    return ((ours.double() - truth.double()).abs().max() / truth.double().abs().max()).item()


def reaching(largest, x, up):
    """x in float16, scaled so that the largest value of x @ up.T is `largest`."""
    return (x * (largest / (x @ up.T).max())).half()


@pytest.mark.parametrize(
    ("largest", "factor"),
    [
        (0, 1), (-0.0, 1), (6e-8, 1), (63.97, 1), (64, 2), (127.9, 2), (255.9, 4), (256, 8), (300, 8), (5000, 128),
        (65504, 1024), (INF, INF), (NAN, INF),
    ],
)  # fmt: skip
def test_the_factor_is_the_power_of_two_that_the_largest_value_needs(largest, factor):
    rows = torch.tensor([[-6e4, largest, -1.0], [0.0, 1.0, -INF]], dtype=HALF)
    assert patches._choose_factors(rows).tolist() == [[factor], [1]]


@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, torch.float32])
def test_what_is_in_range_comes_out_bit_for_bit_as_before(dtype):
    up, down, x = (0.3 * draw(*s, seed=i) for i, s in enumerate([(INNER, HIDDEN), (HIDDEN, INNER), (9, HIDDEN)]))
    up, down, x = up.to(dtype), down.to(dtype), (8 * x).to(dtype)
    assert 16 < F.linear(x, up).max() < 64
    ours = patches.feed_forward(x, lambda x: F.linear(x, up), relu2, lambda h: F.linear(h, down))
    assert ours.dtype == patches.output_dtype(dtype) == (torch.float32 if dtype == HALF else dtype)
    assert torch.equal(ours, F.linear(relu2(F.linear(x, up)), down).to(ours.dtype))


def test_bf16_and_other_activations_are_not_scaled():
    x = torch.full((1, 4), 300.0)
    for dtype, act in ((torch.bfloat16, relu2), (torch.float32, relu2), (HALF, F.silu)):
        ours = patches.feed_forward(x.to(dtype), lambda x: x, act, lambda h: h)
        assert ours.dtype == dtype and torch.equal(ours, act(x.to(dtype)))


@pytest.mark.parametrize("bad", [INF, NAN, -NAN])
def test_infinity_and_nan_stay_to_be_seen(bad):
    x = torch.tensor([[1.0, 2.0], [bad, 300.0], [300.0, 5000.0]], dtype=HALF)
    ours = patches.feed_forward(x, lambda x: x, relu2, lambda h: F.linear(h, torch.ones(1, 2, dtype=HALF)))
    assert ours[0].item() == 5 and ours[1].isnan().item()
    assert ours[2].item() == pytest.approx(300**2 + 5000**2, rel=1e-3)


def test_a_row_of_nothing_but_large_values_does_not_overflow_in_the_down_product():
    """12,544 equal values of 255 in the 4B's sizes: each square fits, and their sum by weights of one sign does not."""
    x = torch.full((1, 12544), 255.0, dtype=HALF)
    down = torch.full((1, 12544), 1e-3, dtype=HALF)
    assert F.linear(relu2(x), down).isinf().all()
    ours = patches.feed_forward(x, lambda x: x, relu2, lambda h: F.linear(h, down))
    assert ours.item() == pytest.approx(12544 * 255**2 * 1e-3, rel=2e-3)


# --- the 4B's MLP, in 4 bit with PEFT's LoRA; without it the same code is the shared expert ---


class Net(nn.Module):
    """transformers' MLP of a small Nemotron-H, prepared as a loaded model is."""

    def __init__(self, dtype, in_4bit, patched=True):
        super().__init__()
        settings = NemotronHConfig(hidden_size=HIDDEN, intermediate_size=INNER, layers_block_type=["mlp"])
        self.mlp = modeling.NemotronHMLP(settings)
        for seed, name in enumerate(("up_proj", "down_proj")):
            linear = getattr(self.mlp, name)
            linear.weight = nn.Parameter(0.1 * draw(*linear.weight.shape, seed=seed), requires_grad=False)
            packed = nf4.pack_matrix(linear.weight.data)
            if in_4bit:
                four = nf4.bitsandbytes.nn.Linear4bit(
                    linear.in_features, linear.out_features, False, dtype, quant_type="nf4"
                )
                nf4.set_4bit_weight(four, packed, dtype)
                setattr(self.mlp, name, four)
            else:
                exact = nf4.dequantise_matrix(nf4.unpack_matrix(packed, linear.weight.shape), linear.weight.data)
                linear.weight = nn.Parameter(exact.to(dtype), requires_grad=False)
        if patched:
            assert patches.keep_mlps_in_range(self) == 1

    def forward(self, x):
        return self.mlp(x)


def with_lora(net):
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["up_proj", "down_proj"])
    net = peft.get_peft_model(net, settings)
    for number, (name, value) in enumerate(net.named_parameters()):
        if "lora_" in name:
            value.data = 0.1 * draw(*value.shape, seed=90 + number)
    return net


def grads_of(net, x, scaler_scale=1.0):
    x = x.clone().requires_grad_()
    y = net(x)
    (y.float() * draw(*y.shape, seed=7) * 1e-4 * scaler_scale).sum().backward()
    return y.detach(), [x.grad] + [p.grad for n, p in net.named_parameters() if "lora_" in n]


UP = 0.1 * draw(INNER, HIDDEN, seed=0)


@pytest.mark.parametrize("largest", [30, 300, 5000])
@pytest.mark.parametrize("in_4bit", [True, False])
@pytest.mark.parametrize("adapted", [True, False])
def test_an_mlp_in_float16_gives_what_float32_gives_and_its_gradients(largest, in_4bit, adapted):
    x = reaching(largest, draw(6, HIDDEN, seed=5), UP).view(2, 3, HIDDEN)
    x[1] *= 0.01  # rows that need no scaling, beside those that do
    half, full = (Net(dtype, in_4bit) for dtype in (HALF, torch.float32))
    if adapted:
        half, full = with_lora(half), with_lora(full)
    y, grads = grads_of(half, x)
    exact, exact_grads = grads_of(full, x.float())
    assert y.dtype == torch.float32 and y.isfinite().all() and len(grads) == 1 + 4 * adapted
    for row in range(2):  # the small rows for themselves too
        assert off(y[row], exact[row]) < CLOSE and off(grads[0][row], exact_grads[0][row]) < CLOSE
    for ours, theirs in zip(grads, exact_grads):
        assert off(ours, theirs) < CLOSE
    with torch.inference_mode():  # as in sampling: the prompt at once, then a token of each
        assert off(half(x), exact) < CLOSE
        for row in range(2):
            assert off(half(x[row, :1]), exact[row, :1]) < CLOSE


def test_unpatched_it_overflows():  # when this fails, patches.keep_mlps_in_range can go
    x = reaching(300, draw(6, HIDDEN, seed=5), UP)
    assert not with_lora(Net(HALF, True, patched=False))(x).isfinite().all()


@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.parametrize("largest", [300, 5000])
def test_the_loss_scaler_keeps_its_scale(largest, patched):
    """As transformers trains with `fp16`: under autocast, with a scaled loss."""
    net = with_lora(Net(HALF, True, patched))
    x = reaching(largest, draw(6, HIDDEN, seed=5), UP)
    before = copy.deepcopy(net.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    with torch.autocast("cpu", dtype=HALF):
        loss = (net(x).float() * draw(6, HIDDEN, seed=7)).mean() * 1e-4
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    moved = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert (scaler.get_scale() == 1024 and len(moved) == 4) == patched
    assert loss.isfinite().item() == patched


def test_a_copy_is_its_own_and_an_mlp_with_biases_or_another_activation_is_left_alone():
    net = Net(HALF, False)
    other = copy.deepcopy(net)
    other.mlp.up_proj.weight.data.zero_()
    assert net(torch.ones(1, HIDDEN, dtype=HALF)).any() and not other(torch.ones(1, HIDDEN, dtype=HALF)).any()
    for other in ({"mlp_bias": True}, {"mlp_hidden_act": "silu"}):
        settings = NemotronHConfig(hidden_size=8, intermediate_size=8, layers_block_type=["mlp"], **other)
        mlp = modeling.NemotronHMLP(settings)
        assert patches.keep_mlps_in_range(mlp) == 0 and "forward" not in vars(mlp)


# --- routed experts, and a whole block with a shared one ---


def layer_of(dtype, count=3, weight=0.1):
    bench = expert_workbench.Workbench(expert_workbench.ExpertShape(HIDDEN, INNER), torch.device("cpu"), dtype)
    layer = experts.TieredExperts(bench.geometry, count, relu2, bench)
    layer.place()
    for e in range(count):
        layer.write_expert(e, weight * draw(INNER, HIDDEN, seed=2 * e), weight * draw(HIDDEN, INNER, seed=2 * e + 1))
    return layer


@pytest.mark.parametrize("largest", [30, 300, 5000])
@pytest.mark.parametrize("tokens", [2, 40])  # few rows are multiplied in 4 bit, many with the dequantised matrix
def test_routed_experts_in_float16_give_what_float32_gives_and_its_gradients(largest, tokens):
    index = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2]]).repeat(10, 1)[:tokens]
    x = reaching(largest, draw(tokens, HIDDEN, seed=5), UP)
    outcomes = []
    for dtype in (HALF, torch.float32):
        layer, hidden = layer_of(dtype), x.clone().to(dtype).requires_grad_()
        weights = draw(tokens, 2, seed=6).abs().requires_grad_()
        y = layer(hidden, index, weights)
        y.backward(1e-4 * draw(*y.shape, seed=7).to(y.dtype))
        with torch.inference_mode():
            prompt = layer(hidden, index, weights)
        outcomes.append((y.detach(), hidden.grad, weights.grad, prompt))
    assert outcomes[0][0].dtype == torch.float32
    for ours, theirs in zip(*outcomes):
        assert off(ours, theirs) < CLOSE


@pytest.mark.parametrize("largest", [300, 5000])
def test_a_block_with_routed_and_shared_experts_keeps_its_values_in_float16(largest):
    full, half = (
        next(layer for layer in load_policy(policy)[0].model.layers if layer.block_type == "moe")
        for policy in (config.Policy(load_in_4bit=True), config.Policy(dtype="float16", load_in_4bit=True))
    )
    x = draw(1, 5, full.norm.weight.numel(), seed=3)
    with torch.inference_mode():
        factor = largest / full.mixer.shared_experts.up_proj(full.norm(x)).max()
        for block in (full, half):
            block.norm.weight.data *= factor
        exact, ours = full(x), half(x)
    assert ours.dtype == torch.float32 and exact.abs().max() > 65504 / 20
    assert off(ours, exact) < 2 * CLOSE
