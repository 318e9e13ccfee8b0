"""The plan counts what the facts count, follows what really lives, and finds what really is the largest that fits."""

import json
from dataclasses import replace

import pytest
import torch

from grpo_kit import config
from grpo_kit.adapters.lora import add_lora
from grpo_kit.nemotron import experts
from grpo_kit.nemotron.base_models import NANO
from grpo_kit.planning import machines, memory, model_size, step_time
from grpo_kit.policy.load import load_policy
from grpo_kit.runs import processes

GIB = 2**30
ALL_HERE = "policy.experts_on_host=0"


def of(preset, device="t4", *overrides, **more):
    """The plan, without the search for the largest settings, which takes most of its time."""
    return memory.plan(config.load_config([preset], list(overrides)), memory.device(device), **more, search=False)


def row(plan, part, place="GPU"):
    return sum(r.nbytes for r in plan.rows if r.part == part and r.place == place)


@pytest.fixture(scope="module")
def nano():
    return memory.Architecture.of(config.load_config(["t4"]).policy)


# counted by hand from the published configuration: part, millions of parameters, GiB in bf16, GiB in NF4 (None: not quantised)
TABLE = [
    ("routed experts", 29_374.81, 54.715, 14.113),
    ("shared experts", 458.98, 0.855, 0.221),
    ("Mamba in_proj", 637.03, 1.187, 0.306),
    ("Mamba out_proj", 253.23, 0.472, 0.122),
    ("attention", 140.38, 0.261, 0.067),
    ("router", 7.92, 0.015, None),
    ("norms, convolutions, A, D, dt", 0.95, 0.002, None),
    ("embeddings", 352.32, 0.656, None),
    ("lm_head", 352.32, 0.656, None),
]


@pytest.mark.parametrize(("part", "millions", "bf16", "nf4"), TABLE)
def test_parts_of_the_real_model_are_those_of_the_byte_table(nano, part, millions, bf16, nf4):
    whole = config.Policy(dtype="bfloat16")
    assert nano.parts[part] / 1e6 == pytest.approx(millions, rel=0.01)
    assert nano.nbytes(part, whole) / GIB == pytest.approx(bf16, rel=0.01, abs=0.0005)
    if nf4:
        assert nano.nbytes(part, replace(whole, load_in_4bit=True)) / GIB == pytest.approx(nf4, rel=0.01)


def test_the_table_is_the_whole_model(nano):
    assert set(nano.parts) == {part for part, *_ in TABLE}
    assert nano.parts.total() / 1e6 == pytest.approx(31_577.94, rel=0.001)
    assert nano.kinds == {"linear_attention": 23, "moe": 23, "full_attention": 6}
    assert nano.expert.nbytes / 2**20 == pytest.approx(4.909, rel=0.01)  # one expert


# LoRA parameters in millions at rank 8, 16, 32 (by hand)
@pytest.mark.parametrize(
    ("targets", "millions"),
    [
        (["q_proj", "k_proj", "v_proj", "o_proj"], (0.93, 1.87, 3.74)),
        (["in_proj"], (2.39, 4.78, 9.56)),
        (["out_proj"], (1.25, 2.50, 4.99)),
        (["shared_experts.up_proj", "shared_experts.down_proj"], (2.36, 4.71, 9.42)),
    ],
)
def test_lora_has_the_size_the_facts_give(targets, millions):
    t4 = config.load_config(["t4"])
    for r, expected in zip((8, 16, 32), millions):
        asked = replace(t4, lora=replace(t4.lora, r=r, target_modules=targets))
        found = memory._solve(memory.Architecture.of(t4.policy), asked, memory.device("t4"), 256)
        assert row(found, "LoRA") / 4e6 == pytest.approx(expected, rel=0.01)
        assert row(found, "AdamW states") == 2 * row(found, "LoRA gradients") == 2 * row(found, "LoRA")


def test_states_are_those_of_the_facts():
    found = of("t4")  # samples 8 sequences of 256 + 512, and 8 that may replace them
    assert row(found, "recurrent states") / 16 / 2**20 == pytest.approx(46 + 1.1, rel=0.01)
    assert row(found, "keys and values") / 16 / 768 / 1024 == pytest.approx(
        6 * 7 / 6, rel=0.01
    )  # 6 KiB, one layer twice


