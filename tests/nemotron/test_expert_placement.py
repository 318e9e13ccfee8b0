"""Where a model's experts lie, what goes to the slower tier, and which of them a LoRA reaches."""

import pytest
import torch

from grpo_kit.nemotron import expert_placement
from tests.helpers.experts import IDS, load_tiered, load_with_expert_lora


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
