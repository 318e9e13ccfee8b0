"""A prompt that is read once for several completions gives each of them the log-probs and gradients of its own row."""

import types

import pytest
import torch
from transformers import NemotronHConfig, NemotronHForCausalLM
from transformers.models.nemotron_h import modeling_nemotron_h as modeling
from trl.kernels import chunked_logprob
from trl.trainer.utils import add_fused_lm_head

from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.nemotron import patches
from grpo_kit.policy.load import load_policy
from grpo_kit.training import shared_prompts
from grpo_kit.training.shared_prompts import IGNORED, pack_batch

LORA = config.Lora(
    r=4, target_modules=["in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
)
# Tokens of each row's prompt, and of its completion. Prompts of one length are the same prompt.
MIXED = [(5, 9), (2, 4), (12, 1), (5, 11), (12, 3), (12, 0)]
COMPLETION = 11


def batch_of(rows):
    """(token ids, attention mask, labels): prompts padded on the left, completions on the right."""
    generator = torch.Generator().manual_seed(0)
    width = max(prompt for prompt, _ in rows)
    prompts = {prompt: torch.randint(20, 270, (prompt,), generator=generator) for prompt, _ in rows}
    ids = torch.randint(20, 270, (len(rows), width + COMPLETION), generator=generator)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(rows):
        ids[row, width - prompt : width] = prompts[prompt]
        mask[row, width - prompt : width + completion] = 1
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :width] = IGNORED
    return ids, mask, labels


def with_lora(base, dtype=torch.float32):
    """The model with a LoRA on every matrix that takes one, whose B is not 0, and TRL's head."""
    model = lora.add_lora(base, LORA, seed=0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy"))
    return model.train()


def tiny(**policy):
    return load_policy(config.Policy(**policy))[0]


def dense():
    """Mamba, MLP and attention with random weights; scans have several chunks."""
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "vocab_size": 272, "num_attention_heads": 4, "head_dim": 8,
        "num_key_value_heads": 2, "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2,
        "chunk_size": 4, "initializer_range": 0.3, "hybrid_override_pattern": "M-*M", "mlp_hidden_act": "relu2",
    }  # fmt: skip
    torch.manual_seed(0)
    model = NemotronHForCausalLM(NemotronHConfig(**sizes))
    patches.prepare_model(model)
    return model


@pytest.fixture
def in_float64(monkeypatch):
    """transformers and TRL compute in float64 where they ask for float32."""
    wide = types.ModuleType("torch")
    wide.__dict__.update(torch.__dict__, float32=torch.float64)
    monkeypatch.setattr(modeling, "torch", wide)
    monkeypatch.setattr(chunked_logprob, "torch", wide)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def train_on(model, batch):
    """(log-probs, entropies, {name: gradient}, tokens in the model) of a loss that weighs all tokens differently."""
    ids, mask, labels = batch
    lengths = []
    hook = model.get_input_embeddings().register_forward_hook(lambda *args: lengths.append(args[1][0].numel()))
    model.zero_grad(set_to_none=True)
    output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    hook.remove()
    log_probs, entropies = output.log_probs[:, -COMPLETION:], output.entropy[:, -COMPLETION:]
    weights = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(2))
    ((log_probs + 0.1 * entropies) * weights).sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return log_probs.detach(), entropies.detach(), gradients, sum(lengths)


def largest_gap(plain, shared):
    """The largest difference of log-probs, entropies and gradients, each as a share of the largest value."""
    assert plain[2].keys() == shared[2].keys() and len(shared[2]) >= 12
    pairs = [plain[:2], *zip(plain[2].values())], [shared[:2], *zip(shared[2].values())]
    flat = [[value for group in side for value in group] for side in pairs]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*flat, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny, dense])
def test_gradients_are_those_of_every_row_for_itself(build, in_float64):
    base = build()
    base.config._experts_implementation = "eager"  # the other does not compute in float64
    model, batch = with_lora(base, torch.float64), batch_of(MIXED)
    plain = train_on(model, batch)
    shared_prompts.share_prompts(base)
    shared = train_on(model, batch)
    # 17 + 28 tokens: three prompts without their last tokens, and as many tokens as the completions have.
    assert plain[3] == 6 * (12 + COMPLETION) and shared[3] == 4 + 1 + 11 + 28
    assert largest_gap(plain, shared) < 1e-11
    for reentrant in (False, True):
        model.enable_input_require_grads()
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
        assert largest_gap(plain, train_on(model, batch)) < 1e-11


@pytest.mark.slow
def test_experts_in_4_bit_with_a_lora_get_the_same_gradients():
    base = tiny(load_in_4bit=True, experts_on_host=0.5)
    model, batch = with_lora(base), batch_of(MIXED)
    plain = train_on(model, batch)
    assert any(".experts." in name for name in plain[2])
    shared_prompts.share_prompts(base)
    assert largest_gap(plain, train_on(model, batch)) < 1e-5


