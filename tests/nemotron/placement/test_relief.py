"""Work that runs out of the GPU's memory is done again, with more experts on the host, or is refused with a remedy."""

import re
import types

import pytest
import torch

from grpo_kit.nemotron import convert, experts, nf4, nf4_checkpoint, tiny
from grpo_kit.nemotron.placement import relief
from grpo_kit.nemotron.placement.relief import REMEDIES, is_out_of_memory, list_reliefs, with_relief
from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers
from tests.helpers.experts import IDS, load_tiered
from tests.helpers.memory import MESSAGE, raise_at

HITS = torch.tensor([[0, 0, 9, 9, 9, 9, 9, 9], [5, 4, 0, 0, 0, 0, 8, 8]])


def full_once(message=MESSAGE, times=1):
    """(work that runs out of memory at its first calls and then returns the number of calls, its calls)."""
    calls = []

    def work():
        calls.append(torch.rand(()).item())
        if len(calls) <= times:
            raise torch.OutOfMemoryError(message)
        return len(calls)

    return work, calls


@pytest.mark.parametrize(
    ("share", "hits", "asked", "on_host", "setting"),
    [
        (0.0, None, "2.00 KiB", [{7}, set()], "0.063"),  # 5 % of sixteen, rounded up
        (0.25, None, "1 bytes", [{5, 6, 7}, {6, 7}], "0.313"),  # each layer's last ones, the layers in turn
        (0.25, HITS, "2.00 KiB", [{0, 1}, {2, 3, 4}], "0.313"),  # the coldest
        (0.25, HITS, "20.00 KiB", [{0, 1}, {1, 2, 3, 4, 5}], "0.438"),  # as many as hold what was asked for
        (0.25, HITS, "1.48 GiB. GPU 0 has a total capacity of 14.58 GiB of which 1.50 GiB is free",
         [set(range(8))] * 2, "1"),
        (0.25, HITS, "a lot", [{0, 1}, {2, 3, 4}], "0.313"),  # another wording
    ],
)  # fmt: skip
def test_as_many_of_the_coldest_go_as_are_needed(share, hits, asked, on_host, setting):
    model, _ = load_tiered(0.0)
    layers = list(find_tiered_layers(model).values())
    assert layers[0].geometry.nbytes == 8512
    if hits is not None:
        for layer, counts, far in zip(layers, hits, ([0, 1], [2, 3])):
            layer.hits = counts
            layer.place(far)
    elif share:
        for layer in layers:
            layer.place([6, 7])
    work, calls = full_once(f"CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of 14.58 GiB")
    with pytest.warns(UserWarning, match=f"policy.experts_on_host={setting}\\.$") as caught:
        assert with_relief(model, work, "sampling") == 2
    assert [set(layer.on_host) for layer in layers] == on_host
    assert calls[0] == calls[1]  # with the same random numbers
    assert list_reliefs(model) == [str(warning.message) for warning in caught]


@pytest.mark.parametrize("unused", ["", " Of the allocated memory 2.00 KiB is reserved by PyTorch but unallocated."])
def test_what_is_larger_than_all_experts_is_refused_before_any_moves(unused):
    model, layers = load_tiered(0.25)
    work, calls = full_once(f"CUDA out of memory. Tried to allocate 200.00 GiB.{unused}")
    with pytest.raises(torch.OutOfMemoryError) as error:
        with_relief(model, work, "sampling")
    assert str(error.value) == (
        "CUDA is out of memory while sampling (200.00 GiB more are needed), and all routed experts on the GPU are 0.00 "
        f"GiB, so moving them is not enough. {REMEDIES['sampling']}"
    )
    assert len(calls) == 1 and [layer.on_host for layer in layers] == [{6, 7}] * 2


