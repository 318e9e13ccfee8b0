"""The embedded policy with its experts in NF4, made in several ways; several test files compare them."""

import torch

from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.nemotron.placement.placing import install_tiered_experts
from grpo_kit.policy.load import load_policy

IDS = torch.randint(16, 272, (3, 40), generator=torch.Generator().manual_seed(0))
EXPERT_LORA = config.Lora(r=4, lora_alpha=8, target_modules=["up_proj", "down_proj"])


def load_tiered(share_on_host, slots=2):
    """(model, its layers of tiered experts): the embedded policy, only its experts in NF4."""
    model, _ = load_policy(config.Policy())
    return model, install_tiered_experts(model, share_on_host, slots)


def load_with_expert_lora(share_on_host=0.5):
    """The policy in 4 bit with a LoRA on every expert, whose B is not 0 any more."""
    model, _ = load_policy(config.Policy(load_in_4bit=True, experts_on_host=share_on_host))
    model = lora.add_lora(model, EXPERT_LORA, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.05
    return model
