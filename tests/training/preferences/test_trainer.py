"""The loss is NeMo-RL's, the reference is the policy before the first step, and TRL's copy of the adapter is gone."""

import copy
import math

import pytest
import torch

from grpo_kit import config
from grpo_kit.adapters.lora import add_lora
from grpo_kit.nemotron.patches import find_routers
from grpo_kit.policy.load import load_policy
from grpo_kit.training.preferences.trainer import PreferenceTrainer, Reference
from grpo_kit.training.trl_settings import make_dpo_config
from tests.helpers.experts import EXPERT_LORA

TEXTS = [
    ("What is 1 + 1?", "1+1=2</think>2", "looks like 3</think>3"),
    ("What is 14 + 25?", "4+5=9 1+2=3, so it is thirty-nine</think>39", "maybe 40</think>40"),
    ("What is 8 - 3?", "8-3=5</think>5", "8-3=6 or something like that</think>6"),
    ("What is 9 - 3?", "9-3=6</think>6", "6"),
]


def make_rows(tokenizer):
    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    return [
        {
            "prompt_ids": encode(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n"),
            "chosen_ids": encode(f"{chosen}<|im_end|>"),
            "rejected_ids": encode(f"{rejected}<|im_end|>"),
        }
        for prompt, chosen, rejected in TEXTS
    ]


def make_trainer(folder, weight=0.2, policy=None, lora=None, **settings):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 3} | settings
    overrides = [f"dpo.{key}={value}" for key, value in settings.items()]
    chosen = config.load_config("tiny", [*overrides, f"dpo.sft_loss_weight={weight}", "run.report_to=[]"])
    model, tokenizer = load_policy(policy or chosen.policy)
    model = add_lora(model, lora or chosen.lora, 0)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_B" in name:  # as if it were trained before
            value.data = torch.randn(value.shape, generator=generator) * 0.02
    rows = make_rows(tokenizer)
    trainer = PreferenceTrainer(
        rows, weight, model=model, args=make_dpo_config(chosen, folder), processing_class=tokenizer
    )
    return trainer, rows


def use_own_reference(trainer):
    trainer.use_reference(Reference(*trainer.score_pairs(), "0" * 64))
    return trainer


def log_probs(model, prompt, completion):
    """Each completion token's log-prob, of one row without padding, from the model's plain logits."""
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]


def nemo_loss(model, rows, reference, beta, weight):
    """NeMo-RL's loss, by hand: the mean over pairs of the preference term and of the summed NLL of the chosen."""
    total = 0.0
    for row, chosen_before, rejected_before in zip(rows, reference.chosen, reference.rejected, strict=True):
        chosen, rejected = (
            log_probs(model, row["prompt_ids"], row[key]).sum() for key in ("chosen_ids", "rejected_ids")
        )
        margin = beta * ((chosen - chosen_before) - (rejected - rejected_before))
        total = total - torch.nn.functional.logsigmoid(margin) - weight * chosen
    return total / len(rows)


@pytest.mark.parametrize(("weight", "size"), [(0.2, 2), (0.0, 4)])
def test_loss_and_gradients_are_nemo_s(tmp_path, weight, size):
    trainer, rows = make_trainer(tmp_path, weight)
    # A reference other than the policy, so that the preference term has its own gradient.
    before = [[value - 2.0 + i for i, value in enumerate(column)] for column in trainer.score_pairs()]
    trainer.use_reference(Reference(*before, ""))
    model = trainer.model
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    losses = []
    for start in range(0, len(rows), size):
        batch = trainer.data_collator([trainer.train_dataset[number] for number in range(start, start + size)])
        loss = trainer.compute_loss(model, batch) * size / len(rows)  # as accumulation takes their mean
        loss.backward()
        losses.append(loss.item())
    ours = {name: value.grad.clone() for name, value in trained.items()}
    model.zero_grad()
    by_hand = nemo_loss(model, rows, trainer.reference, beta=0.05, weight=weight)
    by_hand.backward()
    assert sum(losses) == pytest.approx(by_hand.item(), rel=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in ours.values())
    for name, value in trained.items():
        torch.testing.assert_close(ours[name], value.grad, rtol=1e-3, atol=1e-5)