def test_in_float16_log_probs_differ_by_rounding_only():
    base = dense().half()
    patches.keep_residual_in_float32(base)
    model, batch = with_lora(base, torch.float16), batch_of(MIXED)
    exact = train_on(with_lora(dense()), batch)
    with torch.autocast("cpu", dtype=torch.float16):
        plain = train_on(model, batch)
        shared_prompts.share_prompts(base)
        shared = train_on(model, batch)
    off, gap = ((side[0] - exact[0]).abs().max() for side in (plain, shared))
    assert gap < 1.5 * off < 0.1


@pytest.mark.parametrize(
    "rows",
    [
        [(5, 9), (5, 9), (5, 2)],  # one prompt, nothing before it
        [(2, 1), (2, 1)],  # one token is shared; one token is scored
        [(3, 11), (12, 11), (3, 11), (12, 11)],  # groups that do not lie side by side, without padding behind
    ],
)
def test_short_and_scattered_groups_get_the_same_gradients(rows, in_float64):
    base = dense()
    model, batch = with_lora(base, torch.float64), batch_of(rows)
    plain = train_on(model, batch)
    shared_prompts.share_prompts(base)
    shared = train_on(model, batch)
    assert shared[3] < plain[3] and largest_gap(plain, shared) < 1e-11


def test_tokens_and_what_they_predict_are_packed_in_order():
    ids = torch.tensor([[0, 7, 8, 1, 2, 0], [3, 7, 8, 4, 0, 0], [0, 7, 8, 5, 6, 9], [3, 7, 8, 0, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :3] = IGNORED
    packed, targets, layout = pack_batch(ids, mask, labels)
    assert packed.tolist() == [[7, 3, 7, 8, 1, 8, 8, 5, 6]]
    assert targets.tolist() == [[IGNORED, IGNORED, IGNORED, 1, 2, 4, 5, 6, 9]]
    assert layout.prompt.tolist() == [0, 1, 0, 1] and layout.start.tolist() == [[False, True], [True, True]]
    assert layout.start_mask[0, 0].tolist() == [[True, False], [False, True]]  # padding attends to itself
    assert layout.rest_mask[0, 0].tolist() == [[False, True, True, False, False], [False, True, True, True, False],
                                               [False, True, True, True, True]]  # fmt: skip
    start, rest = layout.unpack(packed[..., None])
    assert start.squeeze(-1).tolist() == [[0, 7], [3, 7]]
    assert rest.squeeze(-1).tolist() == [[8, 1, 0], [8, 0, 0], [8, 5, 6], [0, 0, 0]]
    assert torch.equal(layout.pack(start, rest).squeeze(-1), packed)


def test_prompts_that_differ_in_one_token_or_in_padding_are_not_shared():
    ids, mask, labels = batch_of([(5, 2), (5, 3)])
    assert pack_batch(ids, mask, labels)
    other = ids.clone()
    other[1, 0] += 1
    assert pack_batch(other, mask, labels) is None
    shorter = mask.clone()
    shorter[1, 0] = 0
    assert pack_batch(ids, shorter, labels) is None


@pytest.mark.parametrize(("prompt", "shares"), [(10, True), (2, False)])
def test_packing_that_saves_few_tokens_is_left_out(prompt, shares):
    """Of a prompt that two rows share, all tokens but the last are packed once."""
    assert (pack_batch(*batch_of([(prompt, COMPLETION)] * 2)) is not None) == shares


@pytest.mark.parametrize("rows", [[(1, 2), (1, 3)], [(5, 0), (5, 0)]])  # nothing to share; nothing to score
def test_batches_of_another_form_are_left_to_trl(rows):
    assert pack_batch(*batch_of(rows)) is None


def test_a_prompt_that_is_padded_on_the_right_is_left_to_trl():
    ids, mask, labels = batch_of([(5, 2), (5, 3)])
    mask[:, 4] = 0
    assert pack_batch(ids, mask, labels) is None


def test_the_scan_has_chunks_without_padding_but_where_a_kernel_computes_it(monkeypatch):
    mixer = types.SimpleNamespace(chunk_size=128)
    assert [shared_prompts._chunk_size(mixer, tokens) for tokens in (1, 127, 129, 512, 600)] == [1, 127, 65, 128, 120]
    monkeypatch.setattr(shared_prompts, "find_spec", lambda name: name == "mamba_ssm")
    assert shared_prompts._chunk_size(mixer, 1) == 128


def test_a_mixer_with_biases_is_left_as_it_is():
    """transformers adds the bias to padding too, where the convolution reads it."""
    model = types.SimpleNamespace(config=types.SimpleNamespace(model_type="nemotron_h", use_bias=True), forward=None)
    shared_prompts.share_prompts(model)
    assert model.forward is None


def test_another_architecture_is_left_as_it_is():
    model = types.SimpleNamespace(config=types.SimpleNamespace(model_type="qwen3"), forward=None)
    shared_prompts.share_prompts(model)
    assert model.forward is None
