"""Host memory registered with CUDA and given back, and the slots for arriving experts, with stand-ins for a GPU."""

import contextlib
import gc
import mmap
from enum import IntEnum

import pytest
import torch

from grpo_kit.nemotron import expert_workbench, experts


class Answers(IntEnum):
    success, out_of_memory = 0, 2


class Driver:
    """Stands in for `torch.cuda.cudart()`: keeps what is registered, refuses what it is told to."""

    cudaError = Answers

    def __init__(self):
        self.registered, self.calls, self.refuses = {}, [], False

    def cudaHostRegister(self, pointer, size, flags):
        if self.refuses:
            return Answers.out_of_memory
        assert pointer not in self.registered and flags == 0
        self.registered[pointer] = size
        return Answers.success

    def cudaHostUnregister(self, pointer):
        del self.registered[pointer]
        return Answers.success


@pytest.fixture
def driver(monkeypatch):
    made = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: made.calls.append("synchronised"))
    return made


def test_not_a_byte_more_than_asked_for_is_registered_from_a_page_on(driver):
    data = expert_workbench.allocate_pinned(39, 5_000_000)  # PyTorch would take 256 MiB for these 186
    assert (data.shape, data.dtype, data.is_contiguous()) == ((39, 5_000_000), torch.uint8, True)
    assert driver.registered == {data.data_ptr(): 39 * 5_000_000}
    assert data.data_ptr() % mmap.PAGESIZE == 0


