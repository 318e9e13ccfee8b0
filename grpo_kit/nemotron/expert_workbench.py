"""Sizes of a routed expert, and memory around the layers: slots for arriving experts, page-locked host memory."""

import contextlib
import itertools
import mmap
import operator
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy
import torch

from grpo_kit.nemotron import nf4_layout

# Bytes of the matrices that are dequantised together: 6 experts of the 30B. In training a Mamba layer needs more.
GROUP_BYTES = 128 * 2**20
# Rows that experts may have together, with padding; if there are more tokens, as many as these. One expert may have
# all tokens.
GROUP_ROWS = 512


class ExpertShape(NamedTuple):
    """Sizes of one expert: its up matrix is (intermediate, hidden), its down matrix (hidden, intermediate)."""

    hidden: int
    intermediate: int

    @property
    def up(self) -> tuple[int, int]:
        return self.intermediate, self.hidden

    @property
    def down(self) -> tuple[int, int]:
        return self.hidden, self.intermediate

    @property
    def nbytes(self) -> int:
        """Bytes of one expert in NF4: the up matrix, then the down matrix."""
        return nf4_layout.packed_nbytes(self.up) + nf4_layout.packed_nbytes(self.down)

    def count_together(self, dtype: torch.dtype) -> int:
        """How many experts are dequantised together at most (expert_groups.py)."""
        return max(1, GROUP_BYTES // (2 * self.hidden * self.intermediate * dtype.itemsize))

    def views(self, data: torch.Tensor) -> tuple[nf4_layout.Nf4, nf4_layout.Nf4]:
        """(up, down) as views into an expert's bytes, (nbytes,) uint8."""
        middle = nf4_layout.packed_nbytes(self.up)
        return nf4_layout.unpack_matrix(data[:middle], self.up), nf4_layout.unpack_matrix(data[middle:], self.down)


class Workbench:
    """Memory of one device that all its layers share.

    A slot keeps its expert until another one needs the slot. An expert that lies in a slot is not copied again.

    Args:
        geometry: the experts' sizes.
        device: where the memory is.
        dtype: type of the dequantised matrices.
        slots: how many experts from the host can be on their way or in use at once; each slot takes `geometry.nbytes`.
    """

    def __init__(self, geometry: ExpertShape, device: torch.device, dtype: torch.dtype, slots: int = 8) -> None:
        self.geometry, self.device, self.dtype = geometry, device, dtype
        self.together = geometry.count_together(dtype)  # experts that are dequantised at once
        self.memory = torch.empty((slots, geometry.nbytes), dtype=torch.uint8, device=device)
        self.slots = list(self.memory)  # an expert's bytes each
        self.copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.slot_free: list[Any] = [None] * slots  # the event after which a slot may be overwritten
        self.held = [0] * slots  # the address, in the host tier, of the expert that lies in each slot; 0: none
        # Each slot's last copy: how many bytes had been brought with it, and the event that ends it (None on a CPU).
        self.copies: list[tuple[int, Any]] = [(0, None)] * slots
        self.order = list(range(slots))  # the slots, the one that was not used for longest first
        self.bytes_brought = 0  # copied into slots so far
        self.ahead = [0, 0]  # experts that were copied before they were chosen, and those of them that then were chosen
        self.reliefs: list[str] = []  # a sentence for each time that experts left the device because memory ran out

    def bring_experts(
        self, rows: list[torch.Tensor], together: int = 1, slots: list[int] | None = None
    ) -> Iterator[list[torch.Tensor]]:
        """Copy experts to this device beside the caller's work.

        The first copies start at once, one per slot. Each further copy starts when a slot is free, that is when the
        caller asks for the next experts. The caller must ask once more after the last ones, to free their slots.

        Args:
            rows: the experts' bytes, (nbytes,) uint8 each.
            together: how many experts to hand out at a time, at most the number of slots.
            slots: the slot of each expert, by `take_slots`; None: asks it.

        Yields:
            The experts' bytes on this device, in order, `together` at a time.
        """
        slots = self.take_slots(rows) if slots is None else slots
        copies = [self._start_copy(row, slot) for row, slot in zip(rows[: len(self.slots)], slots)]
        return self._hand_out(rows, slots, copies, together)

    def take_slots(self, rows: list[torch.Tensor]) -> list[int]:
        """A slot for each expert, in turn. Those at the beginning of `rows` that lie in a slot keep it."""
        kept: list[int] = []
        for row in itertools.takewhile(self.is_held, rows):
            kept.append(self.held.index(row.data_ptr()))
        turn = kept + [slot for slot in self.order if slot not in kept]
        last = len(rows) % len(turn)
        self.order = turn[last:] + turn[:last]
        return [turn[i % len(turn)] for i in range(len(rows))]

    def copy_ahead(self, rows: list[torch.Tensor]) -> None:
        """Start to copy experts, at most as many as there are slots, that may soon be asked for."""
        for row in rows:
            slot = self.held.index(row.data_ptr()) if self.is_held(row) else self.order[0]
            self.order.remove(slot)
            self.order.append(slot)
            self._start_copy(row, slot)
        self.ahead[0] += len(rows)

    def is_held(self, row: torch.Tensor) -> bool:
        """Whether an expert lies in a slot, or is on its way there."""
        return row.data_ptr() in self.held

    def has_arrived(self, row: torch.Tensor) -> bool:
        """Whether an expert lies in a slot, copied to its end."""
        event = self.copies[self.held.index(row.data_ptr())][1] if self.is_held(row) else None
        return self.is_held(row) and (event is None or event.query())

    def forget(self) -> None:
        """Experts move or change: what lies in the slots is used no more."""
        self.held = [0] * len(self.slots)

    def _hand_out(
        self, rows: list[torch.Tensor], slots: list[int], copies: list[tuple[int, Any]], together: int
    ) -> Iterator[list[torch.Tensor]]:
        for first in range(0, len(rows), together):
            numbers = range(first, min(first + together, len(rows)))
            if self.copy_stream is not None:
                last = max((copies[i] for i in numbers), key=operator.itemgetter(0))  # copies end in order
                torch.cuda.current_stream(self.device).wait_event(last[1])
            yield [self.slots[slots[i]] for i in numbers]
            used = self.copy_stream and torch.cuda.current_stream(self.device).record_event()
            for i in numbers:
                self.slot_free[slots[i]] = used
                if (following := i + len(self.slots)) < len(rows):
                    copies.append(self._start_copy(rows[following], slots[following]))

    def _start_copy(self, row: torch.Tensor, slot: int) -> tuple[int, Any]:
        """Start to copy an expert into a slot, unless it lies there; returns the slot's entry in `copies`."""
        if self.held[slot] == row.data_ptr():
            return self.copies[slot]
        event, self.held[slot] = None, 0
        if self.copy_stream is None:
            self.slots[slot].copy_(row)
        else:
            with torch.cuda.stream(self.copy_stream):
                if self.slot_free[slot] is not None:
                    self.copy_stream.wait_event(self.slot_free[slot])
                self.slots[slot].copy_(row, non_blocking=True)
                event = self.copy_stream.record_event()
        self.bytes_brought += row.nbytes
        self.held[slot], self.copies[slot] = row.data_ptr(), (self.bytes_brought, event)
        return self.copies[slot]


def allocate_pinned(rows: int, nbytes: int) -> torch.Tensor:
    """Allocate page-locked host memory, which a GPU can read by itself, of exactly the size that is needed.

    PyTorch rounds its own pinned memory up to powers of two: 39 experts of 4.9 MiB take 256 MiB instead of 191. On a
    machine with 12 GB of memory this decides whether a model fits. Ordinary memory that is registered with CUDA is as
    fast, and PyTorch treats it as pinned, because it asks the driver. It is unregistered when the last tensor that uses
    it is gone.

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
