"""The kit's part of the trainer, on real GRPO steps: drawn prompts, replaced groups, losses, context stages."""

import json
import types

import pytest
import torch

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.nemotron.decoding import one_token
from grpo_kit.runs import processes
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from grpo_kit.training.callbacks import find_callback
from grpo_kit.training.grpo.trainer import GroupTrainer
from grpo_kit.training.grpo.worst_step import WorstStepCallback
from grpo_kit.training.trl_internals.grpo import OpenGRPOTrainer
from grpo_kit.training.trl_settings import make_trl_config
from tests.helpers.settings import SMALL


def length_reward(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]


def small(tmp_path, *overrides):
    chosen = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=2", *overrides])
    run = find_run("r", tmp_path / "runs")
    prepare(chosen, run)
    return chosen, run


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "gspo", "cispo"])
def test_every_named_loss_takes_a_step_and_moves_the_policy(tmp_path, loss):
    chosen, run = small(tmp_path, f"grpo.loss_type={loss}", "grpo.max_steps=1", "grpo.advantage=leave_one_out")
    args = make_trl_config(chosen, tmp_path)
    assert (
        (args.importance_sampling_level == "sequence") is (loss == "gspo")
        and args.beta == 0.0
        and args.epsilon_high == (1.28 if loss == "cispo" else 0.28)
    )
    trainer = train.make_trainer(chosen, run, [length_reward] * 2)
    trainer.train()
    assert any(p.any() for n, p in trainer.model.named_parameters() if "lora_B" in n)


@pytest.mark.slow
def test_flat_groups_are_replaced_within_the_budget(tmp_path):
    chosen, run = small(tmp_path, "grpo.resample_budget=2", "grpo.max_steps=1")
    batches = []

    def first_batch_is_flat(completions, prompts, **kwargs):
        batches.append([p[-1]["content"] for p in prompts])
        if len(batches) == 1:  # of four groups the first three are all right, all wrong, unjudged
            return [1.0] * 4 + [0.0] * 4 + [None] * 4 + [1.0, 0.0, 1.0, 0.0]
        return [float(i % 2) for i in range(len(completions))]

    trainer = train.make_trainer(chosen, run, [first_batch_is_flat, lambda completions, **_: [None] * len(completions)])
    trained = []
    inner = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, **k: trained.append(inputs) or inner(model, inputs, **k)
    find_callback(trainer, WorstStepCallback).done = True  # only real batches are looked at
    trainer.train()
    assert [len(batch) for batch in batches] == [16, 32] and not set(batches[0]) & set(
        batches[1]
    )  # three of four: asks on widely
    (row,) = read_lines(run.metrics)
    assert (row["groups/all_right"], row["groups/all_wrong"], row["groups/unjudged"]) == (0.25, 0.25, 0.25)
    assert (row["groups/with_gradient"], row["groups/replaced"]) == (1.0, 0.75)
    assert row["reward"] == pytest.approx(0.5)  # of what was drawn, not of what replaced it: 6 of the 12 judged
    (batch,) = trained
    assert (batch["advantages"] != 0).all() and batch["num_items_in_batch"] == batch["completion_mask"].sum()
    assert torch.equal(batch["prompt_mask"].long(), (batch["prompt_ids"] != 0).long())
    assert row["groups/sampled"] == 3 and len(read_lines(run.completions)) == 48


