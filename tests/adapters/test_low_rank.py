"""Joining LoRA updates exactly, and reducing their rank with the loss that an SVD of the full product gives."""

import pytest
import torch

from grpo_kit.adapters.low_rank import Part, compare_updates, join_updates, reduce_rank


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_joined_updates_are_the_scaled_sum():
    parts = [Part(random(3, 10), random(8, 3, seed=1), 0.5), Part(random(2, 10, seed=2), random(8, 2, seed=3), -2.0)]
    a, b = join_updates(parts, 8)
    assert a.shape == (5, 10) and b.shape == (8, 5)
    torch.testing.assert_close(b @ a, 0.5 * parts[0].b @ parts[0].a - 2.0 * parts[1].b @ parts[1].a)


def test_a_part_that_covers_some_rows_leaves_the_other_rows_zero():
    upper, lower = Part(random(2, 6), random(3, 2, seed=1)), Part(random(2, 6, seed=2), random(4, 2, seed=3), 1.0, 3)
    a, b = join_updates([upper, lower], 9)
    joined = b @ a
    torch.testing.assert_close(joined[:3], upper.b @ upper.a)
    torch.testing.assert_close(joined[3:7], lower.b @ lower.a)
    assert joined[7:].abs().max() == 0


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_what_a_type_changes_is_the_distance_of_the_products(half):
    a, b = random(3, 4, 10), random(3, 8, 4, seed=1) * 1e-4  # three updates of rank 4
    update, lost = compare_updates((a, b), (a.to(half), b.to(half)))
    product, stored = b.double() @ a.double(), b.to(half).double() @ a.to(half).double()
    assert update == pytest.approx(product.square().sum().item())
    assert lost == pytest.approx((product - stored).square().sum().item(), rel=1e-6) and lost > 0
    assert compare_updates((a, b), (a, b))[1] == 0


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_joined_updates_of_16_bit_factors_are_float32(half):
    a, b = join_updates([Part(random(2, 4).to(half), random(4, 2, seed=1).to(half), 1 / 3)], 4)
    assert a.dtype == b.dtype == torch.float32


@pytest.mark.parametrize(
    ("out", "width", "r", "rank"), [(40, 30, 20, 8), (12, 50, 20, 8), (50, 12, 20, 8), (6, 5, 40, 32)]
)
def test_a_reduced_rank_loses_no_more_than_the_svd_of_the_product(out, width, r, rank):
    a, b = random(r, width), random(out, r, seed=1)
    kept_a, kept_b, loss = reduce_rank(a, b, rank)
    assert kept_a.shape == (min(rank, out, width), width) and kept_b.shape == (out, min(rank, out, width))
    product = b.double() @ a.double()
    measured_loss = (kept_b.double() @ kept_a.double() - product).norm() / product.norm()
    s = torch.linalg.svdvals(product)
    assert loss == pytest.approx((s[rank:].norm() / s.norm()).item(), abs=1e-9)
    assert measured_loss.item() == pytest.approx(loss, abs=1e-6)


def test_an_update_whose_true_rank_is_low_enough_loses_nothing():
    a, b = random(4, 30), random(20, 4, seed=1)
    kept_a, kept_b, loss = reduce_rank(
        torch.cat([a, a, a]), torch.cat([b, 0.5 * b, 1e-4 * random(20, 4, seed=2)], 1), 4
    )
    assert loss < 1e-12
    torch.testing.assert_close(kept_b @ kept_a, (1.5 * b + 1e-4 * random(20, 4, seed=2)) @ a, rtol=1e-5, atol=1e-5)


def test_an_update_of_zero_stays_zero():
    a, b, loss = reduce_rank(random(8, 6), torch.zeros(5, 8), 2)
    assert loss == 0.0 and (b @ a).abs().max() == 0 and torch.isfinite(a).all()


def test_large_and_small_factors_that_cancel_out_are_kept():
    a, b = random(6, 20), random(10, 6, seed=1)
    scale = torch.logspace(-9, 9, 6)
    kept_a, kept_b, loss = reduce_rank(a * scale[:, None], b / scale, 6)
    assert loss < 1e-6
    torch.testing.assert_close(kept_b @ kept_a, b @ a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_factor_with_nan_or_infinity_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        reduce_rank(random(4, 6), torch.full((5, 4), bad), 2)
