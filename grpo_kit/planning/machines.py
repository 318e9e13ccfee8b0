"""The machines that a run is planned for: some to rent, by name, and the machine that this runs on."""

import difflib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

GIB = 2**30  # bytes


@dataclass(frozen=True)
class Device:
    """A machine to plan for.

    Attributes:
        name: what messages call it.
        gpu: memory of one GPU in GiB; 0 for a machine without a GPU.
        host: main memory in GiB, or None when it is unknown; then it is not checked.
        disk: free disk space in GiB, or None when it is unknown; then it is not checked.
        gpus: how many GPUs there are.
        processes: how many processes train together. Each has a GPU of its own; all share host and disk.
        triton: whether TRL's Triton kernels run and bf16 is there, that is sm_80 or later (Triton 3.3 dropped sm_75).
        nominal: whether the figures are those the product is sold with, rather than read from the machine.
    """

    name: str
    gpu: float
    host: float | None = None
    disk: float | None = None
    gpus: int = 1
    processes: int = 1
    triton: bool = True
    nominal: bool = True


class Bandwidths(NamedTuple):
    """How fast a device is: 1e9 bytes a second from its memory and over PCIe, 1e12 operations a second in products."""

    vram_gb_s: float
    pcie_gb_s: float
    matmul_tflops: float


DEVICES = {
    "t4": Device("t4", 14.6, 12.7e9 / GIB, triton=False),  # Colab's free machine
    "p100": Device("p100", 15.9, 30e9 / GIB, triton=False),  # Kaggle's until it was retired; other 16 GB cards too
    "t4x2": Device("t4x2", 14.6, 30e9 / GIB, gpus=2, triton=False),  # Kaggle's
    "24gb": Device("24gb", 24e9 / GIB),
    "40gb": Device("40gb", 40e9 / GIB),
    "80gb": Device("80gb", 80e9 / GIB),
}


def find_device(name: str) -> Device:
    """The device with that name: one of DEVICES, or `cpu` for this machine without its GPU.

    Raises:
        ValueError: for any other name; the message names the nearest one.
    """
    if name in DEVICES:
        return DEVICES[name]
    if name == "cpu":
        return replace(this_device(), name="cpu", gpu=0.0, gpus=1, triton=False)
    nearest = difflib.get_close_matches(name.lower(), [*DEVICES, "cpu"], n=1, cutoff=0.4)
    meant = f" Did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(f"Unknown device {name!r}. Choose one of {', '.join(DEVICES)}, cpu.{meant}")


def this_device() -> Device:
    """This machine as it is now: GPU memory as PyTorch reports it, main memory available, disk free in this folder."""
    host, disk = psutil.virtual_memory().available / GIB, shutil.disk_usage(Path.cwd()).free / GIB
    if not torch.cuda.is_available():
        return Device("this machine", 0.0, host, disk, triton=False, nominal=False)
    card, gpus = torch.cuda.get_device_properties(0), torch.cuda.device_count()
    return Device(card.name, card.total_memory / GIB, host, disk, gpus, triton=card.major >= 8, nominal=False)


def with_processes(device: Device, processes: int) -> Device:
    """`device` with several processes, each with a GPU of its own.

    A named card without a known host, such as `80gb`, stands for as many GPUs as there are processes.

    Raises:
        ValueError: if the device has fewer GPUs than processes.
    """
    gpus = max(device.gpus, processes) if device.host is None else device.gpus
    if device.gpu and processes > gpus:
        raise ValueError(
            f"{device.name} has {gpus} GPU{'s' * (gpus > 1)}, but {processes} processes need one each. "
            f"Use --num-processes {gpus}."
        )
    return replace(device, gpus=gpus, processes=processes)