def test_a_mamba_layer_keeps_what_was_measured(nano):
    """measured: the chunk scan keeps 476 KiB a token at the real sizes, fp32, 768 tokens, no LoRA."""
    kept, peak = model_size.layer_bytes(nano, "linear_attention", 768, "float32", 1, (), True)
    assert kept / 768 / 1024 - 2688 * 4 / 1024 == pytest.approx(476, rel=0.01)  # beside the layer's output
    assert kept < peak < 1.5 * kept
    assert model_size.layer_bytes(nano, "linear_attention", 1536, "float32", 1, (), True)[0] == pytest.approx(
        2 * kept, rel=0.01
    )


def test_attention_is_fused_and_keeps_nothing_of_sequence_times_sequence_but_the_mask(nano):
    short, long = (
        model_size.layer_bytes(nano, "full_attention", n, "float16", 1, (), True)[1] / n for n in (1024, 4096)
    )
    assert long / short < 1.6  # unfused, with 32 heads of 4096 scores a token, it would be four times as much


@pytest.mark.parametrize(
    ("tokens", "dtype", "tile"),
    [
        (1534, torch.float16, memory.TILE_TOKENS), (1534, torch.float16, memory.TRL_TILE_TOKENS),
        (5000, torch.float16, memory.TRL_TILE_TOKENS), (300, torch.float32, memory.TILE_TOKENS),
    ],
)  # fmt: skip
def test_without_triton_the_backward_pass_of_trl_holds_seven_and_a_quarter_tiles_more(monkeypatch, tokens, dtype, tile):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == memory.TILE_WORDS
    monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", tile)
    with FakeTensorMode():
        hidden = torch.empty(tokens, 64, dtype=dtype, requires_grad=True)
        head, targets = torch.empty(65_536, 64, dtype=dtype), torch.empty(tokens, dtype=torch.long)
        with model_size.Alive([hidden, head, targets]) as alive:
            out = chunked_logprob.ChunkedLogProbFunction.apply(
                hidden, head, None, targets, 1.0, memory.TILE_WORDS, None, 1.0, ("log_probs", "entropy")
            )
            out[0].backward(torch.empty_like(out[0]))
    values = min(tokens, tile) * memory.TILE_WORDS
    assert alive.peak / values == pytest.approx(dtype.itemsize + 4 * memory.TILE_COPIES, rel=0.01)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_what_is_planned_for_the_tiny_policy_is_what_lives_when_it_trains(checkpointing):
    """A real forward and backward pass of the embedded policy, unquantised, with PEFT's LoRA, every tensor followed."""
    asked = config.load_config(
        ["tiny"], ["grpo.per_device_train_batch_size=8", f"grpo.gradient_checkpointing={checkpointing}"]
    )
    model, _ = load_policy(asked.policy)
    model = add_lora(model, asked.lora, 0)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    ids, mask = torch.randint(16, 272, (8, 96)), torch.ones(8, 96, dtype=torch.long)
    mask[0, :5] = 0
    with model_size.Alive([ids, mask, *model.parameters(), *model.buffers()]) as alive:
        hidden = model.get_base_model().model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        hidden.backward(torch.ones_like(hidden))
    planned = sum(model_size.activation_bytes(memory.Architecture.of(asked.policy), asked, 8, 96, True))
    planned += sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)  # their gradients
    assert planned == pytest.approx(alive.peak, rel=0.10)


@pytest.mark.parametrize("grad", [True, False])
def test_routed_experts_in_4_bit_stay_below_what_is_planned_for_them(grad):
    """experts.py at work on the embedded policy's sizes, every token choosing the same two experts: the worst case."""
    model = memory.Architecture.of(config.Policy())
    bench = experts.Workbench(model.expert, torch.device("cpu"), torch.float32)
    layer = experts.TieredExperts(model.expert, 8, lambda x: torch.relu(x).square(), bench)
    layer.place()
    x, index = torch.randn(512, model.expert.hidden, requires_grad=grad), torch.tensor([[1, 5]]).repeat(512, 1)
    for number in range(8):
        layer.write(number, torch.randn(model.expert.up) / 16, torch.randn(model.expert.down) / 16)
    weights = torch.full((512, 2), 0.5, requires_grad=grad)
    with model_size.Alive([x, index, weights, bench.up, bench.down, bench.slots, *layer.rows]) as alive:
        out = layer(x, index, weights)
        if grad:
            out.backward(torch.ones_like(out))
    kept, most = model_size.expert_bytes(model, 512, config.Policy(load_in_4bit=True), grad)
    dequantising = (
        2 * 4 * 2 * model.expert.hidden * model.expert.intermediate
    )  # not in place on the CPU; buffers on CUDA
    assert alive.peak - dequantising <= most <= 2 * alive.peak


