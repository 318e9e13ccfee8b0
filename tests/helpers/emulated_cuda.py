"""CUDA kernels without a GPU: the same source, emulated on a CPU by g++ with cuda_shim.h, or compiled for GPUs."""

import contextlib
import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grpo_kit.nemotron import expert_kernel

SHIM = Path(__file__).with_name("cuda_shim.h")
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-extern-tls-init", "-shared", "-fPIC"]


def build(folder, source, kernels):
    """The source as a library for this CPU.

    Args:
        folder: an empty one.
        source: text of a .cu file.
        kernels: {kernel, which may be a template's instance: a name for it}.
    """
    if shutil.which("g++") is None:
        pytest.skip("there is no g++; it compiles the kernel's emulation")
    (folder / "kernel.cu").write_text(source)
    instances = [f"EMULATED({name}, {kernel})" for kernel, name in kernels.items()]
    (folder / "emulated.cpp").write_text("\n".join([f'#include "{SHIM}"', '#include "kernel.cu"', *instances, ""]))
    subprocess.run(["g++", *FLAGS, "-o", folder / "kernel.so", folder / "emulated.cpp"], check=True)
    return ctypes.CDLL(str(folder / "kernel.so"))


class Emulated:
    """Stands in for `expert_kernel.compile_kernel`.

    Args:
        library, kernels: from and for `build`.
        check: called with a kernel and its arguments before it is launched.
        descending: whether a block's threads run in descending order.

    Attributes:
        launches: names of the kernels that were launched.
    """

    def __init__(self, library, kernels, check, descending=False):
        self.library, self.kernels, self.check, self.descending, self.launches = library, kernels, check, descending, []

    def __call__(self, device, kernel, *source):
        def launch(grid, block, args, shared_mem):
            self.launches.append(self.kernels[kernel])
            assert shared_mem <= expert_kernel.SHARED and grid[2] == block[1] == block[2] == 1
            assert all(arg.is_contiguous() for arg in args if isinstance(arg, torch.Tensor))
            self.check(kernel, args)
            values = [as_argument(arg) for arg in args]
            pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
            emulate = getattr(self.library, f"emulate_{self.kernels[kernel]}")
            emulate.restype = ctypes.c_char_p
            failure = emulate(grid[0], grid[1], block[0], shared_mem, self.descending, pointers)
            assert failure is None, failure.decode()

        return launch


def as_argument(value):
    """As PyTorch passes it to a kernel."""
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int(value)


def count_kernels_without_spills(folder, source, kernels):
    """How many of the kernels nvcc compiles for sm_75 without spilled registers."""
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc; it tells registers and spills")
    named = ", ".join(f"(void*){kernel}" for kernel in kernels)
    (folder / "kernel.cu").write_text(f"{source}\nvoid* kernels[] = {{{named}}};\n")
    command = ["nvcc", "-cubin", "-arch=sm_75", "-Xptxas=-v", "-o", folder / "kernel.cubin", folder / "kernel.cu"]
    compiler = subprocess.run(command, check=True, capture_output=True, text=True)
    return (compiler.stdout + compiler.stderr).count("0 bytes spill stores, 0 bytes spill loads")


def compile_by_nvrtc(monkeypatch, capability, *kernel):
    """What `expert_kernel.compile_kernel` makes of a kernel for a GPU of this capability, by PyTorch's own functions.

    Goes through the private function that `torch.cuda._compile_kernel` calls; this notices when either has moved.
    """
    library = find_nvrtc()
    if library is None:
        pytest.skip("there is no NVRTC; the package nvidia-cuda-nvrtc has it")
    from torch.cuda import _utils

    compiled = []
    monkeypatch.setattr(_utils, "_get_gpu_rtc_library", lambda: library)
    monkeypatch.setattr(_utils, "_cuda_load_module", lambda binary, names: compiled.append(binary) or {names[0]: None})
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = type("", (), {"major": int(capability[0]), "minor": int(capability[1])})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    expert_kernel.compile_kernel.__wrapped__(torch.device("cuda", 0), *kernel)
    (binary,) = compiled
    return binary


def find_nvrtc():
    """The NVRTC of a CUDA toolkit or of the package `nvidia-cuda-nvrtc`, or None."""
    folders = [Path(p) / "nvidia" for p in sys.path] + [Path("/usr/local/cuda")]
    for path in [p for folder in folders if folder.is_dir() for p in sorted(folder.rglob("libnvrtc.so.1*"))]:
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None
