"""A stand-in for the memory of a GPU."""

import types
import weakref

import numpy
import pytest
import torch

from grpo_kit.nemotron.experts import TieredExperts


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

    monkeypatch.setattr(TieredExperts, "_allocate_near_tier", allocate)
    return watch
