"""Page-locked host memory, which a GPU can read by itself, of exactly the size that is needed.

PyTorch rounds its own pinned memory up to powers of two: 39 experts of 4.9 MiB take 256 MiB instead of 191. On a
machine with 12 GB of memory this decides whether a model fits. Ordinary memory that is registered with CUDA is as fast,
and PyTorch treats it as pinned, because it asks the driver.
"""

import contextlib
import mmap
import weakref

import numpy
import torch


def allocate_pinned(rows: int, nbytes: int) -> torch.Tensor:
    """Allocate page-locked host memory. It is unregistered when the last tensor that uses it is gone.

    Falls back to PyTorch's pinned memory, with its rounding, where the driver refuses to register memory.

    Args:
        rows: number of rows.
        nbytes: bytes of each row.

    Returns:
        (rows, nbytes) uint8, not initialised.
    """
    size = rows * nbytes
    if not size:
        return torch.empty((rows, nbytes), dtype=torch.uint8)
    raw = numpy.empty(size + mmap.PAGESIZE, dtype=numpy.uint8)
    start = (
        -raw.ctypes.data % mmap.PAGESIZE
    )  # whole pages, because a page that two blocks share can be registered only once
    data, cuda = torch.from_numpy(raw[start : start + size]), torch.cuda.cudart()
    if cuda.cudaHostRegister(data.data_ptr(), size, 0) != cuda.cudaError.success:
        with contextlib.suppress(RuntimeError):  # CUDA reports the refusal again at the next launch, which is this one
            torch.zeros(1, device="cuda")
        return torch.empty((rows, nbytes), dtype=torch.uint8, pin_memory=True)
    # NumPy runs this before it frees the memory. At the end of the process the driver cleans up by itself.
    weakref.finalize(raw, _unregister, data.data_ptr()).atexit = False
    return data.view(rows, nbytes)


def _unregister(pointer: int) -> None:
    torch.cuda.synchronize()  # no copy from this memory may be running
    torch.cuda.cudart().cudaHostUnregister(pointer)