def test_one_t4_takes_a_host_tier_of_less_than_four_and_a_half_gibibytes():
    found = of("t4")
    assert found.fits and found.needs["GPU"].nbytes <= 14.6 * GIB
    assert found.experts["GPU"] + found.experts["host"] == 2944
    tier = row(found, "routed experts", "host")
    assert tier == sum(r.nbytes for r in found.rows if r.place == "host" and r.phases == ("load",)) <= 4.5 * GIB
    assert found.needs["GPU"].nbytes + tier > 14.6 * GIB
    one_more = found.needs["GPU"].nbytes + row(found, "routed experts") / found.experts["GPU"] * 23
    assert one_more > 14.6 * GIB  # as many as fit stay
    assert f"{found.experts['host']:,} of 2,944 routed experts on the host" in found.verdict
    # by hand: 3.4 to 4.1 GiB overflow with about 2.5 GiB reserved, more with more: 14.6 - 2.04 - reserve hold experts.
    reserve = found.needs["GPU"].nbytes - row(found, "routed experts") - 2.06 * GIB
    assert tier / GIB == pytest.approx(14.113 - (14.6 - 2.06 - reserve / GIB), abs=0.12)
    assert 2.0 < reserve / GIB < 4.0


@pytest.mark.parametrize(
    ("preset", "device"), [("t4", "t4"), ("t4x2", "t4x2"), ("24gb", "24gb"), ("80gb", "80gb"), ("tiny", "cpu")]
)
def test_a_preset_is_set_as_the_plan_of_its_device_says(preset, device):
    found = of(preset, device)
    assert found.fits and "set" not in found.verdict


# preset, device, configured, what the verdict says to set (None: nothing)
@pytest.mark.parametrize(
    ("preset", "device", "configured", "said"),
    [
        ("t4", "t4", [ALL_HERE], "; set policy.experts_on_host=0.305."),
        ("t4", "t4", ["policy.experts_on_host=0.306"], "(4.30 GiB)."),  # as good as
        ("t4", "t4x2", [], "; set policy.experts_overflow=cuda:1."),
        ("t4x2", "t4", [], "; set policy.experts_overflow=host."),
        ("t4x2", "t4x2", [ALL_HERE, "policy.experts_overflow=host"], "; set policy.experts_on_host=0.305 policy.experts_overflow=cuda:1."),
        ("t4", "80gb", [ALL_HERE, "policy.experts_overflow=cuda:1"], "in one place."),  # nothing overflows
        ("t4", "24gb", [], "; set policy.experts_on_host=0.000."),
    ],
)  # fmt: skip
def test_configured_otherwise_it_says_what_to_set(preset, device, configured, said):
    assert of(preset, device, *configured).verdict.endswith(said)


def test_where_triton_runs_the_tile_is_trls_own():
    tiles = {r.source for name in ("t4", "24gb") for r in of("24gb", name).rows if r.part.startswith("logits")}
    assert tiles == {"TRL, 512 of 5116 tokens", "TRL, 4096 of 4096 tokens"}


def test_only_distinct_prompts_are_read():
    one, two = of("t4"), of("t4", "t4", "grpo.num_generations=4")
    reading = "one layer reads the prompts"
    assert row(two, reading) > 1.5 * row(one, reading)
    assert row(one, "the prompts' states, to copy from") * 8 == row(one, "recurrent states")
    assert row(two, "recurrent states") == row(one, "recurrent states")


def test_micro_batches_of_one_leave_less_on_the_host_and_cost_time_when_placement_knows_the_hits():
    """Why the preset keeps 2 x 4: with half of what uniform routing sends over PCIe, 1 x 8 is the slower one."""
    small = ["grpo.per_device_train_batch_size=1", "grpo.gradient_accumulation_steps=8"]
    speed = memory.Bandwidths(224, 10, 25)  # a T4's, as sold: for the comparison only
    two, one = (of("t4", "t4", *o, bandwidths=speed, hits=counted(33)) for o in ([], small))
    assert row(one, "routed experts", "host") < row(two, "routed experts", "host") - 0.5 * GIB
    assert sum(one.seconds) > sum(two.seconds)


