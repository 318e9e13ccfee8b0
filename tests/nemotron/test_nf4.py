"""A matrix as bytes: it has the values that bitsandbytes gives, and the size that the published table gives."""

import bitsandbytes
import pytest
import torch
from bitsandbytes import functional as bnb

from grpo_kit.nemotron import nf4


def matrix(*shape, dtype=torch.float32, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(128, 64), (64, 128), (1, 64), (192, 4096), (7, 640)])
def test_its_values_are_those_of_bitsandbytes(shape, dtype):
    weight = matrix(*shape, dtype=dtype)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    ours = nf4.dequantise_matrix(nf4.unpack_matrix(nf4.pack_matrix(weight), shape), torch.empty_like(weight))
    assert torch.equal(ours, bnb.dequantize_4bit(packed, state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(128, 64), (1, 64), (128, 136), (7, 640)])  # 128 x 136: 272 scales, 256 and 16
def test_matrices_that_are_dequantised_together_have_the_same_values(shape, dtype):
    packed = [nf4.unpack_matrix(nf4.pack_matrix(matrix(*shape, seed=seed)), shape) for seed in range(3)]
    alone = [nf4.dequantise_matrix(one, torch.empty(shape, dtype=dtype)) for one in packed]
    together = nf4.dequantise_matrices(packed, dtype)
    assert torch.equal(together.view(3, *shape), torch.stack(alone))
    assert torch.equal(nf4.dequantise_matrices(packed[1:2], dtype).view(shape), alone[1])


@pytest.mark.parametrize("shape", [(96, 96), (64, 32), (2, 32), (100, 16)])
def test_rows_that_are_not_a_multiple_of_64_long_are_right_too(shape):
    """bitsandbytes 0.50.2 takes the wrong scales for these on some CPUs, with AVX-512 for example."""
    weight = matrix(*shape)
    ours = nf4.dequantise_matrix(nf4.unpack_matrix(nf4.pack_matrix(weight), shape), torch.empty_like(weight))
    blocks = weight.view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    assert ((ours.view(-1, 64) - blocks).abs() <= 0.2 * largest).all()  # NF4's widest gap is 0.304 of a block's largest


def test_its_size_is_the_published_one():
    """One routed expert of the 30B, 9.978 M values: 4.909 MiB, 4.127 bits a value."""
    both = nf4.packed_nbytes((1856, 2688)) + nf4.packed_nbytes((2688, 1856))
    assert both / 2**20 == pytest.approx(4.909, abs=5e-4)
    assert 8 * both / (2 * 1856 * 2688) == pytest.approx(4.127, abs=5e-4)


def test_bytes_go_into_a_given_place_and_views_copy_nothing():
    place = torch.zeros(3, nf4.packed_nbytes((64, 64)), dtype=torch.uint8)
    nf4.pack_matrix(matrix(64, 64), place[1])
    assert not place[0].any() and not place[2].any() and place[1].any()
    views = nf4.unpack_matrix(place[1], (64, 64))
    assert views.packed.untyped_storage().data_ptr() == place.untyped_storage().data_ptr()


def test_the_product_is_the_dequantised_product():
    weight, x = matrix(128, 64), matrix(3, 64, seed=1)
    packed = nf4.unpack_matrix(nf4.pack_matrix(weight), (128, 64))
    assert torch.allclose(
        nf4.multiply_rows(x, packed), x @ nf4.dequantise_matrix(packed, torch.empty(128, 64)).T, atol=1e-5
    )


def test_a_matrix_of_broken_blocks_is_refused():
    with pytest.raises(ValueError, match="5 x 7 matrix has 35 values; NF4 needs whole blocks of 64"):
        nf4.pack_matrix(matrix(5, 7))


def test_bitsandbytes_still_has_the_switch_and_the_operators_that_are_used():
    """When this fails, bitsandbytes has moved one of them: nf4.py must follow."""
    layer = torch.nn.Sequential(bitsandbytes.nn.Linear4bit(64, 64))
    assert hasattr(layer[0], "support_avx512bf16_for_cpu")
    layer[0].support_avx512bf16_for_cpu = True
    nf4.disable_bf16_path(layer)
    assert layer[0].support_avx512bf16_for_cpu is False
    for name in ("dequantize_blockwise", "dequantize_4bit", "gemm_4bit"):
        assert hasattr(torch.ops.bitsandbytes, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("columns", [64, 128, 96])  # 96: not whole blocks, which is left to bitsandbytes
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_that_is_read_once_computes_the_same(dtype, columns, bias):
    layer = bitsandbytes.nn.Linear4bit(columns, 32, bias=bias, compute_dtype=dtype, quant_type="nf4")
    layer.weight = bitsandbytes.nn.Params4bit(matrix(32, columns), quant_type="nf4", compress_statistics=True)
    layer = layer.to("cpu").eval().requires_grad_(False)  # which quantises it
    nf4.disable_bf16_path(layer)
    for x in (matrix(3, columns, dtype=dtype), matrix(3, columns, dtype=torch.float32)):
        assert torch.equal(nf4.read_linear(layer)(x), layer(x))
        into = matrix(3, 32, dtype=x.dtype)
        expected = into + layer(x)
        assert nf4.read_linear(layer)(x, into) is into
        torch.testing.assert_close(
            into, expected, rtol=0, atol=8 * torch.finfo(x.dtype).eps * float(expected.abs().max())
        )
