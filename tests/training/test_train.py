"""Real GRPO steps through TRL: the files they write, and that the configuration reaches the trainer."""

import asyncio
import json
import shutil
import warnings
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.nemotron import tiny
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from tests.helpers.settings import SAMPLE, SMALL


def small(tmp_path, *overrides, name="r"):
    chosen = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=2", *overrides])
    run = find_run(name, tmp_path / "runs")
    prepare(chosen, run)
    return chosen, run


def length_reward(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]


def zero_reward(completions, **kwargs):
    return [0.0] * len(completions)


@pytest.mark.slow
def test_training_leaves_the_documented_files(trained):
    chosen, run = trained
    assert sorted(p.name for p in run.adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    metrics = read_lines(run.metrics)
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert {
        "reward",
        "rewards/math_reward/mean",
        "completions/clipped_ratio",
        "frac_reward_zero_std",
        "grad_norm",
    } <= set(metrics[0])
    completions = read_lines(run.completions)
    assert len(completions) == 4 * chosen.grpo.per_device_train_batch_size
    assert set(completions[0]) == {"step", "group", "prompt", "completion", "answer", "rewards"}
    first_step = [line["group"] for line in completions if line["step"] == 1]
    assert first_step == [1 + place // chosen.grpo.num_generations for place in range(len(first_step))]
    for step in range(1, 5):
        paid = [c["rewards"]["math_reward"] for c in completions if c["step"] == step]
        assert sum(paid) / len(paid) == pytest.approx(metrics[step - 1]["rewards/math_reward/mean"], abs=1e-6)


@pytest.mark.slow
def test_every_lora_pair_has_moved(trained):
    _, run = trained
    tensors = load_file(run.adapter / "adapter_model.safetensors")
    assert len(tensors) == 12
    assert all(value.any() for name, value in tensors.items() if "lora_B" in name)


@pytest.mark.slow
def test_with_a_kl_term_from_the_start_the_reference_is_the_base_model(tmp_path):
    chosen, run = small(tmp_path, "grpo.beta=0.1", "grpo.learning_rate=3e-3")
    train.train(chosen, run, [length_reward, zero_reward])
    first, second = (row["kl"] for row in read_lines(run.metrics))
    assert first == pytest.approx(0, abs=1e-6) and second > 1e-4
    assert sorted(p.name for p in run.adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert not any(".ref." in name for name in load_file(run.adapter / "adapter_model.safetensors"))


@pytest.mark.slow
def test_the_run_records_its_inputs(trained):
    _, run = trained
    notes = run.stages()
    assert notes["train"]["read"] == {"data/manifest.json": hash_of(run.manifest)}
    assert notes["after"]["read"]["adapter"] == hash_of(run.adapter) == notes["train"]["wrote"]["adapter"]
    assert config.load_config([str(run.config)]).grpo.max_steps == 4


@pytest.mark.slow
def test_the_same_seed_gives_the_same_adapter(tmp_path):
    hashes = []
    for name in ("a", "b"):
        chosen, run = small(tmp_path, name=name)
        train.train(chosen, run, [length_reward, zero_reward])
        hashes.append(hash_of(run.adapter / "adapter_model.safetensors"))
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_the_reward_is_what_changes_the_policy(tmp_path):
    """Paying for length makes replies longer than paying for shortness; with equal rewards no weight moves."""
    tensors = {}
    for name, reward in (("long", length_reward), ("none", zero_reward)):
        chosen, run = small(tmp_path, name=name)
        train.train(chosen, run, [reward, zero_reward])
        tensors[name] = load_file(run.adapter / "adapter_model.safetensors")
    moved = {name: sum(v.abs().sum() for k, v in adapter.items() if "lora_B" in k) for name, adapter in tensors.items()}
    assert moved["long"] > 0 and moved["none"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("targets", "warned"), [("q_proj,shared_experts.up_proj", True), ("q_proj,in_proj", False)])
def test_a_target_that_the_challenges_scorer_drops_is_named_before_the_first_step(tmp_path, targets, warned):
    chosen, run = small(tmp_path, f"lora.target_modules=[{targets}]")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train.make_trainer(chosen, run, [length_reward, zero_reward])
    said = [str(warning.message) for warning in caught if "vLLM" in str(warning.message)]
    sentence = "The challenge's scorer (vLLM 0.17.1) drops a LoRA on shared experts, "
    assert len(said) == warned and all(text.startswith(sentence) for text in said)
    assert all("lora.target_modules=[in_proj,out_proj,q_proj,k_proj,v_proj,o_proj]" in text for text in said)


@pytest.mark.slow
def test_a_trained_run_is_not_trained_again(tmp_path, monkeypatch):
    chosen, run = small(tmp_path)
    last = train.train(chosen, run, [length_reward, zero_reward])
    monkeypatch.setattr(train, "make_trainer", lambda *_, **__: pytest.fail("trained again"))
    assert train.train(chosen, run, [length_reward, zero_reward]) == last
    other = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=1"])
    with pytest.raises(ValueError, match=r"grpo\.max_steps was 2, now 1.*--force"):
        train.train(other, run, [length_reward, zero_reward])


@pytest.mark.slow
def test_another_reward_of_the_same_name_is_noticed(tmp_path):
    chosen, run = small(tmp_path, "grpo.max_steps=1")
    train.train(chosen, run, [length_reward, zero_reward])
    (tmp_path / "other.py").write_text(
        "def length_reward(completions, **kwargs):\n    return [0.5] * len(completions)\n"
    )
    other = load_reward(f"{tmp_path / 'other.py'}:length_reward")
    with pytest.raises(ValueError, match="the file of length_reward has changed since"):
        train.train(chosen, run, [other, zero_reward])


def test_training_without_data_names_the_missing_stage(tmp_path):
    with pytest.raises(FileNotFoundError, match="`grpo-kit data` first"):
        train.train(config.load_config(["tiny"]), find_run("r", tmp_path), [length_reward, zero_reward])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError("a reward broke")])
def test_an_interrupted_training_leaves_the_earlier_stages_whole_and_no_adapter(tmp_path, stop):
    chosen, run = small(tmp_path)
    before = {p: hash_of(p) for p in (run.manifest.parent, run.notes, run.config)}

    def breaks(trainer_state, completions, **kwargs):
        if trainer_state.global_step == 1:
            raise stop
        return length_reward(completions)

    with pytest.raises(stop if isinstance(stop, type) else type(stop)):
        train.train(chosen, run, [breaks, zero_reward])
    assert {p: hash_of(p) for p in before} == before
    assert not run.adapter.exists() and len(read_lines(run.metrics)) == 1
    train.train(chosen, run, [length_reward, zero_reward])  # and the same call works afterwards
    assert [row["step"] for row in read_lines(run.metrics)] == [1, 2]


@pytest.mark.slow
def test_an_interrupted_repetition_keeps_the_old_adapter(tmp_path):
    chosen, run = small(tmp_path)
    train.train(chosen, run, [length_reward, zero_reward])
    old = hash_of(run.adapter)
    again = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=2", "run.force=true"])
    with pytest.raises(KeyboardInterrupt):
        train.train(again, run, [lambda **_: (_ for _ in ()).throw(KeyboardInterrupt), zero_reward])
    assert hash_of(run.adapter) == old


@pytest.mark.slow
def test_an_unusable_gold_is_skipped_and_recorded_as_none(tmp_path):
    chosen, run = small(tmp_path)

    def half(completions, **kwargs):
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    train.train(chosen, run, [half, zero_reward])
    assert {c["rewards"]["half"] for c in read_lines(run.completions)} == {None, 1.0}


@pytest.mark.slow
def test_an_async_reward_works_as_in_trl(tmp_path):
    async def slow_reward(completions, **kwargs):
        await asyncio.sleep(0)
        return [1.0] * len(completions)

    chosen, run = small(tmp_path, "grpo.max_steps=1")
    last = train.train(chosen, run, [length_reward, slow_reward])
    assert last["rewards/slow_reward/mean"] == 1.0
    assert read_lines(run.completions)[0]["rewards"]["slow_reward"] == 1.0


@pytest.mark.slow
def test_training_runs_on_real_word_problems(tmp_path, math_reward):
    chosen = config.load_config(
        ["tiny"],
        [f"data.source={SAMPLE}", "data.test_size=20", "data.val_size=5", "grpo.max_steps=2",
         "grpo.per_device_train_batch_size=8", "grpo.num_generations=4", "grpo.gradient_accumulation_steps=2",
         "grpo.max_completion_length=24", "grpo.resample_budget=0"],
    )  # fmt: skip
    run = find_run("words", tmp_path)
    prepare(chosen, run)
    last = train.train(chosen, run, [math_reward, zero_reward])
    assert last["step"] == 2 and len(read_lines(run.completions)) == 32
    assert "####" not in {c["answer"] for c in read_lines(run.completions)}


@pytest.mark.slow
def test_on_step_sees_each_metrics_row(tmp_path):
    chosen, run = small(tmp_path)
    rows = []
    train.train(chosen, run, [length_reward, zero_reward], rows.append)
    assert [json.loads(json.dumps(row)) for row in rows] == read_lines(run.metrics)


@pytest.mark.slow
def test_a_lora_that_gets_no_gradient_stops_the_run_and_is_named(tmp_path):
    chosen, run = small(tmp_path)
    trainer = train.make_trainer(chosen, run, [length_reward, zero_reward])
    broken = next(module for name, module in trainer.model.named_modules() if name.endswith("mixer.k_proj"))
    broken.forward = broken.base_layer.forward  # the LoRA is passed by, as the fused kernel does to out_proj
    with pytest.raises(RuntimeError, match="1 of 6 LoRA pairs get no gradient.*k_proj"):
        trainer.train()


@pytest.mark.slow
def test_a_batch_without_any_gradient_does_not_stop_a_run(tmp_path):
    chosen, run = small(tmp_path)
    assert train.train(chosen, run, [zero_reward, zero_reward])["step"] == 2


@pytest.mark.slow
def test_in_4_bit_the_lora_is_float32_after_trl_has_cast_it(tmp_path):
    chosen, run = small(tmp_path, "policy.load_in_4bit=true", "policy.experts_on_host=0.5")
    trainer = train.make_trainer(chosen, run, [length_reward, zero_reward])
    trained = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert {str(dtype) for dtype in trained} == {"torch.float32"}
    trainer.train()
    assert all(p.any() for n, p in trainer.model.named_parameters() if "lora_B" in n)


@pytest.mark.slow
def test_fp16_on_a_cpu_is_ignored_and_training_continues(tmp_path):
    """The T4 preset's scaler: without a GPU accelerate leaves mixed precision off, so the key changes nothing."""
    adapters = []
    for value in ("false", "true"):
        chosen, run = small(tmp_path, f"grpo.fp16={value}", "grpo.max_steps=1", name=value)
        train.train(chosen, run, [length_reward, zero_reward])
        adapters.append(hash_of(run.adapter / "adapter_model.safetensors"))
    assert adapters[0] == adapters[1]


@pytest.mark.slow
def test_experts_that_no_token_chose_are_not_dead_lora_pairs(tmp_path):
    chosen, run = small(
        tmp_path, "policy.load_in_4bit=true", "lora.target_modules=[q_proj,up_proj,down_proj]", "grpo.max_steps=1",
        "grpo.max_completion_length=1", "grpo.per_device_train_batch_size=2", "grpo.num_generations=2",
        "grpo.mask_truncated_completions=false",
    )  # fmt: skip

    def unequal(completions, **kwargs):
        return [float(i % 2) for i in range(len(completions))]

    trainer = train.make_trainer(chosen, run, [unequal, zero_reward])
    trainer.train()
    loras = {n: p for n, p in trainer.model.named_parameters() if "lora_B" in n and ".experts." in n}
    untouched = [n for n, p in loras.items() if not p.any()]
    assert 0 < len(untouched) < len(loras)


@pytest.mark.slow
def test_a_routed_expert_whose_lora_is_bypassed_is_named(tmp_path, monkeypatch):
    from grpo_kit.nemotron import experts

    chosen, run = small(tmp_path, "policy.load_in_4bit=true", "lora.target_modules=[q_proj,up_proj,down_proj]")
    trainer = train.make_trainer(chosen, run, [length_reward, zero_reward])
    inner = experts.TieredExperts.active_loras
    monkeypatch.setattr(
        experts.TieredExperts, "active_loras", lambda self: {e: (None, down) for e, (_, down) in inner(self).items()}
    )
    with pytest.raises(RuntimeError, match=r"16 of \d+ LoRA pairs get no gradient.*experts.0.up_proj"):
        trainer.train()


def test_a_policy_whose_template_takes_no_system_turn_is_refused_before_its_weights_are_loaded(tmp_path):
    chosen, run = small(tmp_path, "data.system_prompt=S")
    folder = tmp_path / "policy"
    shutil.copytree(tiny.FOLDER, folder)
    (folder / "model.safetensors").unlink()
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    other = replace(chosen, policy=replace(chosen.policy, model=str(folder)))
    with pytest.raises(ValueError, match="takes no system turn .*Leave data.system_prompt empty"):
        train.train(other, run, [zero_reward, length_reward])
    assert not run.adapter.exists()
