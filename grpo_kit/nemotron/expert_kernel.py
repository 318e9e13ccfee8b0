"""All experts of a decoding step in two kernel launches: products of a few rows with many NF4 matrices at once.

Experts with a LoRA take up to two launches more.

Computed one by one, each expert of a layer takes about ten launches, and a small GPU needs longer to launch than to
read the weights. This kernel takes the router's choice as it is, with a table of the addresses of the experts' bytes.
Nothing is sorted or counted first, and the host need not know the choice.

`expert_kernel.cu` is compiled when it is first used, by NVRTC, which comes with PyTorch. Before it is used its results
are compared with `nf4.dequantise_matrix`.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from grpo_kit.nemotron import nf4, nf4_layout
from grpo_kit.nemotron.expert_lora import ExpertLora, LoraTable, add_update, tabulate

SOURCE = Path(__file__).with_suffix(".cu")
UP = {torch.float16: "product<unsigned short, false>", torch.float32: "product<float, false>"}  # by the rows' type
DOWN = "product<float, true>"
LOW_RANK = {torch.float16: "low_rank<unsigned short>", torch.float32: "low_rank<float>"}
# Sizes of a block, as in expert_kernel.cu: threads, warps, matrix rows, rows of x, floats that 32 values of x take.
THREADS, WARPS, TILE, ROWS, PADDED = 256, 8, 32, 2, 36
SHARED = 48 * 1024 - 4 * (256 + 16)  # bytes of shared memory that any GPU gives a block, less the kernel's two tables
# As a share of the largest value. Sums in another order differ by far less, a wrong scale or nibble by far more.
LARGEST_ERROR = 1e-4


def run_experts(
    hidden: Tensor,
    index: Tensor,
    weights: Tensor,
    table: Tensor,
    up: tuple[int, int],
    out: Tensor,
    loras: Sequence[LoraTable] = (),
) -> None:
    """Write weight * down(relu2(up(x))) into `out` for every chosen expert that has an address in `table`.

    Places of experts without an address are left alone. Sums are in float32, in the same order every time. Makes two
    launches on the current stream, and one for each matrix with a LoRA; the host does not wait.

    Args:
        hidden: (tokens, hidden) float16 or float32.
        index: (tokens, k) int64, the chosen experts.
        weights: (tokens, k) float32.
        table: (experts,) int64, the addresses of the experts' NF4 bytes (the up matrix, then the down matrix), or 0.
        up: shape of an up matrix, (intermediate, hidden).
        out: (tokens, k, hidden) float32.
        loras: the tables of the up and the down matrices; empty without LoRA.
    """
    up_lora, down_lora = loras or [_no_lora(hidden.device)] * 2
    inner = torch.empty((index.numel(), up[0]), dtype=torch.float32, device=hidden.device)
    _launch(UP[hidden.dtype], hidden, index, weights, table, up, 0, up_lora, inner)
    _launch(DOWN, inner, index, weights, table, up[::-1], nf4.packed_nbytes(up), down_lora, out)


@functools.cache
def is_usable(device: torch.device, up: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whether `run_experts` works on a device: the kernel is compiled, run once and compared.

    Warns once for each device, shape and type on which it does not work; a CPU gives no warning.

    Args:
        device: where to run.
        up: shape of an up matrix, (intermediate, hidden).
        dtype: type of the rows.
    """
    if device.type != "cuda":
        return False
    try:
        problem = find_disagreement(device, up, dtype)
    except (AssertionError, AttributeError, ImportError, OSError, RuntimeError, TypeError) as error:
        problem = f"it cannot be run ({type(error).__name__}: {error})"
    if problem:
        warnings.warn(
            f"Experts of {up[0]} x {up[1]} in {dtype} are multiplied one after the other on {device}, which is slower "
            f"but correct. The kernel for all experts at once is not used: {problem}. Check that PyTorch is 2.13 and "
            "comes with NVRTC.",
            stacklevel=2,
        )
    return not problem