@pytest.mark.parametrize(
    ("message", "is_full"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA driver error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", False),
        ("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: out of memory", False),
    ],
)
def test_cudas_libraries_say_in_other_words_that_memory_is_full(message, is_full):
    model, layers = load_tiered(0.25)
    kinds = (RuntimeError, torch.AcceleratorError)  # the second one is what PyTorch raises for an error of CUDA
    for kind in kinds:
        assert is_out_of_memory(kind(message)) is is_full
    assert not is_out_of_memory(MemoryError(message))
    calls = []

    def work():
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError(message)
        return "done"

    if is_full:
        with pytest.warns(UserWarning, match=r"CUDA is out of memory while training: 1 more of the routed experts"):
            assert with_relief(model, work, "training") == "done"
    else:
        with pytest.raises(RuntimeError, match=re.escape(message)):
            with_relief(model, work, "training")
    assert layers[0].on_host == ({5, 6, 7} if is_full else {6, 7})


@pytest.mark.slow
def test_the_work_ends_when_no_expert_is_left(monkeypatch):
    model, layers = load_tiered(0.875)
    work, calls = full_once(times=100)
    with (
        pytest.warns(UserWarning) as caught,
        pytest.raises(torch.OutOfMemoryError, match="all routed experts lie on the host already. Lower the length"),
    ):
        with_relief(model, work, "sampling")
    assert len(calls) == 3 and len(caught) == 2


def test_without_experts_or_with_several_processes_nothing_is_tried_again(monkeypatch):
    work, calls = full_once()
    with pytest.raises(
        torch.OutOfMemoryError, match=r"^CUDA is out of memory while loading \(2.00 KiB .*\). Free the GPU"
    ):
        with_relief(torch.nn.Linear(2, 2), work, "loading")
    model, layers = load_tiered(0.25)
    work, calls = full_once()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        torch.OutOfMemoryError, match="Several processes move no experts: set policy.experts_on_host=0.313"
    ):
        with_relief(model, work, "training")
    assert len(calls) == 1 and [layer.on_host for layer in layers] == [{6, 7}] * 2


def test_other_errors_are_not_caught():
    model, _ = load_tiered(0.25)
    for error in (MemoryError("host"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(error)):
            with_relief(model, lambda error=error: (_ for _ in ()).throw(error), "sampling")


def test_a_host_without_room_takes_no_experts(monkeypatch):
    model, layers = load_tiered(0.25)
    monkeypatch.setattr(relief.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=9 * 8512 - 1))
    work, _ = full_once()
    with pytest.raises(
        torch.OutOfMemoryError, match="the host has 0.0 GiB free, of which moving 1 experts there takes"
    ):
        with_relief(model, work, "sampling")
    assert [layer.on_host for layer in layers] == [{6, 7}] * 2


def test_the_failed_try_holds_no_memory_while_experts_move(gpu):
    """What a traceback keeps alive, such as views into a tier, would keep the tier."""
    model, layers = load_tiered(0.25)
    before, calls = gpu.now(), []
    gpu.peak = 0

    def work():
        row = layers[0].rows[0]  # a local variable of a frame that the error's traceback holds
        calls.append(row.sum())
        if len(calls) == 1:
            raise torch.OutOfMemoryError(MESSAGE)

    with pytest.warns(UserWarning, match="out of memory"):
        with_relief(model, work, "sampling")
    assert gpu.now() == before - 8512 and gpu.peak <= before


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An NF4 checkpoint of the embedded policy."""
    from transformers import NemotronHForCausalLM

    folder = tmp_path_factory.mktemp("checkpoint")
    NemotronHForCausalLM.from_pretrained(tiny.FOLDER).save_pretrained(folder / "model")
    return convert.convert_to_nf4(folder / "model", folder / "nf4", "float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(nf4, "set_4bit_weight", 5), (experts.TieredExperts, "_allocate_near_tier", 2)],
)
def test_a_load_that_runs_out_of_memory_goes_on(checkpoint, monkeypatch, owner, name, call):
    expected = nf4_checkpoint.load_nf4_model(checkpoint, "cpu", 0.25)
    raise_at(monkeypatch, owner, name, call)
    with pytest.warns(UserWarning, match="out of memory while loading .*policy.experts_on_host=0.313"):
        model = nf4_checkpoint.load_nf4_model(checkpoint, "cpu", 0.25)
    layers = find_tiered_layers(model).values()
    assert sorted(len(layer.on_host) for layer in layers) == [2, 3]
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, expected(IDS).logits)
