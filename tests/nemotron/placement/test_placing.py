"""Which experts lie on the host, and that moving them takes no room and loses nothing."""

import pytest
import torch

from grpo_kit.nemotron import experts
from grpo_kit.nemotron.placement.placing import choose_host_experts, place_coldest
from grpo_kit.nemotron.placement.tiered_layers import known_hits
from tests.helpers.experts import IDS, load_tiered
from tests.helpers.memory import raise_at

HITS = torch.tensor([[0, 0, 9, 9, 9, 9, 9, 9], [5, 4, 0, 0, 0, 0, 8, 8]])


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
    assert choose_host_experts(2, 4, share, None if hits is None else torch.tensor(hits)) == on_host


def test_statistics_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"of \(2, 4\) experts and this model has 2 layers of 8.*calibrate"):
        choose_host_experts(2, 8, 0.5, torch.ones(2, 4, dtype=torch.int64))


def test_experts_move_without_more_room_on_the_gpu_than_they_have(gpu):
    model, layers = load_tiered(0.375)
    with torch.inference_mode():
        logits = model(IDS).logits
    before, rows = gpu.now(), [[row.clone() for row in layer.rows] for layer in layers]
    assert before == 2 * 5 * layers[0].geometry.nbytes and [layer.on_host for layer in layers] == [{5, 6, 7}] * 2
    gpu.peak = 0
    place_coldest(model, HITS)  # the first layer gets a larger part of the GPU, the second a smaller one
    assert [layer.on_host for layer in layers] == [{0, 1}, {2, 3, 4, 5}]
    assert gpu.peak == gpu.now() == before
    assert all(torch.equal(a, b) for layer, old in zip(layers, rows) for a, b in zip(layer.rows, old))
    addresses = [[row.data_ptr() * (e not in layer.on_host) for e, row in enumerate(layer.rows)] for layer in layers]
    assert [layer.near_addresses.tolist() for layer in layers] == addresses
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, logits)
    assert known_hits(layers).tolist() == HITS.tolist()


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
        place_coldest(model, HITS[:, :4])
    assert [layer.on_host for layer in layers] == [{4, 5, 6, 7}] * 2 and known_hits(layers) is None
    place_coldest(torch.nn.Linear(2, 2), HITS)  # a model without experts