def find_disagreement(device: torch.device, up: tuple[int, int], dtype: torch.dtype) -> str:
    """What is wrong with `run_experts`, tried on four tokens and three random experts; empty if nothing is.

    One of the experts has no LoRA, one has its LoRA on both matrices, and one on its down matrix, of another rank.

    Args are those of `is_usable`. Raises whatever compiling and launching raise.
    """
    if dtype not in UP or up[0] % nf4.BLOCK or up[1] % nf4.BLOCK:
        return "rows must be float16 or float32 and whole blocks of 64 values"
    if _shared_nbytes(max(up)) > SHARED:
        return f"rows of {max(up)} values do not fit into {SHARED} bytes of shared memory"
    draw = functools.partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    weights, x = draw((4, 3)), draw((4, up[1])).to(dtype)
    index = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1]], device=device)  # each four times: two blocks
    shapes, middle, experts = (up, up[::-1]), nf4.packed_nbytes(up), []
    loras = [
        [ExpertLora(0.1 * draw((r, shape[1])), 0.1 * draw((shape[0], r)), 0.5) if r else None for r in ranks]
        for shape, ranks in zip(shapes, ((0, 3, 0), (0, 3, 16)))
    ]
    expected = torch.empty((4, 3, up[1]), dtype=torch.float64, device=device)
    for expert in range(3):
        data = torch.cat([nf4.pack_matrix(0.02 * draw(shape)) for shape in shapes])
        experts.append(data)
        up_weight, down_weight = (
            nf4.dequantise_matrix(nf4.unpack_matrix(part, shape), torch.empty(shape, device=device)).double()
            for part, shape in zip((data[:middle], data[middle:]), shapes)
        )
        up_lora, down_lora = (
            pairs[expert] and ExpertLora(pairs[expert].a.double(), pairs[expert].b.double(), 0.5) for pairs in loras
        )
        inner = add_update(up_lora, x, x.double() @ up_weight.T).relu().square()
        output = add_update(down_lora, inner, inner @ down_weight.T)
        expected[index == expert] = (weights[:, :, None] * output[:, None])[index == expert]
    table = torch.tensor([data.data_ptr() for data in experts], device=device)
    out = torch.full_like(expected, torch.nan, dtype=torch.float32)
    run_experts(x, index, weights, table, up, out, [tabulate(pairs, index.device) for pairs in loras])
    error = ((out - expected).abs().max() / expected.abs().max()).item()
    return "" if error <= LARGEST_ERROR else f"results are off by {error:.2g} of the largest"


def _launch(
    name: str,
    x: Tensor,
    index: Tensor,
    weights: Tensor,
    table: Tensor,
    shape: tuple[int, int],
    start: int,
    lora: LoraTable,
    out: Tensor,
) -> None:
    """One product of rows of x with matrices of `shape` that begin `start` bytes behind the addresses in `table`."""
    x, index, (pairs, width), chosen = x.contiguous(), index.contiguous(), lora, index.numel()
    fan, sections = chosen // len(x), [start + offset for offset in nf4_layout.section_offsets(shape)[:4]]
    low = pairs  # without LoRA the address of nothing, as is that of `pairs`
    with torch.cuda.device_of(x):
        if width:
            low = torch.empty((chosen, width), dtype=torch.float32, device=x.device)
            compile_kernel(x.device, LOW_RANK[x.dtype])(
                grid=(chosen, -(-width // WARPS), 1),
                block=(THREADS, 1, 1),
                args=[x, index, table, pairs, low, fan, width, shape[1]],
                shared_mem=0,
            )
        tensors = [x, index, table, weights.contiguous(), *nf4.lookup_tables(x.device), pairs, low, out]
        compile_kernel(x.device, name)(
            grid=(chosen, -(-shape[0] // TILE), 1),
            block=(THREADS, 1, 1),
            args=[*tensors, chosen, fan, width, *shape, *sections],
            shared_mem=_shared_nbytes(shape[1]),
        )


@functools.cache
def _no_lora(device: torch.device) -> LoraTable:
    return LoraTable(torch.empty((0, 4), dtype=torch.int64, device=device), 0)


def _shared_nbytes(columns: int) -> int:
    return 4 * ROWS * columns // 32 * PADDED


@functools.cache
def compile_kernel(device: torch.device, name: str, source: Path = SOURCE) -> Callable:
    """Compile a kernel of a .cu file, by default `expert_kernel.cu`, for a device.

    Uses `torch.cuda._compile_kernel`, a private name, checked with torch 2.13; a test fails when it has moved.

    Returns:
        A function of `(grid, block, args, shared_mem)` that launches the kernel on the current stream.
    """
    from torch.utils import cpp_extension  # slow to import, and not needed on a CPU

    home = cpp_extension.CUDA_HOME
    cpp_extension.CUDA_HOME = home or "/usr/local/cuda"  # torch insists on a folder of headers; the source needs none
    try:
        with torch.cuda.device(device):
            return torch.cuda._compile_kernel(source.read_text(), name)
    finally:
        cpp_extension.CUDA_HOME = home
