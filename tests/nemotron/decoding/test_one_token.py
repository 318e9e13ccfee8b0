"""A decoder gives the logits of transformers' own forward pass, and leaves to it what it does not know."""

import copy
from collections import OrderedDict

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, NemotronHConfig

from grpo_kit import config
from grpo_kit.nemotron import patches
from grpo_kit.nemotron.decoding import graph, one_token
from grpo_kit.policy import generation_loop
from grpo_kit.policy.load import load_policy
from tests.helpers.experts import load_with_expert_lora

KINDS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
NARROW = {
    "vocab_size": 272, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "intermediate_size": 96,
    "moe_intermediate_size": 64, "moe_shared_expert_intermediate_size": 64, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1,
}  # fmt: skip
# Of the 30B: every width but the vocabulary, with few experts.
REAL = NARROW | {
    "hidden_size": 2688, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "mamba_num_heads": 64,
    "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712, "num_experts_per_tok": 6,
}  # fmt: skip
LORA = LoraConfig(r=4, lora_alpha=12, target_modules=["in_proj", "q_proj", "v_proj", "o_proj", "up_proj", "down_proj"])
IDS = torch.randint(20, 270, (4, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [1] * 9, [0] * 7 + [1] * 2])


def make_model(pattern, dtype=torch.float32, **fields):
    """A random Nemotron-H as `load_policy` prepares one. Biases and norms are random too."""
    torch.manual_seed(0)
    chosen = NemotronHConfig(layers_block_type=[KINDS[letter] for letter in pattern], **(NARROW | fields))
    model = AutoModelForCausalLM.from_config(chosen, attn_implementation="sdpa").eval()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.ndim == 1:
            value.data += 0.1 * torch.randn(value.shape)
        elif "gate" in name:
            value.data = torch.randn(value.shape)
    model = model.to(dtype)
    patches.prepare_model(model)
    return model


def add_random_lora(model, lora=LORA):
    torch.manual_seed(1)
    wrapped = get_peft_model(model, lora)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data = 0.1 * torch.randn(value.shape)
    return wrapped


@torch.no_grad()
def read_prompts(model, ids=IDS, mask=MASK):
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
    return cache


def copied(cache):
    """The same cache, of which a decoder may take the layers."""
    other = copy.copy(cache)
    other.layers = [*cache.layers]
    return other


@torch.no_grad()
def decode_both(model, steps=5, leave=None):
    """[(transformers' logits, the decoder's)] of some tokens; the rows `leave` go on alone from the third."""
    theirs, mask = read_prompts(model), MASK
    decoder = one_token.make_decoder(model, read_prompts(model), mask, mask.shape[1] + steps)
    pairs = []
    torch.manual_seed(2)
    for number in range(steps):
        if number == 2 and leave is not None:
            decoder.take_rows(leave)
            theirs.reorder_cache(leave)
            mask = mask[leave]
        tokens = torch.randint(20, 270, (len(mask), 1))
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        expected = model(input_ids=tokens, attention_mask=mask, past_key_values=theirs, use_cache=True).logits[:, -1]
        pairs.append((expected.float(), decoder.step(tokens[:, 0])))
    return pairs


def assert_equal(pairs, bound=1e-5):
    for theirs, ours in pairs:
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < bound * theirs.abs().max()


@pytest.mark.parametrize("pattern", ["M*", "*", "E*", "-*", "MEM*EM-*"])  # transformers needs one with attention
@pytest.mark.parametrize("lora", [False, True])
def test_each_kind_of_layer_gives_transformers_logits(pattern, lora):
    model = make_model(pattern)
    if lora:
        add_random_lora(model)
    assert_equal(decode_both(model))


@pytest.mark.slow
def test_the_30bs_widths_give_transformers_logits():
    model = make_model("ME*", **REAL)
    add_random_lora(model, LoraConfig(r=4, target_modules=["in_proj", "q_proj", "k_proj", "v_proj"]))
    assert_equal(decode_both(model, steps=3))


@pytest.mark.parametrize("settings", [{}, {"load_in_4bit": True, "experts_on_host": 0.5}], ids=str)
def test_the_embedded_policy_gives_transformers_logits(settings):
    model, _ = load_policy(config.Policy(**settings))
    assert_equal(decode_both(model))


def test_lora_on_routed_experts_is_used():
    assert_equal(decode_both(load_with_expert_lora().get_base_model()))