def test_a_gpu_without_bf16_is_not_planned_for_with_bf16():
    assert of("24gb", "t4").verdict == "It does not fit t4, whose GPU has no bf16; first set policy.dtype=float16."
    assert of("24gb", "t4", "policy.dtype=float16").fits and not of("24gb", "t4").fits
    assert of("tiny", "cpu", "policy.dtype=bfloat16").fits


# preset, device, fits, where routed experts lie
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
def test_verdicts(preset, device, fits, places):
    found = of(preset, device)
    assert found.fits == fits and set(found.experts) == places
    assert found.verdict.startswith(f"It {'fits' if fits else 'does not fit'} {device}")
    assert found.verdict.count(". ") == 0 and found.verdict.endswith(".")
    for place, need in found.needs.items():
        assert sum(r.nbytes for r in found.at_peak(place)) == need.nbytes
        assert max(r.nbytes for r in found.rows if r.place == place) <= need.nbytes
    assert min(r.nbytes for r in found.rows) >= 0


def test_a_plan_that_fails_names_a_change_that_works():
    large = ["grpo.per_device_train_batch_size=16", "grpo.gradient_accumulation_steps=1"]
    found = of("t4", "t4", *large)
    assert "first set grpo.per_device_train_batch_size=8 grpo.gradient_accumulation_steps=2." in found.verdict
    assert of("t4", "t4", "grpo.per_device_train_batch_size=8", "grpo.gradient_accumulation_steps=2").fits
    assert (
        "first set grpo.gradient_checkpointing=true." in of("t4", "24gb", "grpo.gradient_checkpointing=false").verdict
    )
    assert "first set policy.load_in_4bit=true." in of("t4", "24gb", "policy.load_in_4bit=false").verdict
    assert "take 80gb." in of("t4", "t4", "policy.load_in_4bit=false", "grpo.max_completion_length=4096").verdict


def test_unquantised_on_80_gb():
    found = of(
        "24gb",
        "80gb",
        "policy.load_in_4bit=false",
        "grpo.per_device_train_batch_size=2",
        "grpo.gradient_accumulation_steps=4",
    )
    weights = sum(
        r.nbytes for r in found.rows if r.place == "GPU" and (r.part == "routed experts" or "M parameters" in r.source)
    )
    assert weights / GIB == pytest.approx(58.818, rel=0.01)
    assert found.fits and found.experts == {"GPU": 2944}
    assert "experts' buffers and slots" not in {r.part for r in found.rows}


def test_the_tiny_policy_takes_megabytes():
    found = of("tiny", "cpu", prompt_tokens=64)
    assert {r.place for r in found.rows} == {"host", "disk"}
    assert 20 < found.needs["host"].nbytes / 2**20 < 500
    weights = sum(r.nbytes for r in found.rows if "M parameters" in r.source or r.part == "routed experts")
    parts = memory.Architecture.of(config.Policy()).parts
    assert weights == 4 * parts.total()


@pytest.mark.parametrize("device", ["t4", "t4x2", "24gb", "cpu"])
def test_doubling_the_completion_never_lowers_a_term(device):
    def terms(length):
        found = memory._solve(model, memory._vary(t4, "max_completion_length", length), memory.device(device), 256)
        away = {"host tier": sum(r.nbytes for r in found.rows if r.place == "host" and r.phases == ("load",))}
        away["second GPU"] = sum(r.nbytes for r in found.rows if r.place == "second GPU")
        rows = [r for r in found.rows if r.part != "routed experts" and r.place != "second GPU"]
        return {(r.place, r.part, r.phases): r.nbytes for r in rows} | away  # what stays on the GPU is what is left

    t4 = config.load_config(["t4"])
    model, lengths = memory.Architecture.of(t4.policy), [64, 128, 256, 512, 1024, 2048]
    found = [terms(length) for length in lengths]
    for shorter, longer in zip(found, found[1:]):
        assert shorter.keys() == longer.keys()
        assert [name for name in shorter if longer[name] < shorter[name]] == []


@pytest.mark.parametrize(("preset", "device"), [("t4", "t4"), ("t4x2", "t4x2"), ("80gb", "24gb")])
def test_the_largest_found_is_the_largest(preset, device):
    asked, where = config.load_config([preset]), memory.device(device)
    found = memory.plan(asked, where)
    for key in memory.KEYS:
        possible = [getattr(memory._vary(asked, key, m).grpo, key) for m in range(1, 20_000)]
        m = possible.index(found.largest[key]) + 1 if found.largest[key] else 0
        model = memory.Architecture.of(asked.policy)
        fits = [memory._solve(model, memory._vary(asked, key, n), where, 256).fits for n in (m, m + 1) if n]
        assert fits == ([True, False] if m else [False]), key