@pytest.mark.slow
def test_a_completion_is_right_where_the_verifier_pays_all_and_only_there(tmp_path, monkeypatch):
    """As in an evaluation: what pays 0.9 is a share of the way, and no pass."""
    chosen, run = small(tmp_path, "grpo.resample_budget=0", "grpo.max_steps=1")
    pay = lambda completions, **_: [0.9, 1.0, 0.0, None] * (len(completions) // 4)  # noqa: E731
    trainer = train.make_trainer(chosen, run, [pay, lambda completions, **_: [None] * len(completions)])
    learned = []
    monkeypatch.setattr(trainer.prompt_sampler, "learn", lambda prompt, right, tried: learned.append((right, tried)))
    find_callback(trainer, WorstStepCallback).done = True
    trainer.train()
    assert learned == [(1, 3)] * 4


@pytest.mark.slow
def test_a_data_set_without_gradients_costs_the_resampling_budget_and_no_more(tmp_path):
    chosen, run = small(tmp_path, "grpo.resample_budget=2", "grpo.max_steps=2")
    calls = []

    def hopeless(completions, **kwargs):
        calls.append(len(completions))
        return [0.0] * len(completions)

    train.train(chosen, run, [hopeless, lambda completions, **_: [0.0] * len(completions)])
    assert calls == [16, 32, 48]  # the second step knows, and asks once
    rows = read_lines(run.metrics)
    assert [row["groups/with_gradient"] for row in rows] == [0, 0] and [row["groups/sampled"] for row in rows] == [3, 3]


@pytest.mark.slow
@pytest.mark.parametrize("others_teach", [True, False])
def test_a_solved_data_set_raises_an_alarm_unless_replacements_have_a_gradient(tmp_path, others_teach):
    chosen, run = small(
        tmp_path, "grpo.resample_budget=4", "grpo.max_steps=10", "grpo.mask_truncated_completions=false"
    )

    def all_right_but_every_fourth_group(completions, **kwargs):
        groups = torch.arange(len(completions)) // 4
        mixed = (groups % 4 == 3) & others_teach
        return torch.where(mixed, torch.arange(len(completions)) % 2, 1).tolist()

    train.train(chosen, run, [all_right_but_every_fourth_group, lambda completions, **_: [0.0] * len(completions)])
    rows = read_lines(run.metrics)
    rung = [sentence for row in rows for sentence in row.get("alarms", []) if "all right" in sentence]
    assert sum(row["groups/all_right"] for row in rows) / 10 > 0.6
    assert not rung if others_teach else len(rung) == 1


@pytest.mark.slow
def test_when_few_groups_have_a_gradient_more_are_sampled_at_once(tmp_path):
    chosen, run = small(tmp_path, "grpo.resample_budget=3", "grpo.max_steps=1")
    calls = []

    def every_other_group(completions, **kwargs):
        calls.append(len(completions))
        return [float(i % 2) if i // 4 % 2 else 0.0 for i in range(len(completions))]

    trainer = train.make_trainer(chosen, run, [every_other_group, lambda completions, **_: [0.0] * len(completions)])
    trainer.prompt_sampler.teaching = [50.0, 100.0]
    trainer.train()
    assert calls == [44]  # 11 groups: (4 + sqrt(4 x 0.5)) / 0.5
    (row,) = read_lines(run.metrics)
    assert row["groups/with_gradient"] == 1 and row["groups/replaced"] == 0.5  # of the first four groups two taught


def batch_of(trainer, advantages, tokens):
    """A micro-batch whose completions have so many tokens; prompts of different lengths, padded on the left."""
    rows, longest = len(tokens), max(tokens)
    ids = torch.arange(rows * (longest + 6)).view(rows, -1) % 90 + 5
    mask = torch.tensor([[int(j < n) for j in range(longest)] for n in tokens])
    prompt_mask = torch.tensor([[int(j >= i % 3) for j in range(6)] for i in range(rows)])
    return {
        "prompt_ids": ids[:, :6] * prompt_mask, "prompt_mask": prompt_mask, "completion_ids": ids[:, 6:] * mask,
        "completion_mask": mask, "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(float(sum(tokens))),
    }  # fmt: skip


@pytest.fixture(scope="module")
def trainer_of(tmp_path_factory):
    chosen, run = small(tmp_path_factory.mktemp("losses"))
    trainer = train.make_trainer(chosen, run, [length_reward] * 2)
    trainer.current_gradient_accumulation_steps = 1
    for name, value in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    trainer.model.train()
    return trainer


def gradient(trainer, compute, batch):
    trainer.model.zero_grad()
    loss = compute(trainer.model, batch)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in trainer.model.parameters() if p.requires_grad]


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "bnpo", "gspo", "cispo"])
@pytest.mark.parametrize(
    "advantages, tokens",
    [
        ([0.0, 1.0, 0.0, -0.5, 0.0, 2.0], [9, 4, 5, 7, 9, 3]),  # a flat group among others, and the longest is of it
        ([1.0, -1.0, 0.0, 0.0], [3, 0, 4, 0]),  # two were cut and are masked
        ([0.5, -0.5], [4, 4]),  # all teach
    ],
)
def test_rows_without_a_gradient_cost_no_pass_and_change_no_gradient(trainer_of, monkeypatch, loss, advantages, tokens):
    monkeypatch.setattr(trainer_of, "loss_type", "grpo" if loss == "gspo" else loss)
    monkeypatch.setattr(trainer_of, "importance_sampling_level", "sequence" if loss == "gspo" else "token")
    batch = batch_of(trainer_of, advantages, tokens)
    full, expected = gradient(trainer_of, super(type(trainer_of), trainer_of).compute_loss, batch)
    passed = []
    inner = trainer_of._get_per_token_logps_and_entropies
    monkeypatch.setattr(
        trainer_of, "_get_per_token_logps_and_entropies", lambda *a, **k: passed.append(len(a[1])) or inner(*a, **k)
    )
    part, gradients = gradient(trainer_of, trainer_of.compute_loss, batch)
    assert passed == [sum(a != 0 and n > 0 for a, n in zip(advantages, tokens))]
    assert torch.allclose(part, full, atol=1e-6) and any(g.any() for g in expected)
    largest = max(g.abs().max() for g in expected)
    assert all((a - b).abs().max() < 1e-5 * largest for a, b in zip(gradients, expected))


