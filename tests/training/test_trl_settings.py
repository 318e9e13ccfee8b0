"""Every configuration key reaches its argument of TRL's GRPOConfig."""

import copy
import json
from dataclasses import asdict

import pytest
import torch

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.nemotron.patches import find_routers
from grpo_kit.policy.load import load_policy
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from grpo_kit.training.sft import sft, sources
from grpo_kit.training.trl_settings import OURS, make_trl_config
from tests.helpers.settings import SMALL


def length_reward(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]


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


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "sft"])
def test_a_models_own_coefficient_trains_no_router(tmp_path, stage):
    """The weights and the bias of every router are the base's after a step, whatever the model's config says."""
    texts = [{"prompt": f"What is {n} + {n}?", "completion": f"<think>\n</think>\n{2 * n}"} for n in range(10, 18)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    steps = [f"{section}.{setting}" for section in ("grpo", "sft") for setting in ("max_steps=1", "learning_rate=1e-2")]
    steps += [f"sft.source={tmp_path / 'texts.jsonl'}", "sft.per_device_train_batch_size=2"]
    chosen = config.load_config(["tiny"], [*SMALL, *steps])
    run = find_run("r", tmp_path)
    prepare(chosen, run)
    model, tokenizer = load_policy(chosen.policy)
    model.config.router_aux_loss_coef = 0.01  # as config.json may have it; nemotron_h has output_router_logits
    routers = {name: copy.deepcopy(router.state_dict()) for name, router in find_routers(model).items()}
    if stage == "train":
        trainer = train.make_trainer(chosen, run, [length_reward] * 2, policy=(model, tokenizer))
    else:
        begun = sft.sft_stage(chosen, run, sources.locate_sources(chosen, run))
        trainer = sft.make_trainer(begun, policy=(model, tokenizer))
    assert not trainer.aux_loss_enabled and trainer.args.router_aux_loss_coef == 0.0
    trainer.train()
    assert any(value.any() for name, value in trainer.model.named_parameters() if "lora_B" in name)
    for name, router in find_routers(trainer.model.get_base_model()).items():
        assert not router.weight.requires_grad and set(router.state_dict()) == {"weight", "e_score_correction_bias"}
        for key, value in router.state_dict().items():
            assert torch.equal(value, routers[name][key]), f"{name}.{key}"
