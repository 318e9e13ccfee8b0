"""Sampling and training see the same model: the time-step limit, and cached decoding against one full forward."""

import copy

import pytest
import torch

from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.nemotron import patches, tiny
from grpo_kit.policy.load import load_policy


def test_transformers_still_sets_the_limit_that_we_undo():
    from transformers import NemotronHForCausalLM

    model = NemotronHForCausalLM.from_pretrained(tiny.FOLDER)
    limits = [m.time_step_limit for m in model.modules() if hasattr(m, "time_step_limit")]
    assert limits == [(0.001, float("inf"))]  # when this fails, patches.fix_time_step_limit can go or must follow
    assert patches.fix_time_step_limit(model) == 1


def test_a_model_without_mamba_is_left_alone():
    assert patches.fix_time_step_limit(torch.nn.Linear(2, 2)) == 0


def logits_by_one_forward_and_step_by_step(model, ids):
    with torch.inference_mode():
        full = model(input_ids=ids, use_cache=False).logits
        cache, parts = None, []
        for at in range(ids.shape[1]):
            out = model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    return full, torch.cat(parts, dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [True, False])
def test_cached_decoding_equals_one_full_forward_only_with_the_limit_undone(fixed):
    model, _ = load_policy(config.Policy())
    mixer = next(m for m in model.modules() if hasattr(m, "time_step_limit"))
    with torch.no_grad():
        mixer.dt_bias.fill_(-9.0)  # time steps of about 1e-4, as the published model has and the limit would cut
    if not fixed:
        mixer.time_step_limit = (0.001, float("inf"))
    ids = torch.randint(16, 272, (3, 50), generator=torch.Generator().manual_seed(0))
    full, stepped = logits_by_one_forward_and_step_by_step(model, ids)
    gap = (full - stepped).abs().max().item()
    assert gap < 1e-3 if fixed else gap > 1e-2  # seen: 2e-5 and 7e-2


@pytest.mark.slow
def test_the_embedded_policy_decodes_as_it_reads(tiny_policy):
    model, tokenizer = tiny_policy
    ids = torch.tensor([tokenizer.encode("What is 47 + 38? <think>\n7+8=15 4+3+1=8\n</think>\n\\boxed{85}")])
    full, stepped = logits_by_one_forward_and_step_by_step(model, ids)
    assert (full - stepped).abs().max().item() < 1e-3


def test_left_padding_changes_nothing(tiny_policy):
    model, tokenizer = tiny_policy
    texts = ["What is 47 + 38?", "x", "a considerably longer prompt than the others"]
    padded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        together = model(**padded).logits[:, -1]
        alone = torch.cat(
            [model(**tokenizer(t, return_tensors="pt", add_special_tokens=False)).logits[:, -1] for t in texts]
        )
    assert (together - alone).abs().max().item() < 1e-3


def test_the_fused_kernel_that_passes_out_proj_by_is_still_called_by_that_name():
    import inspect

    from transformers.models.nemotron_h import modeling_nemotron_h as modeling

    assert "mamba2_split_conv1d_scan_combined(" in inspect.getsource(modeling.NemotronHMamba2Mixer.forward)
    patches.route_through_out_proj()
    assert modeling.mamba2_split_conv1d_scan_combined(1, 2, three=3) is None


def test_the_scan_is_out_of_autocast_and_still_called_by_that_name():
    from transformers.models.nemotron_h import modeling_nemotron_h as modeling

    model, _ = load_policy(config.Policy())
    ids = torch.arange(20, 84)[None]
    seen = []
    for name in ("mamba2_chunk_scan", "mamba2_selective_state_update"):
        assert hasattr(getattr(modeling, name), "_outside_autocast")
    inner = modeling.mamba2_chunk_scan.__wrapped__
    watched = patches._outside_autocast(lambda *a, **k: seen.append(torch.is_autocast_enabled("cpu")) or inner(*a, **k))
    before, modeling.mamba2_chunk_scan = modeling.mamba2_chunk_scan, watched
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.float16):
            model(ids)
    finally:
        modeling.mamba2_chunk_scan = before
    assert seen == [False]


def test_preparing_twice_wraps_once():
    from transformers.models.nemotron_h import modeling_nemotron_h as modeling

    patches.keep_scan_out_of_autocast()
    once = modeling.mamba2_chunk_scan
    patches.keep_scan_out_of_autocast()
    assert modeling.mamba2_chunk_scan is once and not hasattr(once.__wrapped__, "_outside_autocast")


@pytest.mark.slow
def test_in_float16_the_residual_stream_is_float32_and_comes_nearer_to_the_truth(tiny_policy):
    exact, tokenizer = tiny_policy
    half, _ = load_policy(config.Policy(dtype="float16"))
    from transformers import NemotronHForCausalLM

    plain = NemotronHForCausalLM.from_pretrained(tiny.FOLDER, dtype=torch.float16).eval()
    patches.fix_time_step_limit(plain)
    streams = []
    half.model.layers[2].register_forward_pre_hook(lambda module, args: streams.append(args[0].dtype))
    texts = [f"What is {n} + {n + 3}? <think>\n" for n in range(20, 60)]
    batch = tokenizer(texts, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        truth, ours, theirs = (m(**batch).logits.float() for m in (exact, half, plain))
    assert streams == [torch.float32]
    assert (ours - truth).pow(2).mean() < (theirs - truth).pow(2).mean()


def test_a_float16_policy_samples_and_trains(tiny_policy):
    model, tokenizer = load_policy(config.Policy(dtype="float16"))
    model = lora.add_lora(model, config.Lora(target_modules=["in_proj", "out_proj", "q_proj"]), seed=1)
    ids = torch.tensor([tokenizer.encode("What is 47 + 38? <think>")])
    assert model.generate(ids, max_new_tokens=4, pad_token_id=0).shape == (1, ids.shape[1] + 4)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(
        p.grad.abs().max() > 0 and p.dtype == torch.float32 for n, p in model.named_parameters() if "lora_B" in n
    )


def test_routers_choose_in_float32_under_autocast():
    model, _ = load_policy(config.Policy())
    router = model.model.layers[1].mixer.gate
    x = torch.randn(64, router.hidden_dim, generator=torch.Generator().manual_seed(0))
    plain = type(router).forward
    with torch.inference_mode():
        exact = plain(router, x)
        with torch.autocast("cpu", dtype=torch.float16):
            ours, theirs = router(x), plain(router, x)
    assert all(torch.equal(a, b) for a, b in zip(ours, exact))
    assert not all(
        torch.equal(a, b) for a, b in zip(theirs, exact)
    )  # when this fails, patches.keep_routers_out_of_autocast can go
    assert patches.keep_routers_out_of_autocast(model) == 2


def test_a_copied_router_uses_its_own_weights():
    model, _ = load_policy(config.Policy())
    router = copy.deepcopy(model).model.layers[1].mixer.gate
    router.weight.data.neg_()
    x = torch.randn(8, router.hidden_dim, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        original = model.model.layers[1].mixer.gate(x)[0]
        assert torch.equal(router(x)[0], -original) and original.any()