CAPPED = ["grpo.loss_type=cispo", "grpo.epsilon=0.1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "cap"),
    [
        ([], 1.28),
        (["grpo.epsilon_high=4"], 5.0),
        (["grpo.epsilon_high=null"], 1.1),  # as far above as epsilon is below
    ],
)
def test_under_cispo_a_token_s_weight_is_its_ratio_up_to_1_and_epsilon_high(tmp_path, overrides, cap):
    chosen, run = small(tmp_path, *CAPPED, *overrides)
    trainer = train.make_trainer(chosen, run, [length_reward] * 2)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    worth, tokens = [1.0, -0.5, 2.0], [3, 4, 2]
    batch = batch_of(trainer, worth, tokens)
    logps = []
    inner = trainer._get_per_token_logps_and_entropies

    def kept(*args, **kwargs):
        outputs = inner(*args, **kwargs)
        logps.append(outputs[0])
        return outputs

    trainer._get_per_token_logps_and_entropies = kept
    trainer.compute_loss(trainer.model, batch)
    ratios = torch.tensor([[0.1, 1.0, 1.05, 9.0], [1.2, 0.5, 3.0, 1.0], [7.0, 1.4, 1.0, 1.0]])
    batch["old_per_token_logps"] = logps[0].detach() - ratios.log()
    _, gradients = gradient(trainer, trainer.compute_loss, batch)

    def by_formula(model, batch):
        weighed = ratios.clamp(max=cap) * torch.tensor(worth)[:, None] * batch["completion_mask"]
        trainer.compute_loss(model, batch)  # log-probs with a graph of their own
        return -(weighed * logps[-1]).sum() / sum(tokens)

    _, expected = gradient(trainer, by_formula, batch)
    largest = max(g.abs().max() for g in expected)
    assert largest > 0 and all((a - b).abs().max() < 1e-5 * largest for a, b in zip(gradients, expected))