def test_small_blocks_share_no_page(driver):
    blocks = [expert_workbench.allocate_pinned(3, 100) for _ in range(20)]
    assert len({block.data_ptr() // mmap.PAGESIZE for block in blocks}) == len(driver.registered) == 20


@pytest.mark.slow
def test_it_is_unregistered_when_the_last_view_is_gone_and_no_copy_is_under_way(driver):
    data = expert_workbench.allocate_pinned(4, 1000)
    row = data[2].fill_(7)
    del data
    gc.collect()
    assert driver.registered and not driver.calls and row.tolist() == [7] * 1000  # a row still lies there
    del row
    gc.collect()
    assert not driver.registered and driver.calls == ["synchronised"]


def test_nothing_is_registered_for_nothing(driver):
    assert expert_workbench.allocate_pinned(0, 1000).shape == (0, 1000) and not driver.registered


def test_where_the_driver_refuses_pytorchs_own_pinned_memory_is_taken(driver, monkeypatch):
    driver.refuses, options, launched, real = True, {}, [], torch.empty

    def empty(*size, pin_memory=False, **kwargs):
        options["pin_memory"] = pin_memory
        return real(*size, **kwargs)

    def zeros(*size, device):
        launched.append(device)
        raise RuntimeError("CUDA error: out of memory")  # as CUDA repeats a refusal at the next launch

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "zeros", zeros)
    assert expert_workbench.allocate_pinned(2, 64).shape == (2, 64)
    assert options == {"pin_memory": True} and launched == ["cuda"] and not driver.registered


def tiered(device):
    geometry = experts.ExpertShape(128, 64)
    bench = experts.Workbench(geometry, torch.device(device), torch.float32)
    return geometry, experts.TieredExperts(geometry, 8, torch.relu, bench)


@pytest.mark.slow
def test_the_host_tier_of_a_gpu_is_registered_and_moves_when_experts_do(driver, monkeypatch):
    geometry, layer = tiered("meta")  # stands in for a GPU, and has no bytes to copy
    bytes_of_expert = torch.zeros(geometry.nbytes, dtype=torch.uint8)
    monkeypatch.setattr(experts.TieredExperts, "_copy_to_host", lambda layer: [bytes_of_expert] * 8)
    layer.place([1, 5, 6])
    assert list(driver.registered.values()) == [3 * geometry.nbytes]
    layer.place([1])
    gc.collect()
    assert list(driver.registered.values()) == [geometry.nbytes]


def test_on_a_cpu_nothing_is_registered(monkeypatch):
    monkeypatch.setattr(expert_workbench, "allocate_pinned", lambda *_: pytest.fail("pinned memory was allocated"))
    tiered("cpu")[1].place([1, 5])


def test_a_second_gpu_takes_the_tier_and_keeps_it_when_experts_are_placed_anew(driver):
    _, layer = tiered("cpu")
    layer.place([1, 5], torch.device("meta"))  # stands in for a second GPU
    assert {str(layer.rows[e].device) for e in (1, 5)} == {"meta"} and str(layer.rows[0].device) == "cpu"
    layer.rows = []  # what lies on `meta` has no bytes to copy
    layer.place([2])
    assert str(layer.rows[2].device) == "meta" and not driver.registered


# --- slots ---


class Stream:
    """Stands in for a CUDA stream: work is queued, and done only in `run`."""

    def __init__(self):
        self.queue = []

    def wait_event(self, event):
        self.queue.append(lambda: event.done)

    def record_event(self):
        event = Event()
        self.queue.append(event.set)
        return event

    def do(self, work):
        self.queue.append(lambda: work() or True)

    def run(self):
        """Do what can be done; returns whether something was."""
        count = len(self.queue)
        while self.queue and self.queue[0]():
            self.queue.pop(0)
        return len(self.queue) < count


class Event:
    done = False

    def set(self):
        self.done = True
        return True

    def query(self):
        return self.done


class Slot:
    """Stands in for a slot on a GPU: a copy into it is queued on the stream that is current."""

    content, current = None, None

    def copy_(self, row, non_blocking):
        assert non_blocking
        Slot.current.do(lambda: setattr(self, "content", int(row[0])))


@pytest.fixture
def streams(monkeypatch):
    """(the stream of the layers' work, a bench with three slots whose copies go by another stream)."""
    work, copying = Stream(), Stream()
    bench = experts.Workbench(experts.ExpertShape(64, 64), torch.device("cpu"), torch.float32, 3)
    bench.slots, bench.copy_stream = [Slot() for _ in range(3)], copying

    @contextlib.contextmanager
    def become_current(stream):
        Slot.current = stream
        yield
        Slot.current = work

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    monkeypatch.setattr(torch.cuda, "stream", become_current)
    return work, bench


ROWS = list(torch.arange(12, dtype=torch.uint8)[:, None].repeat(1, 4))  # stand for experts on the host
# What layers ask for, one after the other, in portions of so many; a set is copied ahead.
ASKED = [
    [([0, 1, 2, 3, 4], 1), ([5, 6], 1), ([6, 5], 2), ([0], 1)],
    [([0, 1, 2, 3, 4, 5, 6], 2), {7, 8}, ([8, 7, 9, 0], 2), {1}, ([1, 2, 3, 4, 5], 3)],
    [{3, 4, 5}, ([5, 3, 6], 2), {4}, {4, 7}, ([7, 4], 2), ([4], 1), {0, 1, 2}, ([8, 9, 10, 11], 1)],
    [([0, 1, 2], 3), ([2, 0, 1], 1), ([3, 2, 1], 1), ([1, 0, 3, 2], 1)],
]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("eager", ["copies", "work"])
def test_whichever_stream_is_faster_every_expert_is_read_whole_and_before_it_is_replaced(streams, asked, eager):
    work, bench = streams
    read = []
    for one in asked:
        if isinstance(one, set):
            bench.copy_ahead([ROWS[i] for i in one])
            continue
        numbers, together = one
        arriving = bench.bring_experts([ROWS[i] for i in numbers], together)
        for first, slots in zip(range(0, len(numbers), together), arriving):
            for number, slot in zip(numbers[first : first + together], slots, strict=True):
                work.do(lambda number=number, slot=slot: read.append((number, slot.content)))
        next(arriving, None)
    fast, slow = (bench.copy_stream, work) if eager == "copies" else (work, bench.copy_stream)
    while fast.run() or (slow.queue and (slow.queue[0]() and [slow.queue.pop(0)])):
        pass  # the slow one takes a step only where the fast one waits
    assert not work.queue and not bench.copy_stream.queue
    assert read == [(number, number) for one in asked if isinstance(one, tuple) for number in one[0]]


def bench_of(slots=3):
    return experts.Workbench(experts.ExpertShape(64, 64), torch.device("cpu"), torch.float32, slots)


def bring(bench, rows):
    """(first byte of every expert as it arrives, experts that were copied for it)."""
    before = bench.bytes_brought
    arrived = [int(slot[0][0]) for slot in bench.bring_experts(rows)]
    return arrived, (bench.bytes_brought - before) // rows[0].nbytes


def draw_rows(count=8):
    return list(torch.arange(count, dtype=torch.uint8)[:, None].repeat(1, bench_of().geometry.nbytes))


@pytest.mark.parametrize(
    ("asked", "copied"),
    [
        ([[0, 1], [0, 1], [1, 0]], [2, 0, 0]),
        ([[0, 1, 2], [3], [0]], [3, 1, 1]),  # 0 was not used for longest
        ([[0, 1, 2], [0], [3], [0]], [3, 0, 1, 0]),
        ([[0, 1, 2, 3], [1, 2, 3], [0]], [4, 0, 1]),
        ([[0, 1, 2, 3, 4, 5, 6], [4, 5, 6], [6, 7]], [7, 0, 1]),
        ([[0, 1, 2], [3, 2]], [3, 2]),  # only those at the beginning are looked for
    ],
)
def test_what_lies_in_a_slot_is_not_copied_again(asked, copied):
    bench, rows = bench_of(), draw_rows()
    assert [bring(bench, [rows[i] for i in one]) for one in asked] == list(zip(asked, copied))


def test_what_is_copied_ahead_takes_the_slots_that_were_not_used_for_longest():
    bench, rows = bench_of(), draw_rows()
    bring(bench, rows[:3])
    bench.copy_ahead([rows[5], rows[1]])  # 1 lies there, and stays
    assert [bench.is_held(row) for row in rows[:6]] == [False, True, True, False, False, True]
    assert bench.has_arrived(rows[5]) and not bench.has_arrived(rows[0])
    assert bring(bench, rows[3:4]) == ([3], 1) and not bench.is_held(rows[2])
    assert bring(bench, [rows[1], rows[5]]) == ([1, 5], 0) and bench.ahead == [2, 0]


def test_a_copy_has_arrived_when_the_copying_stream_is_through_with_it(streams):
    _, bench = streams
    bench.copy_ahead([ROWS[1], ROWS[2]])
    assert bench.is_held(ROWS[1]) and not bench.has_arrived(ROWS[1])
    bench.copy_stream.run()
    assert bench.has_arrived(ROWS[1]) and bench.has_arrived(ROWS[2]) and not bench.has_arrived(ROWS[3])


def test_what_changes_or_moves_is_copied_again():
    bench = bench_of()
    layer = experts.TieredExperts(bench.geometry, 3, torch.relu, bench)
    layer.place([1, 2])
    layer.write_expert(1, torch.ones(64, 64), torch.ones(64, 64))
    before = next(bench.bring_experts([layer.rows[1]]))[0].clone()
    layer.write_expert(1, torch.zeros(64, 64), torch.zeros(64, 64))
    after = next(bench.bring_experts([layer.rows[1]]))[0].clone()
    assert not torch.equal(before, after) and torch.equal(after, layer.rows[1])
    layer.place([1])
    assert not any(bench.held)
