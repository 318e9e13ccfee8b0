"""All experts that a decoding step hits, in two launches: products of a few rows with many NF4 matrices at once.

One after the other, each expert of a layer takes some ten launches, and a small GPU longer to launch than to read. Here
the router's choice goes to the kernel as it is, with a table of where each expert's bytes lie: nothing is sorted or
counted first, and the host need not know what was chosen. `grouped.cu` is compiled when first used, by NVRTC, which
comes with PyTorch, and its results are compared with `nf4.dequantise` before they are believed.
"""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from grpo_kit.nemotron import nf4

SOURCE = Path(__file__).with_suffix(".cu")
UP = {torch.float16: "product<unsigned short, false>", torch.float32: "product<float, false>"}  # by the rows' type
DOWN = "product<float, true>"
THREADS, TILE, ROWS, PADDED = (
    256,
    32,
    2,
    36,
)  # a block's, as in grouped.cu: threads, outputs, rows, floats for 32 values
SHARED = 48 * 1024 - 4 * (256 + 16)  # bytes a block may take on any GPU, less the kernel's two tables
AGREE = 1e-4  # of the largest value: sums in another order differ by far less, a wrong scale or nibble by far more


def run_experts(
    hidden: Tensor, index: Tensor, weights: Tensor, table: Tensor, up: tuple[int, int], out: Tensor
) -> None:
    """Write weight * down(relu2(up(x))) into `out` for every chosen expert that `table` has; leave what others are to get.

    `hidden` is (tokens, hidden), float16 or float32; `index`, int64, and `weights`, float32, are (tokens, k); `table`,
    (experts,) int64, holds the addresses of experts (`nf4` bytes of an `up`-shaped matrix, (intermediate, hidden), and
    of the down matrix behind it) and 0 for those that are not here; `out` is (tokens, k, hidden) float32. Sums are
    float32, in the same order every time. Two launches on the current stream; the host waits for nothing.
    """
    inner = torch.empty((index.numel(), up[0]), dtype=torch.float32, device=hidden.device)
    _launch(UP[hidden.dtype], hidden, index, weights, table, up, 0, inner)
    _launch(DOWN, inner, index, weights, table, up[::-1], nf4.packed_nbytes(up), out)


@functools.cache
def is_usable(device: torch.device, up: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whether `experts` works on this device for matrices of this shape and rows of this type: compiled, tried, compared.

    False on a CPU. Warns, once, where a GPU's kernel cannot be compiled or says something else than `nf4.dequantise`.
    """
    if device.type != "cuda":
        return False
    try:
        wrong = find_disagreement(device, up, dtype)
    except (AssertionError, AttributeError, ImportError, OSError, RuntimeError, TypeError) as error:
        wrong = f"it cannot be run ({type(error).__name__}: {error})"
    if wrong:
        warnings.warn(
            f"Experts of {up[0]} x {up[1]} in {dtype} are multiplied one after the other on {device}, slower but right: "
            f"of the kernel for all at once, {wrong}. Check that PyTorch is 2.13 and comes with NVRTC.",
            stacklevel=2,
        )
    return not wrong


def find_disagreement(device: torch.device, up: tuple[int, int], dtype: torch.dtype) -> str:
    """What is wrong with `experts` on four tokens and three random experts; empty when nothing is."""
    if dtype not in UP or up[0] % nf4.BLOCK or up[1] % nf4.BLOCK:
        return "rows must be float16 or float32 and whole blocks of 64 values"
    if _shared(max(up)) > SHARED:
        return f"rows of {max(up)} values do not fit into {SHARED} bytes of shared memory"
    draw = functools.partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    weights, x = draw((4, 3)), draw((4, up[1])).to(dtype)
    index = torch.tensor(
        [[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1]], device=device
    )  # each four times: two blocks' worth
    middle, data, wanted = nf4.packed_nbytes(up), [], torch.empty((4, 3, up[1]), dtype=torch.float64, device=device)
    for expert in range(3):
        data.append(torch.cat([nf4.pack_matrix(0.02 * draw(shape)) for shape in (up, up[::-1])]))
        matrices = nf4.unpack_matrix(data[-1][:middle], up), nf4.unpack_matrix(data[-1][middle:], up[::-1])
        for_up, for_down = (nf4.dequantise_matrix(m, torch.empty(m.shape, device=device)).double() for m in matrices)
        said = (x.double() @ for_up.T).relu().square() @ for_down.T
        wanted[index == expert] = (weights[:, :, None] * said[:, None])[index == expert]
    table = torch.tensor([each.data_ptr() for each in data], device=device)
    out = torch.full_like(wanted, torch.nan, dtype=torch.float32)
    run_experts(x, index, weights, table, up, out)
    off = ((out - wanted).abs().max() / wanted.abs().max()).item()
    return "" if off <= AGREE else f"results are off by {off:.2g} of the largest"


def _launch(
    name: str, x: Tensor, index: Tensor, weights: Tensor, table: Tensor, shape: tuple[int, int], start: int, out: Tensor
) -> None:
    """One product of rows of x with matrices of `shape` that begin `start` bytes behind the addresses in `table`."""
    tensors = [x.contiguous(), index.contiguous(), table, weights.contiguous(), *nf4.lookup_tables(x.device), out]
    pairs, sections = index.numel(), [start + at for at in nf4.section_offsets(shape)[:4]]
    with torch.cuda.device_of(x):
        compile_kernel(x.device, name)(
            grid=(pairs, -(-shape[0] // TILE), 1),
            block=(THREADS, 1, 1),
            args=[*tensors, pairs, pairs // len(x), *shape, *sections],
            shared_mem=_shared(shape[1]),
        )


def _shared(columns: int) -> int:
    return 4 * ROWS * columns // 32 * PADDED


@functools.cache
def compile_kernel(device: torch.device, name: str) -> Callable:
    """A kernel of `grouped.cu` for this device: `(grid, block, args, shared_mem)` launches it on the current stream.

    Goes through `torch.cuda._compile_kernel`, a private name, checked with torch 2.13.
    """
    from torch.utils import cpp_extension  # slow to import, and on a CPU not needed

    home = cpp_extension.CUDA_HOME
    cpp_extension.CUDA_HOME = home or "/usr/local/cuda"  # it insists on a folder of headers; this source includes none
    try:
        with torch.cuda.device(device):
            return torch.cuda._compile_kernel(SOURCE.read_text(), name)
    finally:
        cpp_extension.CUDA_HOME = home
