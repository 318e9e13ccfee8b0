"""Memory part by part: the same bytes as counted by hand."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, NemotronHConfig, NemotronHForCausalLM

from grpo_kit import config
from grpo_kit.nemotron.decoding import one_token
from grpo_kit.planning import machines, memory, model_size
from grpo_kit.planning.fit import assess_fit
from grpo_kit.planning.machines import GIB
from grpo_kit.planning.model_size import Architecture
from grpo_kit.planning.plan import vary_setting
from tests.helpers.plans import part_bytes, plan_for


# LoRA parameters in millions at rank 8, 16, 32 (by hand)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "millions"),
    [
        (["q_proj", "k_proj", "v_proj", "o_proj"], (0.93, 1.87, 3.74)),
        (["in_proj"], (2.39, 4.78, 9.56)),
        (["out_proj"], (1.25, 2.50, 4.99)),
        (["shared_experts.up_proj", "shared_experts.down_proj"], (2.36, 4.71, 9.42)),
    ],
)
def test_lora_has_the_size_computed_by_hand(targets, millions):
    t4 = config.load_config(["t4"])
    for r, expected in zip((8, 16, 32), millions):
        settings = replace(t4, lora=replace(t4.lora, r=r, target_modules=targets))
        plan = assess_fit(Architecture.of(t4.policy), settings, machines.find_device("t4"), 256)
        assert part_bytes(plan, "LoRA") / 4e6 == pytest.approx(expected, rel=0.01)
        assert (
            part_bytes(plan, "AdamW states") == 2 * part_bytes(plan, "LoRA gradients") == 2 * part_bytes(plan, "LoRA")
        )


@pytest.mark.slow
def test_recurrent_states_and_cache_have_the_sizes_computed_by_hand():
    plan = plan_for("t4")  # samples 8 sequences of 256 + 512, and 8 that may replace them
    assert part_bytes(plan, "recurrent states") / 16 / 2**20 == pytest.approx(46 + 1.1, rel=0.01)
    assert part_bytes(plan, "keys and values") / 16 / 768 / 1024 == pytest.approx(
        6 * 7 / 6, rel=0.01
    )  # 6 KiB, one layer twice


def test_decoding_copies_the_states_of_one_layer_at_most():
    rows, state = 16, 16 * 32 * 64 * 4  # of a row and a layer: heads, their size, the state's, float32
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "mamba_num_heads": 16, "n_groups": 2}
    chosen = NemotronHConfig(
        vocab_size=64, hidden_size=32, mamba_head_dim=32, ssm_state_size=64, **sizes,
        layers_block_type=["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    )  # fmt: skip
    policy = NemotronHForCausalLM(chosen).eval()
    ids = torch.zeros(rows, 5, dtype=torch.int64)
    held = model_size.Alive([*policy.parameters(), *policy.buffers()])
    with torch.no_grad(), held:
        cache = DynamicCache(config=chosen)
        policy(input_ids=ids, past_key_values=cache, use_cache=True)
        before, held.peak = held.now, held.now
        decoder = one_token.make_decoder(policy, cache, torch.ones_like(ids), 8)
        decoder.take_rows(decoder.places.all_rows)
        decoder.step(ids[:, 0])
    model = Architecture(chosen)
    assert memory.copied_rows(model, machines.find_device("cpu"), rows) == rows
    t4 = machines.find_device("t4")  # of 8 rows two copies of three layers
    assert [memory.copied_rows(model, t4, count) for count in (4, 16, 64)] == [24, 48, 64]
    assert (held.peak - before) / (rows * state) == pytest.approx(1, abs=0.5)


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


@pytest.mark.slow
def test_where_triton_runs_the_tile_is_trls_own():
    tiles = {r.source for name in ("t4", "24gb") for r in plan_for("24gb", name).rows if r.part.startswith("logits")}
    assert tiles == {"TRL, 512 of 5116 tokens", "TRL, 4096 of 4096 tokens"}


@pytest.mark.slow
def test_only_distinct_prompts_are_read():
    one, two = plan_for("t4"), plan_for("t4", "t4", "grpo.num_generations=4")
    reading = "one layer reads the prompts"
    assert part_bytes(two, reading) > 1.5 * part_bytes(one, reading)
    assert part_bytes(one, "the prompts' states, to copy from") * 8 == part_bytes(one, "recurrent states")
    assert part_bytes(two, "recurrent states") == part_bytes(one, "recurrent states")


@pytest.mark.slow
def test_the_unquantised_30b_fits_an_80_gb_gpu():
    plan = plan_for(
        "24gb",
        "80gb",
        "policy.load_in_4bit=false",
        "grpo.per_device_train_batch_size=2",
        "grpo.gradient_accumulation_steps=4",
    )
    weights = sum(
        r.nbytes for r in plan.rows if r.place == "GPU" and (r.part == "routed experts" or "M parameters" in r.source)
    )
    assert weights / GIB == pytest.approx(58.818, rel=0.01)
    assert plan.fits and plan.experts == {"GPU": 2944}
    assert "slots for arriving experts" not in {r.part for r in plan.rows}


@pytest.mark.slow
def test_the_tiny_policy_takes_megabytes():
    plan = plan_for("tiny", "cpu", prompt_tokens=64)
    assert {r.place for r in plan.rows} == {"host"}  # the weights are in the package
    assert 532 < plan.needs["host"].nbytes / 2**20 < 1012  # of it 512 Python and its libraries
    weights = sum(r.nbytes for r in plan.rows if "M parameters" in r.source or r.part == "routed experts")
    parts = Architecture.of(config.Policy()).parts
    assert weights == 4 * parts.total()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["t4", "t4x2", "24gb", "cpu"])
def test_doubling_the_completion_never_lowers_a_term(device):
    def terms(length):
        plan = assess_fit(
            model, vary_setting(t4, "max_completion_length", length // 64), machines.find_device(device), 256
        )
        away = {"host tier": sum(r.nbytes for r in plan.rows if r.place == "host" and r.phases == ("load",))}
        away["second GPU"] = sum(r.nbytes for r in plan.rows if r.place == "second GPU")
        rows = [r for r in plan.rows if r.part != "routed experts" and r.place != "second GPU"]
        return {(r.place, r.part, r.phases): r.nbytes for r in rows} | away  # the GPU holds the rest

    t4 = config.load_config(["t4"])
    model, lengths = Architecture.of(t4.policy), [64, 128, 256, 512, 1024, 2048]
    sizes = [terms(length) for length in lengths]
    for shorter, longer in zip(sizes, sizes[1:]):
        assert shorter.keys() == longer.keys()
        assert [name for name in shorter if longer[name] < shorter[name]] == []


@pytest.mark.slow
def test_conventions_are_marked_as_assumed():
    plan = plan_for("t4")
    assert {r.part for r in plan.rows if r.kind == "assumed"} == {
        "CUDA kernels, workspaces, fragmentation", "CUDA graphs of a step", "the system, Python, CUDA",
        "one source shard", "one source shard, and what is made of it",
    }  # fmt: skip
    assert all(r.source for r in plan.rows)


# preset, processes, sequences each samples at once, prompts they belong to at most
@pytest.mark.slow
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
def test_each_of_several_processes_samples_its_part(preset, count, sampled, prompts):
    settings = config.load_config([preset])
    assert memory.sampled_at_once(settings.grpo, count) == sampled
    device = machines.Device("large", 80.0, gpus=count, processes=count)
    plan = assess_fit(Architecture.of(settings.policy), settings, device, 64)
    assert next(r.source for r in plan.rows if r.part == "recurrent states") == f"{sampled} sequences"
    assert next(r.source for r in plan.rows if r.part == "one layer reads the prompts") == f"{prompts} x 64 tokens"


@pytest.mark.slow
def test_lora_on_routed_experts_is_counted_pair_by_pair():
    """All-linear at rank 8: 214 M parameters on the routed experts, four times 0.8 GiB with gradients and AdamW."""
    small, all_linear = (
        plan_for("t4", "80gb", "lora.r=8", f"lora.target_modules=[{names}]")
        for names in ("in_proj,shared_experts.up_proj,shared_experts.down_proj", "in_proj,up_proj,down_proj")
    )
    lora = [sum(row.nbytes for row in plan.rows if row.part == "LoRA") for plan in (small, all_linear)]
    assert (lora[1] - lora[0]) / 4 == pytest.approx(214e6, rel=0.01)


def test_without_a_gpu_python_and_the_part_that_is_read_are_counted():
    """By hand: 5 GB of the 58.82 GiB published become 5 GB x 16.17 / 58.82 = 1.28 GiB."""
    rows = {row.part: row for row in plan_for("t4", "cpu").rows if row.place == "host"}
    assert rows["Python and its libraries"].nbytes == 0.5 * 2**30 and not rows["Python and its libraries"].phases
    part = rows["one part while it loads"]
    assert part.nbytes / 2**30 == pytest.approx(1.28, abs=0.01) and part.phases == ("load",)
    assert not {"Python and its libraries", "one part while it loads"} & {row.part for row in plan_for("t4").rows}