def test_settings_that_are_varied_are_valid_ones():
    for overrides in ([], ["grpo.num_generations=4"], ["grpo.per_device_train_batch_size=8"]):
        asked = config.load_config(["t4"], overrides)
        for key in memory.KEYS:
            values = [getattr(memory._vary(asked, key, m).grpo, key) for m in range(1, 30)]
            assert values == sorted(values) and values[0] >= 1


def test_group_size_keeps_the_prompts_of_a_step():
    asked = config.load_config(["t4"], ["grpo.gradient_accumulation_steps=8"])  # 2 x 8 completions: 2 prompts
    varied = memory._vary(asked, "num_generations", 12)
    assert (varied.grpo.num_generations, varied.grpo.gradient_accumulation_steps) == (12, 12)


def test_no_seconds_without_measured_bandwidths():
    assert of("t4").seconds is None


def test_seconds_are_the_roofline_of_the_facts():
    """by hand: 8 sequences read 7.09 GB a token in VRAM; 1,536 tokens are 29.7 TF; dequantising is 133 GB a pass."""
    fast = 1e12  # a link or product that takes no time
    only = {"vram": memory.Bandwidths(1, fast, fast), "products": memory.Bandwidths(fast, fast, 1)}
    asked = [ALL_HERE, "grpo.per_device_train_batch_size=2", "grpo.gradient_accumulation_steps=4"]
    asked += ["grpo.resample_budget=0"]
    found = {name: of("t4", "24gb", *asked, bandwidths=speed).seconds for name, speed in only.items()}
    assert found["vram"][0] / 512 == pytest.approx(7.09, rel=0.05)
    assert found["vram"][1] == pytest.approx(4 * 3 * 133, rel=0.02)  # four micro-batches, three passes
    assert found["products"][1] == pytest.approx(4 * 29.7, rel=0.15)  # the facts leave lm_head out, we count it
    slow = of("t4", "t4", bandwidths=memory.Bandwidths(fast, 10, fast)).seconds
    assert slow[1] == pytest.approx(4 * 3 * row(of("t4"), "routed experts", "host") / 10e9, rel=0.01)


def test_replacements_are_sampled_beside_the_step_and_not_trained_on():
    """by hand: a sequence's states are 49.4 MB, 23 layers of 64 x 64 x 128 in float32 and 6,144 x 4 in 16 bit, read and
    written; of 128 experts 6 a token, 8 sequences hit 0.3189 and 16 hit 0.5361."""
    fast, asked = 1e12, [ALL_HERE, "grpo.per_device_train_batch_size=2", "grpo.gradient_accumulation_steps=4"]
    vram = memory.Bandwidths(1, fast, fast)
    found, none = (of("t4", "24gb", *asked, f"grpo.resample_budget={budget}", bandwidths=vram) for budget in (1.0, 0))
    assert found.seconds == none.seconds and none.sampling_all == none.seconds[0]  # the states of the step's own 8 only
    states = 23 * (64 * 64 * 128 * 4 + 6144 * 4 * 2)
    more = 2 * 8 * states + row(found, "routed experts", "GPU") * (0.5361 - 0.3189)
    assert (found.sampling_all - found.seconds[0]) / 512 == pytest.approx(more / 1e9, rel=1e-3)


def test_replacements_off_the_gpu_come_over_pcie():
    """by hand, all experts off it: 16 sequences bring 0.5361 of them a token where 8 bring 0.3189."""
    away = ["policy.experts_overflow=host", "grpo.resample_budget=1"]
    found = of("t4", "t4", *away, bandwidths=memory.Bandwidths(1e12, 1, 1e12))
    k, count = 6, 128 * found.share_off
    hit = [1 - (1 - k * found.share_off / count) ** n for n in (8, 16)]
    assert hit == pytest.approx([0.3189, 0.5361], abs=1e-4)
    brought = row(found, "routed experts", "host")
    assert [t / 512 for t in (found.seconds[0], found.sampling_all)] == pytest.approx(
        [h * brought / 1e9 for h in hit], rel=1e-3
    )