@pytest.mark.slow
def test_a_stages_epsilon_high_is_used_under_cispo(tmp_path):
    stages = ["max_completion_length: 8, steps: 1", "max_completion_length: 8, steps: 1, epsilon_high: 4"]
    stages = f"grpo.stages=[{', '.join(f'{{{stage}}}' for stage in [*stages, 'max_completion_length: 8'])}]"
    chosen, run = small(tmp_path, *CAPPED, "grpo.epsilon_high=null", stages, "grpo.max_steps=3")
    trainer, epsilons = train.make_trainer(chosen, run, [length_reward] * 2), []
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: (
        epsilons.append(trainer.epsilon_high) or compute_loss(*args, **kwargs)
    )
    trainer.train()
    assert epsilons[-3:] == [1.1, 5.0, 1.1]


def test_a_batch_with_zero_advantages_has_a_gradient_of_zeros(trainer_of):
    loss, gradients = gradient(trainer_of, trainer_of.compute_loss, batch_of(trainer_of, [0.0] * 4, [3, 2, 4, 1]))
    assert loss == 0 and not any(g.any() for g in gradients)


def test_with_a_kl_term_every_completion_counts(trainer_of, monkeypatch):
    monkeypatch.setattr(trainer_of, "beta", 0.1)
    batch = batch_of(trainer_of, [0.0, 0.0], [3, 4])
    batch["ref_per_token_logps"] = torch.zeros(2, 4)
    loss, gradients = gradient(trainer_of, trainer_of.compute_loss, batch)
    assert loss > 0 and any(g.any() for g in gradients)


def test_an_error_in_sampling_leaves_the_model_as_it_was(monkeypatch):
    base = types.SimpleNamespace(keep_logps=False, part_of=None)

    def fail(rows):
        assert base.keep_logps and base.part_of == (2, 4) and rows == [{"prompt": "b"}] * 2
        raise ZeroDivisionError

    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "local_slice", lambda count: slice(2, 4))
    trainer = types.SimpleNamespace(
        num_generations=2, sampling_round=0, rows=[{"prompt": "a"}, {"prompt": "b"}], sample_batch=fail,
        args=types.SimpleNamespace(seed=1), state=types.SimpleNamespace(global_step=0), _base_model=lambda: base,
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        GroupTrainer._sample_groups(trainer, [0, 1])
    assert not base.keep_logps and base.part_of is None


@pytest.mark.slow
@pytest.mark.parametrize("four", ["policy.load_in_4bit=false", "policy.load_in_4bit=true"])
def test_sampler_and_trainer_compute_the_same_log_probs_and_a_gap_is_logged(tmp_path, four, monkeypatch):
    decoders = []
    make_decoder = one_token.make_decoder
    monkeypatch.setattr(one_token, "make_decoder", lambda *told: decoders.append(make_decoder(*told)) or decoders[-1])
    chosen, run = small(tmp_path, "grpo.max_steps=2", "grpo.resample_budget=1", four)
    trainer = train.make_trainer(chosen, run, [length_reward] * 2)
    trainer.train()
    # What training puts around the forward passes leaves the sampler its own, also in the second step.
    assert len(decoders) >= 2 and all(decoders)
    assert all(0 < row["sampling/logp_gap"] < 1e-4 for row in read_lines(run.metrics))
    chosen, run = small(tmp_path / "other", "grpo.max_steps=1")
    trainer = train.make_trainer(chosen, run, [length_reward] * 2)
    for module in trainer.model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.1, float("inf"))  # as the limit that sampling does not know would
    trainer.train()
    assert read_lines(run.metrics)[0]["sampling/logp_gap"] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("loss, prompts_in_each", [("dapo", [1, 1, 1, 1]), ("bnpo", None)])
