"""Sampling and training see the same model: the time-step limit, and cached decoding against one full forward."""

import pytest
import torch

from grpo_kit import config, nemotron_h, policy, tiny


def test_transformers_still_sets_the_limit_that_we_undo():
    from transformers import NemotronHForCausalLM

    model = NemotronHForCausalLM.from_pretrained(tiny.FOLDER)
    limits = [m.time_step_limit for m in model.modules() if hasattr(m, "time_step_limit")]
    assert limits == [(0.001, float("inf"))]  # when this moves, nemotron_h.fix_time_step_limit can go or must follow
    assert nemotron_h.fix_time_step_limit(model) == 1


def test_a_model_without_mamba_is_left_alone():
    assert nemotron_h.fix_time_step_limit(torch.nn.Linear(2, 2)) == 0


def logits_by_one_forward_and_step_by_step(model, ids):
    with torch.inference_mode():
        full = model(input_ids=ids, use_cache=False).logits
        cache, parts = None, []
        for at in range(ids.shape[1]):
            out = model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    return full, torch.cat(parts, dim=1)


@pytest.mark.parametrize("fixed", [True, False])
def test_cached_decoding_equals_one_full_forward_only_with_the_limit_undone(fixed):
    model, _ = policy.load_policy(config.Policy())
    mixer = next(m for m in model.modules() if hasattr(m, "time_step_limit"))
    with torch.no_grad():
        mixer.dt_bias.fill_(-9.0)  # time steps of about 1e-4, as the published model has and the limit would cut
    if not fixed:
        mixer.time_step_limit = (0.001, float("inf"))
    ids = torch.randint(16, 272, (3, 50), generator=torch.Generator().manual_seed(0))
    full, stepped = logits_by_one_forward_and_step_by_step(model, ids)
    gap = (full - stepped).abs().max().item()
    assert gap < 1e-4 if fixed else gap > 1e-3


def test_the_embedded_policy_decodes_as_it_reads(tiny_policy):
    model, tokenizer = tiny_policy
    ids = torch.tensor([tokenizer.encode("What is 47 + 38? <think>\n7+8=15 4+3+1=8\n</think>\n\\boxed{85}")])
    full, stepped = logits_by_one_forward_and_step_by_step(model, ids)
    assert (full - stepped).abs().max().item() < 1e-4


def test_left_padding_changes_nothing(tiny_policy):
    model, tokenizer = tiny_policy
    texts = ["What is 47 + 38?", "x", "a considerably longer prompt than the others"]
    padded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        together = model(**padded).logits[:, -1]
        alone = torch.cat(
            [model(**tokenizer(t, return_tensors="pt", add_special_tokens=False)).logits[:, -1] for t in texts]
        )
    assert (together - alone).abs().max().item() < 1e-4


def test_the_fused_kernel_that_passes_out_proj_by_is_still_called_by_that_name():
    import inspect

    from transformers.models.nemotron_h import modeling_nemotron_h as modeling

    assert "mamba2_split_conv1d_scan_combined(" in inspect.getsource(modeling.NemotronHMamba2Mixer.forward)
    nemotron_h.route_through_out_proj()
    assert modeling.mamba2_split_conv1d_scan_combined(1, 2, three=3) is None
