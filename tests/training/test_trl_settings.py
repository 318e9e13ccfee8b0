"""Every configuration key reaches its argument of TRL's GRPOConfig."""

from dataclasses import asdict

import pytest

from grpo_kit import config
from grpo_kit.training.trl_settings import OURS, make_trl_config


@pytest.mark.parametrize("preset", ["tiny", "t4", "80gb"])
def test_every_grpo_key_arrives_in_trls_config(preset, tmp_path):
    chosen = config.load_config([preset], ["grpo.epsilon_high=0.28", "grpo.warmup_steps=3"])
    args = make_trl_config(chosen, tmp_path)
    for key, value in asdict(chosen.grpo).items():
        if key not in OURS:
            arrived = getattr(args, key)
            assert getattr(arrived, "value", arrived) == value, key
    assert args.activation_checkpointing == chosen.grpo.gradient_checkpointing
    assert args.chat_template_kwargs == {"enable_thinking": True} and args.seed == chosen.run.seed
    assert args.bf16 is False
