"""Experts in NF4 and in tiers give what the same weights give dequantised, wherever they lie, forward and backward."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_kit import config, experts, nf4, policy

IDS = torch.randint(16, 272, (3, 40), generator=torch.Generator().manual_seed(0))


def fused_dequantised():
    """The embedded policy as transformers runs it, its experts rounded to NF4 and back."""
    model, _ = policy.load_policy(config.Policy())
    for module in model.modules():
        if type(module).__name__ == "NemotronHExperts":
            for stack in (module.up_proj, module.down_proj):
                for weight in stack.data:
                    nf4.dequantise(nf4.unpack(nf4.pack(weight), tuple(weight.shape)), weight)
    return model


def tiered(share, slots=2):
    model, _ = policy.load_policy(config.Policy())
    return model, experts.install(model, share, slots)


def logits_and_gradients(model):
    """Logits, and the gradients of all that feeds the experts: embeddings, routers, what stands before them."""
    model.train().requires_grad_(False)
    watched = {n: p for n, p in model.named_parameters() if "experts." not in n and p.ndim >= 1}
    for value in watched.values():
        value.requires_grad_(True)
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    return out.logits.detach(), {n: p.grad for n, p in watched.items()}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_logits_and_gradients_equal_the_dequantised_weights_wherever_the_experts_lie(share):
    logits, grads = logits_and_gradients(fused_dequantised())
    ours, layers = tiered(share)
    assert [len(layer.on_host) for layer in layers] == [round(8 * share)] * 2
    our_logits, our_grads = logits_and_gradients(ours)
    assert (logits - our_logits).abs().max() <= 1e-5
    for name, grad in our_grads.items():
        assert (grads[name] - grad).abs().max() <= 1e-5, name
    assert our_grads["model.layers.1.mixer.gate.weight"].abs().max() > 0  # the router is reached through the weights


def test_checkpointing_changes_nothing():
    ours, _ = tiered(0.5)
    _, plain = logits_and_gradients(ours)
    again, _ = tiered(0.5)
    again.gradient_checkpointing_enable()
    _, checkpointed = logits_and_gradients(again)
    assert all((plain[n] - checkpointed[n]).abs().max() <= 1e-6 for n in plain)


@pytest.mark.parametrize("slots", [1, 2, 3, 16])
def test_any_number_of_slots_gives_the_same(slots):
    with torch.inference_mode():
        few, many = tiered(1.0, slots)[0](IDS).logits, tiered(1.0, 8)[0](IDS).logits
    assert torch.equal(few, many)


def test_decoding_with_a_cache_equals_one_full_forward():
    model, _ = tiered(0.5)
    cache, parts = None, []
    with torch.inference_mode():
        full = model(IDS, use_cache=False).logits
        for at in range(IDS.shape[1]):
            out = model(IDS[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    assert (full - torch.cat(parts, 1)).abs().max() <= 1e-4


def test_experts_take_four_bits_and_are_no_parameters():
    model, layers = tiered(0.25)
    assert not any("experts.up_proj" in n and "shared" not in n for n, _ in model.named_parameters())
    values = sum(layer.num_experts * 2 * layer.geometry.hidden * layer.geometry.intermediate for layer in layers)
    held = sum(row.numel() for layer in layers for row in layer.rows)
    assert 8 * held / values < 4.2


def test_moving_the_model_moves_no_expert():
    model, layers = tiered(0.5)
    before = [row.data_ptr() for layer in layers for row in layer.rows]
    model.to(torch.float16).to(torch.float32)
    assert [row.data_ptr() for layer in layers for row in layer.rows] == before


def test_hits_count_every_routed_row_once():
    model, layers = tiered(0.0)
    for layer in layers:
        layer.counting = True
    logits_and_gradients(model)
    assert [int(layer.hits.sum()) for layer in layers] == [IDS.numel() * 2] * 2


def test_the_coldest_experts_go_to_the_host_and_nothing_else_changes():
    model, layers = tiered(0.0)
    with torch.inference_mode():
        before = model(IDS).logits
        for layer in layers:
            layer.counting = True
        model(IDS)
        share = experts.place_by_hits(layers, on_host=6)
        assert torch.equal(model(IDS).logits, before)
    assert sum(len(layer.on_host) for layer in layers) == 6
    hits = torch.stack([layer.hits for layer in layers]).flatten()
    assert share < 6 / 16 and int(hits.min()) == min(int(layers[n].hits[e]) for n in (0, 1) for e in layers[n].on_host)


def test_without_counts_there_is_no_placement():
    with pytest.raises(ValueError, match="No routed rows were counted"):
        experts.place_by_hits(tiered(0.0)[1], on_host=3)


def test_an_expert_that_does_not_exist_cannot_be_placed():
    _, layers = tiered(0.0)
    with pytest.raises(ValueError, match="Expert 8 was to go to the host; there are experts 0 to 7"):
        layers[0].place([8])


class Audit(TorchDispatchMode):
    """Fails on what a T4 has not or cannot afford: bf16, grouped_mm, a whole stack of experts in 16 or 32 bit."""

    def __init__(self, stack):
        super().__init__()
        self.stack, self.seen = stack, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        assert "grouped_mm" not in str(func)
        for value in torch.utils._pytree.tree_leaves((args, kwargs, out)):
            if isinstance(value, torch.Tensor):
                self.seen += 1
                assert value.dtype != torch.bfloat16, func
                assert not (
                    value.is_floating_point()
                    and value.numel() >= self.stack
                    and value.ndim == 3
                    and value.shape[0] == 8
                ), func
        return out


def audited(work):
    with Audit(stack=8 * 128 * 64) as audit:
        work()
    assert audit.seen > 100 and "triton" not in str(sorted(m for m in __import__("sys").modules if m == "triton"))


def test_no_bf16_no_grouped_mm_no_whole_stack_in_sampling_and_training(tmp_path):
    chosen = config.load_config(["tiny"], ["policy.load_in_4bit=true", "policy.experts_on_host=0.5"])
    model, tokenizer = policy.load_policy(chosen.policy)
    model = policy.add_lora(model, chosen.lora, seed=1)
    audited(lambda: model.generate(IDS, max_new_tokens=8, pad_token_id=0))
    audited(lambda: model.train()(input_ids=IDS, labels=IDS).loss.backward())
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n)


def test_the_audit_notices_the_fused_experts_and_bf16():
    model, _ = policy.load_policy(config.Policy())
    with pytest.raises(AssertionError):
        audited(lambda: model(IDS))
    with pytest.raises(AssertionError):
        audited(lambda: torch.ones(3).to(torch.bfloat16) + 1)


def test_grpo_learns_in_4_bit_as_it_does_unquantised(tmp_path, math_reward):
    """The demo's bar, with real 4-bit weights and a quarter of the experts on the host."""
    from grpo_kit import data, evaluate, train, workspace
    from grpo_kit.reward_files import load_reward

    chosen = config.load_config(
        ["tiny"], ["policy.load_in_4bit=true", "policy.experts_on_host=0.25", "grpo.max_steps=40", "data.test_size=300"]
    )
    run = workspace.open_run("four", tmp_path)
    data.prepare(chosen, run)
    before = evaluate.before(chosen, run, math_reward)
    train.train(chosen, run, [load_reward(spec) for spec in chosen.grpo.reward_funcs])
    after = evaluate.after(chosen, run, math_reward)
    assert before["pass@1"] <= 0.55 and after["pass@1"] >= 0.85 and before["ci95"][1] < after["ci95"][0]
