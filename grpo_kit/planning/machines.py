"""The machines that a run is planned for: some to rent, by name, and the machine that this runs on."""

import difflib
import shutil
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from grpo_kit.runs.places import detect_place

GIB = 2**30  # bytes
# GiB of each GPU that a plan leaves free, below what the driver reports free: what is assumed or rounds may be off.
SLACK = 0.5
# GiB that a process's CUDA context takes of a GPU before its first tensor. Source: PyTorch's message of an
# OutOfMemoryError on a T4 (14.56 GiB in all) of 2025-11: 4.11 GiB were the process's and 3.98 of them PyTorch's.
CONTEXT = 0.13
OUTSIDE = ""  # in HostSeconds: embeddings, head, drawing a token


class HostSeconds(NamedTuple):
    """Seconds that one core needs for a layer of each kind; OUTSIDE is what is outside the layers.

    Attributes:
        token: of one decoding step of all sequences.
        micro_batch: of one forward and backward pass.
        source: where the figures come from, in words.
    """

    token: dict[str, float]
    micro_batch: dict[str, float]
    source: str


class Bandwidths(NamedTuple):
    """How fast a device is.

    Attributes:
        vram_gb_s: 1e9 bytes a second from its memory.
        pcie_gb_s: 1e9 bytes a second over PCIe.
        matmul_tflops: 1e12 operations a second in products.
        host: what the processor itself needs (`host_time`); None: it is not counted.
    """

    vram_gb_s: float
    pcie_gb_s: float
    matmul_tflops: float
    host: HostSeconds | None = None


class Card(NamedTuple):
    """One GPU as the driver describes it, in bytes: in all, free, and held by this process's allocator."""

    name: str
    total: float
    free: float
    held: float
    major: int  # of the compute capability


class Readings(NamedTuple):
    """What a machine says about itself. Tests write down those of other machines.

    Attributes:
        cards: its GPUs.
        host: bytes of main memory that are available, or that this process holds itself.
        disk: (folder that exists) -> (which disk it is on, bytes free there).
    """

    cards: tuple[Card, ...]
    host: float
    disk: Callable[[Path], tuple[Hashable, float]]


@dataclass(frozen=True)
class Device:
    """A machine to plan for.

    Attributes:
        name: what messages call it.
        gpu: memory of one GPU in GiB; 0 for a machine without a GPU.
        host: main memory in GiB, or None when it is unknown; then it is not checked.
        gpus: how many GPUs there are.
        processes: how many processes train together. Each has a GPU of its own; all share host and disk.
        triton: whether TRL's Triton kernels run and bf16 is there, that is sm_80 or later (Triton 3.3 dropped sm_75).
        free: of each GPU the GiB that a run may have, what the driver reports free and what this process holds already;
            empty for a GPU that nothing else uses.
        disk: (folder that exists) -> (which disk it is on, bytes free there); None when it is unknown; then it is not
            checked.
        sold: bandwidths by the data sheet; None for a machine that can be measured.
        place: where it is usually met, `colab` or `kaggle`, which limit a session; empty elsewhere.
        nominal: whether the figures are those the product is sold with, rather than read from the machine.
    """

    name: str
    gpu: float
    host: float | None = None
    gpus: int = 1
    processes: int = 1
    triton: bool = True
    free: tuple[float, ...] = ()
    disk: Callable[[Path], tuple[Hashable, float]] | None = None
    sold: Bandwidths | None = None
    place: str = ""
    nominal: bool = True

    def usable(self, number: int = 0) -> float:
        """GiB of GPU `number` that a plan may fill; with several processes, of the GPU with the least."""
        if number >= self.gpus or not self.gpu:
            return 0.0
        free = self.free or (self.gpu - CONTEXT,) * self.gpus
        return max(0.0, (min(free) if self.processes > 1 else free[number]) - SLACK)


