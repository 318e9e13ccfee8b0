"""One token's Mamba-2 update and the norm, against transformers' mixer and norm."""

import pytest
import torch
from transformers import DynamicCache, NemotronHConfig
from transformers.models.nemotron_h import modeling_nemotron_h as modeling

from grpo_kit.nemotron.decoding.mamba import MambaState, MambaUpdate, MambaWeights, add_norm, begin_sums, update_mamba

ROWS, HIDDEN = 3, 32


def make_mixer(dtype, bias=True):
    """(a random mixer without out_proj, its configuration)."""
    config = NemotronHConfig(
        layers_block_type=["linear_attention"], hidden_size=HIDDEN, mamba_num_heads=8, mamba_head_dim=4,
        ssm_state_size=6, n_groups=2, use_conv_bias=bias,
    )  # fmt: skip
    torch.manual_seed(0)
    mixer = modeling.NemotronHMamba2Mixer(config, layer_idx=0)
    for value in mixer.parameters():
        value.data += 0.3 * torch.randn(value.shape)
    mixer.out_proj = torch.nn.Identity()
    return mixer.to(dtype), config


def read_weights(mixer):
    return MambaWeights(
        mixer.conv1d.weight[:, 0], mixer.conv1d.bias, mixer.dt_bias.float(), -mixer.A_log.float().exp(),
        mixer.D.float(), mixer.norm.weight, mixer.norm.variance_epsilon, mixer.norm.group_size,
    )  # fmt: skip


@torch.no_grad()
def run_both(dtype, bias=True, steps=4):
    """[(transformers' output, ours)] of some tokens after a prompt, and the two states at the end."""
    mixer, config = make_mixer(dtype, bias)
    cache = DynamicCache(config=config)
    mixer(torch.randn(ROWS, 7, HIDDEN).to(dtype), cache_params=cache)
    layer = cache.layers[0]
    state = MambaState(layer.conv_states[0].clone(), layer.recurrent_states[0].clone())
    pairs = []
    for _ in range(steps):
        x = torch.randn(ROWS, 1, HIDDEN).to(dtype)
        ours = update_mamba(mixer.in_proj(x)[:, 0], state, read_weights(mixer))
        pairs.append((mixer(x, cache_params=cache)[:, 0], ours))
    return pairs, (layer.conv_states[0], layer.recurrent_states[0]), state


@pytest.mark.parametrize("bias", [True, False])
def test_the_update_is_that_of_the_mixer(bias):
    pairs, (conv, ssm), state = run_both(torch.float32, bias)
    for theirs, ours in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(state.conv, conv)
    torch.testing.assert_close(state.ssm, ssm, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, unit", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_in_16_bit_the_update_differs_by_rounding_only(dtype, unit):
    pairs, _, _ = run_both(dtype)
    for theirs, ours in pairs:
        assert ours.dtype == dtype
        assert (ours - theirs).float().norm() < 3 * unit * theirs.float().norm()


def test_rows_do_not_touch_each_other():
    mixer, _ = make_mixer(torch.float32)
    weights, width = read_weights(mixer), mixer.conv_kernel_size
    with torch.no_grad():
        projected = mixer.in_proj(torch.randn(ROWS, HIDDEN))
        conv, ssm = torch.randn(ROWS, mixer.conv_dim, width), torch.randn(ROWS, 8, 4, 6)
        together = update_mamba(projected, MambaState(conv.clone(), ssm.clone()), weights)
        alone = update_mamba(projected[1:2], MambaState(conv[1:2].clone(), ssm[1:2].clone()), weights)
    torch.testing.assert_close(alone, together[1:2])


def test_inputs_are_kept_as_what_they_add_to_later_outputs():
    weights = MambaWeights(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]), torch.tensor([0.5]), *[None] * 6)
    sums = begin_sums(torch.tensor([[[9.0, 2.0, 3.0, 4.0]], [[9.0, 0.0, 0.0, 7.0]]]), weights)
    # The oldest input that the next output still sees is the second one; the last sum has seen none.
    assert sums[..., 0].tolist() == [[432.5, 700.5], [43.5, 70.5], [4.5, 7.5], [0.5, 0.5]]
    assert begin_sums(torch.ones(1, 1, 4), weights._replace(conv_bias=None))[:, 0, 0].tolist() == [111, 11, 1, 0]


@pytest.mark.parametrize("bias", [True, False])
def test_rows_are_taken_and_put_between_tokens(bias):
    mixer, _ = make_mixer(torch.float32, bias)
    weights = read_weights(mixer)
    states = [MambaState(torch.randn(3, len(weights.conv_weight), 4), torch.randn(3, 8, 4, 6)) for _ in range(2)]
    kept, new = (MambaState(*(part.clone() for part in state)) for state in states)
    with torch.no_grad():
        inputs = mixer.in_proj(torch.randn(4, 3, HIDDEN))
        update = MambaUpdate(begin_sums(states[0].conv, weights), states[0].ssm, weights)
        for projected in inputs[:2]:
            torch.testing.assert_close(update(projected), update_mamba(projected, kept, weights))
        update, at = update.take_rows(torch.tensor([2, 0, 2])), torch.tensor([1])
        update.put_rows(at, MambaState(states[1].conv[:1], states[1].ssm[:1]))
        expected = [[part[2:], after[:1], part[2:]] for part, after in zip(kept, new)]
        kept = MambaState(*(torch.cat(parts) for parts in expected))
        for projected in inputs[2:]:
            torch.testing.assert_close(update(projected), update_mamba(projected, kept, weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_is_that_of_the_block(dtype):
    torch.manual_seed(0)
    norm = modeling.NemotronHRMSNorm(HIDDEN, eps=1e-3)
    norm.weight.data = 1 + 0.1 * torch.randn(HIDDEN)
    norm = norm.to(dtype)
    residual, update = torch.randn(ROWS, HIDDEN), torch.randn(ROWS, HIDDEN).to(dtype)
    expected = residual + update
    normed = add_norm(residual, update, norm.weight.detach(), norm.variance_epsilon)
    assert torch.equal(residual, expected) and residual.dtype == torch.float32
    assert normed.dtype == dtype
    torch.testing.assert_close(normed, norm(expected.to(dtype)).detach(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_without_an_update_the_norm_leaves_the_residual():
    residual = torch.tensor([[3.0, 4.0]])
    normed = add_norm(residual, None, torch.tensor([1.0, 2.0]), 0.0)
    assert residual.tolist() == [[3.0, 4.0]]
    # divided by sqrt(12.5)
    torch.testing.assert_close(normed, torch.tensor([[0.8485281, 2.2627417]]))
