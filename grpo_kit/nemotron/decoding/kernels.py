"""`mamba.py` and `router.py` on a GPU, each function in one launch.

PyTorch takes some 20 launches for a Mamba-2 layer's update, three for a sum and its norm, and six for a choice. It
reads and writes the state space, 2 MiB a row, several times; here that is done once. `kernels.cu` is compiled when it
is first used, as `expert_kernel.cu` is, and its results are first compared with PyTorch's.

Not run on a GPU yet: emulated on a CPU, and compiled for sm_75, 80 and 90.
"""

import functools
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from grpo_kit.nemotron import expert_kernel
from grpo_kit.nemotron.decoding import mamba, router
from grpo_kit.nemotron.decoding.mamba import MambaState, MambaWeights

SOURCE = Path(__file__).with_suffix(".cu")
NAMES = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat"}
# As in kernels.cu: threads of a block, rows of the state space that a warp takes at once, width of the convolution.
THREADS, TALL, WIDTH = 512, 4, 4
MOST_CHOSEN = 32  # experts of a row: one for each lane of a warp
# As a share of the largest value, beside the rounding of the result. A wrong head or channel is off by far more.
LARGEST_ERROR = 1e-4


class Sizes(NamedTuple):
    """Of a Mamba-2 mixer: groups of heads, heads of a group, values of a head, size of the state."""

    groups: int
    heads: int
    head_dim: int
    state: int


def update_mamba(projected: torch.Tensor, state: MambaState, weights: MambaWeights) -> torch.Tensor:
    """`mamba.update_mamba` by one launch on the current stream, where `is_usable` says so."""
    sizes = _measure(weights)
    rows, inner = len(projected), len(weights.norm_weight)
    out = torch.empty((rows, inner), dtype=projected.dtype, device=projected.device)
    bias = weights.conv_bias
    vectors = [weights.dt_bias, weights.a, weights.d, weights.norm_weight, out]
    _launch(
        f"update_mamba<{NAMES[projected.dtype]}>",
        (sizes.groups, rows),
        [projected.contiguous(), *state, weights.conv_weight, out[:0] if bias is None else bias, *vectors],
        [*sizes, weights.eps],
        _shared_nbytes(sizes),
    )
    return out


class MambaUpdate(NamedTuple):
    """`mamba.MambaUpdate` by `update_mamba`. It keeps the states as they are read."""

    state: MambaState
    weights: MambaWeights

    def __call__(self, projected: torch.Tensor) -> torch.Tensor:
        return update_mamba(projected, self.state, self.weights)

    def take_rows(self, at: torch.Tensor) -> "MambaUpdate":
        return MambaUpdate(MambaState(*(part[at] for part in self.state)), self.weights)

    def put_rows(self, at: torch.Tensor, state: MambaState) -> None:
        for mine, put in zip(self.state, state):
            mine[at] = put