# Bandwidths: memory, PCIe one way, dense fp16 or bf16 products, by NVIDIA's data sheets (T4, P100 PCIe, L4 without
# sparsity, A100 SXM).
DEVICES = {
    # Colab's free machine
    "t4": Device("t4", 14.56, 12.7e9 / GIB, triton=False, sold=Bandwidths(320, 16, 65), place="colab"),
    # Kaggle's until it was retired; other 16 GB cards too
    "p100": Device("p100", 15.9, 30e9 / GIB, triton=False, sold=Bandwidths(732, 16, 18.7), place="kaggle"),
    # Kaggle's
    "t4x2": Device("t4x2", 14.56, 30e9 / GIB, gpus=2, triton=False, sold=Bandwidths(320, 16, 65), place="kaggle"),
    "24gb": Device("24gb", 24e9 / GIB, sold=Bandwidths(300, 32, 121)),
    "40gb": Device("40gb", 40e9 / GIB, sold=Bandwidths(1555, 32, 312)),
    "80gb": Device("80gb", 80e9 / GIB, sold=Bandwidths(2039, 32, 312)),
}
RETIRED = ("p100",)  # may be planned for, and is never advised


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


def this_device(readings: Readings | None = None) -> Device:
    """This machine as it is now, without what it needs for an earlier policy that this process has loaded.

    Args:
        readings: what the machine says about itself; None asks it.
    """
    cards, host, disk = readings or read_machine()
    name, gpu, triton = (cards[0].name, cards[0].total, cards[0].major >= 8) if cards else ("this machine", 0.0, False)
    return Device(
        name,
        gpu / GIB,
        host / GIB,
        max(1, len(cards)),
        triton=triton,
        free=tuple((card.free + card.held) / GIB for card in cards),
        disk=disk,
        place=detect_place().replace("local", ""),
        nominal=False,
    )


def read_machine() -> Readings:
    """Ask the driver, the system and the disks of this machine. On a GPU this opens a CUDA context."""
    cards = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card, (free, total) = torch.cuda.get_device_properties(number), torch.cuda.mem_get_info(number)
        cards.append(Card(card.name, total, free, torch.cuda.memory_reserved(number), card.major))
    host = psutil.virtual_memory().available
    if cards:  # a loaded policy's experts in host memory are this process's own
        host += psutil.Process().memory_full_info().uss
    return Readings(tuple(cards), host, lambda folder: (folder.stat().st_dev, shutil.disk_usage(folder).free))


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


def suggest_preset(device: Device) -> str:
    """The preset of the 30B model for a device, `tiny` where it does not fit the GPU.

    >>> [suggest_preset(DEVICES[name]) for name in ("t4", "t4x2", "80gb")], suggest_preset(Device("laptop", gpu=0))
    (['t4', 't4x2', '80gb'], 'tiny')
    """
    if device.gpu >= 70:
        return "80gb"
    if device.gpu >= 20 and device.triton:  # that preset computes in bf16, which such a GPU has
        return "24gb"
    return "tiny" if device.gpu < 14 else "t4x2" if device.gpus > 1 else "t4"


def auto_preset(device: Device) -> str:
    """The preset that `auto` takes: the 4B on a GPU of 16 GB or more, else the embedded policy."""
    return "tiny" if suggest_preset(device) == "tiny" else "t4-4b"


def distinct_gib(less: float, more: float) -> tuple[str, str]:
    """Two numbers of bytes in GiB, with as many digits as tell them apart.

    >>> distinct_gib(6 * GIB, 7.94 * GIB), distinct_gib(7.931 * GIB, 7.934 * GIB)
    (('6.0', '7.9'), ('7.931', '7.934'))
    """
    texts = (tuple(f"{nbytes / GIB:.{digits}f}" for nbytes in (less, more)) for digits in range(1, 10))
    return next((pair for pair in texts if pair[0] != pair[1]), (f"{less / GIB:.1f}", f"{more / GIB:.1f}"))
