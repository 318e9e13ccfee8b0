"""Host memory that a GPU can read by itself: page-locked, and not a byte more than asked for.

PyTorch's own pinned memory comes in powers of two: a layer's 39 experts of 4.9 MiB take 256 MiB instead of 191. On a
machine with 12 GB of memory that is the difference between fitting and not. Ordinary memory registered with CUDA is as
fast, and PyTorch takes it for pinned, since it asks the driver.
"""

import contextlib
import mmap
import weakref

import numpy
import torch


def allocate_pinned(rows: int, nbytes: int) -> torch.Tensor:
    """(rows, nbytes) uint8 in page-locked host memory, unregistered when the last tensor on it is gone.

    Falls back to PyTorch's pinned memory, rounded up, where the driver refuses to register.
    """
    size = rows * nbytes
    if not size:
        return torch.empty((rows, nbytes), dtype=torch.uint8)
    raw = numpy.empty(size + mmap.PAGESIZE, dtype=numpy.uint8)
    start = -raw.ctypes.data % mmap.PAGESIZE  # a page that two blocks share could be registered only once
    data, cuda = torch.from_numpy(raw[start : start + size]), torch.cuda.cudart()
    if cuda.cudaHostRegister(data.data_ptr(), size, 0) != cuda.cudaError.success:
        with contextlib.suppress(RuntimeError):  # CUDA raises a refusal again at the next launch; let it be this one
            torch.zeros(1, device="cuda")
        return torch.empty((rows, nbytes), dtype=torch.uint8, pin_memory=True)
    # NumPy calls this before it frees the memory. At the end of the process the driver cleans up by itself.
    weakref.finalize(raw, _unregister, data.data_ptr()).atexit = False
    return data.view(rows, nbytes)


def _unregister(pointer: int) -> None:
    torch.cuda.synchronize()  # no copy from it may be under way
    torch.cuda.cudart().cudaHostUnregister(pointer)
