"""Host memory registered with CUDA: whole, aligned, and given back; with a driver that is not there, by a stand-in."""

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