def test_a_prompt_is_read_once_in_training_which_changes_rounding_only(tmp_path, monkeypatch, loss, prompts_in_each):
    """Four groups of four in four micro-batches. TRL mixes them; with `bnpo` a row's weight depends on the mixture."""
    shuffled = ["grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=4", f"grpo.loss_type={loss}"]

    def take_step(name):
        chosen, run = small(tmp_path / name, *shuffled, "grpo.max_steps=1", "grpo.mask_truncated_completions=false")
        trainer, layouts = train.make_trainer(chosen, run, [length_reward] * 2), []
        trainer.remove_callback(WorstStepCallback)
        layer = trainer.model.get_base_model().model.layers[0]
        layer.register_forward_pre_hook(lambda *args: layouts.append(args[2].get("layout")), with_kwargs=True)
        trainer.train()
        row = read_lines(run.metrics)[0]
        return row, list(filter(None, layouts))

    shared, layouts = take_step("shared")
    assert prompts_in_each is None or [len(layout.start) for layout in layouts] == prompts_in_each
    monkeypatch.setattr("grpo_kit.training.grpo.trainer.share_prompts", lambda model: None)
    monkeypatch.setattr(GroupTrainer, "arrange", OpenGRPOTrainer.arrange)
    alone, none = take_step("alone")
    assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4) and none == []
    assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-6) and shared["sampling/logp_gap"] < 1e-4
    # TRL logs the mean of the micro-batches' means.
    assert shared["entropy"] == pytest.approx(alone["entropy"], rel=1e-4 if loss == "bnpo" else 1e-2)


@pytest.mark.slow
def test_stages_change_the_length_and_go_on_from_the_same_adapter(tmp_path):
    chosen, run = small(
        tmp_path, "grpo.stages=[{max_completion_length: 6, steps: 2},{max_completion_length: 40}]", "grpo.max_steps=4",
        "grpo.mask_truncated_completions=false",
    )  # fmt: skip
    train.train(chosen, run, [length_reward] * 2)
    rows = read_lines(run.metrics)
    assert [row["stage"] for row in rows] == [0, 0, 1, 1]
    assert [row["completions/max_length"] > 6 for row in rows] == [False, False, True, True]
    assert rows[0]["completions/clipped_ratio"] == 1.0
    assert json.loads(run.forecast.read_text())["completion_tokens"] == 40  # the probe tried the longest


@pytest.mark.slow
def test_each_environment_keeps_its_share_of_every_step_and_has_its_own_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "even.py").write_text(
        "def even_reward(completions, tag, **_):\n"
        "    assert None not in tag\n"
        "    return [float(i % 2) for i in range(len(completions))]\n"
    )
    lines = [json.dumps({"environment": "even", "prompt": f"{i}?", "tag": "t"}) for i in range(40)]
    (tmp_path / "even.jsonl").write_text("\n".join(lines) + "\n")
    chosen, run = small(
        tmp_path, "data.source=tiny-sums,even.jsonl", "environments.even.reward_funcs=[even.py]",
        "data.mix={math: 3, even: 1}", "data.test_size=4", "data.val_size=4", "grpo.resample_budget=1",
        "grpo.eval_steps=2",
    )  # fmt: skip
    trainer = train.make_trainer(chosen, run, [length_reward] * 2)
    trained = []
    judge = trainer.make_batch

    def watch(rows):
        batch = judge(rows)
        trained.append([trainer.processing_class.decode(ids) for ids in batch["prompt_ids"]])
        return batch

    monkeypatch.setattr(trainer, "make_batch", watch)
    trainer.train()
    rows = read_lines(run.metrics)
    for prompts in trained:
        assert len(prompts) == 16 and sum("What" not in prompt for prompt in prompts) == 4  # one group of four
    for row in rows:
        assert row["environments/even/reward"] == row["environments/even/right"] == 0.5
        assert row["environments/even/with_gradient"] == 1.0 and row["environments/math/reward"] > 1
        assert row["rewards/even_reward/mean"] == 0.5 and 0 <= row["environments/even/clipped"] <= 1
    assert {"held_out", "held_out/even", "held_out/math", "held_out/math_ci95"} <= set(rows[-1])
    judged = [(line["environment"], sorted(line["rewards"])) for line in read_lines(run.completions)]
    assert set(map(str, judged)) == {
        "('even', ['even_reward'])", "('math', ['length_reward', 'length_reward_2'])",
    }  # fmt: skip
