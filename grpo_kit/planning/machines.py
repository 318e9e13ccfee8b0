"""Machines to plan for: those that one can rent, by name, and this one as it is."""

import difflib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A machine, in GiB: `gpu` of one card (0: none), `host`, `disk`; None is unknown and not checked.

    Its `processes` train on a card each, and have host and disk in common.
    """

    name: str
    gpu: float
    host: float | None = None
    disk: float | None = None
    gpus: int = 1
    processes: int = 1
    triton: bool = True  # sm_80 and later: TRL's Triton kernels run, and there is bf16; Triton 3.3 dropped sm_75
    nominal: bool = True  # figures as the product is sold, not read from the machine


DEVICES = {
    "t4": Device("t4", 14.6, 12.7e9 / GIB, triton=False),  # Colab's machine
    "t4x2": Device("t4x2", 14.6, 30e9 / GIB, gpus=2, triton=False),  # Kaggle's
    "24gb": Device("24gb", 24e9 / GIB),
    "40gb": Device("40gb", 40e9 / GIB),
    "80gb": Device("80gb", 80e9 / GIB),
}


def device(name: str) -> Device:
    """The device of that name: one of DEVICES, or `cpu`, this machine without its GPU. Raises ValueError for another."""
    if name in DEVICES:
        return DEVICES[name]
    if name == "cpu":
        return replace(this_device(), name="cpu", gpu=0.0, gpus=1, triton=False)
    near = difflib.get_close_matches(name.lower(), [*DEVICES, "cpu"], n=1, cutoff=0.0)[0]
    raise ValueError(f"{name!r} is no known device; there are {', '.join(DEVICES)} and cpu. Did you mean {near}?")


def this_device() -> Device:
    """This machine as it is now: GPU memory as PyTorch sees it, host memory available, disk free where we stand."""
    host, disk = psutil.virtual_memory().available / GIB, shutil.disk_usage(Path.cwd()).free / GIB
    if not torch.cuda.is_available():
        return Device("this machine", 0.0, host, disk, triton=False, nominal=False)
    card, cards = torch.cuda.get_device_properties(0), torch.cuda.device_count()
    return Device(card.name, card.total_memory / GIB, host, disk, cards, triton=card.major >= 8, nominal=False)


def shared(machine: Device, processes: int) -> Device:
    """`machine` with so many processes, one a GPU; of a card without a host known there are as many as it takes.

    Raises ValueError where there are fewer GPUs than processes.
    """
    cards = max(machine.gpus, processes) if machine.host is None else machine.gpus
    if machine.gpu and processes > cards:
        raise ValueError(
            f"{processes} processes were asked for and {machine.name} has {cards} GPU{'s' * (cards > 1)}, one a process. "
            f"Use {cards}."
        )
    return replace(machine, gpus=cards, processes=processes)
