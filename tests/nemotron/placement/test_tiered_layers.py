"""Which rows go to the slower tier, which experts a target opens to LoRA, and which of them a gradient reaches."""

import pytest
import torch

from grpo_kit.nemotron.placement.placing import choose_host_experts, expected_host_share
from grpo_kit.nemotron.placement.tiered_layers import (
    host_traffic_share,
    open_for_lora,
    reset_counts,
    unreached_experts,
)
from tests.helpers.experts import IDS, load_tiered, load_with_expert_lora


def test_the_share_of_rows_that_goes_to_the_host_is_counted_as_the_statistics_say():
    model, layers = load_tiered(0.0)
    for layer in layers:
        layer.counting = True
    with torch.inference_mode():
        before = model(IDS).logits
        assert host_traffic_share(model) is None  # nothing lies on the host
        hits = torch.stack([layer.hits for layer in layers])
        placed = choose_host_experts(2, 8, 0.375, hits)
        for layer, on_host in zip(layers, placed):
            layer.place(on_host)
        assert torch.equal(model(IDS).logits, before)  # and nothing else changes
    share = expected_host_share(hits, placed)
    assert share < 0.375 and sum(map(len, placed)) == 6
    assert host_traffic_share(model) == pytest.approx(share)
    reset_counts(model)
    assert host_traffic_share(model) == 0


def test_experts_that_no_token_of_weight_chose_are_known():
    model = load_with_expert_lora().train()
    assert len(unreached_experts(model)) == 16
    model(input_ids=IDS[:1, :1]).logits.sum().backward()
    waiting = unreached_experts(model)
    assert len(waiting) == 12  # one token chose two experts in each of two layers
    got = {n.split(".lora_")[0] for n, p in model.named_parameters() if ".experts." in n and p.grad is not None}
    assert len(got) == 8 and not any(name.startswith(waiting) for name in got)
    reset_counts(model)
    assert len(unreached_experts(model)) == 16
    (model(input_ids=IDS).logits * 0).sum().backward()  # gradients come, all of them zero
    assert len(unreached_experts(model)) == 16


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
    assert open_for_lora(load_tiered(0.0)[0], targets) is opened
