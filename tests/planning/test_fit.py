"""Where routed experts are placed, and whether everything fits there."""

import pytest

from grpo_kit.planning.machines import GIB
from tests.helpers.plans import part_bytes, plan_for, plan_shared


def test_one_t4_takes_a_host_tier_of_five_gibibytes_and_keeps_half_a_gibibyte_free():
    plan = plan_for("t4")
    free = 14.56 - 0.13  # what the driver reports beside a process's context
    assert plan.fits and plan.needs["GPU"].nbytes <= (free - 0.5) * GIB == pytest.approx(plan.needs["GPU"].has)
    assert plan.experts["GPU"] + plan.experts["host"] == 2944
    tier = part_bytes(plan, "routed experts", "host")
    assert tier == sum(r.nbytes for r in plan.rows if r.place == "host" and r.phases == ("load",)) <= 5 * GIB
    one_more = plan.needs["GPU"].nbytes + part_bytes(plan, "routed experts") / plan.experts["GPU"] * 23
    assert one_more > (free - 0.5) * GIB  # as many as fit stay
    assert f"{plan.experts['host']:,} of 2,944 routed experts on the host" in plan.verdict
    # by hand: 14.113 GiB of experts, 2.06 of the other weights
    reserve = plan.needs["GPU"].nbytes - part_bytes(plan, "routed experts") - 2.06 * GIB
    assert tier / GIB == pytest.approx(14.113 - (free - 0.5 - 2.06 - reserve / GIB), abs=0.12)
    assert 2.0 < reserve / GIB < 4.0


@pytest.mark.parametrize("device", ["t4", "p100", "24gb"])
def test_the_4b_lies_on_one_card_and_leaves_room(device):
    """By hand: 1.51 GiB of NF4, 1.53 of embeddings and head; the rest is what two answers of 2,048 tokens need."""
    plan = plan_for("t4-4b", device)
    assert plan.verdict == f"It fits {device} with every weight in one place." and not plan.experts
    weights = {"Mamba in_proj", "Mamba out_proj", "MLP", "attention", "embeddings", "lm_head"}
    assert sum(part_bytes(plan, part) for part in weights) / GIB == pytest.approx(3.05, abs=0.01)
    assert part_bytes(plan, "LoRA") == 4 * 16 * (21 * (3136 + 17504 + 7680 + 3136) + 17 * 2 * (3136 + 12544)
                                                + 4 * (2 * (3136 + 5120) + 2 * (3136 + 1024)))  # fmt: skip
    assert part_bytes(plan, "recurrent states") / GIB == pytest.approx(32 * 84.2 / 1024, abs=0.15)
    need = plan.needs["GPU"]
    assert (need.phase, round(need.nbytes / GIB, 1)) == ("backward", 10.8) and need.has - need.nbytes > 3.1 * GIB


# preset, device, fits, where routed experts lie
@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "device", "fits", "places"),
    [
        ("t4", "t4", True, {"GPU", "host"}),
        ("t4", "t4x2", True, {"GPU", "second GPU"}),  # Kaggle's second card takes what the first has no room for
        ("t4", "24gb", True, {"GPU"}),
        ("t4", "80gb", True, {"GPU"}),
        ("24gb", "t4", False, {"GPU", "host"}),  # no bf16 there
        ("t4x2", "t4x2", True, {"GPU", "second GPU"}),
        ("80gb", "80gb", True, {"GPU"}),
        ("80gb", "24gb", False, {"GPU"}),
        ("24gb", "24gb", True, {"GPU"}),
        ("24gb", "40gb", True, {"GPU"}),
        ("80gb", "40gb", False, {"GPU"}),  # 58.8 GiB of weights in 16 bit
        ("24gb", "80gb", True, {"GPU"}),
        ("tiny", "cpu", True, {"host"}),
        ("tiny", "t4", True, {"GPU"}),
    ],
)
def test_the_verdict_says_whether_the_preset_fits_the_device(preset, device, fits, places):
    plan = plan_for(preset, device)
    assert plan.fits == fits and set(plan.experts) == places
    assert plan.verdict.startswith(f"It {'fits' if fits else 'does not fit'} {device}")
    assert plan.verdict.count(". ") == 0 and plan.verdict.endswith(".")
    for place, need in plan.needs.items():
        assert sum(r.nbytes for r in plan.at_peak(place)) == need.nbytes
        assert max(r.nbytes for r in plan.rows if r.place == place) <= need.nbytes
    assert min(r.nbytes for r in plan.rows) >= 0


@pytest.mark.slow
def test_a_gpu_without_bf16_is_not_planned_for_with_bf16():
    assert (
        plan_for("24gb", "t4").verdict == "It does not fit t4, whose GPU has no bf16; first set policy.dtype=float16."
    )
    assert plan_for("24gb", "t4", "policy.dtype=float16").fits and not plan_for("24gb", "t4").fits
    assert plan_for("tiny", "cpu", "policy.dtype=bfloat16").fits


@pytest.mark.slow
def test_each_process_has_a_gpu_and_all_share_one_host_on_which_one_converts():
    one, two = plan_for("t4", "t4x2", "policy.experts_overflow=host"), plan_shared(2)
    tier = part_bytes(two, "routed experts", "host")
    assert tier == 2 * part_bytes(plan_for("t4"), "routed experts", "host") > 0
    assert part_bytes(two, "routed experts", "second GPU") == 0 < part_bytes(one, "routed experts", "second GPU")
    assert part_bytes(two, "the system, Python, CUDA", "host") == 2 * part_bytes(
        one, "the system, Python, CUDA", "host"
    )
    shard = "one source shard, and what is made of it"
    assert part_bytes(two, shard, "host") == part_bytes(one, shard, "host")
    assert part_bytes(two, "recurrent states") == part_bytes(one, "recurrent states") / 2
    assert part_bytes(two, "layer inputs kept") == part_bytes(one, "layer inputs kept")  # 2 x 4 becomes 2 x 2
    assert two.needs["disk"] == one.needs["disk"]
    assert two.needs["host"].nbytes == pytest.approx(tier + 4 * GIB) and two.needs["host"].phase == "load"