@pytest.mark.parametrize("dtype, unit", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("lora", [False, True])
def test_in_16_bit_the_logits_differ_by_rounding_only(dtype, unit, lora):
    """Without routers, which rounding may let choose another expert."""
    model = make_model("M*-M", dtype)
    if lora:
        add_random_lora(model)  # float32, as in training
    for theirs, ours in decode_both(model):
        assert (ours - theirs).norm() < 4 * unit * theirs.norm()


def test_rows_may_leave_and_be_repeated():
    assert_equal(decode_both(make_model("MEM*-*"), leave=torch.tensor([3, 0, 3])))


def test_graphs_are_tried_on_copies_of_a_few_rows(monkeypatch):
    model = make_model("M*E-M")
    decoder = one_token.make_decoder(model, read_prompts(model), MASK, 12)
    monkeypatch.setattr(graph, "TRIED_ROWS", 3)
    trial = decoder._make_trial().__self__
    states = [layer.update.ssm for layer in trial.layers if isinstance(layer, one_token.Mamba)]
    assert [len(state) for state in states] == [3, 3] and len(decoder.layers[0].update.ssm) == 4
    x = torch.randn(3, 64)
    with torch.no_grad():
        assert graph.run(trial._add_layers(x)).shape == (3, 64)


def test_disabled_and_merged_adapters_are_left_out():
    model = make_model("M*-")
    plain = decode_both(model)
    wrapped = add_random_lora(model)
    with wrapped.disable_adapter():
        assert_equal([(before, ours) for (before, _), (_, ours) in zip(plain, decode_both(model), strict=True)])
    changed = decode_both(model)
    assert (changed[0][1] - plain[0][1]).abs().max() > 0.01
    wrapped.merge_adapter()
    assert_equal([(before, ours) for (before, _), (_, ours) in zip(changed, decode_both(model), strict=True)], 1e-4)


def test_weights_that_changed_between_two_calls_are_read_again():
    model = generation_loop.install_loop(make_model("M*E-"))
    wrapped = add_random_lora(model)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    before = model.generate(IDS, **settings)
    for name, value in wrapped.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            value.data = torch.randn(value.shape)
    after = model.generate(IDS, **settings)
    assert torch.equal(after, type(model).generate(model, IDS, **settings))
    assert not torch.equal(before, after)


def with_hook(model):
    model.model.layers[0].register_forward_hook(lambda module, args, output: 2 * output)


def with_hook_on_a_projection(model):
    model.model.layers[1].mixer.k_proj.register_forward_pre_hook(lambda module, args: None)


def with_own_forward(model):
    model.model.layers[0].mixer.forward = model.model.layers[0].mixer.forward


def with_two_adapters(model):
    wrapped = add_random_lora(model)
    wrapped.add_adapter("other", LORA)
    wrapped.base_model.set_adapter(["default", "other"])


def with_merged_and_disabled_adapter(model):
    wrapped = add_random_lora(model)
    wrapped.merge_adapter()
    wrapped.base_model.disable_adapter_layers()  # a call of the layer undoes the merging


def with_loras_of_two_types(model):
    add_random_lora(model)
    model.model.layers[1].mixer.q_proj.lora_A.half()


def with_dropout_in_training(model):
    add_random_lora(model, LoraConfig(target_modules=["in_proj"], lora_dropout=0.5)).train()


def scale(module):
    module.register_forward_hook(lambda module, args, output: 2 * output)


def with_scaled_inputs(module):
    module.register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))


def with_wrapped_forward(module):
    plain = module.forward
    module.forward = lambda *args: plain(*args)


# Of a model "M*E-": every module whose own forward pass the decoder does not call.
PARTS = {
    "block": "layers.0",
    "norm of a block": "layers.1.norm",
    "Mamba": "layers.0.mixer",
    "convolution": "layers.0.mixer.conv1d",
    "norm of Mamba": "layers.0.mixer.norm",
    "attention": "layers.1.mixer",
    "MoE": "layers.2.mixer",
    "router": "layers.2.mixer.gate",
    "latent": "layers.2.mixer.fc1_latent_proj",
    "routed experts": "layers.2.mixer.experts",
    "shared expert": "layers.2.mixer.shared_experts",
    "up": "layers.2.mixer.shared_experts.up_proj",
    "MLP": "layers.3.mixer",
    "down": "layers.3.mixer.down_proj",
}