def test_each_process_samples_its_part_of_the_replacements():
    speed = memory.Bandwidths(320, 16, 65)
    one, two = (shared_by(n, "24gb", "24gb", bandwidths=speed) for n in (1, 2))
    assert (
        one.seconds[0] / 2 < two.seconds[0] < two.sampling_all == pytest.approx(one.seconds[0])
    )  # 8 of 16, as one's 8


def test_bytes_over_pcie_cost_time_and_a_smaller_share_less():
    speed = memory.Bandwidths(224, 10, 25)
    near, far = of("t4", "24gb", bandwidths=speed).seconds, of("t4", "t4", bandwidths=speed).seconds
    assert far[0] > near[0] and far[1] > near[1]


def counted(rows_of_the_cold):
    """Routing statistics of 23 layers: half of the experts, spread over all, get `rows_of_the_cold`, the others 100."""
    return torch.where(torch.arange(23 * 128).view(23, 128) % 2 == 0, rows_of_the_cold, 100)


def test_placement_by_hits_costs_less_than_uniform_routing_and_uniform_is_the_default():
    speed = memory.Bandwidths(224, 10, 25)
    times = [of("t4", bandwidths=speed, hits=hits).seconds for hits in (counted(1), counted(30), counted(100), None)]
    assert times[0][0] < times[1][0] < times[2][0] == pytest.approx(times[3][0], rel=1e-3)
    assert len({training for _, training in times}) == 1  # training passes over every expert


def test_this_machine_measures_itself():
    here = step_time.measure("cpu")
    assert here.vram_gb_s == pytest.approx(2 * here.pcie_gb_s, rel=0.9) and min(here) > 0
    found = of("tiny", "cpu", bandwidths=here)
    assert found.bandwidths == here and min(found.seconds) > 0


def test_a_gpu_is_measured_by_its_own_clock(monkeypatch):
    """With a clock of 2, 5 and 9 ms for the three pieces of work, each tried several times: the arithmetic, and no more."""
    milliseconds = iter([2.0] * step_time.TRIES + [5.0] * step_time.TRIES + [9.0] * step_time.TRIES)
    event = type("Event", (), {"__init__": lambda self, enable_timing: None, "record": lambda self: None,
                               "elapsed_time": lambda self, other: next(milliseconds)})  # fmt: skip
    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    cuda = torch.device("cuda")
    taken = [step_time._seconds(cuda, lambda: None) for _ in range(3)]
    assert taken == pytest.approx([0.002, 0.005, 0.009])


def test_conventions_are_marked_as_assumed():
    found = of("t4")
    assert {r.part for r in found.rows if r.kind == "assumed"} == {
        "CUDA context, fragmentation", "the system, Python, CUDA", "one source shard", "one source shard, and what is made of it",
    }  # fmt: skip
    assert all(r.source for r in found.rows)


def test_the_shipped_config_loads_and_is_what_a_local_copy_gives(tmp_path, nano):
    (tmp_path / "config.json").write_text(NANO.read_text())
    local = memory.Architecture.of(config.Policy(model=str(tmp_path)))
    assert local.parts == nano.parts and json.loads(NANO.read_text())["model_type"] == "nemotron_h"


def test_what_cannot_be_planned_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder here nor the Hub"):
        of("tiny", "cpu", "policy.model=no/such-model")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="only a Nemotron-H can be planned"):
        of("tiny", "cpu", f"policy.model={tmp_path}")
    with pytest.raises(ValueError, match="prompt_tokens is 0"):
        of("tiny", "cpu", prompt_tokens=0)


# preset, processes, sequences each samples at once, prompts they belong to at most
@pytest.mark.parametrize(
    ("preset", "count", "sampled", "prompts"),
    [
        ("t4", 1, 16, 2),  # a step's group and the one that may replace it
        ("t4", 2, 8, 1),
        ("t4", 4, 4, 1),  # half a group each
        ("t4", 8, 2, 1),
        ("80gb", 2, 16, 2),
        ("80gb", 16, 2, 1),
        ("tiny", 64, 7, 2),  # 448 sequences of 56 groups: a part of 7 ends within the next group
    ],
)
def test_of_several_processes_each_samples_its_part(preset, count, sampled, prompts):
    asked = config.load_config([preset])
    assert memory.sampled_at_once(asked.grpo, count) == sampled
    device = memory.Device("large", 80.0, gpus=count, processes=count)
    found = memory._solve(memory.Architecture.of(asked.policy), asked, device, 64)
    assert next(r.source for r in found.rows if r.part == "recurrent states") == f"{sampled} sequences"
    assert next(r.source for r in found.rows if r.part == "one layer reads the prompts") == f"{prompts} x 64 tokens"