def test_no_router_is_trained(tmp_path):
    trainer, _ = make_trainer(tmp_path, learning_rate=1e-2, max_steps=1)
    routers = find_routers(trainer.model.get_base_model()).values()
    before = [copy.deepcopy(router.state_dict()) for router in routers]
    assert len(before) == 2 and trainer.args.router_aux_loss_coef == 0.0 and not trainer.aux_loss_enabled
    lora = {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    use_own_reference(trainer).train()
    after = dict(trainer.model.named_parameters())
    assert not any(torch.equal(value, after[name]) for name, value in lora.items())
    for router, kept in zip(routers, before, strict=True):
        for name, value in router.state_dict().items():  # the weights, and the bias that only chooses
            assert torch.equal(value, kept[name]), name


def test_trl_s_own_weight_would_mean_something_else(tmp_path):
    trainer, rows = make_trainer(tmp_path)
    use_own_reference(trainer)
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(len(rows))])
    loss = trainer.compute_loss(trainer.model, batch).item()
    tokens = [len(row["chosen_ids"]) for row in rows]
    mean_nll = (loss - math.log(2)) / 0.2 / (sum(tokens) / len(tokens))  # what TRL's mean over tokens is
    assert trainer.loss_weights == [1.0, pytest.approx(0.2 * sum(tokens) / len(tokens))]
    assert mean_nll == pytest.approx(-sum(trainer.reference.chosen) / sum(tokens), rel=1e-5)
    assert loss > 3 * (math.log(2) + 0.2 * mean_nll)  # the loss with TRL's meaning of 0.2


def test_the_reference_is_the_policy_before_and_its_copy_is_gone(tmp_path):
    trainer, rows = make_trainer(tmp_path, learning_rate=1e-3)
    model = trainer.model
    assert list(model.peft_config) == ["default"] and not [
        name for name, _ in model.named_parameters() if ".ref." in name
    ]
    use_own_reference(trainer)
    for row, chosen, rejected in zip(rows, trainer.reference.chosen, trainer.reference.rejected, strict=True):
        for key, score in (("chosen_ids", chosen), ("rejected_ids", rejected)):
            assert log_probs(model, row["prompt_ids"], row[key]).sum().item() == pytest.approx(score, abs=1e-3)
    with model.disable_adapter():  # the base is another policy
        assert log_probs(model, rows[0]["prompt_ids"], rows[0]["chosen_ids"]).sum().item() != pytest.approx(
            trainer.reference.chosen[0], abs=0.01
        )
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert first["rewards/chosen"] == first["rewards/rejected"] == first["rewards/margins"] == 0.0
    assert last["rewards/margins"] > 0 and last["rewards/accuracies"] == 1.0 and first["grad_norm"] > 0
    trainer.write_checkpoint(tmp_path, "tiny")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "preferences.json", "rng_state.pth",
        "scheduler.pt", "trainer_state.json",
    ]  # fmt: skip
    assert b".ref." not in (tmp_path / "adapter_model.safetensors").read_bytes()


def test_nothing_is_dropped_out_and_no_router_loss_is_added(tmp_path):
    lora = config.Lora(r=4, lora_alpha=8, lora_dropout=0.5, target_modules=["q_proj", "in_proj"])
    trainer, _ = make_trainer(tmp_path, lora=lora)
    assert not trainer.aux_loss_enabled and trainer.args.max_length is None and not trainer.args.bf16
    dropouts = [module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)]
    assert set(dropouts) == {0.0}
    assert trainer.score_pairs() == trainer.score_pairs() and trainer.model.training


def test_a_lora_on_4_bit_experts_learns_and_stays_in_float32(tmp_path):
    policy = config.Policy(load_in_4bit=True, experts_on_host=0.5)
    trainer, _ = make_trainer(tmp_path, policy=policy, lora=EXPERT_LORA, learning_rate=1e-2, max_steps=4)
    trained = [(name, value) for name, value in trainer.model.named_parameters() if value.requires_grad]
    assert {value.dtype for _, value in trained} == {torch.float32} and any(".experts." in name for name, _ in trained)
    before = {name: value.detach().clone() for name, value in trained}
    use_own_reference(trainer).train()
    history = trainer.state.log_history[:-1]
    assert history[0]["rewards/margins"] == 0.0 and history[-1]["rewards/margins"] > 0.01
    assert all(row["grad_norm"] > 0 for row in history)
    assert any(not torch.equal(before[name], value) for name, value in trained)
