"""Where a model's experts lie, what goes to the slower tier, and which of them a LoRA reaches."""

import re
import types
import weakref

import numpy
import pytest
import torch

from grpo_kit.nemotron import convert, expert_placement, experts, nf4, nf4_checkpoint, tiny
from tests.helpers.experts import IDS, load_tiered, load_with_expert_lora
from tests.helpers.memory import MESSAGE, raise_at


@pytest.mark.parametrize(
    ("share", "hits", "on_host"),
    [
        (0.5, None, [[2, 3], [2, 3]]),  # nobody has counted: each layer's last ones
        (0.5, [[0, 9, 1, 9], [9, 9, 2, 3]], [[0, 2], [2, 3]]),
        (0.5, [[9, 9, 9, 9], [0, 0, 0, 0]], [[], [0, 1, 2, 3]]),  # a whole layer may be cold
        (0.25, [[5, 5, 5, 5], [5, 5, 5, 5]], [[0, 1], []]),  # even: any will do, always the same
        (0.0, [[1, 2, 3, 4], [1, 2, 3, 4]], [[], []]),
        (1.0, [[1, 2, 3, 4], [1, 2, 3, 4]], [[0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_the_coldest_experts_go_to_the_host(share, hits, on_host):
    assert expert_placement.choose_host_experts(2, 4, share, None if hits is None else torch.tensor(hits)) == on_host


def test_statistics_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"of \(2, 4\) experts and this model has 2 layers of 8.*calibrate"):
        expert_placement.choose_host_experts(2, 8, 0.5, torch.ones(2, 4, dtype=torch.int64))


def test_the_share_of_rows_that_goes_to_the_host_is_counted_as_the_statistics_say():
    model, layers = load_tiered(0.0)
    for layer in layers:
        layer.counting = True
    with torch.inference_mode():
        before = model(IDS).logits
        assert expert_placement.host_traffic_share(model) is None  # nothing lies on the host
        hits = torch.stack([layer.hits for layer in layers])
        placed = expert_placement.choose_host_experts(2, 8, 0.375, hits)
        for layer, on_host in zip(layers, placed):
            layer.place(on_host)
        assert torch.equal(model(IDS).logits, before)  # and nothing else changes
    share = expert_placement.expected_host_share(hits, placed)
    assert share < 0.375 and sum(map(len, placed)) == 6
    assert expert_placement.host_traffic_share(model) == pytest.approx(share)
    expert_placement.reset_counts(model)
    assert expert_placement.host_traffic_share(model) == 0


def test_experts_that_no_token_of_weight_chose_are_known():
    model = load_with_expert_lora().train()
    assert len(expert_placement.unreached_experts(model)) == 16
    model(input_ids=IDS[:1, :1]).logits.sum().backward()
    waiting = expert_placement.unreached_experts(model)
    assert len(waiting) == 12  # one token chose two experts in each of two layers
    got = {n.split(".lora_")[0] for n, p in model.named_parameters() if ".experts." in n and p.grad is not None}
    assert len(got) == 8 and not any(name.startswith(waiting) for name in got)
    expert_placement.reset_counts(model)
    assert len(expert_placement.unreached_experts(model)) == 16
    (model(input_ids=IDS).logits * 0).sum().backward()  # gradients come, all of them zero
    assert len(expert_placement.unreached_experts(model)) == 16


@pytest.mark.parametrize(
    ("targets", "opened"),
    [
        (["up_proj"], True),
        (["experts.3.down_proj"], True),
        (["shared_experts.up_proj", "in_proj"], False),
        (["mixer.up_proj"], False),
        ([], False),
    ],
)
def test_only_a_target_that_means_routed_experts_opens_them(targets, opened):
    assert expert_placement.open_for_lora(load_tiered(0.0)[0], targets) is opened


# Moved between the tiers

HITS = torch.tensor([[0, 0, 9, 9, 9, 9, 9, 9], [5, 4, 0, 0, 0, 0, 8, 8]])


@pytest.fixture
def gpu(monkeypatch):
    """The bytes of all tiers on the device, now and at their most; memory counts until no tensor uses it."""
    held, watch = {}, types.SimpleNamespace(now=lambda: sum(held.values()), peak=0)

    def allocate(layer, count):
        memory = numpy.empty((count, layer.geometry.nbytes), numpy.uint8)
        held[id(memory)] = memory.nbytes
        weakref.finalize(memory, held.pop, id(memory))
        watch.peak = max(watch.peak, watch.now())
        return torch.from_numpy(memory)

    monkeypatch.setattr(experts.TieredExperts, "_allocate_near_tier", allocate)
    return watch


def test_experts_move_without_more_room_on_the_gpu_than_they_have(gpu):
    model, layers = load_tiered(0.375)
    with torch.inference_mode():
        logits = model(IDS).logits
    before, rows = gpu.now(), [[row.clone() for row in layer.rows] for layer in layers]
    assert before == 2 * 5 * layers[0].geometry.nbytes and [layer.on_host for layer in layers] == [{5, 6, 7}] * 2
    gpu.peak = 0
    expert_placement.place_coldest(
        model, HITS
    )  # the first layer gets a larger part of the GPU, the second a smaller one
    assert [layer.on_host for layer in layers] == [{0, 1}, {2, 3, 4, 5}]
    assert gpu.peak == gpu.now() == before
    assert all(torch.equal(a, b) for layer, old in zip(layers, rows) for a, b in zip(layer.rows, old))
    addresses = [[row.data_ptr() * (e not in layer.on_host) for e, row in enumerate(layer.rows)] for layer in layers]
    assert [layer.near_addresses.tolist() for layer in layers] == addresses
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, logits)
    assert expert_placement.known_hits(layers).tolist() == HITS.tolist()


def test_experts_that_lie_right_are_not_copied(gpu):
    model, layers = load_tiered(0.375)
    layers[1].traffic, gpu.peak = [8, 4], 0
    for layer in layers:
        layer.place([7, 6, 5])
    assert gpu.peak == 0 and layers[1].traffic == [0, 0]


def test_where_a_new_tier_finds_no_room_nothing_is_lost(monkeypatch):
    model, layers = load_tiered(0.5)
    with torch.inference_mode():
        logits = model(IDS).logits
        raise_at(monkeypatch, experts.TieredExperts, "_allocate_near_tier")
        with pytest.raises(torch.OutOfMemoryError):
            layers[0].place([0])
        assert layers[0].on_host == set(range(8)) and not layers[0].near_addresses.any()
        assert torch.equal(model(IDS).logits, logits)
        layers[0].place([0])
        assert layers[0].on_host == {0} and torch.equal(model(IDS).logits, logits)
    layers[0].write_expert(3, torch.ones(layers[0].geometry.up), torch.ones(layers[0].geometry.down))  # no error


def test_counts_of_another_model_move_nothing():
    model, layers = load_tiered(0.5)
    with pytest.raises(ValueError, match=r"of \(2, 4\) experts and this model has 2 layers of 8"):
        expert_placement.place_coldest(model, HITS[:, :4])
    assert [layer.on_host for layer in layers] == [{4, 5, 6, 7}] * 2 and expert_placement.known_hits(layers) is None
    expert_placement.place_coldest(torch.nn.Linear(2, 2), HITS)  # a model without experts


# Out of memory


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
    layers = list(expert_placement.find_tiered_layers(model).values())
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
        assert expert_placement.with_relief(model, work, "sampling") == 2
    assert [set(layer.on_host) for layer in layers] == on_host
    assert calls[0] == calls[1]  # with the same random numbers
    assert expert_placement.list_reliefs(model) == [str(warning.message) for warning in caught]


@pytest.mark.parametrize("unused", ["", " Of the allocated memory 2.00 KiB is reserved by PyTorch but unallocated."])
def test_what_is_larger_than_all_experts_is_refused_before_any_moves(unused):
    model, layers = load_tiered(0.25)
    work, calls = full_once(f"CUDA out of memory. Tried to allocate 200.00 GiB.{unused}")
    with pytest.raises(torch.OutOfMemoryError) as error:
        expert_placement.with_relief(model, work, "sampling")
    assert str(error.value) == (
        "CUDA is out of memory while sampling (200.00 GiB more are needed), and all routed experts on the GPU are 0.00 "
        f"GiB, so moving them is not enough. {expert_placement.REMEDIES['sampling']}"
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
        assert expert_placement.is_out_of_memory(kind(message)) is is_full
    assert not expert_placement.is_out_of_memory(MemoryError(message))
    calls = []

    def work():
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError(message)
        return "done"

    if is_full:
        with pytest.warns(UserWarning, match=r"CUDA is out of memory while training: 1 more of the routed experts"):
            assert expert_placement.with_relief(model, work, "training") == "done"
    else:
        with pytest.raises(RuntimeError, match=re.escape(message)):
            expert_placement.with_relief(model, work, "training")
    assert layers[0].on_host == ({5, 6, 7} if is_full else {6, 7})


@pytest.mark.slow
def test_the_work_ends_when_no_expert_is_left(monkeypatch):
    model, layers = load_tiered(0.875)
    work, calls = full_once(times=100)
    with (
        pytest.warns(UserWarning) as caught,
        pytest.raises(torch.OutOfMemoryError, match="all routed experts lie on the host already. Lower the length"),
    ):
        expert_placement.with_relief(model, work, "sampling")
    assert len(calls) == 3 and len(caught) == 2


def test_without_experts_or_with_several_processes_nothing_is_tried_again(monkeypatch):
    work, calls = full_once()
    with pytest.raises(
        torch.OutOfMemoryError, match=r"^CUDA is out of memory while loading \(2.00 KiB .*\). Free the GPU"
    ):
        expert_placement.with_relief(torch.nn.Linear(2, 2), work, "loading")
    model, layers = load_tiered(0.25)
    work, calls = full_once()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        torch.OutOfMemoryError, match="Several processes move no experts: set policy.experts_on_host=0.313"
    ):
        expert_placement.with_relief(model, work, "training")
    assert len(calls) == 1 and [layer.on_host for layer in layers] == [{6, 7}] * 2


def test_other_errors_are_not_caught():
    model, _ = load_tiered(0.25)
    for error in (MemoryError("host"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(error)):
            expert_placement.with_relief(model, lambda error=error: (_ for _ in ()).throw(error), "sampling")


def test_a_host_without_room_takes_no_experts(monkeypatch):
    model, layers = load_tiered(0.25)
    monkeypatch.setattr(
        expert_placement.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=9 * 8512 - 1)
    )
    work, _ = full_once()
    with pytest.raises(
        torch.OutOfMemoryError, match="the host has 0.0 GiB free, of which moving 1 experts there takes"
    ):
        expert_placement.with_relief(model, work, "sampling")
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
        expert_placement.with_relief(model, work, "sampling")
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
    layers = expert_placement.find_tiered_layers(model).values()
    assert sorted(len(layer.on_host) for layer in layers) == [2, 3]
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, expected(IDS).logits)