def shared_by(count, preset="t4x2", device="t4x2", *overrides, **more):
    asked = config.load_config([preset], list(overrides))
    return memory.plan(asked, machines.shared(memory.device(device), count), **more, search=False)


def test_processes_have_a_gpu_each_and_one_host_which_one_of_them_converts_on():
    one, two = of("t4", "t4x2", "policy.experts_overflow=host"), shared_by(2)
    tier = row(two, "routed experts", "host")
    assert tier == 2 * row(of("t4"), "routed experts", "host") > 0
    assert row(two, "routed experts", "second GPU") == 0 < row(one, "routed experts", "second GPU")
    assert row(two, "the system, Python, CUDA", "host") == 2 * row(one, "the system, Python, CUDA", "host")
    shard = "one source shard, and what is made of it"
    assert row(two, shard, "host") == row(one, shard, "host")
    assert row(two, "recurrent states") == row(one, "recurrent states") / 2
    assert row(two, "layer inputs kept") == row(one, "layer inputs kept")  # 2 x 4 becomes 2 x 2
    assert two.needs["disk"] == one.needs["disk"]
    assert two.needs["host"].nbytes == pytest.approx(tier + 4 * GIB) and two.needs["host"].phase == "load"


def test_a_host_too_small_for_all_processes_sends_back_to_one():
    two = memory.plan(config.load_config(["t4x2"]), replace(memory.device("t4x2"), host=9.0, processes=2), search=False)
    assert not two.fits and "whose host has 9.0 of 12.6 GiB needed; start one process." in two.verdict
    assert memory.plan(two.config, replace(two.device, processes=1), search=False).fits


def test_a_second_gpu_that_is_taken_is_not_to_hold_experts():
    assert shared_by(2).verdict.endswith("(8.60 GiB for 2 processes); set policy.experts_overflow=host.")
    # where nothing is left over, the run would still be refused with that setting
    assert "policy.experts_overflow=host" in shared_by(2, "t4x2", "80gb").verdict


def test_a_step_shared_out_takes_less_training_and_sampling_that_goes_on_token_by_token():
    speed = memory.Bandwidths(320, 16, 65)
    one, two = (shared_by(n, "24gb", "24gb", bandwidths=speed).seconds for n in (1, 2))
    assert two[1] == pytest.approx(one[1] / 2, rel=0.01)
    assert one[0] / 2 < two[0] < one[0]  # the dense weights are read for 4 sequences as for 8


def test_processes_without_a_gpu_share_what_the_machine_has():
    speed = memory.Bandwidths(20, 20, 0.1)
    cpu = memory.Device("cpu", 0.0, triton=False)
    one, two = (
        memory.plan(config.load_config(["tiny"]), replace(cpu, processes=n), bandwidths=speed, search=False).seconds
        for n in (1, 2)
    )
    assert two[1] == pytest.approx(one[1], rel=0.01) and one[0] < two[0] < 2 * one[0]


def test_the_largest_for_several_processes_can_be_shared_out():
    asked, where = config.load_config(["t4x2"]), replace(memory.device("t4x2"), gpus=3, processes=3)
    with pytest.raises(ValueError, match="3 processes do not divide the 8 completions"):
        memory.plan(asked, where, search=False)
    for key in memory.KEYS[:2]:
        for m in range(1, 20):
            varied = memory._vary(asked, key, m, 3).grpo
            assert processes.split_batch(varied, 3)
            step = varied.per_device_train_batch_size * varied.gradient_accumulation_steps
            assert step % varied.num_generations == 0


def test_lora_on_routed_experts_is_counted_pair_by_pair():
    """All-linear at rank 8: 214 M parameters on the routed experts, four times 0.8 GiB with gradients and AdamW."""
    small, all_linear = (
        of("t4", "80gb", "lora.r=8", f"lora.target_modules=[{names}]")
        for names in ("in_proj,shared_experts.up_proj,shared_experts.down_proj", "in_proj,up_proj,down_proj")
    )
    lora = [sum(row.nbytes for row in found.rows if row.part == "LoRA") for found in (small, all_linear)]
    assert (lora[1] - lora[0]) / 4 == pytest.approx(214e6, rel=0.01)