def add_norm(residual: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`mamba.add_norm` by one launch on the current stream, where `is_usable` says so. `residual` is in one piece."""
    out = torch.empty(residual.shape, dtype=weight.dtype, device=residual.device)
    update = weight[:0] if update is None else update.contiguous()  # of nothing the address is 0
    types = ", ".join(NAMES[tensor.dtype] for tensor in (residual, update, weight))
    rows, hidden = residual.shape
    _launch(f"add_norm<{types}>", (rows, 1), [residual, update, weight, out], [hidden, eps], 0)
    return out


def choose(logits: torch.Tensor, bias: torch.Tensor, ones: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`router.choose` by one launch on the current stream, where `is_usable` says so; for up to MOST_CHOSEN."""
    (rows, experts), k, device = logits.shape, len(ones), logits.device
    index = torch.empty((rows, k), dtype=torch.int64, device=device)
    weights = torch.empty((rows, k), dtype=torch.float32, device=device)
    _launch("choose", (rows, 1), [logits, bias, ones, index, weights], [experts, k], 8 * experts, threads=32)
    return index, weights


def is_usable(state: MambaState, weights: MambaWeights) -> bool:
    """Whether these functions work for a model with such a layer: the kernels are compiled, run once and compared.

    Warns once for each device, sizes and type for which they do not work; a CPU gives no warning.

    Args:
        state: the layer's, each part in one piece; its convolution's inputs have the type of in_proj's result.
        weights: the layer's. Other layers with the same sizes and types have the same answer.
    """
    device, dtype = state.ssm.device, state.conv.dtype
    types = {dtype, weights.conv_weight.dtype, weights.norm_weight.dtype}
    if device.type != "cuda" or len(types) > 1 or state.ssm.dtype != torch.float32:
        return False  # no preset mixes types
    return _is_usable(device, _measure(weights), weights.conv_weight.shape[1], dtype)


@functools.cache
def _is_usable(device: torch.device, sizes: Sizes, width: int, dtype: torch.dtype) -> bool:
    try:
        problem = find_disagreement(device, sizes, width, dtype)
    except (AssertionError, AttributeError, ImportError, OSError, RuntimeError, TypeError) as error:
        problem = f"they cannot be run ({type(error).__name__}: {error})"
    if problem:
        warnings.warn(
            f"Mamba layers in {dtype} are decoded in many small operations on {device}, which is slower but correct. "
            f"The kernels that need only one are not used: {problem}. Check that PyTorch is 2.13 and comes with NVRTC.",
            stacklevel=3,
        )
    return not problem


def find_disagreement(device: torch.device, sizes: Sizes, width: int, dtype: torch.dtype) -> str:
    """What is wrong with the kernels, tried on three random rows; empty if nothing is.

    Args:
        device: where to run.
        sizes: of the mixer.
        width: of its convolution.
        dtype: of everything but the state space. `mamba.py` computes the same values in float32.

    Raises whatever compiling and launching raise.
    """
    if dtype not in NAMES or width != WIDTH or sizes.state % 4 or sizes.head_dim % TALL:
        return "they know float32, float16 and bfloat16, a convolution of width 4, and sizes in fours"
    if _shared_nbytes(sizes) > expert_kernel.SHARED:
        return f"a group of {sizes.heads} heads does not fit into {expert_kernel.SHARED} bytes of shared memory"
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    heads, inner = sizes.groups * sizes.heads, sizes.groups * sizes.heads * sizes.head_dim
    channels = inner + 2 * sizes.groups * sizes.state
    weights = MambaWeights(
        draw(channels, WIDTH), draw(channels), draw(heads).float(), -draw(heads).float().exp(), draw(heads).float(),
        draw(inner), 1e-5, inner // sizes.groups,
    )  # fmt: skip
    ours = MambaState(draw(3, channels, WIDTH), draw(3, heads, sizes.head_dim, sizes.state).float())
    projected, residual, update = draw(3, inner + channels + heads), draw(3, inner).float(), draw(3, inner)
    exact = [value.float() if isinstance(value, torch.Tensor) else value for value in weights]
    theirs, sum_of = MambaState(*(value.float().clone() for value in ours)), residual + update
    pairs = {
        "results": (
            update_mamba(projected, ours, weights),
            mamba.update_mamba(projected.float(), theirs, MambaWeights(*exact)),
        ),
        "states": (ours.ssm, theirs.ssm),
        "the convolution's inputs": (ours.conv, theirs.conv),
        "norms": (
            add_norm(residual, update, weights.norm_weight, 1e-5),
            mamba.add_norm(sum_of.to(dtype).float(), None, exact[5], 1e-5),
        ),
        "sums": (residual, sum_of),
    }
    logits, bias, ones = draw(3, 100).float(), draw(100).float(), torch.full((6, 1), 0.4, device=device)
    choices = (by(logits, bias, ones) for by in (choose, router.choose))
    pairs["choices"] = tuple(torch.zeros_like(logits).scatter_(1, *choice) for choice in choices)
    for what, (value, expected) in pairs.items():
        error = ((value.double() - expected).abs().max() / expected.abs().max()).item()
        if not error <= LARGEST_ERROR + 2 * torch.finfo(value.dtype).eps:
            return f"{what} are off by {error:.2g} of the largest"
    return ""


def _measure(weights: MambaWeights) -> Sizes:
    inner, heads = len(weights.norm_weight), len(weights.a)
    groups = inner // weights.group_size
    return Sizes(groups, heads // groups, inner // heads, (len(weights.conv_weight) - inner) // (2 * groups))


def _shared_nbytes(sizes: Sizes) -> int:
    return 4 * (2 * sizes.state + sizes.heads * (sizes.head_dim + 2))


def _launch(
    name: str,
    grid: tuple[int, int],
    tensors: list[torch.Tensor],
    numbers: list[int | float],
    shared: int,
    threads: int = THREADS,
) -> None:
    with torch.cuda.device_of(tensors[0]):
        expert_kernel.compile_kernel(tensors[0].device, name, SOURCE)(
            grid=(*grid, 1), block=(threads, 1, 1), args=[*tensors, *numbers], shared_mem=shared
        )