@pytest.mark.parametrize("change", [scale, with_scaled_inputs, with_wrapped_forward])
def test_a_changed_forward_pass_of_any_part_is_left_to_transformers(change):
    model = make_model("M*E-")
    cache = read_prompts(model)
    for name, path in PARTS.items():
        module = model.model.get_submodule(path)
        before = dict(vars(module)), dict(module._forward_hooks), dict(module._forward_pre_hooks)
        change(module)
        assert one_token.make_decoder(model, copied(cache), MASK, 12) is None, name
        vars(module).clear()
        vars(module).update(before[0])
        module._forward_hooks, module._forward_pre_hooks = OrderedDict(before[1]), OrderedDict(before[2])
    assert one_token.make_decoder(model, copied(cache), MASK, 12) is not None


@pytest.mark.parametrize("change", [scale, with_scaled_inputs, with_wrapped_forward])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.float16, 0.01)])
def test_a_changed_last_norm_is_called(change, dtype, bound):
    model = make_model("M*", dtype)
    change(model.model.norm_f)
    assert_equal(decode_both(model, steps=2), bound)


OTHER_ADAPTERS = {
    "IA3": IA3Config(target_modules=["in_proj"], feedforward_modules=[]),
    "LoHa": LoHaConfig(target_modules=["q_proj"]),
    "OFT": OFTConfig(target_modules=["q_proj"], oft_block_size=0, r=4),
    "VeRA": VeraConfig(r=4, target_modules=["q_proj"]),
    "norms of blocks": LNTuningConfig(target_modules=["norm"]),
    "the last norm": LNTuningConfig(target_modules=["norm_f"]),
    "a parameter": LoraConfig(target_parameters=["gate.weight"], target_modules=["in_proj"]),
    "a saved router": LoraConfig(modules_to_save=["gate"], target_modules=["in_proj"]),
    "a saved shared expert": LoraConfig(modules_to_save=["shared_experts"], target_modules=["in_proj"]),
    "a saved convolution": LoraConfig(modules_to_save=["conv1d"], target_modules=["in_proj"]),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("what", OTHER_ADAPTERS)
def test_other_adapters_sample_as_in_transformers(what):
    model = generation_loop.install_loop(make_model("M*E-"))
    torch.manual_seed(1)
    wrapped = get_peft_model(model, OTHER_ADAPTERS[what]).eval()
    for value in wrapped.parameters():
        if value.requires_grad:
            value.data += torch.randn(value.shape)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ours = wrapped.generate(input_ids=IDS, attention_mask=MASK, **settings)
    del model.generate  # transformers' own is behind it
    assert torch.equal(ours, wrapped.generate(input_ids=IDS, attention_mask=MASK, **settings))


UNKNOWN = {
    "a hook": with_hook,
    "a hook on a projection": with_hook_on_a_projection,
    "a forward pass of its own": with_own_forward,
    "two adapters": with_two_adapters,
    "a merged adapter that is disabled": with_merged_and_disabled_adapter,
    "LoRAs of two types": with_loras_of_two_types,
    "dropout": with_dropout_in_training,
    "DoRA": lambda model: add_random_lora(model, LoraConfig(target_modules=["in_proj"], use_dora=True)),
    "a bias in the LoRA": lambda model: add_random_lora(model, LoraConfig(target_modules=["in_proj"], lora_bias=True)),
    "attention with dropout": lambda model: model.train(),
    "a latent projection": lambda model: setattr(
        model.model.layers[2].mixer, "fc1_latent_proj", torch.nn.Linear(64, 64)
    ),
    "groups of experts": lambda model: setattr(model.model.layers[2].mixer.gate, "num_group", 2),
    "weights that are no shares": lambda model: setattr(model.model.layers[2].mixer.gate, "norm_topk_prob", False),
    "another activation": lambda model: setattr(model.model.layers[0].mixer, "activation", "gelu"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_known_is_left_to_transformers(what):
    model = make_model("M*E-", attention_dropout=0.1 if "attention" in what else 0.0)
    cache = read_prompts(model)
    assert one_token.make_decoder(model, copied(cache), MASK, 12) is not None
    UNKNOWN[what](model)
    assert one_token.make_decoder(model, copied(cache), MASK, 12) is None


def test_other_models_and_autocast_are_left_to_transformers():
    llama = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=272, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=1)
    )
    assert one_token.make_decoder(llama, read_prompts(llama), MASK, 12) is None
    model = make_model("M*")
    with torch.autocast("cpu", torch.bfloat16):
        assert one_token.make_decoder(model, read_prompts(model), MASK, 12) is None
    never_read = DynamicCache(config=model.config)
    assert one_token.make_decoder(model, never_read, MASK, 12) is None
